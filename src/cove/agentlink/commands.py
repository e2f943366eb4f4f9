"""Operations on commands: attached (`exec`), kept (`start` and what follows), as methods of the client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, TypeVar

from cove.agentlink.channel import Channel, Refusal
from cove.agentlink.connection import Connection
from cove.agentlink.frames import Kind
from cove.agentlink.refusals import command_error, shell_code, start_error
from cove.agentlink.room import STEP_BYTES, Share
from cove.agentlink.session import ExecSession
from cove.agentlink.wire import (
    CommandReply,
    CommandsReply,
    Empty,
    EventReply,
    ExitReply,
    OutputReply,
    StartedReply,
    WrittenReply,
    exec_fields,
    violation,
)
from cove.model.errors import AgentTimeout, Conflict, NotFound
from cove.model.execs import (
    Chunk,
    Command,
    Ended,
    ExecEvent,
    ExecExit,
    ExecResult,
    ExecSpec,
    Gap,
    Paused,
    Started,
    Stream,
    Why,
)

CALL_TIMEOUT_S: Final = 30.0
"""For an answer that needs no work; a frozen sandbox gives none."""

GUARD_S: Final = 2.0
"""How long after a command's own limit the agent has to say that it has killed it."""

_PAGE_EVENTS: Final = 16 * 1024
"""A page of output ends after so many pieces: each is an object of a hundred bytes, though it may hold one byte."""

T = TypeVar("T")
_STREAMS: Final = {Kind.DATA: Stream.STDOUT, Kind.DATA_ERR: Stream.STDERR}


class Tail:
    """The last `limit` bytes of a stream, fewer while the share has no room for them.

    Cutting the front of a bytearray moves a pointer, not the bytes.
    """

    def __init__(self, limit: int, share: Share | None) -> None:
        self._limit = limit
        self._share = share
        self._granted = limit if share is None else STEP_BYTES
        self.data = bytearray()
        self.dropped = 0

    def add(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self.data += chunk
        while self._granted < min(len(self.data), self._limit) and self._share is not None and self._share.grow():
            self._granted += STEP_BYTES
        excess = len(self.data) - min(self._limit, self._granted)
        if excess > 0:
            del self.data[:excess]
            self.dropped += excess

    def lose(self, count: int) -> None:
        """Drop what is kept, because `count` bytes after it are missing."""
        self.dropped += len(self.data) + count
        self.data.clear()


class CommandCalls:
    """The half of the client that deals with commands."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def exec(self, spec: ExecSpec, share: Share | None = None) -> ExecResult:
        """Run `spec` to its end. Output is kept to `output_limit_bytes` per stream, the tail wins.

        `share` bounds it further, by what the server may hold in all; the caller releases it.

        A program that cannot be started is a result: code 127 or 126, the reason on stderr. Cancelling kills the
        process group. Raises: SandboxGone, AgentTimeout (no answer 2 s after `timeout_s`), AgentViolation, BadRequest.
        """
        out, err = Tail(spec.output_limit_bytes, share), Tail(spec.output_limit_bytes, share)

        def collect(kind: Kind, payload: bytes) -> None:
            if kind is Kind.EOF:
                raise violation("EOF from a command")
            (out if kind is Kind.DATA else err).add(payload)

        channel = self._connection.open(_exec_call(spec), takes_output=True, sink=collect)
        if spec.stdin is not None:
            channel.feed(spec.stdin)
        try:
            reply = await channel.reply(ExitReply, _guard(spec.timeout_s))
        except Refusal as refusal:
            code = shell_code(refusal)
            if code is None:
                raise command_error(refusal) from refusal
            exit_ = ExecExit(code=code, why=Why.EXITED)
            return ExecResult(exit=exit_, stdout=b"", stderr=_as_stderr(refusal))
        return ExecResult(
            exit=reply.to_model(),
            stdout=bytes(out.data),
            stderr=bytes(err.data),
            stdout_dropped_bytes=out.dropped,
            stderr_dropped_bytes=err.dropped,
        )

    @asynccontextmanager
    async def exec_stream(self, spec: ExecSpec) -> AsyncGenerator[AsyncIterator[ExecEvent], None]:
        """Run `spec`; the iterator gives its events, last Ended. A slow reader slows the command down.

        Leaving the context while it runs kills its process group. Raises, also while iterating: as `exec`.
        """
        channel = self._connection.open(_exec_call(spec), takes_output=True)
        if spec.stdin is not None:
            channel.feed(spec.stdin)
        try:
            yield _exec_events(channel, _guard(spec.timeout_s))
        finally:
            channel.cancel()

    @asynccontextmanager
    async def exec_session(self, spec: ExecSpec) -> AsyncGenerator[ExecSession, None]:
        """Run `spec` with its stdin open to the caller; `spec.stdin` is not sent.

        Leaving the context while it runs kills its process group. Raises, also while iterating: as `exec`.
        """
        channel = self._connection.open({"op": "exec", "stdin": True, **exec_fields(spec)}, takes_output=True)

        async def send_signal(command_id: str, number: int) -> None:
            if not command_id:
                raise Conflict("the command was never started")
            try:
                await self.signal(command_id, number)
            except NotFound as error:  # an attached command is forgotten at its end
                raise Conflict("the command has ended") from error

        session = ExecSession(
            _exec_events(channel, _guard(spec.timeout_s)),
            send=lambda data: channel.send(data, timeout_s=None),
            send_eof=channel.send_eof,
            send_signal=send_signal,
        )
        try:
            try:
                async with self._connection.limits.of(CALL_TIMEOUT_S):
                    await session.begin()
            except TimeoutError as error:
                raise AgentTimeout("the sandbox did not answer in time") from error
            yield session
        finally:
            channel.cancel()

    async def start(self, id: str, spec: ExecSpec, *, keep_bytes: int, stdin_open: bool) -> Started:  # noqa: A002
        """Start `spec` in the background under `id` ([a-z0-9_-]{1,32}). `spec.stdin` is not sent; see `stdin`.

        Cancelling may leave it started. Raises: BadRequest (also for a missing program), Conflict (id in use, 256
        commands run), SandboxGone, AgentTimeout, AgentViolation.
        """
        call = {"op": "start", "id": id, "keep_bytes": keep_bytes, "stdin": stdin_open, **exec_fields(spec)}
        channel = self._connection.open(call)
        try:
            reply = await channel.reply(StartedReply, CALL_TIMEOUT_S)
        except Refusal as refusal:
            raise start_error(refusal) from refusal
        return Started(id=id, pid=reply.pid)

    async def commands(self) -> list[Command]:
        """All kept commands but terminals, oldest first; at most 256. Long argument lists are cut."""
        reply = await self._command_call({"op": "commands"}, CommandsReply)
        return [one.to_model() for one in reply.commands if one.pty is None]

    async def command(self, id: str) -> Command:  # noqa: A002
        """One kept command. Raises: NotFound, SandboxGone, AgentTimeout, AgentViolation."""
        return (await self._command_call({"op": "command", "id": id}, CommandReply)).to_model()

    async def wait(self, id: str, timeout_s: float | None) -> Command:  # noqa: A002
        """The command when it has ended or after `timeout_s` (then `running`); None: no limit. Raises: as `command`."""
        call = {"op": "wait", "id": id, "timeout_ms": 0 if timeout_s is None else max(1, int(timeout_s * 1000))}
        return (await self._command_call(call, CommandReply, timeout_s=_guard(timeout_s))).to_model()

    async def forget(self, id: str) -> None:  # noqa: A002
        """Kill the command if it runs and drop its output. Raises: as `command`."""
        await self._command_call({"op": "forget", "id": id}, Empty)

    async def signal(self, id: str, signal: int, *, group: bool = True) -> None:  # noqa: A002
        """Signal a running command, attached or kept. Raises: Conflict (it has ended), and as `command`."""
        await self._command_call({"op": "signal", "id": id, "signal": signal, "group": group}, Empty)

    async def stdin(
        self,
        id: str,  # noqa: A002
        chunks: AsyncIterable[bytes],
        *,
        close: bool,
        stall_s: float | None = None,
    ) -> int:
        """Write to a kept command's stdin; returns the bytes it took (fewer if it stopped reading).

        `stall_s`: how long a command may read nothing while more waits than it has credit for (1 MiB); None: for as
        long as it likes. Cancelling leaves a prefix written.
        Raises: BadRequest (no stdin, or closed), Conflict (another call writes), and as `command`.
        """
        channel = self._connection.open({"op": "stdin", "id": id, "close": close})
        try:
            await channel.send_all(chunks, timeout_s=stall_s)
            return (await channel.reply(WrittenReply, None)).written
        except Refusal as refusal:
            raise command_error(refusal) from refusal
        finally:
            channel.cancel()

    @asynccontextmanager
    async def output(
        self,
        id: str,  # noqa: A002
        *,
        cursor: int = 0,
        follow: bool = False,
        limit_bytes: int = 0,
        wait_s: float = 0.0,
    ) -> AsyncGenerator[AsyncIterator[ExecEvent], None]:
        """Kept output from `cursor` on; the last event is Ended or Paused, with the cursor to go on from.

        `limit_bytes` 0: no limit. `wait_s`: how long a read that does not follow waits for the first byte.
        Leaving the context ends the reading, not the command. Raises, also while iterating:
        BadRequest (cursor beyond the end), and as `command`.
        """
        call: dict[str, object] = {"op": "output", "id": id, "cursor": cursor, "follow": follow, "limit": limit_bytes}
        call["wait_ms"] = round(wait_s * 1000)
        channel = self._connection.open(call, takes_output=True)
        try:
            if follow:
                yield output_events(channel, None, prompt=True)
            else:
                yield _page(channel, output_events(channel, CALL_TIMEOUT_S + wait_s, prompt=False), cursor, limit_bytes)
        finally:
            channel.cancel()

    async def _command_call(
        self,
        call: Mapping[str, object],
        kind: type[T],
        *,
        timeout_s: float | None = CALL_TIMEOUT_S,
    ) -> T:
        try:
            return await self._connection.open(call).reply(kind, timeout_s)
        except Refusal as refusal:
            raise command_error(refusal) from refusal


ExecStream = AbstractAsyncContextManager[AsyncIterator[ExecEvent]]
"""What `exec_stream` and `output` return."""


def _exec_call(spec: ExecSpec) -> dict[str, object]:
    return {"op": "exec", "stdin": spec.stdin is not None, **exec_fields(spec)}


def _guard(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else timeout_s + GUARD_S


def _as_stderr(refusal: Refusal) -> bytes:
    return refusal.text.encode(errors="replace") + b"\n"


async def _exec_events(channel: Channel, timeout_s: float | None) -> AsyncIterator[ExecEvent]:
    # The limit is for each wait: the agent enforces the command's own, and a slow reader is no fault of it.
    try:
        while (item := await channel.next_item(timeout_s)) is not None:
            yield event_of(channel, *item)
        yield Ended(exit=channel.final(ExitReply).to_model())
    except Refusal as refusal:
        code = shell_code(refusal)
        if code is None:
            raise command_error(refusal) from refusal
        yield Chunk(stream=Stream.STDERR, data=_as_stderr(refusal))
        yield Ended(exit=ExecExit(code=code, why=Why.EXITED))


async def output_events(channel: Channel, timeout_s: float | None, *, prompt: bool) -> AsyncIterator[ExecEvent]:
    """The events of kept output; the last is Ended or Paused.

    `prompt`: credit goes back as soon as the caller asks for more, which is when it has passed on what it got.
    """
    try:
        while (item := await channel.next_item(timeout_s, held=prompt)) is not None:
            yield event_of(channel, *item)
            if prompt and item[0] is not Kind.EVENT:
                channel.passed_on(len(item[1]))
    except Refusal as refusal:
        raise command_error(refusal) from refusal
    reply = channel.final(OutputReply)
    if reply.ended and reply.exit is not None:
        yield Ended(exit=reply.exit.to_model(), cursor=reply.cursor)
    else:
        yield Paused(cursor=reply.cursor)


async def _page(
    channel: Channel, events: AsyncIterator[ExecEvent], cursor: int, limit_bytes: int
) -> AsyncIterator[ExecEvent]:
    """What was asked for and no more, because whoever reads a page holds all of it. It may end before the limit."""
    first, count = cursor, 0
    async for event in events:
        match event:
            case Chunk(_, data):
                cursor += len(data)
            case Gap(lost):
                first, cursor = first + lost, cursor + lost
            case _:
                pass
        if limit_bytes and cursor - first > limit_bytes:
            raise channel.breach("more output than was asked for")
        yield event
        count += 1
        if count == _PAGE_EVENTS and isinstance(event, Chunk | Gap):
            yield Paused(cursor=cursor)
            return


def event_of(channel: Channel, kind: Kind, payload: bytes | bytearray) -> ExecEvent:
    """What a frame of a command's channel says. Raises: AgentViolation."""
    stream = _STREAMS.get(kind)
    if stream is not None:
        return Chunk(stream=stream, data=bytes(payload))
    if kind is not Kind.EVENT:
        raise channel.breach(f"{kind.name} from a command")
    reply = channel.decode(payload, EventReply)
    match reply.event:
        case "started":
            return Started(id=reply.id, pid=reply.pid)
        case "gap":
            return Gap(lost_bytes=reply.lost)
        case _:
            raise channel.breach("an event of a command that is none")
