"""Connections to the kernels of a sandbox: lines of JSON, each bounded, from a program that is hostile.

The protocol is engine/inside/code/PROTOCOL.md. The agent's tool `socket` carries the bytes; its credit is the flow
control, so a kernel gets as far ahead of its reader as 1 MiB. What breaks the protocol closes the connection for good
and is an error of the sandbox.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct, field

from cove.agentlink.channel import Channel, Refusal
from cove.agentlink.commands import CommandCalls
from cove.agentlink.frames import Kind
from cove.agentlink.limits import Limits
from cove.agentlink.wire import Natural, exec_fields
from cove.model.errors import SandboxError
from cove.model.execs import ExecSpec

LINE_BYTES: Final = 1024 * 1024
"""Of one line in either direction, with its line break."""

SEND_TIMEOUT_S: Final = 30.0
SOCKET: Final = "@cove-code-"

_COMPLAINT_BYTES: Final = 512
_ENCODE: Final = msgspec.json.Encoder().encode

Line = Annotated[str, Meta(max_length=255)]


class KernelLine(Struct, frozen=True, kw_only=True):
    """Any line of a kernel: `t` says which fields count. All of it is bounded by the line it came in."""

    t: Line
    run: str | None = None
    count: Natural = 0
    d: str = ""
    mime: Line = ""
    data: dict[str, str] = field(default_factory=dict[str, str])
    meta: dict[str, object] | None = None
    main: bool = False
    id: str | int | None = None
    update: bool = False
    wait: bool = False
    name: str = ""
    value: str = ""
    traceback: tuple[str, ...] = ()
    status: str = ""
    language: Line = ""
    kernel: Line = ""
    version: Line = ""
    rich: bool = False
    missing: tuple[str, ...] = ()
    runs: Natural = 0
    busy: bool = False
    cwd: Annotated[str, Meta(max_length=8192)] = ""
    matches: tuple[str, ...] = ()
    start: Natural = 0
    end: Natural = 0


_DECODE: Final = msgspec.json.Decoder(KernelLine).decode


class KernelLink:
    """A connection to a kernel. Made by `kernel_link`; one reader and one writer at a time."""

    def __init__(self, channel: Channel, limits: Limits) -> None:
        self._channel = channel
        self._limits = limits
        self._buffer = bytearray()
        self._searched = 0
        self._is_over = False
        self.complaint = ""
        """Once it is over: what the tool said of it, such as that nobody listens."""

    async def send(self, message: Mapping[str, object]) -> None:
        """Send one line; whether anybody reads it is not known. Raises: AgentTimeout, SandboxGone."""
        await self._channel.send(_ENCODE(message) + b"\n", timeout_s=SEND_TIMEOUT_S)

    async def next(self, timeout_s: float | None) -> KernelLine | None:
        """The next line; None: the kernel has closed it. Cancelling loses nothing.

        Raises: TimeoutError (nothing came for `timeout_s`, and nothing is lost), SandboxError (no line of the
        protocol), SandboxGone, AgentViolation.
        """
        while True:
            cut = self._buffer.find(b"\n", self._searched)
            if cut >= 0:
                return self._decoded(cut)
            self._searched = len(self._buffer)
            if self._searched >= LINE_BYTES:
                raise self._breach("a line that does not end")
            if self._is_over:
                return None
            async with self._limits.of(timeout_s):
                await self._receive()

    async def greet(self, timeout_s: float) -> KernelLine | None:
        """Ask what it is; its `ready`, or None if it is closed. What comes before is dropped. Raises: as `next`."""
        await self.send({"op": "hello"})
        return await self.answer("ready", timeout_s)

    async def answer(self, kind: str, timeout_s: float, id_: str | None = None) -> KernelLine | None:
        """The next line of that kind and `id_`; what comes before is dropped. Raises: as `next`."""
        async with self._limits.of(timeout_s):
            while (line := await self.next(None)) is not None:
                if line.t == kind and (id_ is None or line.id == id_):
                    return line
            return None

    @property
    def is_quiet(self) -> bool:
        """Whether it is open and nothing has come that nobody read: as one that rests between two runs must be."""
        return not self._is_over and not self._buffer and self._channel.is_quiet

    def close(self) -> None:
        """Close it: what runs over it is interrupted. Idempotent."""
        self._is_over = True
        self._channel.cancel()

    async def _receive(self) -> None:
        try:
            item = await self._channel.next_item(None)
        except Refusal as refusal:
            self._is_over, self.complaint = True, refusal.text[:_COMPLAINT_BYTES]
            return
        if item is None:
            self._is_over = True
            return
        kind, payload = item
        if kind is Kind.DATA:
            self._buffer += payload
        elif kind is Kind.DATA_ERR:
            complaint = self.complaint + bytes(payload[:_COMPLAINT_BYTES]).decode(errors="replace")
            self.complaint = complaint[:_COMPLAINT_BYTES].strip()

    def _decoded(self, cut: int) -> KernelLine:
        line = bytes(memoryview(self._buffer)[:cut])
        del self._buffer[: cut + 1]  # moves a pointer, not the bytes
        self._searched = 0
        if cut >= LINE_BYTES:
            raise self._breach("a line that is too long")
        try:
            return _DECODE(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._breach("a line that is none of its protocol") from error

    def _breach(self, what: str) -> SandboxError:
        self.close()
        self._buffer.clear()
        return SandboxError(f"the kernel of this context broke its protocol with {what}")


class KernelCalls(CommandCalls):
    """The part of the client that deals with kernels."""

    def kernel_link(self, name: str, user: str | None) -> KernelLink:
        """A connection to the kernel that listens under `name`, as its `user`. The first answer tells if there is one.

        `user` None: that of the sandbox.
        """
        spec = ExecSpec(argv=("socket", SOCKET + name), user=user, tool=True)
        call = {"op": "exec", "stdin": True, **exec_fields(spec)}
        return KernelLink(self._connection.open(call, takes_output=True), self._connection.limits)


def line_bytes(message: Mapping[str, object]) -> int:
    """How long the line of a message is."""
    return len(_ENCODE(message)) + 1
