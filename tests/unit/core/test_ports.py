"""Connections that rest between two requests: whose they are, how many, how long."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from cove.agentlink.client import DialStream
from cove.core import ports
from cove.core.ports import IDLE_CONNECTIONS, _Idle, _now, _Resting
from cove.engine.driver import Box


class Line:
    """A connection that rests until it is told to be none."""

    def __init__(self) -> None:
        self.is_quiet = True
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


BOX = cast("Box", object())


def given(idle: _Idle, key: str, box: Box = BOX, port: int = 80) -> Line:
    line = Line()
    idle.give(_Resting(port, key, box, cast("DialStream", line), _now()))
    return line


async def test_a_connection_goes_back_to_who_used_it_the_last_first() -> None:
    idle = _Idle()
    mine, newer, other = given(idle, "a"), given(idle, "a"), given(idle, "b")
    assert cast("Any", idle.take(80, "a", BOX)) is newer
    assert cast("Any", idle.take(80, "a", BOX)) is mine
    assert idle.take(80, "a", BOX) is None
    assert not other.is_closed


async def test_one_that_was_closed_or_has_said_something_or_is_of_another_box_is_not_used() -> None:
    idle = _Idle()
    closed, old = given(idle, "a"), given(idle, "a", cast("Box", object()))
    closed.is_quiet = False
    assert idle.take(80, "a", BOX) is None
    assert closed.is_closed
    assert old.is_closed


async def test_a_fresh_connection_finds_nobody_at_the_door_of_its_port() -> None:
    idle = _Idle()
    here, there = given(idle, "b"), given(idle, "b", port=81)
    idle.close(80)
    assert here.is_closed
    assert not there.is_closed
    assert cast("Any", idle.take(81, "b", BOX)) is there


async def test_few_rest_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "IDLE_S", 0.05)
    idle = _Idle()
    lines = [given(idle, "a") for _ in range(IDLE_CONNECTIONS + 2)]
    assert [line.is_closed for line in lines] == [True, True] + [False] * IDLE_CONNECTIONS
    idle.expire()
    assert len(idle.resting) == IDLE_CONNECTIONS
    await asyncio.sleep(0.06)
    idle.expire()
    assert idle.resting == []
    assert all(line.is_closed for line in lines)
