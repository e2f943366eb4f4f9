"""The native API with nothing but curl: every answer here came through the command line that the manual shows."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests_support import SOAK, RunningServer

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
SIZE_MIB = 1024 if SOAK else 128
CHUNK = 1 << 20


class Curl:
    """curl with the server's key. Every call has a time limit and fails the test where curl fails."""

    def __init__(self, server: RunningServer) -> None:
        self._base = f"{server.url}/api/v1"
        self._key = server.key

    def __call__(self, method: str, path: str, *more: str, limit_s: int = 60) -> str:
        argv = ["curl", "--silent", "--show-error", "--fail-with-body", "--max-time", str(limit_s)]
        argv += ["--request", method] if method not in {"GET", "HEAD"} else []
        argv += ["--header", f"Authorization: Bearer {self._key}", *more, f"{self._base}{path}"]
        done = subprocess.run(argv, capture_output=True, check=False, text=True, timeout=limit_s + 10, input="")
        assert done.returncode == 0, (done.returncode, done.stderr, done.stdout[-2000:])
        return done.stdout

    def json(self, method: str, path: str, body: object = None) -> Any:
        sent = [] if body is None else ["--header", "Content-Type: application/json", "--data", json.dumps(body)]
        return json.loads(self(method, path, *sent))


@pytest.fixture
def curl(server: RunningServer) -> Curl:
    return Curl(server)


@pytest.fixture
def box(curl: Curl) -> Iterator[str]:
    made = curl.json("POST", "/sandboxes", {"metadata": {"by": "curl"}})
    yield made["id"]
    assert curl.json("DELETE", f"/sandboxes/{made['id']}")["state"] == "terminated"


def test_curl_creates_runs_lists_and_destroys(curl: Curl) -> None:
    made = curl.json("POST", "/sandboxes", {"name": "by-curl"})
    assert made["state"] == "running"
    ran = curl.json("POST", f"/sandboxes/{made['id']}/exec", {"command": "echo hello; exit 3"})
    assert (ran["stdout"], ran["exit_code"], ran["why"]) == ("hello\n", 3, "exited")
    assert made["id"] in [one["id"] for one in curl.json("GET", "/sandboxes")["sandboxes"]]
    ended = curl.json("DELETE", f"/sandboxes/{made['id']}")
    assert (ended["state"], ended["end_reason"]) == ("terminated", "requested")
    assert made["id"] not in [one["id"] for one in curl.json("GET", "/sandboxes")["sandboxes"]]
    # The name is free again; the record stays readable.
    assert curl.json("GET", f"/sandboxes/{made['id']}")["name"] == "by-curl"


def test_curl_streams_events_as_they_come(curl: Curl, box: str) -> None:
    body = json.dumps({"command": "echo one; echo two >&2; sleep 0.1; echo three"})
    text = curl(
        "POST",
        f"/sandboxes/{box}/exec/stream",
        "--no-buffer",
        "--header",
        "Content-Type: application/json",
        "--data",
        body,
    )
    blocks = [block.splitlines() for block in text.strip().split("\n\n") if not block.startswith(":")]
    events = [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in blocks]
    assert events[0][0] == "started"
    assert "".join(data["data"] for kind, data in events if kind == "stdout") == "one\nthree\n"
    assert "".join(data["data"] for kind, data in events if kind == "stderr") == "two\n"
    assert events[-1][0] == "exit"
    assert (events[-1][1]["exit_code"], events[-1][1]["why"]) == (0, "exited")


def test_curl_gets_output_before_the_command_has_ended(server: RunningServer, curl: Curl, box: str) -> None:
    """The command waits for a file that is made only after its first output was seen."""
    body = json.dumps({"command": "echo first; until [ -e /root/go ]; do sleep 0.02; done; echo second"})
    argv = ["curl", "--silent", "--no-buffer", "--max-time", "60", "--data", body]
    argv += ["--header", f"Authorization: Bearer {server.key}", "--header", "Content-Type: application/json"]
    argv += [f"{server.url}/api/v1/sandboxes/{box}/exec/stream"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as stream:
        assert stream.stdout is not None
        for line in stream.stdout:
            if "first" in line:
                curl("PUT", f"/sandboxes/{box}/files/content?path=/root/go", "--data-binary", "go")
                break
        rest = stream.stdout.read()
    assert "second" in rest
    assert "event: exit" in rest
    assert stream.returncode == 0


def test_curl_moves_a_large_file_in_and_out_unchanged(
    server: RunningServer, curl: Curl, box: str, tmp_path: Path
) -> None:
    sent, came = tmp_path / "sent", tmp_path / "came"
    digest = make_random_file(sent, SIZE_MIB)
    before = resident_kib(server)
    path = f"/sandboxes/{box}/files/content?path=/root/big%20file"
    info = json.loads(curl("PUT", path, "--upload-file", str(sent), limit_s=300))
    assert (info["size"], info["path"]) == (SIZE_MIB * CHUNK, "/root/big file")
    inside = curl.json("POST", f"/sandboxes/{box}/exec", {"command": ["sha256sum", "/root/big file"]})
    assert inside["stdout"].split()[0] == digest
    curl("GET", path, "--output", str(came), limit_s=300)
    assert sha256_of(came) == digest
    assert resident_kib(server) < before + 64 * 1024, "the server kept the file in its memory"

    part = curl("GET", path, "--range", "1000000-1000099", "--output", str(came), "--write-out", "%{http_code}")
    assert part == "206"
    with sent.open("rb") as file:
        file.seek(1_000_000)
        assert came.read_bytes() == file.read(100)
    sent.unlink()  # pytest keeps what lies in tmp_path


def test_curl_learns_from_an_error_what_was_wrong(server: RunningServer) -> None:
    argv = ["curl", "--silent", "--max-time", "60", "--write-out", "\n%{http_code} %{content_type}"]
    argv += ["--header", f"Authorization: Bearer {server.key}", "--header", "Content-Type: application/json"]
    argv += ["--data", '{"cpus": -1}', f"{server.url}/api/v1/sandboxes"]
    body, _, status = subprocess.run(argv, capture_output=True, check=True, text=True, timeout=70).stdout.rpartition(
        "\n"
    )
    assert status == "400 application/problem+json"
    assert json.loads(body)["field"] == "cpus"


def make_random_file(path: Path, mib: int) -> str:
    """A file of that many MiB that no compression shortens, and its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(mib):
            piece = os.urandom(CHUNK)
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resident_kib(server: RunningServer) -> int:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
