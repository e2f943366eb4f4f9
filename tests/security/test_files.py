"""Group B: paths and files. Everything resolves inside the sandbox; nothing reaches the host, nothing hangs."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import httpx2
import pytest

from tests_support import SOAK, RunningServer

pytestmark = pytest.mark.real


@pytest.fixture
def sandbox(driven_sandbox: str) -> str:
    """Every test with one sandbox runs on each driver in turn."""
    return driven_sandbox


def run(client: httpx2.Client, box: str, command: str) -> str:
    answer = client.post(f"/sandboxes/{box}/exec", json={"command": command, "timeout_s": 60})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["stdout"])


def read(client: httpx2.Client, box: str, path: str) -> httpx2.Response:
    return client.get(f"/sandboxes/{box}/files/content", params={"path": path})


def write(client: httpx2.Client, box: str, path: str, data: bytes, **query: str) -> httpx2.Response:
    return client.put(f"/sandboxes/{box}/files/content", params={"path": path, **query}, content=data)


@pytest.mark.parametrize(
    "path",
    ["", "relative", "../etc/passwd", "a\0b", "/a\0b", "/" + "x" * 5000, "/" + "y" * 300],
    ids=["empty", "relative", "dots", "nul", "nul-absolute", "path-too-long", "name-too-long"],
)
def test_a_bad_path_is_refused_by_name(client: httpx2.Client, sandbox: str, path: str) -> None:
    for answer in (read(client, sandbox, path), write(client, sandbox, path, b"x")):
        assert answer.status_code == 400, (path, answer.status_code, answer.text)
        assert answer.json()["field"] == "path"


@pytest.mark.parametrize(
    ("path", "status"),
    [("/../../../etc/hostname", 400), ("/%2e%2e/%2e%2e/etc/hostname", 404), ("/proc/self/root/../etc/hostname", 400)],
)
def test_dots_are_refused_and_never_decoded_twice(client: httpx2.Client, sandbox: str, path: str, status: int) -> None:
    assert read(client, sandbox, path).status_code == status


def test_the_root_of_a_process_inside_is_the_sandboxs(client: httpx2.Client, sandbox: str) -> None:
    assert read(client, sandbox, "/proc/1/root/etc/hostname").text == run(client, sandbox, "cat /etc/hostname")


def test_links_resolve_inside(client: httpx2.Client, sandbox: str) -> None:
    run(client, sandbox, "echo mine > /root/target; ln -s /root/target /root/link; ln -s /etc/shadow /root/shadow")
    assert read(client, sandbox, "/root/link").text == "mine\n"
    shadow = read(client, sandbox, "/root/shadow").text
    assert shadow != Path("/etc/shadow").read_text()
    assert client.get(f"/sandboxes/{sandbox}/files", params={"path": "/root/link"}).json()["target"] == "/root/target"


def test_reading_what_is_no_file_is_refused_at_once(client: httpx2.Client, sandbox: str) -> None:
    run(client, sandbox, "mkfifo /root/fifo; python3 -c \"import socket; socket.socket(1).bind('/root/sock')\"")
    for path in ("/root/fifo", "/dev/zero", "/dev/tty", "/root/sock"):
        started = time.monotonic()
        assert read(client, sandbox, path).status_code in {400, 403}, path
        assert time.monotonic() - started < 30, path
    assert read(client, sandbox, "/root").json()["reason"] == "is_directory"
    assert write(client, sandbox, "/root/fifo", b"x").status_code == 400


def test_a_link_swap_during_transfers_never_shows_a_file_of_the_host(client: httpx2.Client, sandbox: str) -> None:
    rounds = 10_000 if SOAK else 400
    swap = (
        "cd /root; echo mine > a; while :; do ln -sfn /etc/passwd f; ln -sfn /root/a f; ln -sfn /proc/1/environ f; done"
    )
    client.post(f"/sandboxes/{sandbox}/commands", json={"command": swap})
    inside = {read(client, sandbox, "/etc/passwd").text, "mine\n"}
    assert Path("/etc/passwd").read_text() not in inside
    for _ in range(rounds):
        answer = read(client, sandbox, "/root/f")
        assert answer.status_code in {200, 400, 403, 404}
        if answer.status_code == 200:
            assert answer.text in inside or "PATH=" in answer.text or not answer.text


def test_a_sparse_giant_is_streamed_by_range(client: httpx2.Client, sandbox: str) -> None:
    run(client, sandbox, "truncate -s 4E /root/giant || truncate -s 1T /root/giant")
    answer = client.get(
        f"/sandboxes/{sandbox}/files/content",
        params={"path": "/root/giant"},
        headers={"Range": "bytes=1000000-1000009"},
    )
    assert answer.status_code == 206
    assert answer.content == bytes(10)
    for bad in ("bytes=-0", "bytes=9223372036854775807-", "bytes=5-2"):
        answer = client.get(
            f"/sandboxes/{sandbox}/files/content", params={"path": "/etc/passwd"}, headers={"Range": bad}
        )
        assert answer.status_code in {200, 416}, bad


def test_odd_names_come_back_as_they_are(client: httpx2.Client, sandbox: str) -> None:
    for name in ("line\nbreak", "bidi\u202etxt", "space and 'quote\"", "x" * 255, "emoji😀"):
        assert write(client, sandbox, f"/root/odd/{name}", b"data", parents="true").status_code in {200, 201}, name
        assert read(client, sandbox, f"/root/odd/{name}").content == b"data"
    run(client, sandbox, "cd /root/odd && touch \"$(printf 'bad\\377utf8')\"")
    names = [
        e["name"]
        for e in client.get(f"/sandboxes/{sandbox}/files/list", params={"path": "/root/odd"}).json()["entries"]
    ]
    assert len(names) == 6


def test_a_directory_of_many_names_is_paged(client: httpx2.Client, sandbox: str) -> None:
    count = 100_000 if SOAK else 5_000
    run(client, sandbox, f"mkdir /root/many && cd /root/many && seq {count} | xargs touch")
    seen: list[str] = []
    cursor: str | None = None
    while True:
        query = {"path": "/root/many", "limit": "1000"} | ({"cursor": cursor} if cursor else {})
        page = client.get(f"/sandboxes/{sandbox}/files/list", params=query).json()
        seen += [e["name"] for e in page["entries"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == count


def test_a_file_replaced_while_it_streams_is_one_of_the_two(client: httpx2.Client, sandbox: str) -> None:
    size = 4_000_000
    for letter in (b"a", b"b"):
        write(client, sandbox, "/root/f", letter * size)
    stop = threading.Event()

    def replace(server_client: httpx2.Client) -> None:
        while not stop.is_set():
            for letter in (b"a", b"b"):
                write(server_client, sandbox, "/root/f", letter * size)

    with httpx2.Client(base_url=client.base_url, headers=client.headers, timeout=60) as other:
        thread = threading.Thread(target=replace, args=(other,))
        thread.start()
        try:
            for _ in range(20):
                data = read(client, sandbox, "/root/f").content
                assert len(data) == size
                assert len(set(data)) == 1
        finally:
            stop.set()
            thread.join()


def test_an_upload_cut_short_leaves_the_old_file(client: httpx2.Client, sandbox: str) -> None:
    write(client, sandbox, "/root/f", b"old")

    def body():  # type: ignore[no-untyped-def] # noqa: ANN202
        yield b"x" * 1_000_000
        raise ConnectionResetError

    with pytest.raises((ConnectionResetError, httpx2.HTTPError)):
        client.put(f"/sandboxes/{sandbox}/files/content", params={"path": "/root/f"}, content=body())
    deadline = time.monotonic() + 60
    while len(run(client, sandbox, "ls -A /root").split()) > 3:
        assert time.monotonic() < deadline, run(client, sandbox, "ls -A /root")
        time.sleep(0.1)
    assert read(client, sandbox, "/root/f").content == b"old"


def test_owners_and_modes_are_those_inside(client: httpx2.Client, sandbox: str) -> None:
    write(client, sandbox, "/root/f", b"x", mode="4755")
    changed = client.patch(f"/sandboxes/{sandbox}/files", json={"path": "/root/f", "uid": 1000, "gid": 1000})
    assert changed.status_code == 200, changed.text
    assert run(client, sandbox, "stat -c %u:%g /root/f") == "1000:1000\n"
    for uid in (65_536, 4_000_000_000):
        answer = client.patch(f"/sandboxes/{sandbox}/files", json={"path": "/root/f", "uid": uid, "gid": 0})
        assert answer.status_code in {400, 403}, uid


def test_a_gigabyte_goes_in_and_comes_back_with_the_same_hash(server: RunningServer, client: httpx2.Client) -> None:
    size = 1024 if SOAK else 128
    box = client.post("/sandboxes", json={"disk_mib": 4096}).json()["id"]
    block = os.urandom(1024 * 1024)
    sent = hashlib.sha256()

    def body():  # type: ignore[no-untyped-def] # noqa: ANN202
        for n in range(size):
            piece = n.to_bytes(8, "big") + block[8:]
            sent.update(piece)
            yield piece

    answer = client.put(f"/sandboxes/{box}/files/content", params={"path": "/root/big"}, content=body())
    assert answer.status_code in {200, 201}, answer.text
    back = hashlib.sha256()
    with client.stream("GET", f"/sandboxes/{box}/files/content", params={"path": "/root/big"}) as stream:
        for piece in stream.iter_raw():
            back.update(piece)
    assert back.hexdigest() == sent.hexdigest()
    client.delete(f"/sandboxes/{box}")


def test_another_projects_sandbox_does_not_exist(server: RunningServer, client: httpx2.Client, sandbox: str) -> None:
    client.post("/projects", json={"id": "other"})
    scopes = ["read", "create", "exec", "files", "destroy"]
    key = client.post("/keys", json={"name": "other", "project": "other", "scopes": scopes}).json()["key"]
    with httpx2.Client(base_url=client.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as stranger:
        assert stranger.get(f"/sandboxes/{sandbox}").status_code == 404
        assert stranger.post(f"/sandboxes/{sandbox}/exec", json={"command": "id"}).status_code == 404
        assert read(stranger, sandbox, "/etc/passwd").status_code == 404
        assert stranger.delete(f"/sandboxes/{sandbox}").status_code == 404
        assert sandbox not in [s["id"] for s in stranger.get("/sandboxes").json()["sandboxes"]]
