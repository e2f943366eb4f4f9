from __future__ import annotations

import pytest
from msgspec.structs import replace

from cove.engine.clock import ManualClock
from cove.engine.deadlines import NOTED_EVERY_S, Deadlines
from cove.model.sandbox import IdleAction, Limits, Sandbox
from cove.model.state import State


@pytest.fixture
def sandbox(clock: ManualClock) -> Sandbox:
    return Sandbox(
        id="0" * 16,
        project="default",
        name="n",
        state=State.RUNNING,
        image="base",
        driver="stub",
        limits=Limits(),
        metadata={},
        isolation=None,
        dialect="native",
        created_by="local",
        created_at=clock.now(),
        expires_at=clock.now() + 100.0,
        idle_timeout_s=None,
        idle_action=IdleAction.PAUSE,
        last_active_at=clock.now(),
    )


def rings(sandbox: Sandbox, clock: ManualClock) -> tuple[Deadlines, list[float]]:
    """Deadlines that note when they rang and are armed again each time, as a supervisor does."""
    heard: list[float] = []

    def ring() -> None:
        heard.append(clock.monotonic() - start)
        if not deadlines.has_expired() and not deadlines.is_idle(sandbox):
            deadlines.arm(sandbox)

    start = clock.monotonic()
    deadlines = Deadlines(sandbox, clock, ring)
    deadlines.arm(sandbox)
    return deadlines, heard


def test_it_rings_when_the_time_is_over(sandbox: Sandbox, clock: ManualClock) -> None:
    deadlines, heard = rings(sandbox, clock)
    clock.advance(99.9)
    assert not heard
    assert not deadlines.has_expired()
    clock.advance(0.2)
    assert heard == [pytest.approx(100.0)]
    assert deadlines.has_expired()


@pytest.mark.parametrize("jump", [-1e9, -50.0, 50.0, 1e9])
def test_a_wall_clock_that_jumps_moves_no_running_timer(sandbox: Sandbox, clock: ManualClock, jump: float) -> None:
    deadlines, _ = rings(sandbox, clock)
    clock.jump_wall(jump)
    clock.advance(99.9)
    assert not deadlines.has_expired()
    clock.advance(0.2)
    assert deadlines.has_expired()


def test_a_restart_with_a_clock_set_back_grants_no_more_than_the_asked_life(
    sandbox: Sandbox, clock: ManualClock
) -> None:
    clock.jump_wall(-1e9)
    deadlines, _ = rings(sandbox, clock)
    clock.advance(100.1)
    assert deadlines.has_expired()


def test_time_that_passed_while_the_server_was_down_counts(sandbox: Sandbox, clock: ManualClock) -> None:
    clock.advance(200.0)
    deadlines, _ = rings(sandbox, clock)
    assert deadlines.has_expired()


def test_work_keeps_it_awake_and_its_end_starts_the_idle_time(sandbox: Sandbox, clock: ManualClock) -> None:
    sandbox = replace(sandbox, expires_at=None, idle_timeout_s=10.0)
    deadlines, heard = rings(sandbox, clock)
    clock.advance(9.0)
    deadlines.acquire()
    clock.advance(100.0)
    assert not deadlines.is_idle(sandbox)
    assert deadlines.last_active_at() == pytest.approx(clock.now())
    deadlines.release(sandbox)
    clock.advance(9.9)
    assert not deadlines.is_idle(sandbox)
    clock.advance(0.2)
    assert deadlines.is_idle(sandbox)
    assert heard


@pytest.mark.parametrize(
    "change",
    [{"idle_timeout_s": None}, {"idle_action": IdleAction.NONE}, {"state": State.PAUSED}, {"state": State.TERMINATED}],
)
def test_these_are_never_idle(sandbox: Sandbox, clock: ManualClock, change: dict[str, object]) -> None:
    sandbox = replace(sandbox, **{"expires_at": None, "idle_timeout_s": 10.0, **change})
    deadlines, heard = rings(sandbox, clock)
    clock.advance(1000.0)
    assert not deadlines.is_idle(sandbox)
    assert not heard


def test_activity_that_was_not_written_before_a_crash_is_made_good(sandbox: Sandbox, clock: ManualClock) -> None:
    sandbox = replace(sandbox, expires_at=None, idle_timeout_s=600.0)
    clock.advance(10_000.0)
    deadlines, _ = rings(sandbox, clock)
    assert not deadlines.is_idle(sandbox)
    clock.advance(NOTED_EVERY_S + 0.1)
    assert deadlines.is_idle(sandbox)


def test_it_asks_for_a_note_of_activity_once_a_minute(sandbox: Sandbox, clock: ManualClock) -> None:
    deadlines, _ = rings(sandbox, clock)
    assert not deadlines.must_note()
    clock.advance(NOTED_EVERY_S)
    assert deadlines.must_note()
    assert not deadlines.must_note()


def test_after_stop_nothing_rings(sandbox: Sandbox, clock: ManualClock) -> None:
    deadlines, heard = rings(sandbox, clock)
    deadlines.stop()
    deadlines.acquire()
    deadlines.release(sandbox)
    clock.advance(1000.0)
    assert not heard
