"""`kill -9` of the server at each step of a hibernation, a resume and a rollback: the sandbox is whole all the same.

The server kills itself at a step, so that no step is missed: a module that Python runs at its start wraps the calls
that end them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from state_support import Caller, until
from tests_support import SOAK, NewServer, RunningServer

pytestmark = pytest.mark.real

_DYING = """
import functools, os, signal
from pathlib import Path
WISH = Path({wish!r})

def die(step):
    if WISH.exists() and WISH.read_text() == step:
        WISH.unlink()
        os.kill(os.getpid(), signal.SIGKILL)

def wrap(owner, name, before="", after=""):
    call = getattr(owner, name)

    @functools.wraps(call)
    async def wrapped(*args, **named):
        die(before)
        answer = await call(*args, **named)
        die(after)
        return answer

    setattr(owner, name, wrapped)

from cove.agentlink.client import AgentClient
from cove.core.journal import StoreJournal
from cove.engine.checkpoints.store import CheckpointStore
from cove.engine.oci.box import OciBox
from cove.engine.oci.driver import OciDriver

wrap(CheckpointStore, "begin", after="begun")
wrap(CheckpointStore, "seal", before="taken", after="sealed")
wrap(OciBox, "destroy", after="destroyed")
wrap(CheckpointStore, "get", after="read")
wrap(OciDriver, "create", after="made")
wrap(AgentClient, "revive", after="revived")
wrap(CheckpointStore, "remove", after="removed")
write = StoreJournal.write

async def written(self, sandbox):
    await write(self, sandbox)
    die(f"written-{{sandbox.state.value}}")

StoreJournal.write = written
"""

HIBERNATION = {
    "begun": "running",
    "taken": "running",
    "sealed": "running",
    "written-hibernated": "hibernated",
    "destroyed": "hibernated",
}
RESUME = {
    "read": "hibernated",
    "made": "hibernated",
    "revived": "hibernated",
    "written-running": "running",
    "removed": "running",
}
"""The state that the next start finds it in, by the step after which the server died."""

FEW = ("sealed", "written-hibernated", "made", "written-running")
COUNT = "i=0; while :; do i=$((i+1)); echo $i; echo $i > /root/n; sleep 0.01; done"


class Mortal:
    """A server that dies when it is told at which step, and a sandbox in it that counts."""

    def __init__(self, server: RunningServer, caller: Caller, wish: Path) -> None:
        self._server = server
        self._wish = wish
        self.caller = caller
        self.box = self.caller.create(idle_timeout_s=None)
        with server.client() as client:
            answer = client.post(f"/sandboxes/{self.box}/commands", json={"command": COUNT})
            self._command = answer.json()["id"]
        until(self.numbers, "it does not count")

    def die(self, step: str, verb: str, **wishes: object) -> None:
        """Begin `verb`, be killed after `step`, start again."""
        self._wish.write_text(step)
        with contextlib.suppress(httpx2.HTTPError, AssertionError):
            self.caller.act(self.box, verb, **wishes)
        assert self._server.process is not None
        assert self._server.process.wait(60) == -9, f"{verb} has no step {step}"
        self._server.start()

    def numbers(self) -> list[int]:
        """What it has counted; this resumes it."""
        with self._server.client() as client:
            answer = client.get(f"/sandboxes/{self.box}/commands/{self._command}/output")
            assert answer.status_code == 200, answer.text
            return [int(n) for n in "".join(chunk["data"] for chunk in answer.json()["chunks"]).split()]

    def check(self, least: int = 0) -> int:
        """It counts on, without a gap: what it remembers, what it said and what it wrote belong together."""
        before = self.numbers()
        assert before == list(range(1, len(before) + 1))
        assert before[-1] >= least
        until(lambda: len(self.numbers()) > len(before) + 2, "it does not go on")
        assert int(self.caller.said(self.box, "cat /root/n")) >= before[-1]
        return before[-1]


@pytest.fixture
def mortal(new_server: NewServer, tmp_path: Path) -> Iterator[Mortal]:
    (tmp_path / "sitecustomize.py").write_text(_DYING.format(wish=str(tmp_path / "wish")))
    server = new_server(COVE_POOL_SIZE="0", PYTHONPATH=str(tmp_path))
    with Caller(server) as caller:
        yield Mortal(server, caller, tmp_path / "wish")


@pytest.mark.timeout(600)
def test_it_is_whole_whatever_step_the_server_dies_at(mortal: Mortal) -> None:
    # Cases 74 and 78.
    caller, box, seen = mortal.caller, mortal.box, 0
    for step, state in HIBERNATION.items():
        if SOAK or step in FEW:
            mortal.die(step, "hibernate")
            assert caller.state(box) == state, step
            seen = mortal.check(seen)
    for step, state in RESUME.items():
        if SOAK or step in FEW:
            assert caller.act(box, "hibernate")["state"] == "hibernated"
            mortal.die(step, "resume")
            assert caller.state(box) == state, step
            seen = mortal.check(seen)


@pytest.mark.timeout(300)
def test_a_rollback_that_dies_half_way_leaves_what_was_before_it(mortal: Mortal) -> None:
    caller, box = mortal.caller, mortal.box
    snapshot = caller.snapshot(box)["id"]
    time.sleep(0.2)
    seen = mortal.check()
    mortal.die("made", "rollback", snapshot=snapshot)
    assert caller.state(box) == "hibernated"
    mortal.check(seen)
    view = caller.act(box, "rollback", snapshot=snapshot)
    assert (view["state"], view["kept"]["memory"]) == ("running", True)
    mortal.check()
