"""One run of code in a kernel: what the kernel says as events of ours, its limits, and the reason of its end."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Final, cast

from cove.agentlink.kernels import KernelLine, KernelLink
from cove.agentlink.room import STEP_BYTES, Share
from cove.model.code import (
    RunCleared,
    RunEnded,
    RunError,
    RunEvent,
    RunOutput,
    RunResult,
    RunStarted,
    RunStatus,
)
from cove.model.errors import CoveError, SandboxError, SandboxGone
from cove.model.execs import Stream

GRACE_S: Final = 5.0
"""How long code that was interrupted has to stop, before its kernel is killed."""

RESULT_BYTES: Final = 64 * 1024 * 1024
"""Of one result, and of all results of a run that is answered whole."""

META_DEPTH: Final = 16
MEDIA_TYPES: Final = 64
_STATUS: Final = {
    "ok": RunStatus.OK,
    "error": RunStatus.ERROR,
    "interrupted": RunStatus.INTERRUPTED,
}
_STREAMS: Final = {"stdout": Stream.STDOUT, "stderr": Stream.STDERR}

KILLED: Final = "it did not stop when it was interrupted, so its kernel was killed; the next run begins afresh"
GONE: Final = "the sandbox ended"


class Run(ABC):
    """One run in a context whose turn has come. `begin`, then `events`; `stop` if they were not read to their end."""

    is_over = False

    @abstractmethod
    async def begin(self) -> None:
        """See that there is an interpreter, and give it the code. Raises: what its start raises."""

    @abstractmethod
    def events(self) -> AsyncIterator[RunEvent]:
        """What comes of it; the last is RunEnded, and it is over. Raises: SandboxError."""

    @abstractmethod
    async def interrupt(self) -> None:
        """As Ctrl-C does."""

    @abstractmethod
    async def stop(self) -> None:
        """Nobody reads any more: interrupt it, and if it does not stop, kill its interpreter. Raises: SandboxError."""


class Held:
    """What one run takes of the memory that output of all sandboxes may have."""

    def __init__(self, share: Share, limit: int) -> None:
        self._share = share
        self._limit = limit
        self._granted = self._used = 0

    def take(self, count: int) -> bool:
        """So many bytes more. False: there is no room for them."""
        if self._used + count > self._limit:
            return False
        while self._granted < self._used + count:
            if not self._share.grow():
                return False
            self._granted += STEP_BYTES
        self._used += count
        return True

    def release(self) -> None:
        """Give all back."""
        self._share.release()
        self._granted = self._used = 0


class KernelRun(Run):
    """A run in a kernel. A slow reader slows the code down.

    A time limit is kept while events are read: who reads none holds the code up anyhow.
    """

    def __init__(  # noqa: PLR0913 - all there is of a run
        self,
        id_: str,
        message: dict[str, object],
        timeout_s: float | None,
        *,
        context: str,
        link: Callable[[], Awaitable[tuple[KernelLink, bool]]],
        death: Callable[[KernelLink], Awaitable[str]],
        kill: Callable[[KernelLink], Awaitable[None]],
        share: Share,
    ) -> None:
        self.id = id_
        self._message = message
        self._timeout_s = timeout_s
        self._context = context
        self._get_link = link
        self._death = death
        self._kill = kill
        self._link: KernelLink | None = None
        self._fresh = False
        self._began = 0.0
        self._deadline: float | None = None
        self._verdict: RunStatus | None = None
        self._count = 0
        self._held = Held(share, RESULT_BYTES)
        self._pieces: dict[str, list[str]] = {}
        self._dropped: set[str] = set()

    async def begin(self) -> None:
        """See that there is a kernel, and give it the code."""
        self._link, self._fresh = await self._get_link()
        self._began = _now()
        if self._timeout_s is not None:
            self._deadline = self._began + self._timeout_s
        try:
            await self._link.send(self._message)
        except BaseException:
            self._link.close()  # half a line may have been sent
            raise

    async def events(self) -> AsyncIterator[RunEvent]:
        """What comes of it."""
        try:
            while True:
                event = await self._next()
                if event is None:
                    continue
                self.is_over = isinstance(event, RunEnded)
                before = _now()
                yield event
                if self.is_over:
                    return
                if self._verdict is not None and self._deadline is not None:
                    self._deadline += _now() - before  # a slow reader is no fault of the kernel
        finally:
            if self.is_over:
                self._held.release()

    async def interrupt(self) -> None:
        """As Ctrl-C does."""
        if self._link is not None and not self.is_over:
            await self._link.send({"op": "interrupt", "run": self.id})

    async def stop(self) -> None:
        """Interrupt it, and kill the kernel if it does not stop."""
        if self._link is None or self.is_over:
            return
        try:
            await self._give_up(RunStatus.INTERRUPTED)
            async for _ in self.events():
                pass
        finally:
            self.is_over = True
            self._held.release()

    async def _next(self) -> RunEvent | None:
        """The next event; None: something that is none."""
        link = self._link
        assert link is not None  # noqa: S101 - it has begun
        try:
            if self._deadline is not None and _now() >= self._deadline:
                return await self._overdue(link)
            try:
                line = await link.next(None if self._deadline is None else max(self._deadline - _now(), 0.0))
            except TimeoutError:
                return await self._overdue(link)
        except SandboxGone:
            return self._ended(RunStatus.SANDBOX_GONE, GONE)
        except SandboxError:
            self.is_over = True
            with suppress(CoveError):
                await self._kill(link)  # who breaks the protocol once will not keep it the next time
            raise
        if line is None:
            try:
                return self._ended(RunStatus.KERNEL_DIED, await self._death(link))
            except SandboxGone:
                return self._ended(RunStatus.SANDBOX_GONE, GONE)
        return self._event_of(line) if line.run == self.id else None

    async def _overdue(self, link: KernelLink) -> RunEvent | None:
        if self._verdict is None:
            await self._give_up(RunStatus.TIMEOUT)
            return None
        await self._kill(link)
        return self._ended(self._verdict, KILLED)

    async def _give_up(self, verdict: RunStatus) -> None:
        self._verdict = self._verdict or verdict
        self._deadline = _now() + GRACE_S
        await self.interrupt()

    def _ended(self, status: RunStatus, detail: str | None = None) -> RunEnded:
        return RunEnded(status=status, duration_ms=(_now() - self._began) * 1000, count=self._count, detail=detail)

    def _event_of(self, line: KernelLine) -> RunEvent | None:
        event: RunEvent | None = None
        match line.t:
            case "stdout" | "stderr" if line.d:
                event = RunOutput(stream=_STREAMS[line.t], text=line.d)
            case "started":
                self._count = line.count
                event = RunStarted(context=self._context, count=line.count, fresh=self._fresh)
            case "piece":
                self._add_piece(line.mime, line.d)
            case "result":
                event = self._result(line)
            case "clear":
                event = RunCleared(wait=line.wait)
            case "error":
                event = RunError(name=line.name, value=line.value, traceback=line.traceback)
            case "done":
                self._count = line.count or self._count
                # Whoever passed the limit has passed it, whatever became of the interrupt.
                event = self._ended(self._verdict or _STATUS.get(line.status, RunStatus.ERROR))
            case _:
                pass
        return event

    def _add_piece(self, mime: str, text: str) -> None:
        if mime in self._dropped:
            return
        if len(self._pieces) >= MEDIA_TYPES or not self._held.take(_size(text)):
            self._pieces.pop(mime, None)
            self._dropped.add(mime)
        else:
            self._pieces.setdefault(mime, []).append(text)

    def _result(self, line: KernelLine) -> RunResult:
        data = dict(list(line.data.items())[:MEDIA_TYPES])
        for mime, parts in self._pieces.items():
            data[mime] = "".join((*parts, data.get(mime, "")))
        for mime in self._dropped:
            data.pop(mime, None)
        result = RunResult(
            data=data,
            metadata=line.meta if line.meta is not None and _is_shallow(line.meta) else {},
            main=line.main,
            display_id=None if line.id is None else str(line.id)[:255],
            update=line.update,
            dropped=tuple(sorted(self._dropped)),
        )
        self._pieces, self._dropped = {}, set()
        self._held.release()
        return result


def _size(text: str) -> int:
    """At least what it takes in memory."""
    return len(text) if text.isascii() else len(text) * 4


def _is_shallow(value: object, depth: int = META_DEPTH) -> bool:
    """Whether it is nested so little that whoever encodes it gets to its end."""
    inner: list[object]
    if isinstance(value, dict):
        inner = list(cast("dict[str, object]", value).values())
    elif isinstance(value, list):
        inner = cast("list[object]", value)
    else:
        return True
    return depth > 0 and all(_is_shallow(one, depth - 1) for one in inner)


def _now() -> float:
    """Not the loop's clock, which counts in milliseconds."""
    return time.monotonic()
