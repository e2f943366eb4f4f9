"""Files in sandboxes. Every path is resolved by the agent, inside; here are scopes, forms and waking."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import asynccontextmanager
from typing import Final

from cove.agentlink.client import FileReader
from cove.core.access import require
from cove.core.audit import Audit
from cove.core.directory import Directory
from cove.core.filenotes import FileNotes
from cove.core.validation import check_count, check_mode, check_owner, check_page, check_path, check_principal
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, TooLarge
from cove.model.files import Attributes, FileInfo, FilePage

OFFSETS = (0, 2**63 - 1)
MOST_NAMES: Final = 100_000
"""Entries of a directory that is listed without pages."""


class Files:
    """Every operation on files. All raise Forbidden, NotFound (sandbox), Gone, BadRequest, FileError, SandboxError."""

    def __init__(self, directory: Directory, audit: Audit) -> None:
        self._directory = directory
        self._notes = FileNotes(audit)

    async def stat(self, who: Principal, ref: str, path: str, *, follow: bool = False) -> FileInfo:
        """One entry; links are reported, and followed only if asked."""
        require(who, Scope.FILES)
        check_path(path)
        async with self._directory.live(who, ref).lease() as box:
            return await box.agent.stat(path, follow=follow)

    async def list_page(
        self, who: Principal, ref: str, path: str, *, limit: int = 1000, cursor: str | None = None
    ) -> FilePage:
        """One page of a directory in byte order of names; the cursor is the last name of the page before."""
        require(who, Scope.FILES)
        check_path(path)
        check_page(limit)
        if cursor is not None and ("\0" in cursor or "/" in cursor or not cursor):
            raise BadRequest("no such cursor", field="cursor")
        async with self._directory.live(who, ref).lease() as box:
            entries, has_more = await box.agent.list(path, limit=limit, after=cursor)
            return FilePage(entries=tuple(entries), cursor=entries[-1].name if has_more and entries else None)

    async def names(self, who: Principal, ref: str, path: str) -> list[str]:
        """All names in a directory, in byte order, without pages. Raises: TooLarge beyond MOST_NAMES."""
        found: list[str] = []
        cursor: str | None = None
        while len(found) <= MOST_NAMES:
            page = await self.list_page(who, ref, path, cursor=cursor)
            found += [entry.name for entry in page.entries]
            cursor = page.cursor
            if cursor is None:
                return found
        raise TooLarge(f"this directory has more than {MOST_NAMES} entries", field="path")

    @asynccontextmanager
    async def read(
        self, who: Principal, ref: str, path: str, *, offset: int = 0, length: int = -1
    ) -> AsyncGenerator[FileReader]:
        """A regular file's bytes from `offset` on, `length` of them or (-1) all it had when it was opened."""
        require(who, Scope.FILES)
        check_path(path)
        check_count(offset, OFFSETS, "offset")
        check_count(length, (-1, OFFSETS[1]), "length")
        self._notes.check()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:  # noqa: SIM117 - the lease outlives the reader
            async with box.agent.read(path, offset=offset, length=length) as reader:
                size = reader.info.size
                await self._notes.kept("file.downloaded", who, supervisor.sandbox, path=path, size_bytes=size)
                yield reader

    async def write(  # noqa: PLR0913 - one parameter per attribute of a write, all but the first by name
        self,
        who: Principal,
        ref: str,
        path: str,
        chunks: AsyncIterable[bytes],
        *,
        mode: int = -1,
        parents: bool = False,
        exclusive: bool = False,
        append: bool = False,
        offset: int = -1,
        uid: int = -1,
        gid: int = -1,
        sync: bool = False,
    ) -> FileInfo:
        """Write a file of any size: whole or not at all, unless `append` or `offset` is given.

        `sync`: it survives a power cut once this returns. Cancelling leaves the old one.
        """
        require(who, Scope.FILES)
        check_path(path)
        check_mode(mode)
        check_owner(uid, "uid")
        check_owner(gid, "gid")
        check_count(offset, (-1, OFFSETS[1]), "offset")
        self._notes.check()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            written = await box.agent.write(
                path,
                chunks,
                mode=mode,
                parents=parents,
                exclusive=exclusive,
                append=append,
                offset=offset,
                uid=uid,
                gid=gid,
                sync=sync,
            )
            await self._notes.kept("file.uploaded", who, supervisor.sandbox, path=path, size_bytes=written.size)
            return written

    async def mkdir(self, who: Principal, ref: str, path: str, *, mode: int = 0o755, parents: bool = False) -> FileInfo:
        """Make a directory, with `parents` also those above it."""
        require(who, Scope.FILES)
        check_path(path)
        check_mode(mode)
        self._notes.check()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            made = await box.agent.mkdir(path, mode=mode, parents=parents)
            await self._notes.kept("file.directory_made", who, supervisor.sandbox, path=path)
            return made

    async def move(self, who: Principal, ref: str, source: str, target: str, *, overwrite: bool = False) -> FileInfo:
        """Rename within the sandbox."""
        require(who, Scope.FILES)
        check_path(source, "from")
        check_path(target, "to")
        self._notes.check()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            moved = await box.agent.move(source, target, overwrite=overwrite)
            await self._notes.kept("file.moved", who, supervisor.sandbox, path=source, to=target)
            return moved

    async def remove(self, who: Principal, ref: str, path: str, *, recursive: bool = False) -> int:
        """Remove a file or directory; returns how many entries that were."""
        require(who, Scope.FILES)
        check_path(path)
        self._notes.check()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            entries = await box.agent.remove(path, recursive=recursive)
            await self._notes.kept("file.removed", who, supervisor.sandbox, path=path, entries=entries)
            return entries

    async def set_attributes(self, who: Principal, ref: str, path: str, change: Attributes) -> FileInfo:
        """Change permission bits or owners, with `recursive` of a whole tree. Cancelling leaves some changed."""
        require(who, Scope.FILES)
        check_path(path)
        check_mode(change.mode)
        check_mode(change.directory_mode, "directory_mode")
        check_owner(change.uid, "uid")
        check_owner(change.gid, "gid")
        check_principal(change.owner, "owner")
        check_principal(change.group, "group")
        if (change.owner and change.uid >= 0) or (change.group and change.gid >= 0):
            raise BadRequest("owner excludes uid, and group gid", field="owner")
        if change.directory_mode >= 0 and not change.recursive:
            raise BadRequest("directory_mode goes with recursive", field="directory_mode")
        self._notes.check()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            changed = await box.agent.set_attributes(path, change)
            await self._notes.kept("file.changed", who, supervisor.sandbox, path=path, recursive=change.recursive)
            return changed
