"""Code contexts go on with their state: over a killed server, pause, hibernation, snapshots, rollbacks and forks.

And those that were started ahead in the warm pool become the claimer's. The image is `base` with a kernel asked for, so
nothing here needs more than plain Python.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from state_support import Caller, until
from tests_support import SETUP_DIR, RunningServer, make_server

pytestmark = pytest.mark.real

WARM = "base-with-kernel"
LONG = """
def long():
    open("/tmp/began", "w").write("x")
    while not os.path.exists("/tmp/go"):
        time.sleep(0.02)
"""


def add_image(images: Path) -> None:
    """All that setup made, and the image `base` once more with a kernel that is started ahead."""
    images.mkdir()
    for one in (SETUP_DIR / "images").iterdir():
        (images / one.name).symlink_to(one)
    current = (SETUP_DIR / "images" / "base" / "current").resolve()
    facts = json.loads((current / "image.json").read_text()) | {"name": WARM, "kernels": ["python"]}
    here = images / WARM / current.name
    here.mkdir(parents=True)
    (here / "image.json").write_text(json.dumps(facts))
    (here / "rootfs").symlink_to(current / "rootfs")
    (images / WARM / "current").symlink_to(current.name)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    made = make_server(tmp_path_factory.mktemp("server"), COVE_POOL_SIZE="2", COVE_POOL_IMAGES=WARM)
    (made.data_dir / "images").unlink()
    add_image(made.data_dir / "images")
    made.start()
    yield made
    made.down()
    shutil.rmtree(made.data_dir, ignore_errors=True)


@pytest.fixture
def caller(running: RunningServer) -> Iterator[Caller]:
    with Caller(running) as made:
        yield made
        for box in made.ask("GET", "/sandboxes")["sandboxes"]:
            made.end(box["id"])
        for snapshot in made.ask("GET", "/snapshots")["snapshots"]:
            made.drop(snapshot["id"])


def code(caller: Caller, box: str, text: str, **more: object) -> dict[str, Any]:
    return caller.ask("POST", f"/sandboxes/{box}/code", {"code": text, **more})


def value(caller: Caller, box: str, text: str, **more: object) -> str:
    """The value of an expression in a kernel that lives on."""
    found = code(caller, box, text, **more)
    assert (found["status"], found["fresh"]) == ("ok", False), found
    return str(next(one["data"]["text/plain"] for one in found["results"] if one["main"]))


def context_ids(caller: Caller, box: str) -> set[str]:
    return {one["id"] for one in caller.ask("GET", f"/sandboxes/{box}/contexts")["contexts"] if one["alive"]}


def with_state(caller: Caller, **wishes: object) -> tuple[str, str]:
    """A sandbox with three contexts that remember something, and the id of the one that was asked for."""
    box = caller.create(idle_timeout_s=None, **wishes)
    code(caller, box, "x = 41\ncount = iter(range(1000))")
    other = caller.ask("POST", f"/sandboxes/{box}/contexts", {"language": "python", "cwd": "/usr"})["id"]
    code(caller, box, "x = 'other'", context=other)
    code(caller, box, "cd /etc; y=7", language="bash")
    return box, other


def check_state(caller: Caller, box: str, other: str) -> None:
    assert value(caller, box, "x + 1") == "42"
    assert value(caller, box, "x", context=other) == "'other'"
    found = code(caller, box, "pwd; echo $y", language="bash")
    assert (found["stdout"], found["fresh"]) == ("/etc\n7\n", False)
    assert {"python", "bash", other} <= context_ids(caller, box)
    leftovers = [
        one for one in caller.ask("GET", f"/sandboxes/{box}/commands")["commands"] if "socket" in one["command"]
    ]
    assert leftovers == [], "a connection of ours became a command of the sandbox"


def test_contexts_outlive_pause_hibernation_and_a_killed_server(caller: Caller, running: RunningServer) -> None:
    box, other = with_state(caller)
    caller.act(box, "pause")
    check_state(caller, box, other)
    running.kill()
    running.start()
    check_state(caller, box, other)
    caller.act(box, "hibernate", memory=True)
    running.kill()
    running.start()
    check_state(caller, box, other)


def test_a_fork_goes_on_with_the_state_and_apart(caller: Caller) -> None:
    box, other = with_state(caller)
    children = caller.fork(box, 2)
    for child in children:
        check_state(caller, child, other)
    code(caller, children[0], "x = 1")
    assert [value(caller, one, "x") for one in (box, *children)] == ["41", "1", "41"]
    told = {value(caller, one, "__import__('random').random()") for one in (box, *children)}
    assert len(told) == 3


def test_a_snapshot_gives_its_state_again_and_a_rollback_takes_it_back(caller: Caller) -> None:
    box, other = with_state(caller)
    snapshot = caller.snapshot(box)["id"]
    code(caller, box, "x = 0")
    check_state(caller, caller.restore(snapshot), other)
    caller.act(box, "rollback", snapshot=snapshot)
    check_state(caller, box, other)


def test_code_under_way_goes_on_over_a_fork_and_is_interrupted_in_the_child(caller: Caller) -> None:
    box = caller.create(idle_timeout_s=None)
    code(caller, box, "x = 41")
    told: list[dict[str, Any]] = []
    code(caller, box, f"import os, time\n{LONG}")
    under_way = threading.Thread(target=lambda: told.append(code(caller, box, "long()")))
    under_way.start()
    until(lambda: caller.run(box, "test -s /tmp/began")["exit_code"] == 0, "it does not begin")
    child = caller.fork(box)[0]
    assert value(caller, child, "x + 1") == "42"
    caller.run(box, "touch /tmp/go")
    under_way.join(60)
    assert told[0]["status"] == "ok", told


def test_a_sandbox_of_files_only_begins_anew(caller: Caller) -> None:
    box, other = with_state(caller)
    caller.act(box, "hibernate", memory=False)
    found = code(caller, box, "x")
    assert (found["fresh"], found["error"]["name"]) == (True, "NameError")
    assert caller.refused("POST", f"/sandboxes/{box}/code", {"code": "1", "context": other})["code"] == "not-found"


def test_code_under_way_holds_an_idle_sandbox_awake_and_a_context_at_rest_does_not(caller: Caller) -> None:
    box = caller.create(idle_timeout_s=1)
    found = code(caller, box, "import time\ntime.sleep(2.5)\n'done'")
    assert found["status"] == "ok"
    until(lambda: caller.state(box) == "paused", "a context at rest keeps it awake")
    assert value(caller, box, "'still'") == "'still'"


def warm(caller: Caller, **wishes: object) -> str:
    """A claimed box of the pool."""

    def ready() -> bool:
        return bool(caller.ask("GET", "/server")["capacity"]["pool"].get(WARM, 0))

    until(ready, "no member with a kernel becomes ready", limit_s=60)
    made = caller.ask("POST", "/sandboxes", {"image": WARM, **wishes})
    assert made["source"] == "warm", made
    return str(made["id"])


def test_a_kernel_that_waited_in_the_pool_becomes_the_claimers(caller: Caller) -> None:
    wishes = {"env": {"WHOSE": "mine"}, "hostname": "claimed", "memory_mib": 256, "pids": 100}
    box = warm(caller, **wishes)
    facts = "import os, socket\n(os.environ['WHOSE'], socket.gethostname(), os.getcwd(), os.environ.get('HOME'))"
    assert value(caller, box, facts) == "('mine', 'claimed', '/root', '/root')"
    died = code(caller, box, "x = bytearray(1 << 30)")
    assert (died["status"], died["detail"]) == ("kernel-died", "it was killed because the sandbox ran out of memory")
    again = code(caller, box, "import os\nos.environ['WHOSE']")
    assert (again["fresh"], again["results"][0]["data"]["text/plain"]) == (True, "'mine'")


def test_members_with_kernels_are_taken_back_after_a_killed_server(caller: Caller, running: RunningServer) -> None:
    caller.end(warm(caller))
    until(lambda: caller.ask("GET", "/server")["capacity"]["pool"][WARM] == 2, "the pool does not fill", limit_s=60)
    running.kill()
    running.start()
    box = warm(caller, env={"WHOSE": "mine"})
    assert value(caller, box, "import os; os.environ['WHOSE']") == "'mine'"


def test_what_one_sandbox_computed_is_not_in_the_next_one(caller: Caller) -> None:
    first = warm(caller, env={"SECRET": "s3cr3t-word"})
    code(caller, first, "kept = 's3cr3t-word'\nopen('/tmp/left', 'w').write(kept)")
    caller.end(first)
    second = warm(caller)
    found = code(caller, second, "kept")
    assert (found["fresh"], found["error"]["name"]) == (False, "NameError")
    assert value(caller, second, "'SECRET' in __import__('os').environ") == "False"
    assert caller.run(second, "test -e /tmp/left")["exit_code"] != 0
