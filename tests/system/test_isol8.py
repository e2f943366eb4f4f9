"""Executions over isol8 in real sandboxes: nothing of one call is in the next, and what an operator sees of them."""

# ruff: noqa: ANN001, ANN003, ANN201, ANN202 - fixtures are typed where they are defined

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from tests_support import SOAK, make_server

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    # Few wait, so that each call gets what was made right after the one before.
    server = make_server(
        tmp_path_factory.mktemp("isol8"), COVE_POOL_SIZE="0", COVE_EXECUTION_READY="1", COVE_EXECUTION_AT_ONCE="12"
    )
    server.start()
    yield server
    server.down()


@pytest.fixture(scope="module")
def run(running):
    headers = {"Authorization": running.key}
    with httpx2.Client(base_url=f"{running.url}/isol8", headers=headers, timeout=120) as client:

        def run_it(code: str, runtime: str = "bash", **more):
            options = more.pop("options", {})
            body = {"request": {"code": code, "runtime": runtime, **more}, "options": options}
            answer = client.post("/execute", json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        yield run_it


LEAVE = """
for place in /sandbox /tmp /dev/shm /var/tmp /run "$HOME/.config" /sandbox/MARK-dir; do
    mkdir -p "$place" 2>/dev/null; echo MARK > "$place/left" 2>/dev/null
done
python3 - <<'END'
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall(248, b"user", b"MARK", b"MARK", 4, -4)  # add_key(2)
libc.shmget(0x4D41524B, 4096, 0o1666)
libc.msgget(0x4D41524B, 0o1666)
END
(exec -a MARK-process sleep 3600) >/dev/null 2>&1 &
setsid nohup bash -c 'exec -a MARK-daemon sleep 3600' >/dev/null 2>&1 &
getent hosts MARK.example.com
exit 0
"""

LOOK = """
import os, pathlib
mark = "DRAM"[::-1]  # so that it is not in this program's own command line
for top in ("/sandbox", "/tmp", "/var/tmp", "/dev/shm", "/run", "/etc"):
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = pathlib.Path(folder, name)
            try:
                if mark in str(path) or (path.is_file() and mark.encode() in path.read_bytes()):
                    print("file", path)
            except OSError:
                pass
for process in pathlib.Path("/proc").glob("[0-9]*"):
    for name in ("cmdline", "environ", "comm"):
        try:
            if mark.encode() in (process / name).read_bytes():
                print("process", process, name)
        except OSError:
            pass
if any(mark in value for value in os.environ.values()) or mark in os.uname().nodename:
    print("environment")
for name in ("/proc/keys", "/proc/sysvipc/shm", "/proc/sysvipc/msg"):
    try:
        text = pathlib.Path(name).read_text()
    except OSError:
        continue
    if mark in text or str(0x4D41524B) in text:
        print(name)
processes = len(list(pathlib.Path("/proc").glob("[0-9]*")))
print("homes", sorted(os.listdir("/sandbox")), sorted(os.listdir("/tmp")), processes)
"""


@pytest.mark.parametrize("options", [{}, {"readonlyRootFs": False}], ids=["read-only", "writable"])
def test_nothing_is_left_for_the_next_call(run, options):
    for _ in range(3):
        mark = f"m{uuid.uuid4().hex}"
        secret = {**options, "secrets": {"TOKEN": f"{mark}-secret"}}
        first = run(LEAVE.replace("MARK", mark), env={"LEFT": mark}, options=secret, files={f"f{mark}": mark})
        # The looker finds what it is meant to find, where it is.
        look = LOOK.replace("DRAM", mark[::-1])
        leave = LEAVE.replace("MARK", mark).replace("exit 0", "python3 look.py")
        own = run(leave, files={"look.py": look}, options=secret)
        assert {"file", "process", "environment"} <= {line.split(" ")[0] for line in own["stdout"].splitlines()}
        second = run(look, "python", options=options)
        assert second["stdout"] == "homes [] [] 2", second
        assert first["containerId"] != second["containerId"]


def test_a_sandbox_of_an_execution_is_gone_soon_after(run, running):
    run("true")
    with running.client() as native:
        deadline = time.monotonic() + 60
        while True:
            alive = native.get("/sandboxes").json()["sandboxes"]
            if not [one for one in alive if one["state"] == "running"]:
                return
            assert time.monotonic() < deadline, alive
            time.sleep(0.1)


def test_past_capacity_a_call_is_refused_at_once(running):
    """Never an unbounded queue: 12 run, whoever comes beside them gets 429."""
    headers = {"Authorization": running.key}
    body = {"request": {"code": "sleep 2", "runtime": "bash", "timeoutMs": 60_000}}
    with httpx2.Client(base_url=f"{running.url}/isol8", headers=headers, timeout=120) as client:
        with ThreadPoolExecutor(20) as threads:
            answers = list(threads.map(lambda _: client.post("/execute", json=body), range(20)))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert 20 - len(refused) >= 12
        assert refused
        for answer in refused:
            assert answer.status_code == 429
            assert list(answer.json()) == ["error"]
            assert "executions of this project run already" in answer.json()["error"]
        assert client.post("/execute", json={"request": {"code": "echo", "runtime": "bash"}}).status_code == 200


def test_a_quiet_stream_is_not_cut(running):
    """The original cuts it after 10 seconds: ours has comments instead."""
    body = {"request": {"code": f"sleep {16 if SOAK else 11}; echo end", "runtime": "bash", "timeoutMs": 60_000}}
    headers = {"Authorization": running.key}
    with httpx2.stream("POST", f"{running.url}/execute/stream", json=body, headers=headers, timeout=120) as answer:
        lines = list(answer.iter_lines())
    assert not SOAK or len([line for line in lines if line.startswith(":")]) > 1
    assert 'data: {"type":"stdout","data":"end\\n","phase":"code"}' in lines
