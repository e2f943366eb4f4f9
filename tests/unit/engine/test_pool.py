# ruff: noqa: ANN001, ANN003 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from cove.engine.checkpoints.model import Checkpoint, CheckpointFacts
from cove.engine.clock import ManualClock
from cove.engine.driver import Box, BoxSpec
from cove.engine.pool import Pool, PoolConfig, PoolTarget, open_pool, pool_size
from cove.model.errors import EngineFailure
from cove.model.sandbox import MIB, Limits


@asynccontextmanager
async def filled(driver, images, clock, size: int = 3, **config) -> AsyncIterator[Pool]:
    targets = (PoolTarget(image="base", driver="stub", size=size),)
    settings = PoolConfig(targets=targets, **{"quiet_s": 0.0, **config})
    async with open_pool({"stub": driver}, images, settings, clock=clock) as pool:
        pool.start_filling()
        yield pool


def take(pool: Pool, images, driver: str = "stub", hostname: str | None = None, **limits):  # noqa: ANN201
    return pool.take(images.get("base"), driver, Limits(**limits), hostname)


def ready(pool: Pool) -> int:
    return pool.stats()[0].ready


async def test_it_fills_itself_to_its_target(driver, images, clock, eventually) -> None:
    async with filled(driver, images, clock, size=5) as pool:
        await eventually(lambda: ready(pool) == 5)
        assert driver.most_creating <= 2
        assert driver.created == 5


async def test_a_hit_gives_a_box_and_a_new_one_is_made(driver, images, clock, eventually) -> None:
    async with filled(driver, images, clock) as pool:
        await eventually(lambda: ready(pool) == 3)
        box = take(pool, images)
        assert box is not None
        assert pool.stats()[0].hits == 1
        clock.advance(1.0)
        await eventually(lambda: ready(pool) == 3)
        assert driver.created == 4


async def test_a_box_is_given_once(driver, images, clock, eventually) -> None:
    async with filled(driver, images, clock, size=5) as pool:
        await eventually(lambda: ready(pool) == 5)
        taken = [take(pool, images) for _ in range(7)]
        ids = [box.facts.id for box in taken if box is not None]
        assert len(ids) == len(set(ids)) == 5
        assert taken[5:] == [None, None]
        assert pool.stats()[0].misses == 2


async def test_what_a_driver_cannot_change_later_is_a_miss(driver, images, clock, eventually) -> None:
    async with filled(driver, images, clock, size=2) as pool:
        await eventually(lambda: ready(pool) == 2)
        driver.can_rename = driver.can_change_pids = False
        assert take(pool, images, hostname="otter") is None
        assert take(pool, images, pids=99) is None
        assert take(pool, images, memory_bytes=64 * MIB) is not None
        driver.can_rename = driver.can_change_pids = True
        assert take(pool, images, hostname="otter", pids=99) is not None


async def test_what_has_no_shelf_is_a_miss(driver, images, clock) -> None:
    async with filled(driver, images, clock, size=0) as pool:
        assert take(pool, images, "other") is None


async def test_a_member_that_dies_is_dropped_and_freed(driver, images, clock, eventually) -> None:
    async with filled(driver, images, clock, size=2) as pool:
        await eventually(lambda: ready(pool) == 2)
        dead = next(iter(driver.boxes.values()))
        dead.die()
        await eventually(lambda: dead.is_destroyed)
        assert pool.stats()[0].dead == 1
        taken = take(pool, images)
        assert taken is not dead
        clock.advance(5.0)
        await eventually(lambda: ready(pool) == 2)


async def test_a_member_of_an_image_that_was_rebuilt_is_not_given(driver, images, clock, eventually) -> None:
    async with filled(driver, images, clock, size=2) as pool:
        await eventually(lambda: ready(pool) == 2)
        old = list(driver.boxes.values())
        images.digest = "d2"
        assert take(pool, images) is None
        await eventually(lambda: all(box.is_destroyed for box in old))
        clock.advance(1.0)
        await eventually(lambda: ready(pool) == 2)
        fresh = take(pool, images)
        assert fresh is not None
        assert fresh.facts.image_digest == "d2"


async def test_filling_stands_back_while_a_caller_waits(driver, images, clock, eventually) -> None:
    async with filled(driver, images, clock, size=1, quiet_s=1.0) as pool:
        clock.advance(1.0)
        await eventually(lambda: ready(pool) == 1)
        driver.gate.clear()
        spec = BoxSpec(id="f" * 16, image=images.get("base"), limits=Limits(), hostname="h")
        waiting = asyncio.create_task(pool.create(driver, spec))
        assert take(pool, images) is not None
        for _ in range(5):
            clock.advance(1.0)
            await asyncio.sleep(0)
        assert driver.creating == 1, "only the caller's"
        driver.gate.set()
        await waiting
        assert pool.stats()[0].making == 0, "and not in the moment after it either"
        for _ in range(3):
            clock.advance(1.0)
            await asyncio.sleep(0.002)
        await eventually(lambda: ready(pool) == 1)


async def test_so_many_callers_create_at_one_time(driver, images, clock) -> None:
    async with filled(driver, images, clock, size=0, demand=4) as pool:
        specs = [BoxSpec(id=f"{n:016x}", image=images.get("base"), limits=Limits(), hostname="h") for n in range(20)]
        boxes = await asyncio.gather(*(pool.create(driver, spec) for spec in specs))
        assert [box.facts.id for box in boxes] == [spec.id for spec in specs]
        assert driver.most_creating == 4


async def test_failures_are_tried_again_ever_more_seldom(driver, images, clock, eventually) -> None:
    driver.failures = [EngineFailure("no") for _ in range(3)]
    async with filled(driver, images, clock, size=1, makers=1) as pool:
        await eventually(lambda: len(driver.failures) == 2)
        clock.advance(0.5)
        await asyncio.sleep(0.01)
        assert len(driver.failures) == 2
        for _ in range(20):
            clock.advance(1.0)
            await asyncio.sleep(0.001)
        await eventually(lambda: ready(pool) == 1)


async def test_a_bug_in_a_create_does_not_end_the_filling(driver, images, clock, eventually) -> None:
    driver.failures = [ZeroDivisionError()]
    async with filled(driver, images, clock, size=1, makers=1) as pool:
        await eventually(lambda: not driver.failures)
        await asyncio.sleep(0.01)
        clock.advance(2.0)
        await eventually(lambda: ready(pool) == 1)


async def test_an_image_that_is_not_there_yet_is_waited_for(driver, images, clock, eventually) -> None:
    images.missing = True
    async with filled(driver, images, clock, size=1) as pool:
        await asyncio.sleep(0.01)
        images.missing = False
        for _ in range(5):
            clock.advance(1.0)
            await asyncio.sleep(0.001)
        await eventually(lambda: ready(pool) == 1)


async def test_without_room_nothing_is_made(driver, images, clock, eventually) -> None:
    async with filled(driver, images, clock, size=0) as empty:
        del empty
    targets = (PoolTarget(image="base", driver="stub", size=2),)
    async with open_pool({"stub": driver}, images, PoolConfig(targets=targets, quiet_s=0.0), clock=clock) as pool:
        has_room = False
        pool.has_room = lambda: has_room
        pool.start_filling()
        await asyncio.sleep(0.01)
        assert driver.created == 0
        has_room = True
        clock.advance(2.0)
        await eventually(lambda: ready(pool) == 2)


async def test_members_outlive_the_pool_and_are_adopted_by_the_next(driver, images, clock, eventually) -> None:
    async with filled(driver, images, clock, size=2) as pool:
        await eventually(lambda: ready(pool) == 2)
    assert len(driver.living()) == 2
    boxes = [await driver.adopt(facts) for facts in await driver.remains()]
    targets = (PoolTarget(image="base", driver="stub", size=2),)
    config = PoolConfig(targets=targets, quiet_s=0.0, agent_build="b")
    async with open_pool({"stub": driver}, images, config, clock=clock) as pool:
        assert [pool.adopt_member(box) for box in boxes] == [True, True]
        assert not pool.adopt_member(boxes[0]), "the shelf is full"
        pool.start_filling()
        await asyncio.sleep(0.01)
        assert driver.created == 2


@pytest.mark.parametrize("difference", ["limits", "digest", "build", "closed", "image", "origin"])
async def test_a_box_unlike_new_ones_is_not_adopted(driver, images, clock, difference: str) -> None:
    limits = Limits(cpus=2.0) if difference == "limits" else Limits()
    box = await driver.create(BoxSpec(id="a" * 16, image=images.get("base"), limits=limits, hostname="h"))
    if difference == "digest":
        images.digest = "d9"
    if difference == "closed":
        await box.agent.close()
    if difference == "image":
        images.missing = True
    if difference == "origin":
        box.facts = replace(box.facts, origin="c" * 16)
    config = PoolConfig(
        targets=(PoolTarget(image="base", driver="stub", size=2),), agent_build="x" if difference == "build" else "b"
    )
    async with open_pool({"stub": driver}, images, config, clock=clock) as pool:
        assert not pool.adopt_member(box)


async def test_an_untouched_box_can_be_given_back(driver, images, clock, eventually) -> None:
    async with filled(driver, images, clock, size=1) as pool:
        await eventually(lambda: ready(pool) == 1)
        box = take(pool, images)
        assert box is not None
        pool.give_back(box)
        assert take(pool, images) is box
        pool.give_back(box)
        pool.give_back(box)
        await eventually(lambda: driver.boxes[box.facts.id].is_destroyed or ready(pool) == 1)


async def test_a_create_that_takes_too_long_is_given_up(driver, images, clock, monkeypatch) -> None:
    monkeypatch.setattr("cove.engine.pool.CREATE_TIMEOUT_S", 0.01)
    driver.gate.clear()
    async with filled(driver, images, clock, size=0) as pool:
        spec = BoxSpec(id="b" * 16, image=images.get("base"), limits=Limits(), hostname="h")
        with pytest.raises(EngineFailure, match="not ready"):
            await pool.create(driver, spec)
        assert driver.creating == 0


def test_its_size_follows_the_free_memory() -> None:
    assert pool_size(64, 24 * 1024 * MIB) == 64
    assert pool_size(64, 2 * 1024 * MIB) == 32
    assert pool_size(64, 0) == 0
    assert pool_size(64, 2 * 1024 * MIB, kernels=1) == 6
    assert isinstance(ManualClock(), ManualClock)


def joined(pool: Pool, driver) -> int:
    return sum(box.is_joined for box in driver.boxes.values() if not box.is_destroyed)


async def test_members_get_interfaces_once_somebody_asked_for_a_network(driver, images, clock, eventually) -> None:
    async with filled(driver, images, clock, size=4) as pool:
        await eventually(lambda: ready(pool) == 4)
        assert joined(pool, driver) == 0
        first = pool.take(images.get("base"), "stub", Limits(), None, connected=True)
        assert first is not None
        assert not first.is_joined
        clock.advance(1.0)
        await eventually(lambda: ready(pool) == 4)
        await eventually(lambda: joined(pool, driver) == 1)
        second = pool.take(images.get("base"), "stub", Limits(), None, connected=True)
        assert second is not None
        assert second.is_joined


async def test_who_wants_no_network_gets_a_member_without_an_interface(driver, images, clock, eventually) -> None:
    async with filled(driver, images, clock, size=3) as pool:
        await eventually(lambda: ready(pool) == 3)
        oldest = next(iter(driver.boxes.values()))
        await oldest.prepare_network()
        others = [take(pool, images), take(pool, images)]
        assert oldest not in others
        assert take(pool, images) is oldest


async def test_with_no_wish_for_a_network_for_long_no_member_gets_an_interface(
    driver, images, clock, eventually
) -> None:
    async with filled(driver, images, clock, size=2) as pool:
        await eventually(lambda: ready(pool) == 2)
        pool.take(images.get("base"), "stub", Limits(), None, connected=True)
        for _ in range(60):
            await eventually(lambda: ready(pool) > 0)
            take(pool, images)
            clock.advance(1.0)
        await eventually(lambda: ready(pool) == 2)
        assert not any(box.is_joined for box, _ in shelf_of(pool))


def shelf_of(pool: Pool) -> list[tuple[Box, asyncio.Task[None]]]:
    return list(pool._shelves["base", "stub", ""].members.values())


def copies(images, size: int = 2, pids: int = 99) -> PoolTarget:
    facts = CheckpointFacts(
        driver="stub",
        has_memory=True,
        image="base",
        image_digest=images.get("base").digest,
        limits=Limits(pids=pids),
        hostname="h",
        agent_build="b",
        engine={},
    )
    origin = Checkpoint(id="c" * 16, memory=Path("/nowhere"), layer="s-c", facts=facts)
    return PoolTarget(image="base", driver="stub", size=size, origin=origin, base=images.get("base"))


def take_copy(pool: Pool, images, pids: int = 99):  # noqa: ANN201
    return pool.take(images.get("base"), "stub", Limits(pids=pids), None, origin="c" * 16)


async def test_copies_of_a_checkpoint_are_kept_ready_and_given_to_nobody_else(
    driver, images, clock, eventually
) -> None:
    async with filled(driver, images, clock, size=1) as pool:
        await eventually(lambda: ready(pool) == 1)
        pool.keep(copies(images))
        await eventually(lambda: [one.ready for one in pool.stats()] == [1, 2])
        assert [one.origin for one in pool.stats()] == ["", "c" * 16]
        assert [spec.with_memory for spec in driver.specs] == [False, True, True]
        fresh = take(pool, images)
        assert fresh is not None
        assert fresh.facts.origin == ""
        copy = take_copy(pool, images)
        assert copy is not None
        assert copy.facts.origin == "c" * 16
        clock.advance(1.0)
        await eventually(lambda: [one.ready for one in pool.stats()] == [1, 2])


async def test_copies_that_nobody_wants_any_more_end(driver, images, clock, eventually) -> None:
    async with filled(driver, images, clock, size=1) as pool:
        await eventually(lambda: ready(pool) == 1)
        pool.keep(copies(images, size=3))
        await eventually(lambda: [one.ready for one in pool.stats()] == [1, 3])
        pool.keep(copies(images, size=1))
        await eventually(lambda: len(driver.living()) == 2)
        pool.forget(copies(images))
        await eventually(lambda: len(driver.living()) == 1)
        assert take_copy(pool, images) is None
        assert [one.ready for one in pool.stats()] == [1]


async def test_kernels_of_an_image_are_started_before_a_member_is_ready(
    driver, images, clock, eventually, monkeypatch
) -> None:
    begun: list[str] = []
    go_on = asyncio.Event()

    async def start(box, image) -> None:
        begun.append(box.facts.id)
        assert image.kernels == ("python",)
        await go_on.wait()

    monkeypatch.setattr("cove.engine.pool.start_ahead", start)
    plain = images.get
    images.get = lambda name: replace(plain(name), kernels=("python",))
    async with filled(driver, images, clock, size=2) as pool:
        await eventually(lambda: len(begun) == 2)
        assert ready(pool) == 0
        go_on.set()
        await eventually(lambda: ready(pool) == 2)


@pytest.mark.parametrize("error", [EngineFailure("no process can be started"), TimeoutError(), ValueError("a bug")])
async def test_a_member_without_its_kernel_is_a_member_all_the_same(  # noqa: PLR0913, PLR0917 - fixtures
    driver, images, clock, eventually, monkeypatch, caplog, error
) -> None:
    async def refused(*_args, **_named) -> None:  # noqa: ANN002
        raise error

    monkeypatch.setattr("cove.engine.kernels.start_kernel", refused)
    plain = images.get
    images.get = lambda name: replace(plain(name), kernels=("python",))
    async with filled(driver, images, clock, size=1) as pool:
        await eventually(lambda: ready(pool) == 1)
    assert "no kernel for python" in caplog.text


async def test_boxes_for_a_purpose_are_made_ready_and_for_nobody_else(driver, images, clock, eventually) -> None:
    furnished: list[str] = []

    async def furnish(box: Box) -> None:
        furnished.append(box.facts.id)

    limits = Limits(pids=64)
    async with filled(driver, images, clock, size=1) as pool:
        pool.keep(PoolTarget(image="base", driver="stub", size=2, purpose="work", limits=limits, furnish=furnish))
        await eventually(lambda: [shelf.ready for shelf in pool.stats()] == [1, 2])
        assert pool.stats()[1].purpose == "work"
        plain = take(pool, images)
        assert plain is not None
        assert plain.facts.id not in furnished
        assert take(pool, images) is None
        ready_one = pool.take(images.get("base"), "stub", limits, None, origin="work")
        assert ready_one is not None
        assert ready_one.facts.id in furnished
        assert ready_one.facts.limits == limits


async def test_a_box_that_cannot_be_made_ready_is_ended(driver, images, clock, eventually) -> None:
    failed: list[Box] = []

    async def furnish(box: Box) -> None:
        failed.append(box)
        raise EngineFailure(f"no room in {box.facts.id}")

    async with filled(driver, images, clock, size=0) as pool:
        pool.keep(PoolTarget(image="base", driver="stub", size=1, purpose="work", furnish=furnish))
        await eventually(lambda: bool(failed) and failed[0].is_destroyed)
        assert pool.stats()[-1].ready == 0


async def test_who_is_in_a_hurry_holds_the_filling_back_while_half_is_there(driver, images, clock, eventually) -> None:
    async with filled(driver, images, clock, size=4) as pool:
        await eventually(lambda: ready(pool) == 4)
        pool.hold_back(5.0)
        assert take(pool, images) is not None
        await asyncio.sleep(0.05)
        assert driver.created == 4
        clock.advance(6.0)
        await eventually(lambda: ready(pool) == 4)
        pool.hold_back(1e6)
        assert None not in [take(pool, images) for _ in range(3)]
        await eventually(lambda: driver.created > 5)  # less than half was there
