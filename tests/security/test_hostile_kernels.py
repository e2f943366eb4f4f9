"""Kernels that are hostile: root in a sandbox puts its own program in the place of ours, which says what it likes.

Whatever it is, the caller gets a typed answer in bounded time, the server keeps its memory, and the sandbox works on.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests_support import RunningServer

pytestmark = pytest.mark.real

LIMIT_S = 90.0
MIB = 1 << 20

KERNEL = r"""
import json, os, socket, sys, time
options = dict(zip(sys.argv[1::1], sys.argv[2::1]))
mode = options["--language"]
if mode == "exits": sys.exit(5)
if mode == "sentence": sys.stderr.write("There is no such thing here." + "x" * 100000); sys.exit(64)
listener = socket.socket(socket.AF_UNIX)
if mode != "deaf":
    listener.bind("\0cove-code-" + options["--context"])
    listener.listen(8)
print("y" * 200000 + "\nlistening" if mode == "wordy" else "listening", flush=True)
if mode == "deaf": time.sleep(600)
while True:
    connection, _ = listener.accept()
    lines = connection.makefile("rb")
    def say(**what): connection.sendall(json.dumps(what).encode() + b"\n")
    try:
        for line in lines:
            asked = json.loads(line)
            if asked["op"] in ("hello", "setup"):
                if mode == "hugehello": say(t="ready", missing=["m" * 900] * 1000, version="v" * 200, cwd="/" * 5000)
                else: say(t="ready", kernel="evil\x1b[31m", language="\u202e", cwd="/")
                continue
            if asked["op"] != "run": continue
            run = asked["run"]
            if mode == "endless":
                while True: connection.sendall(b"x" * 65536)
            if mode == "nonsense": connection.sendall(b"\xff\x00{]\n")
            if mode == "deep": connection.sendall(b'{"meta":' + b'{"a":' * 150000 + b"1" + b"}" * 150000 + b"}\n")
            if mode == "closes": connection.shutdown(2); break
            if mode == "silent": continue
            if mode == "chatter":
                while True: say(t="stdout", run=run, d="x" * 60000)
            if mode == "pieces":
                while True: say(t="piece", run=run, mime="image/png", d="x" * 900000)
            if mode == "results":
                while True: say(t="result", run=run, data={"text/plain": "x" * 900000})
            if mode == "mimes":
                for n in range(20000): say(t="piece", run=run, mime="x/%d" % n, d="x")
                say(t="result", run=run, data={}); say(t="done", run=run, status="ok")
            if mode == "unknown":
                while True: say(t="what", run=run)
            if mode in ("wordy", "hugehello"):
                say(t="started", run=run, count=2**62); say(t="done", run="another"); say(t="done", run=run, status="?")
    except OSError:
        pass
"""


@pytest.fixture(scope="module")
def box(server: RunningServer) -> Iterator[str]:
    with server.client() as client:
        made = client.post("/sandboxes", json={"timeout_s": 600}).raise_for_status().json()["id"]
        where = f"/sandboxes/{made}/files/content"
        client.put(where, params={"path": "/run/cove/code/kernel.py"}, content=KERNEL.encode()).raise_for_status()
        yield made
        client.delete(f"/sandboxes/{made}")


def run(client: httpx2.Client, box: str, mode: str, **more: object) -> httpx2.Response:
    body = {"code": "1", "language": mode, **more}
    return client.post(f"/sandboxes/{box}/code", json=body, timeout=LIMIT_S)


def resident(server: RunningServer) -> int:
    assert server.process is not None
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096


def problem(answer: httpx2.Response) -> tuple[int, str, str]:
    found: dict[str, Any] = answer.json()
    return answer.status_code, str(found["code"]), str(found["detail"])


@pytest.mark.parametrize("mode", ["endless", "nonsense", "deep", "closes"])
def test_what_breaks_the_protocol_is_a_typed_error(client: httpx2.Client, box: str, mode: str) -> None:
    status, code, detail = problem(run(client, box, mode))
    assert (status, code, "broke its protocol" in detail) == (502, "sandbox-error", True)
    contexts = {one["id"]: one["alive"] for one in client.get(f"/sandboxes/{box}/contexts").json()["contexts"]}
    assert contexts[mode] is False, "it goes on"


def test_a_limit_ends_what_never_ends(client: httpx2.Client, server: RunningServer, box: str) -> None:
    modes = ("silent", "chatter", "unknown", "results", "pieces")
    before = resident(server)
    with ThreadPoolExecutor(len(modes)) as pool:
        answers = list(pool.map(lambda mode: run(client, box, mode, timeout_s=0.5), modes))
    assert [(one.status_code, one.json()["status"]) for one in answers] == [(200, "timeout")] * len(modes)
    grown = (resident(server) - before) / MIB
    assert grown < 512, f"the server grew by {grown:.0f} MiB"


def test_what_does_not_start_is_told(client: httpx2.Client, box: str) -> None:
    status, code, detail = problem(run(client, box, "exits"))
    assert (status, code, "exit code 5" in detail) == (502, "sandbox-error", True)
    status, code, detail = problem(run(client, box, "sentence"))
    assert (status, code, len(detail) < 2000) == (501, "unsupported", True)
    status, code, detail = problem(run(client, box, "deaf"))
    assert (status, code, "cannot be reached" in detail) == (502, "sandbox-error", True)


@pytest.mark.parametrize("mode", ["wordy", "hugehello", "mimes"])
def test_odd_but_honest_is_taken(client: httpx2.Client, box: str, mode: str) -> None:
    answer = run(client, box, mode, timeout_s=30)
    assert (answer.status_code, answer.json()["status"] in {"ok", "error"}) == (200, True), answer.text[:500]
    assert len(client.get(f"/sandboxes/{box}/contexts").content) < MIB


def test_the_sandbox_and_others_work_on(client: httpx2.Client, box: str) -> None:
    assert client.post(f"/sandboxes/{box}/exec", json={"command": "true"}).json()["exit_code"] == 0
    found = client.post(f"/sandboxes/{box}/code", json={"code": "echo fine", "language": "bash"}).json()
    assert (found["status"], found["stdout"]) == ("ok", "fine\n")
