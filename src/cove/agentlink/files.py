"""File operations, as methods of the client. No path is ever opened on the host: they are text for the agent."""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, TypeVar

from cove.agentlink.channel import Channel, Refusal
from cove.agentlink.connection import Connection
from cove.agentlink.frames import Kind
from cove.agentlink.refusals import file_error
from cove.agentlink.wire import AgentHello, BytesReply, EventReply, ListReply, RemovedReply, StatReply
from cove.model.errors import FileError
from cove.model.files import Attributes, FileInfo

T = TypeVar("T")

CALL_TIMEOUT_S: Final = 30.0
TREE_TIMEOUT_S: Final = 300.0
"""For what takes as long as a directory is large."""


class FileReader:
    """An open download: `info` as of opening, then the bytes by iteration. Made by `read`."""

    def __init__(self, info: FileInfo, channel: Channel) -> None:
        self.info = info
        self._channel = channel

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """The next bytes, up to 1 MiB. Raises: FileError, AgentTimeout (30 s without a byte), SandboxGone."""
        try:
            item = await self._channel.next_item(CALL_TIMEOUT_S)
        except Refusal as refusal:
            raise file_error(refusal) from refusal
        if item is None:
            self._channel.final(BytesReply)
            raise StopAsyncIteration
        kind, payload = item
        if kind is not Kind.DATA:
            raise self._channel.breach(f"{kind.name} from a file")
        return bytes(payload)


@asynccontextmanager
async def opened_file(channel: Channel) -> AsyncGenerator[FileReader, None]:
    """What a call sends that begins with a stat. Leaving early stops the agent. Raises: as FileCalls."""
    try:
        try:
            first = await channel.next_item(CALL_TIMEOUT_S)
        except Refusal as refusal:
            raise file_error(refusal) from refusal
        event = channel.decode(first[1], EventReply) if first is not None and first[0] is Kind.EVENT else None
        if event is None or event.event != "file" or event.stat is None:
            raise channel.breach("a file that does not begin with its stat")
        yield FileReader(event.stat.to_model(), channel)
    finally:
        channel.cancel()


class FileCalls:
    """The half of the client that deals with files. All raise FileError, SandboxGone, AgentTimeout, AgentViolation."""

    hello: AgentHello

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def read(self, path: str, *, offset: int = 0, length: int = -1) -> AbstractAsyncContextManager[FileReader]:
        """Read a regular file from `offset`; `length` -1: to its end as of opening. Leaving early stops the agent."""
        call: dict[str, object] = {"op": "read", "path": path, "offset": offset, "length": length}
        return opened_file(self._connection.open(call, takes_output=True))

    async def write(  # noqa: PLR0913 - the operation's own fields, all by keyword
        self,
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
        """Write `chunks` to `path`: atomically by default, in place with `append` or `offset`. -1: keep.

        `sync`: it is on the disk before the answer. A failing source or a cancellation leaves the old file (in place:
        a prefix written).
        """
        call: dict[str, object] = {"op": "write", "path": path, "mode": mode, "parents": parents}
        call |= {"exclusive": exclusive, "append": append, "offset": offset, "uid": uid, "gid": gid}
        if sync:
            self._require_trees()
            call["sync"] = True
        channel = self._connection.open(call)
        try:
            await channel.send_all(chunks, timeout_s=CALL_TIMEOUT_S)
            return (await channel.reply(StatReply, CALL_TIMEOUT_S)).to_model()
        except Refusal as refusal:
            raise file_error(refusal) from refusal
        finally:
            channel.cancel()

    async def stat(self, path: str, *, follow: bool = False) -> FileInfo:
        """The entry at `path`; `follow`: what a link points to."""
        return await self._stat({"op": "stat", "path": path, "follow": follow})

    async def list(
        self, path: str, *, limit: int = 1000, after: str | None = None
    ) -> tuple[builtins.list[FileInfo], bool]:
        """Up to `limit` (1-1000) entries after the name `after`, in byte order, and whether there are more.

        A page may hold fewer than `limit` and still not be the last (a frame has room for 1 MiB).
        """
        call: dict[str, object] = {"op": "list", "path": path, "limit": limit, "after": after}
        reply = await self._file_call(call, ListReply, timeout_s=TREE_TIMEOUT_S)
        return [one.to_model() for one in reply.entries], reply.more

    async def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = False) -> FileInfo:
        """Make a directory; `parents`: also those above, and one that exists is success."""
        return await self._stat({"op": "mkdir", "path": path, "mode": mode, "parents": parents})

    async def move(self, source: str, target: str, *, overwrite: bool = False) -> FileInfo:
        """Rename, or copy and remove across file systems. An existing target is refused unless `overwrite`."""
        call: dict[str, object] = {"op": "move", "from": source, "to": target, "overwrite": overwrite}
        return await self._stat(call, timeout_s=TREE_TIMEOUT_S)

    async def remove(self, path: str, *, recursive: bool = False) -> int:
        """Remove an entry, never through a link; returns how many. Cancelling leaves some removed."""
        call: dict[str, object] = {"op": "remove", "path": path, "recursive": recursive}
        return (await self._file_call(call, RemovedReply, timeout_s=TREE_TIMEOUT_S)).removed

    async def set_attributes(self, path: str, change: Attributes) -> FileInfo:
        """Change modes and owners."""
        call: dict[str, object] = {"op": "set", "path": path, "mode": change.mode, "uid": change.uid, "gid": change.gid}
        if change.owner or change.group or change.recursive:
            self._require_trees()
            call |= {"owner": change.owner, "owner_group": change.group, "recursive": change.recursive}
            if change.directory_mode >= 0:
                call["directory_mode"] = change.directory_mode
        return await self._stat(call, timeout_s=TREE_TIMEOUT_S if change.recursive else CALL_TIMEOUT_S)

    def _require_trees(self) -> None:
        # An older agent would ignore the new fields of an old operation, and do less than was asked for.
        if "trees" not in self.hello.features:
            raise FileError("the sandbox was started by an older server, which lacks this", reason="unsupported")

    async def _stat(self, call: dict[str, object], *, timeout_s: float = CALL_TIMEOUT_S) -> FileInfo:
        return (await self._file_call(call, StatReply, timeout_s=timeout_s)).to_model()

    async def _file_call(self, call: Mapping[str, object], kind: type[T], *, timeout_s: float) -> T:
        try:
            return await self._connection.open(call).reply(kind, timeout_s)
        except Refusal as refusal:
            raise file_error(refusal) from refusal
