"""One session channel: a shell, a command or a subsystem, with a terminal or without."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import asyncssh

from cove.core.sessions import Session
from cove.model.errors import BadRequest, Conflict, CoveError, Gone, SandboxError
from cove.model.execs import Chunk, Ended, ExecExit, ExecSpec, Gap, Stream, Why
from cove.model.terminals import TERMINAL_SIDE, TerminalSize
from cove.server.ssh.duplex import Duplex

if TYPE_CHECKING:
    from cove.agentlink.terminals import TerminalStream
    from cove.server.ssh.gate import Visit

log = logging.getLogger(__name__)

ENV_ENTRIES: Final = 64
ENV_BYTES: Final = 256
FAILED: Final = 255
"""As ssh itself ends when it, and not the command, has failed."""

KEEP_BYTES: Final = 256 * 1024
"""What is kept of a terminal's output: only what a moment of slowness needs, since nobody re-attaches."""

_MAY_SET: Final = re.compile(r"LANG|LC_[A-Z]+|COLORTERM|TERM_PROGRAM|TERM_PROGRAM_VERSION|NO_COLOR|TZ")
_TERM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
_WHY: Final = {
    Why.OUT_OF_MEMORY: "killed: the sandbox ran out of memory",
    Why.SANDBOX_GONE: "the sandbox has ended",
    Why.TIMEOUT: "the command took too long",
}


class BoundedEnv(dict[bytes, bytes]):
    """The variables that a client asks for before its command: only as many as could ever count."""

    def __setitem__(self, name: bytes, value: bytes) -> None:
        if len(self) < ENV_ENTRIES and len(name) <= ENV_BYTES and len(value) <= ENV_BYTES:
            super().__setitem__(name, value)


class SessionChannel(asyncssh.SSHServerSession[bytes]):
    """What the client sees as its session. The work is one task of the listener's group."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._duplex = Duplex(visit.backlog.wait)
        self._chan: asyncssh.SSHServerChannel[bytes] | None = None
        self._argv: tuple[str, ...] = ()
        self._size: TerminalSize | None = None
        self._term = ""
        self._task: asyncio.Task[None] | None = None
        self._signal: asyncio.Queue[int] = asyncio.Queue(maxsize=16)
        self._resized = asyncio.Event()

    # Called by asyncssh.

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        """The channel is open."""
        self._chan = chan
        chan._env = BoundedEnv()  # noqa: SLF001 # type: ignore[attr-defined]  # asyncssh takes any number of any size
        self._duplex.on_made(chan)

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is gone: so is what it ran."""
        del exc
        self._duplex.on_lost()
        if self._task is not None:
            self._task.cancel()
        self._visit.channel_closed()

    def pty_requested(
        self, term_type: str, term_size: tuple[int, int, int, int], term_modes: Mapping[int, int]
    ) -> bool:
        """A terminal is wanted for what comes next."""
        del term_modes
        self._size = _size(term_size[0], term_size[1])
        self._term = term_type if _TERM.fullmatch(term_type) else "xterm"
        return True

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        """The window has another size. Of many in a row the last counts."""
        del pixwidth, pixheight
        if self._size is not None:
            self._size = _size(width, height)
            self._resized.set()

    def shell_requested(self) -> bool:
        """A login shell."""
        self._argv = ("login",)
        return True

    def exec_requested(self, command: str) -> bool:
        """A command, run by the user's shell."""
        self._argv = ("login", "-c", command)
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        """Only sftp."""
        if subsystem != "sftp":
            return False
        self._argv, self._size = ("sftp",), None
        return True

    def session_started(self) -> None:
        """The client may send."""
        self._task = self._visit.spawn(self._run(), "ssh session")

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Input."""
        if datatype is None:
            self._duplex.on_data(data)

    def eof_received(self) -> bool:
        """The end of the input; the output goes on."""
        self._duplex.on_eof()
        return True

    def signal_received(self, signal: str) -> None:
        """A signal by its name without SIG. One more than can be delivered is dropped."""
        number = _SIGNALS.get(signal)
        if number is not None and not self._signal.full():
            self._signal.put_nowait(number)

    def break_received(self, msec: int) -> bool:
        """Not known here."""
        del msec
        return False

    def pause_writing(self) -> None:
        """The client does not read."""
        self._duplex.on_writable(is_writable=False)

    def resume_writing(self) -> None:
        """It reads again."""
        self._duplex.on_writable(is_writable=True)

    # The task.

    async def _run(self) -> None:
        try:
            ended = await (self._command() if self._size is None else self._terminal(self._size))
        except CoveError as error:
            await self._tell(error.public)
            if isinstance(error, Gone | SandboxError):
                self._visit.check_soon()
            self._exit(FAILED)
            return
        if ended.why in _WHY:
            await self._tell(_WHY[ended.why])
        if ended.why is Why.SANDBOX_GONE:
            self._visit.check_soon()
            self._exit(FAILED)
        elif ended.signal is not None and ended.why is not Why.TIMEOUT and ended.signal in _NAMES:
            self._exit_signal(_NAMES[ended.signal])
        else:
            self._exit(ended.code)

    def _spec(self) -> ExecSpec:
        assert self._chan is not None  # noqa: S101 - asyncssh has made the channel before the session starts
        env: dict[str, str] = {}
        for name, value in self._chan.get_environment_bytes().items():
            text = name.decode(errors="replace"), value.decode(errors="replace")
            if _MAY_SET.fullmatch(text[0]) and text[1].isprintable():
                env[text[0]] = text[1]
        if self._term:
            env["TERM"] = self._term
        return ExecSpec(argv=self._argv, env=env, tool=True)

    async def _command(self) -> ExecExit:
        visit = self._visit
        async with visit.core.execs.session(visit.who, visit.sandbox, self._spec()) as session:
            helpers = [
                visit.spawn(self._feed(session), "ssh input"),
                visit.spawn(self._pass_signals(session), "ssh signals"),
            ]
            try:
                async for event in session:
                    if isinstance(event, Chunk):
                        await self._duplex.write(event.data, to_stderr=event.stream is Stream.STDERR)
                    elif isinstance(event, Ended):
                        return event.exit
            finally:
                for helper in helpers:
                    helper.cancel()
        raise SandboxError("the command's end is not known")

    async def _feed(self, session: Session) -> None:
        while (data := await self._duplex.read()) is not None:
            if not await session.write(data):
                break
        session.write_eof()
        # What it sends to a command that wants no more goes nowhere, but must not fill its window.
        while await self._duplex.read() is not None:
            pass

    async def _pass_signals(self, session: Session) -> None:
        while True:
            number = await self._signal.get()
            try:
                await session.signal(number)
            except (Conflict, BadRequest):
                continue  # it has ended, or never began

    async def _terminal(self, size: TerminalSize) -> ExecExit:
        visit, terminals = self._visit, self._visit.core.terminals
        made = await terminals.open(visit.who, visit.sandbox, self._spec(), size=size, keep_bytes=KEEP_BYTES)
        try:
            async with terminals.attach(visit.who, visit.sandbox, made.id, cursor=0) as stream:
                helpers = [
                    visit.spawn(self._type(stream), "ssh typing"),
                    visit.spawn(self._follow_size(made.id), "ssh window"),
                    visit.spawn(self._signal_terminal(made.id), "ssh signals"),
                ]
                try:
                    async for event in stream:
                        if isinstance(event, Chunk):
                            await self._duplex.write(event.data)
                        elif isinstance(event, Gap):
                            await self._tell(f"{event.lost_bytes} bytes of output were lost")
                        elif isinstance(event, Ended):
                            return event.exit
                finally:
                    for helper in helpers:
                        helper.cancel()
        finally:
            visit.spawn(self._drop(made.id), "ssh hang-up")
        raise SandboxError("the terminal's end is not known")

    async def _type(self, stream: TerminalStream) -> None:
        while (data := await self._duplex.read()) is not None:
            await stream.write(data)

    async def _follow_size(self, terminal_id: str) -> None:
        visit = self._visit
        while True:
            await self._resized.wait()
            self._resized.clear()
            if self._size is not None:
                await visit.core.terminals.resize(visit.who, visit.sandbox, terminal_id, self._size)

    async def _signal_terminal(self, terminal_id: str) -> None:
        visit = self._visit
        while True:
            number = await self._signal.get()
            try:
                await visit.core.terminals.signal(visit.who, visit.sandbox, terminal_id, number)
            except (Conflict, BadRequest):
                continue

    async def _drop(self, terminal_id: str) -> None:
        """Nobody comes back to it. In a task of its own: the session's may be cancelled already."""
        visit = self._visit
        await visit.core.terminals.remove(visit.who, visit.sandbox, terminal_id)

    async def _tell(self, text: str) -> None:
        await self._duplex.write(f"cove: {text}\r\n".encode(), to_stderr=self._size is None)

    def _exit(self, code: int) -> None:
        if self._chan is not None and not self._duplex.is_lost and not self._chan.is_closing():
            self._chan.exit(code & 0xFF)

    def _exit_signal(self, name: str) -> None:
        if self._chan is not None and not self._duplex.is_lost and not self._chan.is_closing():
            self._chan.exit_with_signal(name)


def _size(width: int, height: int) -> TerminalSize:
    """A window that a kernel takes; a client that knows none says 0."""
    return TerminalSize(cols=min(width, TERMINAL_SIDE[1]) or 80, rows=min(height, TERMINAL_SIDE[1]) or 24)


_SIGNALS: Final[dict[str, int]] = {one.name.removeprefix("SIG"): one.value for one in signal.Signals}
_NAMES: Final[dict[int, str]] = {
    _SIGNALS[name]: name
    for name in ("ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2")
}
"""The names of RFC 4254 section 6.10."""
