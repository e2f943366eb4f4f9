"""What is killed under a gVisor sandbox while its kernel writes itself down: it lives, nothing is half there."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import httpx2
import pytest

from state_support import (
    Caller,
    assert_in_step,
    assert_nothing_left,
    delete_all,
    engine_children,
    lockstep,
    strays,
    until,
)
from tests_support import SOAK, RunningServer, make_server

pytestmark = pytest.mark.real
MOMENTS: Final = tuple(0.02 + 0.03 * n for n in range(12)) if SOAK else (0.2,)
"""When the server is killed, in seconds from the request on; a snapshot takes about 0.3 s."""
ROUNDS: Final = 10 if SOAK else 1


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """A server of its own, empty afterwards."""
    server = make_server(tmp_path_factory.mktemp("server"), COVE_POOL_SIZE="0")
    server.start()
    try:
        with Caller(server) as made:
            yield made
            delete_all(made)
            assert_nothing_left(made)
    finally:
        server.down()
    assert not server.run_dir.exists(), f"left behind: {sorted(server.run_dir.rglob('*'))[:20]}"
    shutil.rmtree(server.data_dir, ignore_errors=True)


@pytest.fixture(scope="module")
def box(caller: Caller) -> str:
    """A sandbox with a program that writes memory and file in lock-step."""
    made = caller.create(driver="gvisor", idle_timeout_s=None, memory_mib=256)
    lockstep(caller, made, 1)
    return made


def helpers(server: RunningServer, verb: str) -> list[int]:
    """The calls of `runsc verb` that run now."""
    found: list[int] = []
    for pid in engine_children(server, "runsc"):
        with contextlib.suppress(OSError):
            if verb.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def killed_in(caller: Caller, verb: str, delay_s: float, work: Callable[[], object]) -> str | None:
    """What `work` failed with, where a `runsc verb` was killed under it, `delay_s` after it began."""
    with ThreadPoolExecutor(1) as threads:
        begun = threads.submit(work)
        while not begun.done():
            if pids := helpers(caller.server, verb):
                time.sleep(delay_s)
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, 9)
                break
            time.sleep(0.001)
        try:
            begun.result(60)
        except AssertionError as error:
            return str(error)
    return None


def settle(caller: Caller, box: str) -> None:
    """It goes on; what else is there is whole, and goes."""
    if caller.state(box) != "running":
        caller.act(box, "resume")
    assert_in_step(caller, box, 1)
    for other in caller.ask("GET", "/sandboxes?limit=1000")["sandboxes"]:
        if other["id"] != box:
            assert_in_step(caller, other["id"], 1)
            caller.end(other["id"])
    until(lambda: not left(caller.server, box), f"processes are left: {left(caller.server, box)}")


def left(server: RunningServer, box: str) -> list[str]:
    """Strays that are not the sandbox's own kernel, which is a process of the host."""
    return [one for one in strays(server) if box.removeprefix("sb_") not in one]


@pytest.mark.timeout(600)
def test_a_killed_runsc_is_told_and_the_source_lives(caller: Caller, box: str) -> None:
    snapshot = caller.snapshot(box, memory=True)["id"]
    works: dict[str, Callable[[], object]] = {
        "checkpoint": lambda: caller.snapshot(box, memory=True),
        "restore": lambda: caller.restore(snapshot),
    }
    told = 0
    for number in range(ROUNDS):
        for verb, work in works.items():
            error = killed_in(caller, verb, number % 5 * 0.02, work)
            if error is not None:
                told += 1
                assert "500" in error or "502" in error, (verb, error)
                assert str(caller.server.data_dir) not in error
            settle(caller, box)
    assert told >= ROUNDS, "hardly any was met in the middle: this test shows nothing"
    assert_in_step(caller, caller.restore(caller.snapshot(box, memory=True)["id"]), 1)


@pytest.mark.timeout(600)
def test_a_killed_server_leaves_a_sandbox_that_goes_on(caller: Caller, box: str) -> None:
    # Its kernel was told to stand still, and only the server would have told it to go on.
    for moment in MOMENTS:
        with ThreadPoolExecutor(1) as threads:
            begun = threads.submit(caller.snapshot, box, memory=True)
            time.sleep(moment * (0.5 + random.random()) if SOAK else moment)  # noqa: S311 (any moment will do)
            caller.server.kill()
            with contextlib.suppress(httpx2.HTTPError, AssertionError):
                begun.result(60)
        caller.server.start()
        settle(caller, box)
    assert_in_step(caller, caller.restore(caller.snapshot(box, memory=True)["id"]), 1)
