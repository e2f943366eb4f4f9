"""What is killed, filled or damaged under a snapshot or a fork: the source lives, nothing is half there."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest

from state_support import (
    Caller,
    assert_in_step,
    assert_nothing_left,
    checkpoints_of,
    delete_all,
    engine_children,
    lockstep,
    pool_of,
    strays,
    until,
)
from tests_support import SOAK, RunningServer, make_server

pytestmark = pytest.mark.real
MOMENTS: Final = tuple(0.01 + 0.05 * n for n in range(12)) if SOAK else (0.15,)
"""When the server is killed, in seconds from the request on; each operation takes about half a second."""
ROUNDS: Final = 10 if SOAK else 1
FILL: Final = "import os, time; held = os.urandom(48 << 20); open('/root/full', 'w').close(); time.sleep(100000)"

Work = Callable[[Caller, str, str], object]
OPERATIONS: Final[dict[str, Work]] = {
    "snapshot": lambda caller, box, _: caller.snapshot(box, memory=True),
    "hibernate": lambda caller, box, _: caller.act(box, "hibernate"),
    "restore": lambda caller, _, snapshot: caller.restore(snapshot),
    "fork": lambda caller, box, _: caller.fork(box, 3),
    "rollback": lambda caller, box, snapshot: caller.act(box, "rollback", snapshot=snapshot),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that tests kill; nothing of it is left."""
    server = make_server(tmp_path_factory.mktemp("server"), COVE_POOL_SIZE="0")
    server.start()
    yield server
    server.down()
    assert not server.run_dir.exists(), f"left behind: {sorted(server.run_dir.rglob('*'))[:20]}"
    shutil.rmtree(server.data_dir, ignore_errors=True)


@pytest.fixture
def caller(running: RunningServer) -> Iterator[Caller]:
    """It; empty after each test."""
    with Caller(running) as made:
        yield made
        delete_all(made)
        assert_nothing_left(made)


def busy(caller: Caller) -> str:
    """A sandbox with programs that write in lock-step, and memory enough that keeping it takes a while."""
    box = caller.create(idle_timeout_s=None, memory_mib=256)
    caller.start(box, FILL)
    lockstep(caller, box, 1)
    until(lambda: caller.read(box, "/root/full") is not None, "it does not fill its memory")
    return box


def assert_lives(caller: Caller, box: str) -> None:
    """It goes on from where it was, whatever its state is now."""
    if caller.state(box) != "running":
        assert caller.act(box, "resume")["state"] == "running"
    assert_in_step(caller, box, 1)


def assert_all_whole(caller: Caller, box: str) -> None:
    """The source lives; every other sandbox and every snapshot that is shown is whole, or says that it failed."""
    assert_lives(caller, box)
    for other in caller.ask("GET", "/sandboxes?limit=1000")["sandboxes"]:
        if other["id"] != box:
            assert other["state"] in {"running", "paused"}, other
            assert_in_step(caller, other["id"], 1)
            caller.end(other["id"])
    for snapshot in caller.ask("GET", "/snapshots")["snapshots"]:
        assert snapshot["state"] in {"ready", "failed"}, snapshot
        if snapshot["state"] == "failed":
            assert snapshot["failure"], snapshot
            caller.drop(snapshot["id"])
    until(lambda: not strays(caller.server), f"processes are left: {strays(caller.server)}")


@pytest.mark.timeout(1200)
def test_a_killed_server_leaves_nothing_half_done(caller: Caller) -> None:
    # Cases 74 and 80.
    box = busy(caller)
    snapshot = caller.snapshot(box)["id"]
    server = caller.server
    for moment in MOMENTS:
        for name, work in OPERATIONS.items():
            with ThreadPoolExecutor(1) as threads:
                begun = threads.submit(work, caller, box, snapshot)
                time.sleep(moment * (0.5 + random.random()) if SOAK else moment)  # noqa: S311 (any moment will do)
                server.kill()
                with contextlib.suppress(httpx2.HTTPError, AssertionError):
                    begun.result(60)
            server.start()
            try:
                assert_all_whole(caller, box)
            except AssertionError as error:
                raise AssertionError(f"{name}, killed after {moment:.2f} s: {error}") from error
    copy = caller.restore(snapshot)
    assert_in_step(caller, copy, 1)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("victim", ["criu", "runc"] if SOAK else ["criu"])
def test_a_killed_helper_is_told_and_the_source_lives(caller: Caller, victim: str) -> None:
    box = busy(caller)
    snapshot = caller.snapshot(box)["id"]
    killed = 0
    for number in range(ROUNDS):
        for name, work in OPERATIONS.items():
            with ThreadPoolExecutor(1) as threads:
                begun = threads.submit(_answer, work, caller, box, snapshot)
                hit = False
                while not begun.done():
                    for pid in engine_children(caller.server, victim)[-1:]:
                        time.sleep(number * 0.03)
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, 9)
                            hit = True
                    if hit:
                        break
                    time.sleep(0.002)
                error = begun.result(60)
            if hit and error is not None:
                killed += 1
                assert "500" in error or "502" in error, (name, error)
                assert str(caller.server.data_dir) not in error
            assert_all_whole(caller, box)
    assert killed >= 3 * ROUNDS, "hardly any was met in the middle: this test shows nothing"


def _answer(work: Work, caller: Caller, box: str, snapshot: str) -> str | None:
    try:
        work(caller, box, snapshot)
    except AssertionError as error:
        return str(error)
    return None


# Images that are not what was written.


def images(caller: Caller, checkpoint: str) -> list[Path]:
    """The files of a checkpoint, largest first."""
    found = [
        path
        for path in (checkpoints_of(caller.server) / checkpoint.rsplit("_", maxsplit=1)[-1]).rglob("*")
        if path.is_file()
    ]
    return sorted(found, key=lambda path: path.stat().st_size, reverse=True)


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES: Final[dict[str, Callable[[Path], object]]] = {"flipped": flip, "cut": cut, "deleted": Path.unlink}


@pytest.mark.timeout(300)
def test_a_damaged_snapshot_is_refused_and_its_source_lives(caller: Caller) -> None:
    # Case 80.
    box = busy(caller)
    for what, damage in DAMAGES.items():
        for place in (0, -1) if SOAK else (0,):
            snapshot = caller.snapshot(box)["id"]
            damage(images(caller, snapshot)[place])
            problem = caller.refused("POST", f"/snapshots/{snapshot}/restore", {})
            assert problem["status"] in {409, 500, 502}, problem
            assert any(word in problem["detail"] for word in ("damaged", "missing", "changed")), (what, problem)
            assert str(caller.server.data_dir) not in str(problem)
            refused = caller.refused("POST", f"/sandboxes/{box}/rollback", {"snapshot": snapshot})
            assert refused["status"] in {409, 500, 502}, refused
            assert [one["id"] for one in caller.ask("GET", "/sandboxes")["sandboxes"]] == [box]
            assert_in_step(caller, box, 1)
            caller.drop(snapshot)


@pytest.mark.timeout(300)
def test_a_damaged_hibernation_is_refused_in_words_and_can_be_ended(caller: Caller) -> None:
    for damage in DAMAGES.values():
        box = caller.create()
        caller.act(box, "hibernate")
        damage(images(caller, box)[0])
        problem = caller.refused("POST", f"/sandboxes/{box}/resume")
        assert problem["status"] in {409, 500, 502}, problem
        assert any(word in problem["detail"] for word in ("damaged", "missing", "changed")), problem
        assert caller.state(box) in {"hibernated", "failed"}
        caller.client.delete(f"/sandboxes/{box}")


@pytest.mark.timeout(120)
def test_a_snapshot_stands_without_the_one_that_it_came_from(caller: Caller) -> None:
    box = busy(caller)
    first = caller.snapshot(box)["id"]
    child = caller.restore(first)
    second = caller.snapshot(child)
    assert second["parent"] == first
    caller.end(box, child)
    caller.drop(first)
    assert_in_step(caller, caller.restore(second["id"]), 1)


# A full disk.


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[Caller]:
    """A server with a small pool for layers and memory images."""
    server = make_server(tmp_path, COVE_POOL_SIZE="0", COVE_POOL_BYTES=str(512 << 20))
    server.start()
    try:
        with Caller(server) as caller:
            yield caller
            (pool_of(server) / "filler").unlink(missing_ok=True)
            delete_all(caller)
            assert_nothing_left(caller)
    finally:
        server.down()


def fill(pool: Path, leave_mib: int) -> None:
    """As files of somebody else would: so much is left."""
    with (pool / "filler").open("ab", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(os.urandom(1 << 20))
                os.fsync(file)
        os.ftruncate(file.fileno(), max(0, file.tell() - (leave_mib << 20)))
        os.fsync(file)


def holding(caller: Caller) -> str:
    """A sandbox that holds memory and writes nothing: a full disk harms none of its programs."""
    box = caller.create(idle_timeout_s=None, memory_mib=256)
    caller.start(box, FILL)
    until(lambda: caller.read(box, "/root/full") is not None, "it does not fill its memory")
    return box


def assert_holds(caller: Caller, box: str) -> None:
    """It is there, and so is its program."""
    if caller.state(box) != "running":
        assert caller.act(box, "resume")["state"] == "running"
    assert caller.said(box, "pgrep -fc 'program-[0-9a-f]*.py$'; ls /root/full") == "1\n/root/full\n"


def has_room(caller: Caller) -> bool:
    """What is free on the disk is read every second: until then a create may be refused yet."""
    answer = caller.client.post("/sandboxes", json={})
    if answer.status_code == 201:
        caller.end(answer.json()["id"])
    return answer.status_code == 201


@pytest.mark.timeout(300)
def test_a_full_disk_refuses_before_or_in_the_middle_and_harms_nobody(cramped: Caller) -> None:
    # Case 76.
    pool = pool_of(cramped.server)
    box = holding(cramped)
    snapshot = cramped.snapshot(box)["id"]
    for leave_mib in (0, 48):  # nothing at all; and enough to begin with, not for all of it
        fill(pool, leave_mib)
        for name in ("snapshot", "hibernate", "fork", "rollback"):
            error = _answer(OPERATIONS[name], cramped, box, snapshot)
            assert error is None or "503" in error, (name, error)
            assert error is None or "disk" in error or "space" in error, (name, error)
            assert error is not None or leave_mib, f"{name} had room: this test shows nothing"
            assert_holds(cramped, box)
        (pool / "filler").unlink()
        for other in cramped.ask("GET", "/sandboxes")["sandboxes"]:
            if other["id"] != box:
                cramped.end(other["id"])
    until(lambda: has_room(cramped), "the disk's room is not seen again")
    for one in cramped.ask("GET", "/snapshots")["snapshots"]:
        cramped.drop(one["id"])
    snapshot = cramped.snapshot(box)["id"]
    cramped.end(box)
    assert_holds(cramped, cramped.restore(snapshot))


# Everything at once.


@pytest.mark.timeout(600)
def test_storms_of_every_operation_end_in_typed_answers_and_leave_nothing(caller: Caller) -> None:
    # Case 83.
    statuses: dict[str, set[int]] = {}
    stop = threading.Event()
    boxes = [caller.create(idle_timeout_s=None, memory_mib=128) for _ in range(3)]

    def storm(number: int) -> None:
        chance = random.Random(number)  # noqa: S311 (repeatable load)
        with Caller(caller.server) as mine:
            while not stop.is_set():
                place = chance.randrange(len(boxes))
                box = boxes[place]
                snapshots = mine.client.get("/snapshots").json()["snapshots"]
                snapshot = chance.choice(snapshots)["id"] if snapshots else "sn_0123456789abcdef"
                name, (method, path, body) = chance.choice(sorted(_requests(box, snapshot).items()))
                answer = mine.client.request(method, path, json=body)
                statuses.setdefault(name, set()).add(answer.status_code)
                if answer.status_code == 201 and name in {"fork", "restore"}:
                    for one in answer.json().get("sandboxes", [answer.json()]):
                        mine.client.delete(f"/sandboxes/{one['id']}")
                if name == "destroy":
                    boxes[place] = mine.create(idle_timeout_s=None, memory_mib=128)

    threads = [threading.Thread(target=storm, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(60 if SOAK else 4)
    stop.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a request hangs"
    expected = {200, 201, 204, 404, 409, 410, 502}  # 502: the sandbox ended under a command
    assert all(seen <= expected for seen in statuses.values()), statuses
    assert {200, 201} & set().union(*statuses.values())


def _requests(box: str, snapshot: str) -> dict[str, tuple[str, str, Any]]:
    return {
        "snapshot": ("POST", f"/sandboxes/{box}/snapshots", {}),
        "fork": ("POST", f"/sandboxes/{box}/fork", {"count": 2}),
        "hibernate": ("POST", f"/sandboxes/{box}/hibernate", None),
        "pause": ("POST", f"/sandboxes/{box}/pause", None),
        "resume": ("POST", f"/sandboxes/{box}/resume", None),
        "rollback": ("POST", f"/sandboxes/{box}/rollback", {"snapshot": snapshot}),
        "restore": ("POST", f"/snapshots/{snapshot}/restore", {}),
        "exec": ("POST", f"/sandboxes/{box}/exec", {"command": "echo hi"}),
        "drop": ("DELETE", f"/snapshots/{snapshot}", None),
        "destroy": ("DELETE", f"/sandboxes/{box}", None),
    }
