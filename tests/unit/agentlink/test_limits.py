"""Time limits that stand still."""

from __future__ import annotations

import asyncio

import pytest

from cove.agentlink.limits import Limits


async def test_a_limit_stands_still_and_runs_out_afterwards() -> None:
    limits = Limits()
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def pause() -> None:
        await asyncio.sleep(0.05)
        limits.stop()
        await asyncio.sleep(0.3)
        limits.go_on()
        limits.go_on()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pause())
        with pytest.raises(TimeoutError):
            async with limits.of(1.0):
                await asyncio.sleep(60)
    assert 1.28 < loop.time() - began < 30


async def test_one_that_begins_meanwhile_waits_no_longer_than_it_says() -> None:
    limits = Limits()
    limits.stop()
    with pytest.raises(TimeoutError):
        async with limits.of(0.05):
            await asyncio.sleep(5)
    began = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_later(0.05, limits))
        with pytest.raises(TimeoutError):
            async with limits.of(0.1):
                await asyncio.sleep(5)
    assert asyncio.get_running_loop().time() - began >= 0.14  # it has all of its time once the session goes on


async def _later(delay_s: float, limits: Limits) -> None:
    await asyncio.sleep(delay_s)
    limits.go_on()


async def test_none_is_none_until_it_is_set() -> None:
    limits = Limits()
    async with limits.of(None) as limit:
        limits.stop()
        limits.go_on()
        assert not limit.is_set
    with pytest.raises(TimeoutError):
        await _set(limits)


async def _set(limits: Limits) -> None:
    async with limits.of(None) as limit:
        limit.set(0.01)
        await asyncio.sleep(5)


async def test_one_that_begins_in_the_tick_of_a_stop_keeps_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's loop has one time for all that happens in one turn of it."""
    limits = Limits()
    now = asyncio.get_running_loop().time()
    with monkeypatch.context() as still:
        still.setattr(asyncio.get_running_loop(), "time", lambda: now)
        limits.stop()
        async with limits.of(30):
            limits.go_on()
            still.undo()
            await asyncio.sleep(0.02)
