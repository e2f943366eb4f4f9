"""Files: the mapping, the usual errors, streaming both ways, and local files that a break leaves as they were."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cove

CONTENT = "/api/v1/sandboxes/sb_0000000000000000/files/content"


@pytest.fixture
def files(address: str) -> Iterator[cove.Files]:
    with cove.connect(address, "k-test") as client:
        yield client.create().files


def test_a_mapping_of_small_files(files: cove.Files, stub: Any) -> None:
    files["/w/ä b"] = b"\x00x"
    files["/w/text"] = "é"
    files.write("/w/buffer", bytearray(b"12"))
    assert stub.files == {"/w/ä b": b"\x00x", "/w/text": b"\xc3\xa9", "/w/buffer": b"12"}
    assert files["/w/ä b"] == b"\x00x"
    assert files.read_text("/w/text") == "é"
    assert "/w/text" in files
    del files["/w/text"]
    assert "/w/text" not in files


def test_a_missing_file_is_the_usual_error_in_each_sense(files: cove.Files) -> None:
    for kind in (cove.FileMissing, cove.FileError, cove.Error, FileNotFoundError, KeyError, OSError):
        with pytest.raises(kind):
            files["/nope"]
    with pytest.raises(cove.FileMissing, match="no such file") as caught:
        del files["/nope"]
    assert (caught.value.errno, caught.value.reason, caught.value.code) == (errno.ENOENT, "not_found", "file-error")


@pytest.mark.parametrize("path", ["", "w/a", "../a", "/a\0b"])
def test_a_path_that_can_be_none_inside_is_refused_here(files: cove.Files, stub: Any, path: str) -> None:
    with pytest.raises(cove.BadRequest, match="not absolute"):
        files.read(path)
    assert len(stub.requests) == 1


def test_a_local_file_is_uploaded_with_its_length_and_mode(files: cove.Files, stub: Any, tmp_path: Path) -> None:
    local = tmp_path / "big"
    data = os.urandom(700_000)
    local.write_bytes(data)
    local.chmod(0o750)
    files.put(local, "/w/big")
    request = stub.asked("PUT", CONTENT)[0]
    assert stub.files["/w/big"] == data
    assert request.headers["content-length"] == "700000"
    assert "transfer-encoding" not in request.headers
    assert request.query == {"path": ["/w/big"], "mode": ["0750"], "parents": ["true"]}


def test_missing_directories_are_left_missing_on_request(files: cove.Files, stub: Any) -> None:
    files.write("/w/a", b"", parents=False, exclusive=True)
    query = stub.asked("PUT", CONTENT)[0].query
    assert query == {"path": ["/w/a"], "parents": ["false"], "exclusive": ["true"]}


def test_a_file_object_or_a_generator_is_uploaded_in_pieces(files: cove.Files, stub: Any) -> None:
    files.put(io.BytesIO(b"abc"), "/w/a", mode=0o600)
    files.write("/w/b", (b"%d" % n for n in range(3)))
    assert (stub.files["/w/a"], stub.files["/w/b"]) == (b"abc", b"012")
    assert all(request.headers["transfer-encoding"] == "chunked" for request in stub.asked("PUT", CONTENT))


def test_a_failing_source_is_reported_as_itself(files: cove.Files) -> None:
    def source() -> Iterator[bytes]:
        yield b"a"
        raise OSError(errno.EIO, "the local disk")

    with pytest.raises(OSError, match="the local disk") as caught:
        files.write("/w/a", source())
    assert not isinstance(caught.value, cove.Error)


def test_a_download_replaces_the_local_file_at_its_end(files: cove.Files, stub: Any, wire: Any, tmp_path: Path) -> None:
    local = tmp_path / "copy"
    local.write_text("old")
    stub.files["/w/big"] = os.urandom(700_000)
    stub.fail("GET", CONTENT, wire.answer(200, body=b"part", headers={"X-Says": "999"}))
    with pytest.raises(cove.Unreachable):
        files.get("/w/big", local)
    with pytest.raises(cove.FileMissing):
        files.get("/w/nope", local)
    assert local.read_text() == "old"
    assert files.get("/w/big", local) == 700_000
    assert local.read_bytes() == stub.files["/w/big"]
    assert not list(tmp_path.glob("*cove-*"))
    target = io.BytesIO()
    assert files.get("/w/big", target) == len(target.getvalue()) == 700_000


def test_a_part_of_a_file(files: cove.Files, stub: Any) -> None:
    stub.files["/w/a"] = b"0123456789"
    for offset, length, expected in ((2, 3, b"234"), (8, None, b"89"), (3, 0, b""), (0, 1, b"0")):
        with files.stream("/w/a", offset=offset, length=length) as pieces:
            assert b"".join(pieces) == expected


def test_a_directory_is_listed_page_by_page(files: cove.Files, stub: Any) -> None:
    for name in "abcde":
        stub.files[f"/w/{name}"] = b""
    assert files.names("/w") == ["a", "b", "c", "d", "e"]
    assert next(files.list("/w")).mode == 0o644


def test_the_other_operations_send_what_is_documented(files: cove.Files, stub: Any) -> None:
    files["/w/a"] = b"1"
    assert files.stat("/w/a").size == 1
    files.mkdir("/w/d", mode=0o700, parents=False)
    files.move("/w/a", "/w/b", overwrite=True)
    files.set("/w/a", mode=0o600, uid=7)
    assert files.remove("/w/a", recursive=True) == 1
    bodies = [r.json for r in stub.requests if r.body and r.method in {"POST", "PATCH"}][1:]
    assert bodies == [
        {"path": "/w/d", "mode": "0700", "parents": False},
        {"from": "/w/a", "to": "/w/b", "overwrite": True},
        {"path": "/w/a", "mode": "0600", "uid": 7},
    ]
