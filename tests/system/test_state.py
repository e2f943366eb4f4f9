"""A sandbox at work is paused, hibernated, copied and put back: every byte of memory and disk is as it should be."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cove.engine.machine import release
from state_support import MEMORY_MIB, Caller, Scene, assert_in_step, checkpoints_of, lockstep, until
from tests_support import SOAK, NewServer, RunningServer, loop_devices, make_images, make_server

pytestmark = pytest.mark.real
EDITOR = "test-editor"
DRIVERS = ("runc", "gvisor")
PAUSES = 100 if SOAK else 20
HIBERNATIONS = {"runc": 20, "gvisor": 10} if SOAK else {"runc": 2, "gvisor": 1}
FORKS = {"runc": 10, "gvisor": 5} if SOAK else {"runc": 3, "gvisor": 1}
RESTORES = {"runc": 30, "gvisor": 14} if SOAK else {"runc": 4, "gvisor": 2}
"""In pairs. A box of gVisor takes a second or more to come up again, one of runc a fifth."""
WISHES = {"idle_timeout_s": None, "memory_mib": MEMORY_MIB + 256, "disk_mib": 1024}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that tests restart; it has an image with vim."""
    make_images(tmp_path_factory.mktemp("images") / "recipes", ["base", EDITOR])
    made = make_server(tmp_path_factory.mktemp("server"), COVE_POOL_SIZE="1")
    made.start()
    yield made
    made.down()
    shutil.rmtree(made.data_dir, ignore_errors=True)


@pytest.fixture
def caller(running: RunningServer) -> Iterator[Caller]:
    """It; afterwards nothing of the test is left."""
    with Caller(running) as made:
        yield made
        for box in made.ask("GET", "/sandboxes")["sandboxes"]:
            made.end(box["id"])
        for snapshot in made.ask("GET", "/snapshots")["snapshots"]:
            made.drop(snapshot["id"])


@pytest.fixture(params=DRIVERS)
def scene(request: pytest.FixtureRequest, caller: Caller) -> Scene:
    """A sandbox at work, on each driver that keeps memory."""
    driver = str(request.param)
    box = caller.create(image=EDITOR, driver=driver, **WISHES)
    return Scene.begin(caller, box, memory_mib=MEMORY_MIB if driver == "runc" else 16, has_editor=True)


def driver_of(scene: Scene) -> str:
    """What it runs on."""
    return str(scene.caller.get(scene.box)["isolation"]["driver"])


def is_gone(init: int) -> bool:
    """Whether no process of the box is left: its init is the last to end. The machine's init may not have noticed."""
    try:
        return Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.timeout(600)
def test_pauses_lose_nothing(scene: Scene) -> None:
    # Case 86.
    caller, box = scene.caller, scene.box
    for number in range(PAUSES):
        assert caller.act(box, "pause")["state"] == "paused"
        if number == 0:
            before = caller.get(box)["usage"]["cpu_ms"]
            time.sleep(0.3)
            assert caller.get(box)["usage"]["cpu_ms"] == before, "something runs in it"
        assert caller.act(box, "resume")["state"] == "running"
        scene.check()


@pytest.mark.timeout(1200)
def test_hibernations_lose_nothing_over_restarts_of_the_server(scene: Scene, running: RunningServer) -> None:
    caller, box = scene.caller, scene.box
    scene.check()
    for number in range(HIBERNATIONS[driver_of(scene)]):
        init = caller.facts(box)["init_pid"]
        view = caller.act(box, "hibernate")
        assert (view["state"], view["id"], view["kept"]["memory"]) == ("hibernated", box, True)
        until(lambda gone=init: is_gone(gone), "a process is left")
        assert not caller.record(box).exists()
        (running.kill, running.stop)[number % 2]()
        running.start()
        assert caller.state(box) == "hibernated"
        view = caller.act(box, "resume")
        assert (view["state"], view["id"]) == ("running", box)
        scene.check()
    assert not [*checkpoints_of(running).iterdir()], "what it lay in is left"


@pytest.mark.timeout(120)
def test_a_hibernated_sandbox_outlives_a_reboot(new_server: NewServer) -> None:
    # Case 78: no process, no mount, nothing of /run is there any more.
    server = new_server(COVE_POOL_SIZE="0")
    with Caller(server) as caller:
        box, other = caller.create(idle_timeout_s=None), caller.create(idle_timeout_s=None)
        lockstep(caller, box, 1)
        caller.act(box, "hibernate")
        init = caller.facts(other)["init_pid"]
        server.kill()
        os.kill(init, 9)
        machine = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        release(server.run_dir, machine)
        os.close(machine)
        assert not server.run_dir.exists()
        assert not loop_devices(server.data_dir)
        server.start()
        assert caller.get(other)["end_reason"] == "lost"
        assert caller.state(box) == "hibernated"
        caller.act(box, "resume")
        assert_in_step(caller, box, 1)


@pytest.mark.timeout(600)
def test_forks_go_on_each_for_itself(scene: Scene) -> None:
    caller, box = scene.caller, scene.box
    scene.check()
    count = FORKS[driver_of(scene)]
    children = [scene.forked(child) for child in caller.fork(box, count)]
    assert len({box, *(child.box for child in children)}) == count + 1
    for _ in range(2):
        for one in (scene, *children):
            one.check()
        scene.check()  # the source is ahead of its children from here on
    caller.end(*(child.box for child in children[1:]))
    scene.check()
    caller.end(box)
    children[0].check()
    assert caller.act(children[0].box, "pause")["state"] == "paused"
    assert caller.act(children[0].box, "hibernate")["state"] == "hibernated"
    caller.act(children[0].box, "resume")
    children[0].check()


@pytest.mark.timeout(300)
def test_a_snapshot_outlives_its_source_and_a_rollback_takes_back_what_came_later(caller: Caller) -> None:
    box = caller.create(image=EDITOR, driver="runc", **WISHES)
    scene = Scene.begin(caller, box, memory_mib=16, has_editor=True)
    scene.check()
    snapshot = caller.snapshot(box, name="before")
    assert (snapshot["state"], snapshot["memory"], snapshot["reason"]) == ("ready", True, None)
    then = scene.forked(box)
    scene.check()
    caller.put(box, "/root/later", "later")
    view = caller.act(box, "rollback", snapshot=snapshot["id"])
    assert (view["id"], view["state"]) == (box, "running")
    assert caller.read(box, "/root/later") is None
    then.forked(box).check()
    caller.end(box)
    for _ in range(2):
        restored = then.forked(caller.restore(snapshot["id"], memory_mib=MEMORY_MIB + 300))
        restored.check()
        assert caller.get(restored.box)["memory_mib"] == MEMORY_MIB + 300
        caller.end(restored.box)
    caller.drop(snapshot["id"])
    assert caller.refused("POST", f"/snapshots/{snapshot['id']}/restore", {})["status"] == 404


# Memory and disk are of one instant.


@pytest.mark.timeout(900)
@pytest.mark.parametrize("driver", DRIVERS)
def test_memory_and_disk_are_of_one_instant(caller: Caller, driver: str) -> None:
    box = caller.create(driver=driver, **WISHES)
    lockstep(caller, box)
    for number in range(RESTORES[driver] // 2):
        # Sooner and later after a start, and with more and less that was not written back yet.
        time.sleep((0.0, 0.03, 0.2)[number % 3])
        snapshot = caller.snapshot(box)["id"]
        with ThreadPoolExecutor(2) as threads:
            copies = list(threads.map(lambda _, s=snapshot: caller.restore(s), range(2)))
        for copy in copies:
            assert_in_step(caller, copy)
        assert_in_step(caller, box)
        caller.end(*copies)
        caller.drop(snapshot)
    caller.act(box, "hibernate")
    caller.act(box, "resume")
    assert_in_step(caller, box)
