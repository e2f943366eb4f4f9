# ruff: noqa: ANN001, ANN003, ANN201, ANN202, PLR0913, PLR0917 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import hashlib
import os

import pytest

MIB = 1024 * 1024


@pytest.fixture
def folder(server, box, tmp_path):
    """A directory inside the sandbox."""
    path = f"/tmp/t{os.getpid()}-{tmp_path.name}"
    assert server.client.post(f"/sandboxes/{box}/files/mkdir", json={"path": path, "parents": True}).status_code == 200
    yield path
    server.client.delete(f"/sandboxes/{box}/files", params={"path": path, "recursive": "true"})


def put(server, box, path, data, **query):
    return server.client.put(f"/sandboxes/{box}/files/content", params={"path": path, **query}, content=data)


def get(server, box, path, **head):
    return server.client.get(f"/sandboxes/{box}/files/content", params={"path": path}, headers=head)


def test_what_is_written_is_read(server, box, folder):
    info = put(server, box, f"{folder}/a", b"hello", mode="0640").json()
    assert (info["name"], info["kind"], info["size"], info["mode"]) == ("a", "file", 5, "0640")
    answer = get(server, box, f"{folder}/a")
    assert (answer.content, answer.headers["content-length"]) == (b"hello", "5")
    head = server.client.head(f"/sandboxes/{box}/files/content", params={"path": f"{folder}/a"})
    assert (head.content, head.headers["content-length"]) == (b"", "5")


def test_an_empty_file_is_a_file(server, box, folder):
    assert put(server, box, f"{folder}/empty", b"").json()["size"] == 0
    assert get(server, box, f"{folder}/empty").content == b""


def test_64_mib_come_back_with_the_same_hash(server, box, folder):
    piece = os.urandom(MIB)
    assert put(server, box, f"{folder}/big", (piece for _ in range(64))).json()["size"] == 64 * MIB
    found = hashlib.sha256()
    with server.client.stream("GET", f"/sandboxes/{box}/files/content", params={"path": f"{folder}/big"}) as answer:
        for part in answer.iter_bytes():
            found.update(part)
    assert found.digest() == hashlib.sha256(piece * 64).digest()


@pytest.mark.parametrize(
    ("wanted", "status", "content"),
    [
        ("bytes=0-0", 206, b"0"),
        ("bytes=3-5", 206, b"345"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=5-999", 206, b"56789"),
        ("bytes=-999", 206, b"0123456789"),
        ("bytes=10-", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=99999999999999999999-", 200, b"0123456789"),
        ("bytes=5-3", 200, b"0123456789"),
        ("bytes=0-1,3-4", 200, b"0123456789"),
        ("lines=1-2", 200, b"0123456789"),
    ],
)
def test_ranges_are_as_rfc_9110_says(server, box, folder, wanted, status, content):
    put(server, box, f"{folder}/r", b"0123456789")
    answer = get(server, box, f"{folder}/r", Range=wanted)
    assert answer.status_code == status
    if content is not None:
        assert answer.content == content
    else:
        assert answer.headers["content-range"] == "bytes */10"


def test_files_of_proc_have_no_size_and_are_read_all_the_same(server, box):
    assert get(server, box, "/proc/version").content.startswith(b"Linux")


def test_directories_are_listed_in_pages(server, box, folder):
    names = ["a", "b c", "d\ne", "f<script>", "\N{RIGHT-TO-LEFT OVERRIDE}x"]
    for name in names:
        put(server, box, f"{folder}/{name}", b"")
    found, cursor = [], None
    while True:
        query = {"path": folder, "limit": 2} | ({} if cursor is None else {"cursor": cursor})
        page = server.client.get(f"/sandboxes/{box}/files/list", params=query).json()
        found += [one["name"] for one in page["entries"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert found == sorted(names, key=str.encode)


def test_move_attributes_and_remove(server, box, folder):
    base = f"/sandboxes/{box}/files"
    put(server, box, f"{folder}/a", b"1")
    put(server, box, f"{folder}/b", b"2")
    refused = server.client.post(f"{base}/move", json={"from": f"{folder}/a", "to": f"{folder}/b"})
    assert (refused.status_code, refused.json()["reason"]) == (409, "exists")
    moved = server.client.post(f"{base}/move", json={"from": f"{folder}/a", "to": f"{folder}/b", "overwrite": True})
    assert moved.json()["name"] == "b"
    assert server.client.patch(base, json={"path": f"{folder}/b", "mode": "0600"}).json()["mode"] == "0600"
    refused = server.client.request("DELETE", base, params={"path": folder})
    assert (refused.status_code, refused.json()["reason"]) == (409, "not_empty")
    assert server.client.request("DELETE", base, params={"path": f"{folder}/b"}).json() == {"removed": 1}


@pytest.mark.parametrize("path", ["", "rel", "/a/../b", "/..", "/a%00b", "/" + "x" * 5000, "/%ff"])
def test_a_bad_path_is_refused_by_every_operation(server, box, path):
    base = f"/sandboxes/{box}/files"
    for method, at in (("GET", ""), ("GET", "/list"), ("GET", "/content"), ("PUT", "/content"), ("DELETE", "")):
        answer = server.client.request(method, f"{base}{at}?path={path}")
        assert answer.status_code in {400, 413}, (method, at, answer.text)


def test_a_missing_path_is_named(server, box):
    answer = server.client.get(f"/sandboxes/{box}/files")
    assert (answer.status_code, answer.json()["field"]) == (400, "path")


def test_what_is_no_regular_file_is_not_downloaded(server, box, folder):
    server.client.post(f"/sandboxes/{box}/exec", json={"command": ["mkfifo", f"{folder}/fifo"]})
    for path in (f"{folder}/fifo", "/dev/zero"):
        assert get(server, box, path).status_code == 400
    assert get(server, box, folder).json()["reason"] == "is_directory"
    assert get(server, box, f"{folder}/none").status_code == 404


def test_an_upload_cut_short_leaves_the_old_file(server, box, folder):
    put(server, box, f"{folder}/kept", b"old")

    def cut():
        yield b"x" * 100_000
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        put(server, box, f"{folder}/kept", cut())
    assert get(server, box, f"{folder}/kept").content == b"old"


@pytest.mark.parametrize("mode", ["9", "8888", "-1", "0x1", "77777", "rw"])
def test_a_bad_mode_is_named(server, box, folder, mode):
    answer = put(server, box, f"{folder}/m", b"", mode=mode)
    assert (answer.status_code, answer.json()["field"]) == (400, "mode")
