from __future__ import annotations

from cove.model.state import FINAL, LIVE, TRANSITIONS, State, may_move


def test_every_state_has_a_row_and_final_ones_lead_nowhere() -> None:
    assert set(TRANSITIONS) == set(State)
    for state in State:
        assert (not TRANSITIONS[state]) is (state in FINAL)


def test_every_unended_state_can_end_both_ways() -> None:
    for state in set(State) - FINAL - {State.STOPPING}:
        assert may_move(state, State.STOPPING)
        assert may_move(state, State.FAILED)
    assert may_move(State.STOPPING, State.TERMINATED)


def test_everything_is_reached_from_pending() -> None:
    seen, todo = set(), {State.PENDING}
    while todo:
        state = todo.pop()
        seen.add(state)
        todo |= TRANSITIONS[state] - seen
    assert seen == set(State)


def test_nothing_comes_back_to_pending_and_nothing_moves_to_itself() -> None:
    for state in State:
        assert not may_move(state, State.PENDING)
        assert not may_move(state, state)


def test_live_states_can_reach_each_other() -> None:
    assert may_move(State.RUNNING, State.PAUSED)
    assert may_move(State.PAUSED, State.RUNNING)
    assert {State.RUNNING, State.PAUSED} == LIVE
