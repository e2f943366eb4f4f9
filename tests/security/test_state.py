"""Kept, restored and forked sandboxes are held as tightly as any; what is kept is nobody else's and tells no secret."""

from __future__ import annotations

import json
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from attacks_support import attacked
from state_support import Caller, checkpoints_of, delete_all, until
from tests_support import SOAK, RunningServer, make_server
from world_support import World

pytestmark = pytest.mark.real
SECRET: Final = "s3cr3t-4f8a-never-told"
HOLD: Final = "import os, time; held = os.environ['TOKEN'] * 1000; open('/root/ready', 'w'); time.sleep(1e6)"

STATUS: Final = """
import json, os, re
def of(pid):
    text = open("/proc/%s/status" % pid).read()
    wanted = "Uid Gid Groups NoNewPrivs Seccomp Seccomp_filters CapInh CapPrm CapEff CapBnd CapAmb".split()
    found = {name: " ".join(value.split()) for name, value in re.findall(r"(\\w+):\\t(.*)", text) if name in wanted}
    return {**found, "oom": open("/proc/%s/oom_score_adj" % pid).read().strip()}
lines = {pid: open("/proc/%s/cmdline" % pid, "rb").read() for pid in os.listdir("/proc") if pid.isdecimal()}
kept = [pid for pid, line in lines.items() if b"held = " in line and b"oom_score" not in line]
mounts = [re.sub(r"(uid|gid)=\\d+|,uuid=on", "", line).split()[1:4] for line in open("/proc/mounts")]  # its own range
print(json.dumps({"one": of(1), "fresh": of("self"), "kept": of(kept[0]), "mounts": sorted(mounts)}))
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of its own: its log and its directories are looked through."""
    made = make_server(tmp_path_factory.mktemp("server"), COVE_POOL_SIZE="0")
    made.start()
    yield made
    made.down()
    shutil.rmtree(made.data_dir, ignore_errors=True)


@pytest.fixture
def caller(running: RunningServer) -> Iterator[Caller]:
    with Caller(running) as made:
        yield made
        delete_all(made)


def holding(caller: Caller, **wishes: object) -> str:
    """A sandbox with a process that holds a secret in its memory and environment."""
    box = caller.create(idle_timeout_s=None, env={"TOKEN": SECRET}, **wishes)
    caller.ask("POST", f"/sandboxes/{box}/commands", {"command": ["python3", "-c", HOLD]})
    until(lambda: caller.read(box, "/root/ready") is not None, "it does not start")
    return box


def outside(caller: Caller, box: str) -> dict[str, Any]:
    """What the machine says of its init."""
    facts = caller.facts(box)
    proc = Path(f"/proc/{facts['init_pid']}")
    spaces = {path.name: path.stat().st_ino for path in (proc / "ns").iterdir() if "children" not in path.name}
    text = (proc / "status").read_text()
    held = {name: " ".join(re.findall(rf"{name}:\t(.*)", text)[0].split()) for name in ("Uid", "Seccomp", "CapEff")}
    links = [str(fd.readlink()) for fd in (proc / "fd").iterdir()]
    return {
        "spaces": spaces,
        "range": (proc / "uid_map").read_text().split(),
        "held": held,
        "cgroups": sorted((proc / "cgroup").read_text().split()),
        "fds": links,
    }


@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", ["restored", "forked", "hibernated"])
def test_a_copy_is_held_as_tightly_as_its_source(caller: Caller, way: str) -> None:
    box = holding(caller)
    source, seen = json.loads(caller.said(box, ["python3", "-c", STATUS])), outside(caller, box)
    if way == "restored":
        copy = caller.restore(caller.snapshot(box)["id"])
    elif way == "forked":
        (copy,) = caller.fork(box)
    else:
        caller.act(box, "hibernate")
        caller.act(box, "resume")
        copy = box
    inside, there = json.loads(caller.said(copy, ["python3", "-c", STATUS])), outside(caller, copy)
    assert inside == source, "privileges, filters or mounts differ"
    assert inside["kept"]["Seccomp"] == "2"
    assert inside["kept"]["NoNewPrivs"] == "1"
    machine = {path.name: path.stat().st_ino for path in Path("/proc/self/ns").iterdir()}
    own = {name for name in there["spaces"] if name not in {"time", "time_for_children", "pid_for_children"}}
    assert not [name for name in own if there["spaces"][name] == machine[name]], "it shares a namespace of the machine"
    assert not [path for path in there["fds"] if str(caller.server.data_dir) in path or "checkpoint" in path]
    assert all(
        one.rstrip("/").endswith(copy.removeprefix("sb_")) or copy.removeprefix("sb_") in one
        for one in there["cgroups"]
        if "cove" in one
    ), there["cgroups"]
    if copy != box:
        shared = [name for name in own if there["spaces"][name] == seen["spaces"][name]]
        assert not shared, f"it shares {shared} with its source"
        assert there["range"][1] != seen["range"][1], "both have the same users of the machine"
        assert there["held"]["Uid"].split()[0] == there["range"][1]
    assert there["held"]["CapEff"] == seen["held"]["CapEff"]


ONLY: Final = ("",) if SOAK else ("a15",)


@pytest.mark.timeout(900)
def test_the_attacks_fail_in_a_restored_sandbox_too(world: World, tmp_path: Path) -> None:
    for only in ONLY:
        program = ["-m", "cove.engine.attacks", "--restored"]
        _, found, complaint = attacked(
            tmp_path / "d", program, "runc", *([only] if only else []), outside=world.outside.path
        )
        assert found, complaint
        bad = {name: row["seen"] for name, row in found.items() if row["outcome"] not in {"held", "not-here"}}
        assert not bad, bad


@pytest.mark.timeout(120)
def test_70_another_projects_snapshot_does_not_exist(caller: Caller) -> None:
    box = holding(caller)
    snapshot = caller.snapshot(box, name="mine")["id"]
    caller.ask("POST", "/projects", {"id": "others"})
    scopes = ["read", "create", "destroy", "exec", "files"]
    key = caller.ask("POST", "/keys", {"name": "other", "project": "others", "scopes": scopes})["key"]
    with Caller(caller.server, key=key) as other:
        foreign = other.create()
        assert other.ask("GET", "/snapshots")["snapshots"] == []
        assert other.client.get("/snapshots", params={"sandbox": box}).json().get("snapshots", []) == []
        for name in (snapshot, "mine"):
            for method, path, body in (
                ("GET", f"/snapshots/{name}", None),
                ("PATCH", f"/snapshots/{name}", {"tags": {"a": "b"}}),
                ("DELETE", f"/snapshots/{name}", None),
                ("POST", f"/snapshots/{name}/restore", {}),
                ("GET", f"/snapshots/{name}/export", None),
                ("POST", f"/sandboxes/{foreign}/rollback", {"snapshot": name}),
            ):
                problem = other.refused(method, path, body)
                assert (problem["status"], problem["code"]) == (404, "not-found"), (method, path, problem)
        for verb in ("pause", "resume", "hibernate", "fork", "snapshots"):
            body = {} if verb in {"fork", "snapshots"} else None
            assert other.refused("POST", f"/sandboxes/{box}/{verb}", body)["status"] == 404
        # Nor is one's own sandbox rolled back to a snapshot of another of one's own.
        elsewhere = caller.create()
        problem = caller.refused("POST", f"/sandboxes/{elsewhere}/rollback", {"snapshot": snapshot})
        assert problem["status"] in {400, 404, 409}, problem
        other.end(foreign)


@pytest.mark.timeout(120)
def test_68_what_is_kept_is_roots_alone_and_no_log_line_or_answer_tells_of_it(caller: Caller) -> None:
    server = caller.server
    box = holding(caller)
    answers = [json.dumps(caller.snapshot(box))]
    (child,) = caller.fork(box, env={"OTHER": SECRET + "-2"})
    answers.append(json.dumps(caller.act(child, "hibernate")))
    folder = checkpoints_of(server)
    kept = [folder, *folder.rglob("*")]
    assert any(SECRET.encode() in path.read_bytes() for path in kept if path.is_file()), "this test looks elsewhere"
    for path in kept:
        what = path.lstat()
        assert what.st_uid == 0, path
        assert stat.S_ISLNK(what.st_mode) or what.st_mode & 0o022 == 0, (path, oct(what.st_mode))
    for closed in (folder, *folder.iterdir()):  # criu reads the images from within a user namespace, so below these
        assert closed.stat().st_mode & 0o777 == 0o700, closed
    seen = caller.said(box, "cat /proc/self/mountinfo; ls /run/agent /; find / -xdev -name '*.img' 2>/dev/null; true")
    assert str(server.data_dir) not in seen.replace("/layers/", "")
    assert ".img" not in seen
    answers += [json.dumps(caller.act(child, "resume")), json.dumps(caller.ask("GET", "/audit?limit=1000"))]
    answers += [json.dumps(caller.ask("GET", path)) for path in ("/sandboxes", "/snapshots")]
    assert not [text for text in answers if SECRET in text]
    assert SECRET not in server.log.read_text()
    for path in server.data_dir.glob("cove.db*"):
        assert SECRET.encode() not in path.read_bytes(), path
    for pid in (entry for entry in Path("/proc").iterdir() if entry.name.isdecimal()):
        try:
            if (pid / "ns" / "user").stat().st_ino == Path("/proc/1/ns/user").stat().st_ino:
                assert SECRET.encode() not in (pid / "cmdline").read_bytes(), pid
        except OSError:
            continue
