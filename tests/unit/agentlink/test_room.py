"""What all commands' output may take together."""

from __future__ import annotations

from cove.agentlink.commands import Tail
from cove.agentlink.room import STEP_BYTES, OutputRoom


def test_a_share_takes_steps_until_nothing_is_left_and_gives_all_back() -> None:
    room = OutputRoom(3 * STEP_BYTES)
    share = room.share()
    assert [share.grow() for _ in range(4)] == [True, True, True, False]
    share.release()
    share.release()
    assert room.free_bytes == 3 * STEP_BYTES


def test_a_stream_without_room_keeps_a_tail_of_one_step_and_counts_the_rest() -> None:
    room = OutputRoom(2 * STEP_BYTES)
    greedy, late = room.share(), room.share()
    first, second = Tail(10 * STEP_BYTES, greedy), Tail(10 * STEP_BYTES, late)
    first.add(b"a" * 5 * STEP_BYTES)
    second.add(b"b" * 5 * STEP_BYTES)
    assert (len(first.data), first.dropped) == (3 * STEP_BYTES, 2 * STEP_BYTES)
    assert (len(second.data), second.dropped) == (STEP_BYTES, 4 * STEP_BYTES)


def test_a_stream_within_the_room_is_kept_whole() -> None:
    tail = Tail(10 * STEP_BYTES, OutputRoom(100 * STEP_BYTES).share())
    tail.add(b"a" * 5 * STEP_BYTES)
    assert (len(tail.data), tail.dropped) == (5 * STEP_BYTES, 0)
