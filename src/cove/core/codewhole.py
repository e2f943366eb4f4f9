"""A run of code that is answered whole: its events as one value, bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Final

from msgspec.structs import replace

from cove.agentlink.commands import Tail
from cove.agentlink.room import Share
from cove.core.coderuns import RESULT_BYTES, Held
from cove.model.code import (
    Execution,
    RunCleared,
    RunEnded,
    RunError,
    RunEvent,
    RunOutput,
    RunResult,
    RunStarted,
)
from cove.model.execs import OUTPUT_LIMIT_BYTES, Stream

RESULTS: Final = 1000
"""Results of one run; more are counted."""


class _Shown:
    """What there is to look at, as a notebook has it: `clear` and updates worked in."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._clears_next = False
        self.results: list[RunResult] = []
        self.dropped = 0

    def clear(self, *, wait: bool) -> None:
        self._clears_next = wait
        if not wait:
            self.results.clear()

    def something_comes(self) -> None:
        if self._clears_next:
            self.clear(wait=False)

    def add(self, result: RunResult) -> None:
        if not self._held.take(_size(result.data)) or len(self.results) >= RESULTS:
            self.dropped += 1
        elif result.update:
            self._update(result)
        else:
            self.results.append(result)

    def _update(self, new: RunResult) -> None:
        for place, old in enumerate(self.results):
            if old.display_id == new.display_id:
                self.results[place] = replace(old, data=new.data, metadata=new.metadata, dropped=new.dropped)


async def whole(events: AsyncIterator[RunEvent], context: str, share: Share) -> Execution:
    """All of a run. `share` bounds its output, whoever has it releases it. Raises: as `events`."""
    out, err = Tail(OUTPUT_LIMIT_BYTES, share), Tail(OUTPUT_LIMIT_BYTES, share)
    shown = _Shown(Held(share, RESULT_BYTES))
    error: RunError | None = None
    fresh = False
    async for event in events:
        match event:
            case RunOutput(stream, text):
                shown.something_comes()
                (out if stream is Stream.STDOUT else err).add(text.encode(errors="replace"))
            case RunResult():
                shown.something_comes()
                shown.add(event)
            case RunCleared(wait):
                shown.clear(wait=wait)
            case RunError():
                error = event
            case RunStarted():
                fresh = event.fresh
            case RunEnded():
                return Execution(
                    context=context,
                    status=event.status,
                    stdout=_text(out),
                    stderr=_text(err),
                    results=tuple(shown.results),
                    error=error,
                    count=event.count,
                    duration_ms=event.duration_ms,
                    fresh=fresh,
                    detail=event.detail,
                    stdout_dropped_bytes=out.dropped,
                    stderr_dropped_bytes=err.dropped,
                    results_dropped=shown.dropped,
                )
    raise AssertionError("a run ends in RunEnded or raises")  # pragma: no cover


def _text(tail: Tail) -> str:
    """What is left; a character that was cut in two at its head is left out."""
    data = bytes(tail.data)
    if tail.dropped:
        while data and data[0] & 0xC0 == 0x80:  # noqa: PLR2004 - a continuation byte of UTF-8
            data = data[1:]
    return data.decode(errors="replace")


def _size(data: Mapping[str, str]) -> int:
    return sum(len(value) if value.isascii() else 4 * len(value) for value in data.values())
