"""Whole directory trees in sandboxes: find, search, replace, add up, and archives in and out.

The walking is the agent's, inside; here are scopes, forms, limits and waking.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from cove.agentlink.client import FileReader
from cove.core.access import require
from cove.core.audit import Audit
from cove.core.directory import Directory
from cove.core.filenotes import FileNotes
from cove.core.validation import check_count, check_path, check_principal, check_timeout
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, TooLarge
from cove.model.files import FileInfo, FileKind
from cove.model.trees import FindEnd, Match, Replacement, Search, SearchEnd, TreeUsage, Unpacked, Unpacking, Walk

MATCHES: Final = 1000
"""So many matches are told unless the caller says otherwise; rewritten files likewise."""

_ALL: Final = (0, 2**63 - 1)
_DEPTH: Final = (0, 1024)
_TIMEOUT_S: Final = (1.0, 3600.0)
_GLOBS: Final = 64
_GLOB_BYTES: Final = 1024
_PATTERN_BYTES: Final = 1024
_REPLACEMENT_BYTES: Final = 1024 * 1024
_SEARCHED_BYTES: Final = (1, 1024**3)
_REPLACED_BYTES: Final = (1, 16 * 1024**2)
_LINE_BYTES: Final = (16, 4096)
_REWRITTEN: Final = (1, 10_000)


class Trees:
    """Every operation on trees. All raise Forbidden, NotFound (sandbox), Gone, BadRequest, FileError, SandboxError."""

    def __init__(self, directory: Directory, audit: Audit) -> None:
        self._directory = directory
        self._notes = FileNotes(audit)

    @asynccontextmanager
    async def find(  # noqa: PLR0913 - what to list, all by name
        self,
        who: Principal,
        ref: str,
        path: str,
        walk: Walk,
        *,
        kinds: Sequence[FileKind] = (),
        limit: int = 0,
    ) -> AsyncGenerator[AsyncIterator[list[FileInfo] | FindEnd]]:
        """List what is below a directory, in pieces; the last item is FindEnd. `limit` 0: all there is."""
        require(who, Scope.FILES)
        _check_walk(path, walk)
        check_count(limit, _ALL, "limit")
        async with self._directory.live(who, ref).lease() as box:  # noqa: SIM117 - the lease outlives the stream
            async with box.agent.find(path, walk, kinds=kinds, limit=limit) as pieces:
                yield pieces

    @asynccontextmanager
    async def search(  # noqa: PLR0913 - what to search, all by name
        self, who: Principal, ref: str, path: str, walk: Walk, *, search: Search, limit: int = MATCHES
    ) -> AsyncGenerator[AsyncIterator[list[Match] | SearchEnd]]:
        """Search files for lines, in pieces; the last item is SearchEnd. `limit` 0: all matches."""
        require(who, Scope.FILES)
        _check_walk(path, walk)
        _check_text(search.pattern, _PATTERN_BYTES, "pattern")
        check_count(search.max_file_bytes, _SEARCHED_BYTES, "max_file_bytes")
        check_count(search.max_line_bytes, _LINE_BYTES, "max_line_bytes")
        check_count(limit, _ALL, "limit")
        async with self._directory.live(who, ref).lease() as box:  # noqa: SIM117 - the lease outlives the stream
            async with box.agent.search(path, walk, search, limit=limit) as pieces:
                yield pieces

    async def replace(  # noqa: PLR0913 - what to replace, all by name
        self,
        who: Principal,
        ref: str,
        path: str,
        walk: Walk,
        *,
        search: Search,
        replacement: str,
        limit: int = MATCHES,
        dry_run: bool = False,
    ) -> Replacement:
        """Rewrite what matches, in at most `limit` files, each whole or not at all. Cancelling leaves some rewritten.

        A literal pattern may span lines; a regular expression is matched line by line, `$1` and `${name}` are groups.
        """
        require(who, Scope.FILES)
        _check_walk(path, walk)
        plain = search.literal and not search.ignore_case
        _check_text(search.pattern, _REPLACEMENT_BYTES if plain else _PATTERN_BYTES, "pattern")
        check_count(search.max_file_bytes, _REPLACED_BYTES, "max_file_bytes")
        check_count(limit, _REWRITTEN, "limit")
        if replacement:
            _check_text(replacement, _REPLACEMENT_BYTES, "replacement")
        self._notes.check()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            done = await box.agent.replace(path, walk, search, replacement, limit=limit, dry_run=dry_run)
            if not dry_run:
                await self._notes.kept("file.replaced", who, supervisor.sandbox, path=path, files=len(done.files))
            return done

    async def usage(self, who: Principal, ref: str, path: str, walk: Walk) -> TreeUsage:
        """What a tree holds, in bytes and entries."""
        require(who, Scope.FILES)
        _check_walk(path, walk)
        async with self._directory.live(who, ref).lease() as box:
            return await box.agent.usage(path, walk)

    @asynccontextmanager
    async def pack(  # noqa: PLR0913 - what to pack, all by name
        self,
        who: Principal,
        ref: str,
        path: str,
        *,
        exclude: tuple[str, ...] = (),
        gzip: bool = False,
        max_bytes: int = 0,
    ) -> AsyncGenerator[FileReader]:
        """A directory as a tar stream, names relative to it; sockets, FIFOs and devices are left out."""
        require(who, Scope.FILES)
        _check_walk(path, Walk(exclude=exclude))
        check_count(max_bytes, _ALL, "max_bytes")
        self._notes.check()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:  # noqa: SIM117 - the lease outlives the reader
            async with box.agent.pack(path, exclude=exclude, gzip=gzip, max_bytes=max_bytes) as reader:
                await self._notes.kept("file.downloaded", who, supervisor.sandbox, path=path, archive=True)
                yield reader

    async def unpack(
        self, who: Principal, ref: str, path: str, chunks: AsyncIterable[bytes], unpacking: Unpacking
    ) -> Unpacked:
        """Unpack a tar, perhaps packed by gzip, into a directory. What a failure comes after stays."""
        require(who, Scope.FILES)
        check_path(path)
        check_principal(unpacking.owner, "owner")
        check_principal(unpacking.group, "group")
        check_count(unpacking.max_bytes, _ALL, "max_bytes")
        if unpacking.owners and (unpacking.owner or unpacking.group):
            raise BadRequest("owners excludes owner and group", field="owners")
        self._notes.check()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            done = await box.agent.unpack(path, chunks, unpacking)
            await self._notes.kept(
                "file.uploaded", who, supervisor.sandbox, path=path, archive=True, size_bytes=done.bytes
            )
            return done

    async def link(  # noqa: PLR0913 - the link's properties, all by name
        self,
        who: Principal,
        ref: str,
        path: str,
        target: str,
        *,
        hard: bool = False,
        overwrite: bool = False,
        parents: bool = False,
    ) -> FileInfo:
        """Make a symbolic link to any text, or with `hard` another name of a file."""
        require(who, Scope.FILES)
        check_path(path)
        _check_text(target, 4095, "target")
        if hard:
            check_path(target, "target")
        self._notes.check()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            made = await box.agent.link(path, target, hard=hard, overwrite=overwrite, parents=parents)
            await self._notes.kept("file.linked", who, supervisor.sandbox, path=path, to=target)
            return made


def _check_walk(path: str, walk: Walk) -> None:
    check_path(path)
    check_count(walk.depth, _DEPTH, "depth")
    check_timeout(walk.timeout_s, "timeout_s", _TIMEOUT_S)
    for field, patterns in (("glob", walk.glob), ("exclude", walk.exclude)):
        if len(patterns) > _GLOBS:
            raise TooLarge(f"{field} has more than {_GLOBS} patterns", field=field)
        for pattern in patterns:
            _check_text(pattern, _GLOB_BYTES, field)


def _check_text(value: str, limit: int, field: str) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise BadRequest(f"{field} is no valid Unicode text", field=field) from None
    if not value or "\0" in value:
        raise BadRequest(f"{field} is empty or has a NUL", field=field)
    if size > limit:
        raise TooLarge(f"{field} has more than {limit} bytes", field=field)
