"""One run of code: what a kernel says, its limits, its end; and all of it as one value. The kernel is a script."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import cast

import pytest

from cove.agentlink.kernels import KernelLine, KernelLink
from cove.agentlink.room import STEP_BYTES, OutputRoom
from cove.core import coderuns
from cove.core.coderuns import MEDIA_TYPES, KernelRun
from cove.core.codeturns import WAITING, Turns
from cove.core.codewhole import RESULTS, whole
from cove.model.code import (
    Execution,
    RunCleared,
    RunEnded,
    RunError,
    RunEvent,
    RunOutput,
    RunResult,
    RunStarted,
    RunStatus,
)
from cove.model.errors import CapacityExceeded, SandboxGone
from cove.model.execs import Stream

MIB = 1 << 20


class Script:
    """A link whose lines are known; after them it is silent, closed (`None`) or raises."""

    def __init__(self, *lines: KernelLine | Exception | None) -> None:
        self.lines = list(lines)
        self.sent: list[Mapping[str, object]] = []
        self.on_interrupt: list[KernelLine] = []
        self.is_killed = self.is_closed = False

    async def send(self, message: Mapping[str, object]) -> None:
        self.sent.append(message)
        if message["op"] == "interrupt":
            self.lines += self.on_interrupt

    async def next(self, timeout_s: float | None) -> KernelLine | None:
        if not self.lines:
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().create_future()
        line = self.lines.pop(0)
        if isinstance(line, Exception):
            raise line
        return line

    def close(self) -> None:
        self.is_closed = True


def line(kind: str, **more: object) -> KernelLine:
    return KernelLine(t=kind, run="r", **more)  # type: ignore[arg-type]


def run_of(script: Script, *, timeout_s: float | None = None, room: OutputRoom | None = None) -> KernelRun:
    async def link() -> tuple[KernelLink, bool]:
        return cast("KernelLink", script), True

    async def death(_: KernelLink) -> str:
        return "it ended with exit code 3"

    async def kill(_: KernelLink) -> None:
        script.is_killed = True

    return KernelRun(
        "r",
        {"op": "run", "run": "r"},
        timeout_s,
        context="python",
        link=link,
        death=death,
        kill=kill,
        share=(room or OutputRoom(256 * MIB)).share(),
    )


async def told(script: Script, **more: object) -> list[RunEvent]:
    run = run_of(script, **more)  # type: ignore[arg-type]
    await run.begin()
    seen = [event async for event in run.events()]
    assert run.is_over
    return seen


async def together(script: Script, room: OutputRoom | None = None) -> Execution:
    run = run_of(script)
    await run.begin()
    share = (room or OutputRoom(256 * MIB)).share()
    return await whole(run.events(), "python", share)


async def test_what_a_kernel_says_becomes_events() -> None:
    seen = await told(
        Script(
            line("started", count=4),
            line("stdout", d="a"),
            KernelLine(t="stdout", run="another", d="not mine"),
            KernelLine(t="ready"),
            line("nonsense"),
            line("stderr", d="b"),
            line("stdout", d=""),
            line("result", data={"text/plain": "1"}, main=True, id="d1", meta={"a": [1]}),
            line("clear", wait=True),
            line("error", name="E", value="v", traceback=("t",)),
            line("done", status="error", count=4),
        )
    )
    assert seen[:-1] == [
        RunStarted(context="python", count=4, fresh=True),
        RunOutput(stream=Stream.STDOUT, text="a"),
        RunOutput(stream=Stream.STDERR, text="b"),
        RunResult(data={"text/plain": "1"}, metadata={"a": [1]}, main=True, display_id="d1"),
        RunCleared(wait=True),
        RunError(name="E", value="v", traceback=("t",)),
    ]
    assert isinstance(seen[-1], RunEnded)
    assert (seen[-1].status, seen[-1].count) == (RunStatus.ERROR, 4)


@pytest.mark.parametrize(
    ("last", "status", "detail"),
    [
        (line("done", status="ok"), RunStatus.OK, None),
        (line("done", status="interrupted"), RunStatus.INTERRUPTED, None),
        (line("done", status="what is this"), RunStatus.ERROR, None),
        (None, RunStatus.KERNEL_DIED, "it ended with exit code 3"),
        (SandboxGone("gone"), RunStatus.SANDBOX_GONE, "the sandbox ended"),
    ],
)
async def test_every_end_is_told(last: KernelLine | Exception | None, status: RunStatus, detail: str | None) -> None:
    seen = await told(Script(line("started"), last))
    assert isinstance(seen[-1], RunEnded)
    assert (seen[-1].status, seen[-1].detail) == (status, detail)


async def test_a_time_limit_interrupts_and_is_what_is_told() -> None:
    script = Script(line("started"))
    script.on_interrupt = [line("stdout", d="last"), line("done", status="interrupted")]
    seen = await told(script, timeout_s=0.01)
    assert script.sent[-1] == {"op": "interrupt", "run": "r"}
    assert seen[-2] == RunOutput(stream=Stream.STDOUT, text="last")
    assert isinstance(seen[-1], RunEnded)
    assert (seen[-1].status, script.is_killed) == (RunStatus.TIMEOUT, False)


async def test_code_that_does_not_stop_loses_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coderuns, "GRACE_S", 0.05)
    script = Script(line("started"))
    seen = await told(script, timeout_s=0.01)
    assert isinstance(seen[-1], RunEnded)
    assert (seen[-1].status, seen[-1].detail) == (RunStatus.TIMEOUT, coderuns.KILLED)
    assert script.is_killed


async def test_a_kernel_that_talks_on_is_killed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coderuns, "GRACE_S", 0.05)

    class Chatter(Script):
        async def next(self, timeout_s: float | None) -> KernelLine | None:  # noqa: ARG002
            await asyncio.sleep(0)
            return line("stdout", d="x")

    script = Chatter()
    run = run_of(script, timeout_s=0.01)
    await run.begin()
    async with asyncio.timeout(30):
        last = [event async for event in run.events()][-1]
    assert isinstance(last, RunEnded)
    assert (last.status, script.is_killed) == (RunStatus.TIMEOUT, True)


async def test_a_slow_reader_costs_the_kernel_no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coderuns, "GRACE_S", 0.3)
    script = Script(line("started"))
    script.on_interrupt = [*(line("stdout", d="x") for _ in range(5)), line("done", status="interrupted")]
    run = run_of(script, timeout_s=0.01)
    await run.begin()
    seen = []
    async for event in run.events():
        await asyncio.sleep(0.1)
        seen.append(event)
    assert (len(seen), script.is_killed) == (7, False)


async def test_who_leaves_interrupts_and_kills_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coderuns, "GRACE_S", 0.05)
    obedient, stubborn = Script(line("started")), Script(line("started"))
    obedient.on_interrupt = [line("done", status="interrupted")]
    for script in (obedient, stubborn):
        run = run_of(script)
        await run.begin()
        await run.stop()
        assert run.is_over
        assert script.sent[-1]["op"] == "interrupt"
    assert (obedient.is_killed, stubborn.is_killed) == (False, True)


async def test_pieces_become_one_value_and_too_much_is_dropped_and_named() -> None:
    room = OutputRoom(4 * STEP_BYTES)
    png = base64.b64encode(bytes(STEP_BYTES)).decode()
    half = len(png) // 2
    seen = await told(
        Script(
            line("piece", mime="image/png", d=png[:half]),
            line("result", data={"image/png": png[half:], "text/plain": "p"}),
            *(line("piece", mime="text/html", d="x" * STEP_BYTES) for _ in range(8)),
            line("result", data={"text/html": "end", "text/plain": "q"}),
            line("result", data={"text/plain": "r"}),
            line("done", status="ok"),
        ),
        room=room,
    )
    results = [one for one in seen if isinstance(one, RunResult)]
    assert results[0].data == {"image/png": png, "text/plain": "p"}
    assert (results[1].data, results[1].dropped) == ({"text/plain": "q"}, ("text/html",))
    assert (results[2].data, results[2].dropped) == ({"text/plain": "r"}, ())
    assert room.free_bytes == 4 * STEP_BYTES


async def test_many_media_types_and_deep_metadata_are_cut() -> None:
    deep: dict[str, object] = {}
    for _ in range(100):
        deep = {"a": [deep]}
    data = {f"x/{n}": "1" for n in range(1000)}
    pieces = (line("piece", mime=f"y/{n}", d="1") for n in range(1000))
    seen = await told(Script(*pieces, line("result", data=data, meta=deep), line("done", status="ok")))
    result = next(one for one in seen if isinstance(one, RunResult))
    assert len(result.data) <= 2 * MEDIA_TYPES
    assert result.metadata == {}


async def test_a_whole_run_has_updates_and_clear_worked_in() -> None:
    found = await together(
        Script(
            line("started", count=1),
            line("result", data={"text/plain": "gone"}),
            line("clear", wait=True),
            line("stdout", d="out"),
            line("result", data={"text/plain": "0 %"}, id="p"),
            line("result", data={"text/plain": "100 %"}, id="p", update=True),
            line("result", data={"text/plain": "unknown"}, id="q", update=True),
            line("result", data={"text/plain": "7"}, main=True),
            line("done", status="ok", count=1),
        )
    )
    assert [dict(one.data) for one in found.results] == [{"text/plain": "100 %"}, {"text/plain": "7"}]
    assert (found.stdout, found.fresh, found.status, found.count) == ("out", True, RunStatus.OK, 1)


async def test_a_whole_run_is_bounded() -> None:
    lines = [line("result", data={"text/plain": "x"}) for _ in range(RESULTS + 5)]
    found = await together(Script(*lines, line("done", status="ok")))
    assert (len(found.results), found.results_dropped) == (RESULTS, 5)
    chunk = "\u00fc" * 60_000
    found = await together(Script(*(line("stdout", d=chunk) for _ in range(100)), line("done", status="ok")))
    assert set(found.stdout) == {"\u00fc"}
    assert len(found.stdout.encode()) + found.stdout_dropped_bytes in {12_000_000, 11_999_999}
    room = OutputRoom(2 * STEP_BYTES)
    lines = [line("result", data={"text/plain": "x" * STEP_BYTES}) for _ in range(5)]
    found = await together(Script(*lines, line("done", status="ok")), room)
    assert (len(found.results), found.results_dropped) == (2, 3)


async def test_turns_come_in_order_and_their_number_is_bounded() -> None:
    turns = Turns()
    first, second, third = turns.join(), turns.join(), turns.join()
    assert (first.has_come, second.has_come) == (True, False)
    waiting = asyncio.ensure_future(third.wait())
    second.leave()
    second.leave()
    await asyncio.sleep(0)
    assert waiting.done() is False
    first.leave()
    await waiting
    assert (third.has_come, turns.is_free) == (True, False)
    others = [turns.join() for _ in range(WAITING)]
    with pytest.raises(CapacityExceeded):
        turns.join()
    for one in (third, *others):
        one.leave()
    assert turns.is_free
