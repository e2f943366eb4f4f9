"""Commands whose output is read as it is written, awaited. The twin of `cove.sdk.jobs`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio

from cove.sdk import calls
from cove.sdk.aio.sending import body_of
from cove.sdk.errors import Error
from cove.sdk.jobs import ENDED
from cove.sdk.models import CommandInfo
from cove.sdk.output import OutputReader, read_output
from cove.sdk.results import Chunk, Exit, Result
from cove.sdk.transport import AsyncResponse, Call, Lost, Retries, Retry
from cove.sdk.units import Duration, parse_seconds

if TYPE_CHECKING:
    from cove.sdk.aio.client import Client


class Running:
    """A command tied to this connection: iterate it to its end; when you stop reading, it is killed.

    Use it in an `async with` to say when that is; without one it is when the event loop collects the iteration.
    Cancelling the task that reads kills the command too.
    """

    def __init__(self, client: Client, call: Call[None]) -> None:
        self._client = client
        self._call = call
        self._reader = OutputReader(keep=True)
        self._opened: AbstractAsyncContextManager[AsyncResponse] | None = None
        self._chunks: AsyncGenerator[Chunk] | None = None

    @property
    def result(self) -> Result | None:
        """What `run` would have returned, with the last 10 MiB of each stream; None before the end was read."""
        return self._reader.result()

    @property
    def exit(self) -> Exit | None:
        """How the command ended; None before the end was read."""
        return self._reader.exit

    @property
    def id(self) -> str:
        """The command's id in the sandbox; empty before the first event."""
        return self._reader.id

    async def __aenter__(self) -> Self:
        """Start the command. Raises: RuntimeError (started already: one `Running` is one command)."""
        if self._opened is not None:
            raise RuntimeError("this command was started already: call box.stream again for another one")
        self._opened = self._client.open(self._call, events=True)
        self._chunks = self._read(await self._opened.__aenter__())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection, which kills the command if it still runs."""
        if self._opened is not None:
            await self._opened.__aexit__(kind, error, trace)
        if self._chunks is not None:
            await self._chunks.aclose()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        """Yield the output as it is written, to the command's end; in an `async with`, a second iteration goes on.

        Raises: Unreachable (the connection broke: the command was killed), SandboxGone and other sandbox errors.
        """
        return self._alone() if self._chunks is None else self._chunks

    async def _alone(self) -> AsyncIterator[Chunk]:
        async with self:
            async for chunk in self:
                yield chunk

    async def _read(self, response: AsyncResponse) -> AsyncGenerator[Chunk]:
        async for piece in response.chunks():
            for chunk in self._reader.feed(piece):
                yield chunk
        if self.exit is None:
            raise Lost("the stream ended before the command did")


class Job:
    """A background command. It and its output outlive this client, and the server's restarts.

    Iterating yields the output from `seen` on and ends with the command; after a broken connection it goes on where it
    was. Leaving an `async with` kills the command if it still runs. Get one from `box.start`, `box.attach`, `box.jobs`.
    """

    def __init__(
        self, ref: str, job_id: str, *, client: Client, seen: int = 0, info: CommandInfo | None = None
    ) -> None:
        self._id = job_id
        self._ref = ref
        self._client = client
        self._reader = OutputReader(seen)
        self._info = info

    @property
    def id(self) -> str:
        """For `box.attach(id)`, from anywhere."""
        return self._id

    @property
    def seen(self) -> int:
        """Cursor in bytes behind the last chunk yielded: `box.attach(job.id, after=job.seen)` goes on there."""
        return self._reader.seen

    @property
    def info(self) -> CommandInfo:
        """The command as it was when the server last answered. Raises: RuntimeError (it has not yet)."""
        if self._info is None:
            raise RuntimeError("nothing is known of this command yet: await job.refresh()")
        return self._info

    @property
    def exit(self) -> Exit | None:
        """How it ended, as far as we know; None while it runs."""
        return self._reader.exit or (calls.exit_of(self._info) if self._info else None)

    async def refresh(self) -> CommandInfo:
        """Ask the server again.

        Raises: NotFound (forgotten), Gone (the sandbox has ended).
        """
        self._info = await self._client.call(calls.job(self._ref, self._id))
        return self._info

    async def output(self, *, limit: int = 1 << 20, wait: Duration | None = None) -> list[Chunk]:
        """Return what has been written since `seen`, at most `limit` bytes; `wait`: so long for the first of them."""
        wait_s = parse_seconds(wait, "wait")
        call = calls.output(self._ref, self._id, cursor=self.seen, limit=limit, wait_s=wait_s)
        wire = await self._client.call(call)
        return read_output(self._reader, wire)

    async def wait(self, timeout: Duration | None = None) -> Exit | None:  # noqa: ASYNC109 - kept by the server
        """Wait for the end and return it; None: `timeout` is over and the command still runs.

        Args:
            timeout: seconds or text such as `"5m"`; None: for as long as it takes.
        """
        call = calls.wait(self._ref, self._id, parse_seconds(timeout, "timeout"))
        self._info = await self._client.call(call)
        return calls.exit_of(self._info)

    async def write(self, data: str | bytes | Iterable[bytes] | AsyncIterable[bytes], *, close: bool = False) -> int:
        """Write to the command's standard input (start it with `stdin=True`); returns the bytes taken.

        Waits while the command does not read. `close` ends its input afterwards. When it is cancelled, a part may have
        been written.

        Raises: Conflict (its input is closed, or it has ended).
        """
        return await self._client.call(calls.write_stdin(self._ref, self._id, body_of(data), close=close))

    async def close_stdin(self) -> None:
        """End the command's standard input."""
        await self.write(b"", close=True)

    async def signal(self, signal: str | int = "TERM") -> None:
        """Send a signal, by name or number, to the command's process group.

        Raises: Conflict (it has ended).
        """
        await self._client.call(calls.signal(self._ref, self._id, signal))

    async def kill(self) -> None:
        """Kill the command's process group; ended already: nothing happens. Its output stays."""
        try:
            await self.signal("KILL")
        except Error as error:
            if error.code not in ENDED:
                raise

    async def forget(self) -> None:
        """Kill the command if it runs, and drop its output."""
        await self._client.call(calls.forget(self._ref, self._id))

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Yield the output from `seen` on, to the command's end.

        Raises: Unreachable (the connection broke and could not be made again), Gone, SandboxGone, NotFound.
        """
        retries, seen = Retries(Retry.LOST, Retries.FOLLOW_LIMIT), self.seen
        while self._reader.exit is None:
            try:
                async for chunk in self._follow():
                    yield chunk
            except Error as error:
                if self.seen > seen:  # it worked in between: this is another break
                    retries, seen = Retries(Retry.LOST, Retries.FOLLOW_LIMIT), self.seen
                delay = retries.delay_s(error)
                if delay is None:
                    raise
                await anyio.sleep(delay)

    async def _follow(self) -> AsyncIterator[Chunk]:
        call = calls.follow(self._ref, self._id, cursor=self.seen)
        self._reader.restart()
        async with self._client.open(call, events=True) as response:
            async for piece in response.chunks():
                for chunk in self._reader.feed(piece):
                    yield chunk
        if self._reader.exit is None:
            raise Lost("the stream ended before the command did")

    async def __aenter__(self) -> Self:
        """Return the job itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kill the command if it still runs, also when the task is cancelled. Its output stays."""
        if self.exit is None:
            with anyio.CancelScope(shield=True):
                await self.kill()

    def __repr__(self) -> str:
        """Return id and what is known of the end."""
        return f"<Job {self._id} {self.exit.why if self.exit else 'running'}>"
