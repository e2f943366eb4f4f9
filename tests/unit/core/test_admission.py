# ruff: noqa: ANN003 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.core.admission import READING_S, Admission, AdmissionSettings, Disk, Memory, read_memory
from cove.engine.clock import ManualClock
from cove.model.errors import CapacityExceeded
from cove.model.sandbox import MIB, Limits

GIB = 1024 * MIB


ROOMY = Memory(16 * GIB, 12 * GIB)


def admission(memory: Memory = ROOMY, **settings) -> Admission:
    return Admission(AdmissionSettings(**settings), ManualClock(), lambda: memory)


def test_too_little_free_memory_refuses_with_a_time_to_come_back() -> None:
    with pytest.raises(CapacityExceeded, match="free memory") as caught:
        admission(Memory(16 * GIB, 1 * GIB)).check(Limits())
    assert caught.value.retry_after_s is not None


@pytest.mark.parametrize(
    ("total", "kept"), [(64 * GIB, 64 * GIB // 10), (4 * GIB, 512 * MIB), (1 * GIB, 256 * MIB), (512 * MIB, 128 * MIB)]
)
def test_the_watermark_follows_the_machine(total: int, kept: int) -> None:
    assert admission(Memory(total, total)).keep_free_bytes() == kept
    assert admission(Memory(total, total), keep_free_bytes=7).keep_free_bytes() == 7


def test_the_sum_of_limits_is_bounded_by_the_overcommit() -> None:
    one = admission(Memory(1 * GIB, 1 * GIB), overcommit=2.0)
    for number in range(4):
        one.check(Limits(memory_bytes=512 * MIB))
        one.admit(str(number), Limits(memory_bytes=512 * MIB))
    with pytest.raises(CapacityExceeded, match="promise"):
        one.check(Limits(memory_bytes=512 * MIB))
    one.release("0")
    one.check(Limits(memory_bytes=512 * MIB))
    with pytest.raises(CapacityExceeded):
        one.change("1", 2 * GIB)
    one.change("1", 32 * MIB)
    assert one.stats().memory_promised_bytes == 2 * 512 * MIB + 32 * MIB


def test_what_lives_already_is_counted_even_past_the_limit() -> None:
    one = admission(max_sandboxes=1)
    for number in range(3):
        one.admit(str(number), Limits(), is_new=False)
    assert one.stats().sandboxes == 3
    assert one.stats().creating == 0
    with pytest.raises(CapacityExceeded):
        one.check(Limits())


def test_memory_is_read_anew_when_the_last_reading_is_old() -> None:
    clock, readings = ManualClock(), [Memory(16 * GIB, 12 * GIB), Memory(16 * GIB, 1 * GIB)]
    one = Admission(AdmissionSettings(), clock, lambda: readings.pop(0))
    assert one.has_room()
    clock.advance(READING_S * 2)
    assert not one.has_room()


def test_the_kernels_numbers_are_read(tmp_path: Path) -> None:
    memory = read_memory()
    assert 0 < memory.available < memory.total
    (tmp_path / "m").write_text("MemTotal:       100 kB\nMemFree:  1 kB\nMemAvailable:    50 kB\n")
    assert read_memory(tmp_path / "m") == Memory(100 * 1024, 50 * 1024)


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["create", "settle", "release", "change"]), st.integers(0, 9), st.integers(32, 4096)),
    max_size=60,
)


@given(operations=OPERATIONS)
def test_the_books_always_balance(operations: list[tuple[str, int, int]]) -> None:
    one = admission(max_sandboxes=5, max_creates=3, overcommit=0.5)
    held: dict[str, int] = {}
    creating: set[str] = set()
    refused: list[CapacityExceeded] = []
    for what, number, mib in operations:
        name, size = str(number), mib * MIB
        try:
            if what == "create" and name not in held:
                one.check(Limits(memory_bytes=size))
                one.admit(name, Limits(memory_bytes=size))
                held[name] = size
                creating.add(name)
            elif what == "settle":
                one.settle(name)
                creating.discard(name)
            elif what == "release":
                one.release(name)
                held.pop(name, None)
                creating.discard(name)
            elif what == "change" and name in held:
                one.change(name, size)
                held[name] = size
        except CapacityExceeded as error:
            refused.append(error)
        stats = one.stats()
        assert stats.memory_promised_bytes == sum(held.values()) <= 8 * GIB
        assert stats.sandboxes == len(held) <= 5
        assert stats.creating == len(creating) <= 3
    assert all(error.retry_after_s is not None for error in refused)


async def test_a_full_disk_refuses_creates_until_space_is_back() -> None:
    free = [10 * 1024**3]
    clock = ManualClock()
    memory, disk = Memory(16 * 1024**3, 15 * 1024**3), 100 * 1024**3
    admission = Admission(AdmissionSettings(), clock, lambda: memory, lambda: Disk(disk, free[0]))
    watch = asyncio.create_task(admission.watch_disk())

    async def seen(free_bytes: int) -> None:
        free[0] = free_bytes
        while admission.stats().disk_free_bytes != free_bytes:
            clock.advance(1)
            await asyncio.sleep(0.001)

    admission.check(Limits())
    await seen(900 * 1024**2)
    with pytest.raises(CapacityExceeded, match="disk space"):
        admission.check(Limits())
    await seen(2 * 1024**3)
    admission.check(Limits())
    watch.cancel()
