"""Files in a sandbox, awaited. The twin of `cove.sdk.files`, without the mapping: assignment cannot be awaited."""

from __future__ import annotations

import builtins
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import IO

from anyio import to_thread

from cove.sdk import file_calls, models
from cove.sdk.aio.sending import body_of, pieces_of
from cove.sdk.aio.trees import Trees
from cove.sdk.errors import FileMissing
from cove.sdk.files import replacing, size_of
from cove.sdk.models import FileInfo


class Files(Trees):
    """`box.files`: `await box.files.write("/w/a", b"…")` and the methods here.

    Errors are also the usual ones: a missing file is a FileNotFoundError and a KeyError, each FileError an OSError.
    """

    async def read(self, path: str) -> bytes:
        """Return a whole file. It is held in memory: `get` and `stream` are for big ones."""
        async with self.stream(path) as pieces:
            return b"".join([piece async for piece in pieces])

    async def read_text(self, path: str, encoding: str = "utf-8") -> str:
        """Return a whole file as text."""
        return (await self.read(path)).decode(encoding)

    async def write(  # noqa: PLR0913 - the wire's own options
        self,
        path: str,
        data: str | bytes | Iterable[bytes] | AsyncIterable[bytes],
        *,
        mode: int | None = None,
        parents: bool = True,
        exclusive: bool = False,
        sync: bool = False,
        size: int | None = None,
    ) -> FileInfo:
        """Write a file: readers see the old one or the new one, nothing between, also when it is cancelled.

        `data` may be an iterable of bytes of any length, sent as it comes; `size` says its length where it is known.
        `mode` None keeps an existing file's; a new one gets 0644. Missing directories are made unless `parents` is
        False. `exclusive`: FilePresent if the file exists. `sync`: it survives a power cut once this returns.
        """
        flags = {"parents": parents, "exclusive": exclusive, "sync": sync}
        return await self._client.call(
            file_calls.upload(self._ref, path, body_of(data), size=size, mode=mode, flags=flags)
        )

    @asynccontextmanager
    async def stream(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Open a file for reading: `async with box.files.stream("/w/big") as pieces: async for piece in pieces: …`."""
        if length == 0:
            yield _no_pieces()
            return
        async with self._client.open(file_calls.download(self._ref, path, offset=offset, length=length)) as response:
            yield response.chunks()

    async def put(
        self,
        local: str | os.PathLike[str] | IO[bytes],
        path: str,
        *,
        mode: int | None = None,
        parents: bool = True,
    ) -> FileInfo:
        """Upload a local file, by path or open for reading, of any size and with flat memory; read in a thread.

        Args:
            local: a path, or a binary file object that is read from where it stands.
            path: where it goes, absolute.
            mode: permission bits; None: the local file's for a path, the default for a file object.
            parents: make missing directories.

        Raises: FileError, TooLarge; OSError for the local file.
        """
        if not isinstance(local, str | os.PathLike):
            return await self.write(path, pieces_of(local), mode=mode, parents=parents)
        file = await to_thread.run_sync(_open, local)
        with file:
            facts = os.fstat(file.fileno())
            mode = stat.S_IMODE(facts.st_mode) & 0o777 if mode is None else mode
            return await self.write(path, pieces_of(file), mode=mode, parents=parents, size=size_of(facts))

    async def get(self, path: str, local: str | os.PathLike[str] | IO[bytes]) -> int:
        """Download to a local file, by path or open for writing, with flat memory; returns the bytes written.

        A break leaves the file at a local path as it was: the bytes go to a file beside it that replaces it at the
        end. A file object has then what came so far.

        Raises: FileMissing, FileError; OSError for the local file.
        """
        if not isinstance(local, str | os.PathLike):
            return await self._copy(path, local)
        with replacing(os.fspath(local)) as file:
            return await self._copy(path, file)

    async def _copy(self, path: str, file: IO[bytes]) -> int:
        count = 0
        async with self.stream(path) as pieces:
            async for piece in pieces:
                count += await to_thread.run_sync(file.write, piece)
        return count

    async def stat(self, path: str) -> FileInfo:
        """Return what is at `path`; a link is shown as itself."""
        return await self._client.call(file_calls.stat(self._ref, path))

    async def exists(self, path: str) -> bool:
        """Whether something is at `path`; a link counts, wherever it leads."""
        try:
            await self.stat(path)
        except FileMissing:
            return False
        return True

    async def list(self, path: str) -> AsyncIterator[FileInfo]:
        """Yield a directory's entries in byte order of names; fetched in pages as the iteration reaches them."""
        cursor: str | None = None
        while True:
            page, cursor = await self._client.call(file_calls.list_files(self._ref, path, cursor))
            for wire in page:
                yield models.file(wire)
            if cursor is None:
                return

    async def names(self, path: str) -> builtins.list[str]:
        """Return the names in a directory."""
        return [entry.name async for entry in self.list(path)]

    async def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = True) -> FileInfo:
        """Make a directory, with its missing parents; then an existing one is no error."""
        return await self._client.call(file_calls.mkdir(self._ref, path, mode=mode, parents=parents))

    async def move(self, source: str, target: str, *, overwrite: bool = False) -> FileInfo:
        """Rename within the sandbox."""
        return await self._client.call(file_calls.move(self._ref, source, target, overwrite=overwrite))

    async def remove(self, path: str, *, recursive: bool = False) -> int:
        """Remove a file, or with `recursive` a tree; returns the number of entries removed."""
        return await self._client.call(file_calls.remove(self._ref, path, recursive=recursive))

    async def set(  # noqa: PLR0913 - the wire's own options
        self,
        path: str,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        owner: str = "",
        group: str = "",
        recursive: bool = False,
        directory_mode: int | None = None,
    ) -> FileInfo:
        """Change mode and owner; what is not given stays.

        `owner` and `group` are names or numbers inside, in place of `uid` and `gid`. `recursive`: all below a directory
        too, directories with `directory_mode` where it is given.
        """
        facts = {"uid": uid, "gid": gid, "owner": owner or None, "group": group or None}
        modes = {"mode": mode, "directory_mode": directory_mode}
        return await self._client.call(
            file_calls.set_attributes(self._ref, path, modes=modes, facts=facts, recursive=recursive)
        )


def _open(local: str | os.PathLike[str]) -> IO[bytes]:
    return open(local, "rb")  # noqa: PTH123 - takes both kinds of path; the caller closes it


async def _no_pieces() -> AsyncIterator[bytes]:
    for _ in range(0):
        yield b""
