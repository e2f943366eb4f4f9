"""What programs have open, and what they are in the middle of, over checkpoints by criu: kept, or refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from checkpoint_programs import COMMON, KEPT, REFUSED
from state_support import Caller, until
from tests_support import RunningServer

pytestmark = pytest.mark.real
RES: Final = "cd /tmp/res && grep -H . * 2>/dev/null; true"


@pytest.fixture
def caller(server: RunningServer) -> Iterator[Caller]:
    with Caller(server) as made:
        yield made


def run_program(caller: Caller, box: str, name: str, text: str) -> str:
    path = f"/root/{name}.py"
    caller.put(box, path, f"{COMMON}{text}\nopen('/tmp/res/' + name, 'w').write('ok')\n")
    return str(caller.ask("POST", f"/sandboxes/{box}/commands", {"command": ["python3", path, name]})["id"])


def results(caller: Caller, box: str) -> dict[str, str]:
    lines = caller.said(box, RES).splitlines()
    return {line.partition(":")[0]: line.partition(":")[2] for line in lines}


def failures(caller: Caller, box: str, commands: dict[str, str]) -> dict[str, str]:
    """What programs said that did not end well."""
    found = results(caller, box)
    return {name: caller.output(box, one)[-600:] for name, one in commands.items() if found.get(name) != "ok"}


@pytest.mark.timeout(180)
def test_what_programs_hold_is_there_in_the_copy_of_a_copy(caller: Caller) -> None:
    box = caller.create(image="python", driver="runc")
    commands = {name: run_program(caller, box, name, text) for name, text in KEPT.items()}
    until(lambda: set(results(caller, box).values()) == {"ready"} and len(results(caller, box)) == len(KEPT), "ready")
    first = caller.snapshot(box, memory=True)
    copy = caller.restore(first["id"])
    second = caller.snapshot(copy, memory=True)
    again = caller.restore(second["id"])
    for one in (box, copy, again):
        caller.said(one, "touch /tmp/go")
        until(lambda one=one: "ready" not in results(caller, one).values(), f"not all ended in {one}")  # type: ignore[misc]
        assert failures(caller, one, commands) == {}
    # A connection is the source's own; in a copy its program learns at once that it is closed.
    assert caller.read(box, "/tmp/connection") == b"b'x'"
    for one in (copy, again):
        assert b"BrokenPipe" in (caller.read(one, "/tmp/connection") or b"")
    caller.end(box, copy, again)
    caller.drop(first["id"], second["id"])


@pytest.mark.timeout(120)
def test_what_cannot_be_kept_is_named_and_the_program_goes_on(caller: Caller) -> None:
    for reason, text in REFUSED.items():
        box = caller.create(image="python", driver="runc")
        run_program(caller, box, "odd", text)
        until(lambda box=box: results(caller, box).get("odd") == "ready", reason)  # type: ignore[misc]
        problem = caller.refused("POST", f"/sandboxes/{box}/snapshots", {"memory": True})
        assert reason in problem["detail"], problem
        files = caller.snapshot(box)
        assert files["memory"] is False
        assert reason in files["reason"]
        caller.said(box, "touch /tmp/go")
        until(lambda box=box: results(caller, box).get("odd") == "ok", f"{reason}: it does not go on")  # type: ignore[misc]
        caller.end(box)
        caller.drop(files["id"])
