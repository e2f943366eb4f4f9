"""Files in a sandbox: a mapping for small ones, streams for big ones. All paths are absolute, as the sandbox sees them.

Everything big is streamed with flat memory in both directions.
"""

from __future__ import annotations

import builtins
import os
import stat
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final

from cove.sdk import file_calls
from cove.sdk.trees import Trees
from cove.sdk.wire import raw

if TYPE_CHECKING:
    from cove.sdk.models import FileInfo

PIECE_BYTES: Final = 256 * 1024


class Files(Trees):
    """`box.files`: `box.files["/w/a"] = b"…"`, `del box.files["/w/a"]`, `"/w/a" in box.files`, and the methods here.

    Errors are also the usual ones: a missing file is a FileNotFoundError and a KeyError, each FileError an OSError.
    """

    def read(self, path: str) -> bytes:
        """Return a whole file. It is held in memory: `get` and `stream` are for big ones."""
        with self.stream(path) as pieces:
            return b"".join(pieces)

    def read_text(self, path: str, encoding: str = "utf-8") -> str:
        """Return a whole file as text."""
        return self.read(path).decode(encoding)

    def write(  # noqa: PLR0913 - the wire's own options
        self,
        path: str,
        data: str | bytes | Iterable[bytes],
        *,
        mode: int | None = None,
        parents: bool = True,
        exclusive: bool = False,
        sync: bool = False,
        size: int | None = None,
    ) -> FileInfo:
        """Write a file: readers see the old one or the new one, nothing between.

        `data` may be an iterable of bytes of any length, sent as it comes; `size` says its length where it is known.
        `mode` None keeps an existing file's; a new one gets 0644. Missing directories are made unless `parents` is
        False. `exclusive`: FilePresent if the file exists. `sync`: it survives a power cut once this returns.
        """
        flags = {"parents": parents, "exclusive": exclusive, "sync": sync}
        return self._client.call(file_calls.upload(self._ref, path, raw(data), size=size, mode=mode, flags=flags))

    @contextmanager
    def stream(self, path: str, *, offset: int = 0, length: int | None = None) -> Generator[Iterator[bytes]]:
        """Open a file for reading: `with box.files.stream("/w/big") as pieces: for piece in pieces: …`."""
        if length == 0:
            yield iter(())
            return
        with self._client.open(file_calls.download(self._ref, path, offset=offset, length=length)) as response:
            yield response.chunks()

    def put(
        self,
        local: str | os.PathLike[str] | IO[bytes],
        path: str,
        *,
        mode: int | None = None,
        parents: bool = True,
    ) -> FileInfo:
        """Upload a local file, by path or open for reading, of any size and with flat memory.

        Args:
            local: a path, or a binary file object that is read from where it stands.
            path: where it goes, absolute.
            mode: permission bits; None: the local file's for a path, the default for a file object.
            parents: make missing directories.

        Raises: FileError, TooLarge; OSError for the local file.
        """
        if isinstance(local, str | os.PathLike):
            with open(local, "rb") as file:  # noqa: PTH123 - takes both kinds of path
                facts = os.fstat(file.fileno())
                mode = stat.S_IMODE(facts.st_mode) & 0o777 if mode is None else mode
                return self.write(path, pieces_of(file), mode=mode, parents=parents, size=size_of(facts))
        return self.write(path, pieces_of(local), mode=mode, parents=parents)

    def get(self, path: str, local: str | os.PathLike[str] | IO[bytes]) -> int:
        """Download to a local file, by path or open for writing, with flat memory; returns the bytes written.

        A break leaves the file at a local path as it was: the bytes go to a file beside it that replaces it at the
        end. A file object has then what came so far.

        Raises: FileMissing, FileError; OSError for the local file.
        """
        if not isinstance(local, str | os.PathLike):
            with self.stream(path) as pieces:
                return sum(local.write(piece) for piece in pieces)
        with replacing(os.fspath(local)) as file, self.stream(path) as pieces:
            return sum(file.write(piece) for piece in pieces)

    def stat(self, path: str) -> FileInfo:
        """Return what is at `path`; a link is shown as itself."""
        return self._client.call(file_calls.stat(self._ref, path))

    def exists(self, path: str) -> bool:
        """Whether something is at `path`; a link counts, wherever it leads."""
        from cove.sdk.errors import FileMissing

        try:
            self.stat(path)
        except FileMissing:
            return False
        return True

    def list(self, path: str) -> Iterator[FileInfo]:
        """Yield a directory's entries in byte order of names; fetched in pages as the iteration reaches them."""
        from cove.sdk import models

        cursor: str | None = None
        while True:
            page, cursor = self._client.call(file_calls.list_files(self._ref, path, cursor))
            for wire in page:
                yield models.file(wire)
            if cursor is None:
                return

    def names(self, path: str) -> builtins.list[str]:
        """Return the names in a directory."""
        return [entry.name for entry in self.list(path)]

    def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = True) -> FileInfo:
        """Make a directory, with its missing parents; then an existing one is no error."""
        return self._client.call(file_calls.mkdir(self._ref, path, mode=mode, parents=parents))

    def move(self, source: str, target: str, *, overwrite: bool = False) -> FileInfo:
        """Rename within the sandbox."""
        return self._client.call(file_calls.move(self._ref, source, target, overwrite=overwrite))

    def remove(self, path: str, *, recursive: bool = False) -> int:
        """Remove a file, or with `recursive` a tree; returns the number of entries removed."""
        return self._client.call(file_calls.remove(self._ref, path, recursive=recursive))

    def set(  # noqa: PLR0913 - the wire's own options
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
        return self._client.call(
            file_calls.set_attributes(self._ref, path, modes=modes, facts=facts, recursive=recursive)
        )

    def __getitem__(self, path: str) -> bytes:
        """Return a whole file."""
        return self.read(path)

    def __setitem__(self, path: str, data: str | bytes) -> None:
        """Write a whole file, with its directories."""
        self.write(path, data)

    def __delitem__(self, path: str) -> None:
        """Remove a file."""
        self.remove(path)

    def __contains__(self, path: str) -> bool:
        """Whether something is at `path`."""
        return self.exists(path)


def pieces_of(file: IO[bytes]) -> Iterator[bytes]:
    """Yield a file's bytes from where it stands."""
    while piece := file.read(PIECE_BYTES):
        yield piece


def size_of(facts: os.stat_result) -> int | None:
    """Return the size of what will be read, None where it is not known before (a pipe, a device)."""
    return facts.st_size if stat.S_ISREG(facts.st_mode) else None


@contextmanager
def replacing(target: str) -> Generator[IO[bytes]]:
    """Open a file beside `target` that takes its place at the end; after a failure nothing has changed."""
    part = f"{target}.cove-{os.getpid()}-{os.urandom(4).hex()}"
    file = open(part, "xb")  # noqa: PTH123, SIM115 - closed below, before it is renamed
    try:
        with file:
            yield file
        os.replace(part, target)  # noqa: PTH105 - pathlib costs 4 ms of every command
    except BaseException:
        os.unlink(part)  # noqa: PTH108 - as above
        raise
