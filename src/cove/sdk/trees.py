"""Whole directory trees in a sandbox: the part of `box.files` that walks. The walking happens inside."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cove.sdk.client import Client
    from cove.sdk.models import FileInfo
    from cove.sdk.transport import Call
    from cove.sdk.tree_calls import LineParser, Patterns, T
    from cove.sdk.tree_models import Match, Replacement, TreeCopy, TreeUsage
    from cove.sdk.units import Duration


class Trees:
    """What `Files` has for trees.

    A glob without a slash is matched against names, one with a slash against paths below the directory; `**` crosses
    directories, `{a,b}` is either. What `exclude` matches is not entered. `depth` 0 is all, 1 the directory's own
    entries. `timeout` None: as long as the server allows, an hour.
    """

    def __init__(self, ref: str, client: Client) -> None:
        self._ref = ref
        self._client = client

    def find(  # noqa: PLR0913 - the wire's own options
        self,
        path: str,
        glob: Patterns = (),
        *,
        exclude: Patterns = (),
        kind: Patterns = (),
        depth: int = 0,
        limit: int = 0,
        timeout: Duration | None = None,
    ) -> Iterator[FileInfo]:
        """Yield what is below a directory, as it is found; `kind` is `file`, `directory`, `symlink`, `other`.

        Raises: FileError, also when the time is over before all was seen.
        """
        from cove.sdk import tree_calls

        call = tree_calls.find(
            self._ref, path, glob=glob, exclude=exclude, kind=kind, depth=depth, limit=limit, timeout=timeout
        )
        return self._lines(call, tree_calls.entries())

    def search(  # noqa: PLR0913 - the wire's own options
        self,
        path: str,
        pattern: str,
        *,
        literal: bool = False,
        ignore_case: bool = False,
        glob: Patterns = (),
        exclude: Patterns = (),
        depth: int = 0,
        limit: int = 1000,
        timeout: Duration | None = None,
    ) -> Iterator[Match]:
        """Yield the lines of files that match a regular expression (RE2), or with `literal` have a text; 0: no limit.

        Raises: FileError, also when the time is over before all was seen.
        """
        from cove.sdk import tree_calls

        call = tree_calls.search(
            self._ref,
            path,
            pattern,
            literal=literal,
            ignore_case=ignore_case,
            glob=glob,
            exclude=exclude,
            depth=depth,
            limit=limit,
            timeout=timeout,
        )
        return self._lines(call, tree_calls.matches())

    def replace(  # noqa: PLR0913 - the wire's own options
        self,
        path: str,
        pattern: str,
        replacement: str,
        *,
        literal: bool = False,
        ignore_case: bool = False,
        glob: Patterns = (),
        exclude: Patterns = (),
        depth: int = 0,
        limit: int = 1000,
        dry_run: bool = False,
        timeout: Duration | None = None,
    ) -> Replacement:
        """Replace in a file, or in up to `limit` files of a tree; each is rewritten whole or not at all.

        A regular expression is matched line by line, `$1` and `${name}` in the replacement are its groups. With
        `literal` both are plain text and may span lines. `dry_run` tells what would be.
        """
        from cove.sdk import tree_calls

        call = tree_calls.replace(
            self._ref,
            path,
            pattern,
            replacement,
            literal=literal,
            ignore_case=ignore_case,
            glob=glob,
            exclude=exclude,
            depth=depth,
            limit=limit,
            dry_run=dry_run,
            timeout=timeout,
        )
        return self._client.call(call)

    def usage(self, path: str, *, exclude: Patterns = (), timeout: Duration | None = None) -> TreeUsage:
        """Add up what is below a directory."""
        from cove.sdk import tree_calls

        return self._client.call(tree_calls.usage(self._ref, path, exclude=exclude, timeout=timeout))

    def link(
        self, path: str, target: str, *, hard: bool = False, overwrite: bool = False, parents: bool = True
    ) -> FileInfo:
        """Make a symbolic link at `path`, or with `hard` another name of the file `target`."""
        from cove.sdk import tree_calls

        return self._client.call(
            tree_calls.link(self._ref, path, target, hard=hard, overwrite=overwrite, parents=parents)
        )

    @contextmanager
    def archive(
        self, path: str, *, exclude: Patterns = (), gzip: bool = False, max_bytes: int = 0
    ) -> Generator[Iterator[bytes]]:
        """Open a directory as a tar stream: `with box.files.archive("/w") as pieces: …`. Unpack it with care."""
        from cove.sdk import tree_calls

        call = tree_calls.pack(self._ref, path, exclude=exclude, gzip=gzip, max_bytes=max_bytes)
        with self._client.open(call) as response:
            yield response.chunks()

    def unpack(  # noqa: PLR0913 - the wire's own options
        self,
        path: str,
        data: bytes | Iterable[bytes],
        *,
        owner: str = "",
        group: str = "",
        owners: bool = False,
        special: bool = False,
        any_links: bool = False,
    ) -> int:
        """Unpack a tar, packed by gzip or not at all, into a directory of the sandbox; returns its entries.

        `owner` and `group` are names or numbers inside, `owners` takes those of the archive. Setuid bits and links that
        lead out of the directory are refused unless `special` or `any_links` says otherwise.
        """
        from cove.sdk import tree_calls
        from cove.sdk.wire import raw

        call = tree_calls.unpack(
            self._ref,
            path,
            raw(data),
            owner=owner,
            group=group,
            owners=owners,
            special=special,
            any_links=any_links,
        )
        return self._client.call(call)

    def download_dir(
        self,
        path: str,
        local: str | os.PathLike[str],
        *,
        exclude: Patterns = (),
        max_bytes: int | None = None,
    ) -> TreeCopy:
        """Copy what a directory has into the local directory `local`, made if missing, with flat memory.

        Nothing is written outside of it, whatever the sandbox sends: no link is followed, links that lead out are left
        out. Files are replaced whole. `max_bytes` None: as much as there is room for.

        Raises: FileError; OSError for the local directory; BadAnswer for an archive that is damaged or reaches outside.
        """
        from cove.sdk.tars import Unpacker

        with self.archive(path, exclude=exclude) as pieces:
            unpacker = Unpacker(os.fspath(local), max_bytes)
            try:
                for piece in pieces:
                    unpacker.feed(piece)
                return unpacker.close()
            finally:
                unpacker.drop()

    def upload_dir(self, local: str | os.PathLike[str], path: str, *, owner: str = "", group: str = "") -> TreeCopy:
        """Copy what a local directory has into a directory of the sandbox, made if missing, with flat memory.

        Links that lead out of it and special files are left out.
        """
        from cove.sdk.tars import Tally, packed

        tally = Tally()
        self.unpack(path, packed(os.fspath(local), tally), owner=owner, group=group)
        return tally.done()

    def _lines(self, call: Call[Any], parser: LineParser[T]) -> Iterator[T]:
        with self._client.open(call, events=True) as response:
            for piece in response.chunks():
                yield from parser.feed(piece)
            parser.close()
