"""Files of section 2 of docs/protocols/isorun.md."""

from __future__ import annotations

import hashlib

import httpx2
import pytest


def test_a_file_comes_back_as_it_was_sent(runs: httpx2.Client, run: str, make_path: str) -> None:
    data = bytes(range(256)) * 4096
    octets = {"content-type": "application/octet-stream"}
    sent = runs.post(f"/v1/runs/{run}/files/upload", params={"path": make_path}, content=data, headers=octets)
    assert (sent.status_code, sent.json()) == (200, {"path": make_path, "size_bytes": len(data)})
    found = runs.get(f"/v1/runs/{run}/files/download", params={"path": make_path})
    assert (found.status_code, found.headers["content-type"]) == (200, "application/octet-stream")
    assert hashlib.sha256(found.content).digest() == hashlib.sha256(data).digest()


def test_directories_above_a_file_are_made(runs: httpx2.Client, run: str, make_path: str) -> None:
    path = f"{make_path}/deep/er/app.py"
    assert runs.post(f"/v1/runs/{run}/files/upload", params={"path": path}, content=b"print(1)").status_code == 200
    listed = runs.get(f"/v1/runs/{run}/files", params={"path": f"{make_path}/deep/er"})
    assert listed.json() == {"entries": ["app.py"]}


def test_a_file_may_be_empty(runs: httpx2.Client, run: str, make_path: str) -> None:
    sent = runs.post(f"/v1/runs/{run}/files/upload", params={"path": make_path})
    assert (sent.status_code, sent.json()["size_bytes"]) == (200, 0)
    assert runs.get(f"/v1/runs/{run}/files/download", params={"path": make_path}).content == b""


def test_a_listing_is_plain_names(runs: httpx2.Client, run: str, make_path: str) -> None:
    names = [f"file {number:04d}" for number in range(1100)]
    command = f'mkdir {make_path} && cd {make_path} && for n in $(seq -w 0 1099); do : > "file $n"; done'
    assert runs.post(f"/v1/runs/{run}/exec", json={"command": command}).json()["exit_code"] == 0
    assert runs.get(f"/v1/runs/{run}/files", params={"path": make_path}).json() == {"entries": names}


@pytest.mark.parametrize("what", ["files", "files/download"])
def test_what_is_missing_is_404(runs: httpx2.Client, run: str, what: str) -> None:
    answer = runs.get(f"/v1/runs/{run}/{what}", params={"path": "/none/such"})
    assert (answer.status_code, set(answer.json())) == (404, {"error"})


def test_a_download_of_a_directory_is_400(runs: httpx2.Client, run: str) -> None:
    answer = runs.get(f"/v1/runs/{run}/files/download", params={"path": "/tmp"})
    assert (answer.status_code, set(answer.json())) == (400, {"error"})


def test_a_listing_of_a_file_is_400(runs: httpx2.Client, run: str) -> None:
    answer = runs.get(f"/v1/runs/{run}/files", params={"path": "/etc/passwd"})
    assert (answer.status_code, set(answer.json())) == (400, {"error"})


@pytest.mark.parametrize("params", [{}, {"path": ""}, {"path": "relative"}, {"path": "/a/../b"}, {"path": "/a\0b"}])
@pytest.mark.parametrize(("method", "what"), [("POST", "files/upload"), ("GET", "files/download"), ("GET", "files")])
def test_a_wrong_path_is_400_and_named(
    runs: httpx2.Client, run: str, method: str, what: str, params: dict[str, str]
) -> None:
    answer = runs.request(method, f"/v1/runs/{run}/{what}", params=params)
    assert (answer.status_code, set(answer.json())) == (400, {"error"})
    assert "path" in answer.json()["error"]
