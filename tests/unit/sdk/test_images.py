"""Images: what is asked, how progress arrives, what a broken stream means; both surfaces, both transports."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import cove
from cove import aio

IMAGES = "/api/v1/images"
MADE = {
    "name": "localhost/x:latest", "digest": "d", "size_bytes": 5, "status": "ready", "origin": "built",
    "manifest_digest": None, "created_at": "2026-01-02T03:04:05.000Z", "config": {"env": {}},
}  # fmt: skip


@pytest.fixture
def client(address: str) -> Iterator[cove.Client]:
    with cove.connect(address, "k-test") as client:
        yield client


@pytest.fixture
async def twin(address: str) -> AsyncIterator[aio.Client]:
    async with aio.connect(address, "k-test") as client:
        yield client


def streamed(wire: Any, *pieces: bytes) -> Any:
    return wire.answer(stream=lambda: iter(pieces), headers={"Content-Type": "text/event-stream"})


def going(wire: Any) -> list[bytes]:
    first = wire.event("download", done_bytes=1, total_bytes=4, text="")
    return [first + b": ping\n\n", wire.event("run", text="line"), wire.event("later", x=1), wire.event("done", **MADE)]


SEEN = [("download", 1, 4, ""), ("run", 0, 0, "line")]


def shown(one: cove.ImageProgress) -> tuple[str, int, int, str]:
    return one.stage, one.done_bytes, one.total_bytes, one.text


def test_a_pull_reports_progress_and_returns_the_image(client: cove.Client, stub: Any, wire: Any) -> None:
    stub.fail("POST", f"{IMAGES}/pull", streamed(wire, *going(wire)))
    seen: list[cove.ImageProgress] = []
    image = client.image.pull("alpine", username="u", password="p", on_progress=seen.append)
    assert (image.name, image.origin, image.config) == ("localhost/x:latest", "built", {"env": {}})
    assert image.created_at is not None
    assert [shown(one) for one in seen] == SEEN
    (asked,) = stub.asked("POST", f"{IMAGES}/pull")
    assert asked.json == {"reference": "alpine", "username": "u", "password": "p"}
    assert asked.headers["accept"] == "text/event-stream"


async def test_the_twin_does_the_same(twin: aio.Client, stub: Any, wire: Any) -> None:
    stub.fail("POST", f"{IMAGES}/pull", streamed(wire, *going(wire)))
    seen: list[cove.ImageProgress] = []
    image = await twin.image.pull("alpine", token="t", on_progress=seen.append)
    assert (image.name, [shown(one) for one in seen]) == ("localhost/x:latest", SEEN)
    assert stub.asked("POST", f"{IMAGES}/pull")[0].json == {"reference": "alpine", "token": "t"}


def test_a_stream_that_ends_in_an_error_raises_it(client: cove.Client, stub: Any, wire: Any) -> None:
    failed = wire.event("error", code="registry-unreachable", status=502, detail="not reached", request_id="req_9")
    stub.fail("POST", f"{IMAGES}/pull", streamed(wire, wire.event("resolve"), failed))
    with pytest.raises(cove.Error, match="not reached") as caught:
        client.image.pull("alpine")
    assert (caught.value.code, caught.value.request_id) == ("registry-unreachable", "req_9")


@pytest.mark.parametrize("end", [b"", b"cut"])
def test_a_stream_that_breaks_off_is_no_image(client: cove.Client, stub: Any, wire: Any, end: bytes) -> None:
    stub.fail("POST", f"{IMAGES}/pull", streamed(wire, wire.event("resolve"), *([end] if end else [])))
    with pytest.raises(cove.Unreachable):
        client.image.pull("alpine")
    assert len(stub.asked("POST", f"{IMAGES}/pull")) == 1  # another pull is the caller's to ask for


def test_one_image_is_shown_checked_and_removed(client: cove.Client, stub: Any, wire: Any) -> None:
    stub.fail("GET", f"{IMAGES}/inspect", wire.answer(json=MADE))
    stub.fail("POST", f"{IMAGES}/verify", wire.answer(json=MADE))
    stub.fail("DELETE", IMAGES, wire.answer(status=204), wire.problem("conflict", 409, "1 sandbox runs"))
    assert client.image.get("ghcr.io/a/b:1").digest == "d"
    assert stub.requests[-1].query == {"name": ["ghcr.io/a/b:1"]}
    assert client.image.verify("x").digest == "d"
    client.image.remove("x")
    with pytest.raises(cove.Conflict):
        client.image.remove("x")
    with pytest.raises(cove.BadRequest):
        client.image.get("")
    assert [one.name for one in client.image.list()] == ["base"]


def test_an_archive_is_streamed_both_ways(client: cove.Client, stub: Any, wire: Any, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(b"tar" * 1000)
    stub.fail("POST", f"{IMAGES}/import", *(streamed(wire, wire.event("done", **MADE)) for _ in range(2)))
    client.image.import_("x", archive)
    client.image.import_("x", io.BytesIO(b"more"))
    first, second = stub.asked("POST", f"{IMAGES}/import")
    assert (first.body, first.headers["content-length"]) == (b"tar" * 1000, "3000")
    assert (second.body, second.query) == (b"more", {"name": ["x"]})
    stub.fail("GET", f"{IMAGES}/export", *(wire.answer(body=b"bytes") for _ in range(2)), wire.cut)
    out = io.BytesIO()
    assert client.image.export("x", out) == 5
    assert client.image.export("x", archive) == 5
    with pytest.raises(cove.Unreachable):
        client.image.export("x", archive)
    assert (out.getvalue(), archive.read_bytes()) == (b"bytes", b"bytes")
    assert {path.name for path in tmp_path.iterdir()} <= {"a.tar", "api.sock"}


async def test_the_twin_streams_archives_too(twin: aio.Client, stub: Any, wire: Any, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(b"tar")
    stub.fail("POST", f"{IMAGES}/import", *(streamed(wire, wire.event("done", **MADE)) for _ in range(2)))
    await twin.image.import_("x", archive)
    await twin.image.import_("x", io.BytesIO(b"more"))
    assert [one.body for one in stub.asked("POST", f"{IMAGES}/import")] == [b"tar", b"more"]
    stub.fail("GET", f"{IMAGES}/export", *(wire.answer(body=b"bytes") for _ in range(2)))
    assert await twin.image.export("x", archive) == 5
    assert await twin.image.export("x", io.BytesIO()) == 5
    stub.fail("GET", f"{IMAGES}/inspect", wire.answer(json=MADE))
    stub.fail("POST", f"{IMAGES}/verify", wire.answer(json=MADE))
    stub.fail("DELETE", IMAGES, wire.answer(status=204))
    assert (await twin.image.get("x")).digest == (await twin.image.verify("x")).digest == "d"
    await twin.image.remove("x")
    assert [one.name for one in await twin.image.list()] == ["base"]


def test_a_recipe_goes_as_json(client: cove.Client, stub: Any, wire: Any) -> None:
    stub.fail("POST", f"{IMAGES}/build", streamed(wire, wire.event("done", **MADE)))
    client.image.build("x", recipe={"from": "python", "pip": ["six"]}, memory="2g", timeout="1h", args={"V": "1"})
    (asked,) = stub.asked("POST", f"{IMAGES}/build")
    assert asked.json == {"from": "python", "pip": ["six"]}
    assert asked.query == {"name": ["x"], "memory_mib": ["2048"], "timeout_s": ["3600"], "arg.V": ["1"]}
    for wrong in ({}, {"recipe": {}, "context": b"tar"}):
        with pytest.raises(cove.BadRequest):
            client.image.build("x", **wrong)  # type: ignore[arg-type]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    top = tmp_path / "project"
    (top / "src" / "deep").mkdir(parents=True)
    (top / "node_modules" / "x").mkdir(parents=True)
    (top / "Dockerfile").write_text("FROM base\n")
    (top / "src" / "deep" / "a.py").write_text("x" * 1000)
    (top / "src" / "b.pyc").write_text("no")
    (top / "node_modules" / "x" / "y.js").write_text("no")
    (top / "keep.log").write_text("yes")
    (top / "drop.log").write_text("no")
    (top / "link").symlink_to("/etc/shadow")
    os.mkfifo(top / "pipe")
    (top / ".dockerignore").write_text("# why\n\nnode_modules\n**/*.pyc\n*.log\n!keep.log\n/Dockerfile\n")
    return top


KEPT = [".dockerignore", "Dockerfile", "keep.log", "link", "src", "src/deep", "src/deep/a.py"]


def test_a_directory_is_packed_as_dockerignore_says(
    client: cove.Client, stub: Any, wire: Any, project: Path, tmp_path: Path
) -> None:
    stub.fail("POST", f"{IMAGES}/build", *(streamed(wire, wire.event("done", **MADE)) for _ in range(2)))
    client.image.build("x", context=project, target="t")
    asked = stub.asked("POST", f"{IMAGES}/build")[0]
    assert asked.query == {"name": ["x"], "file": ["Dockerfile"], "target": ["t"]}
    with tarfile.open(fileobj=io.BytesIO(asked.body)) as tar:
        assert sorted(tar.getnames()) == KEPT
        assert tar.getmember("link").linkname == "/etc/shadow"  # not what it leads to
        content = tar.extractfile("src/deep/a.py")
        assert content is not None
        assert content.read() == b"x" * 1000
    outside = tmp_path / "other.toml"
    outside.write_text("from = 'base'\n")
    client.image.build("x", context=project, file=outside)
    asked = stub.asked("POST", f"{IMAGES}/build")[1]
    assert asked.query["file"] == [".cove-build/other.toml"]
    with tarfile.open(fileobj=io.BytesIO(asked.body)) as tar:
        assert ".cove-build/other.toml" in tar.getnames()
    with pytest.raises(FileNotFoundError):
        client.image.build("x", context=project, file=project / "nothing")


async def test_the_twin_packs_the_same(twin: aio.Client, stub: Any, wire: Any, project: Path) -> None:
    stub.fail("POST", f"{IMAGES}/build", *(streamed(wire, wire.event("done", **MADE)) for _ in range(2)))
    await twin.image.build("x", context=project)
    await twin.image.build("x", context=[b"a", b"b"], file="D")
    first, second = stub.asked("POST", f"{IMAGES}/build")
    with tarfile.open(fileobj=io.BytesIO(first.body)) as tar:
        assert sorted(tar.getnames()) == KEPT
    assert (second.body, second.query["file"]) == (b"ab", ["D"])
