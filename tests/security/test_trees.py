"""Group B for whole trees: walks, archives in both directions, and the races against them. On every driver."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import time
import zlib
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests_support import SOAK, Footprint, RunningServer

pytestmark = pytest.mark.real

FILE, LINK = tarfile.REGTYPE, tarfile.SYMTYPE


@pytest.fixture
def sandbox(driven_sandbox: str) -> str:
    """Every test with one sandbox runs on each driver in turn."""
    return driven_sandbox


def run(client: httpx2.Client, box: str, command: str) -> str:
    answer = client.post(f"/sandboxes/{box}/exec", json={"command": command, "timeout_s": 900}, timeout=900)
    assert answer.json()["exit_code"] == 0, answer.text
    return str(answer.json()["stdout"])


def lines(client: httpx2.Client, box: str, what: str, **query: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    answer = client.get(f"/sandboxes/{box}/files/{what}", params=query, timeout=300)
    assert answer.status_code == 200, answer.text
    *found, last = [json.loads(line) for line in answer.text.split("\n") if line]
    return found, last["end"]


def unpack(client: httpx2.Client, box: str, data: object, path: str = "/root/in", **query: Any) -> httpx2.Response:
    return client.put(
        f"/sandboxes/{box}/files/archive",
        params={"path": path, **query},
        content=data,  # type: ignore[arg-type]
        timeout=300,
    )


def archive(*members: tuple[str, bytes, str]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.mode = kind, 0o6755
            data = content.encode() if kind == FILE else b""
            member.size, member.linkname = len(data), "" if data else content
            tar.addfile(member, io.BytesIO(data))
    return made.getvalue()


@pytest.mark.parametrize(
    "path", ["/a/../etc", "/%2e%2e/etc", "/%252e%252e/etc", "/a%00b", "/%c0%ae%c0%ae/etc", "/%ff", "rel", ""]
)
def test_case_21_a_path_in_any_disguise_is_refused_or_not_there(client: httpx2.Client, path: str) -> None:
    box = client.post("/sandboxes", json={}).json()["id"]
    for what in ("find", "usage", "archive", "search"):
        more = "&pattern=x" if what == "search" else ""
        answer = client.get(f"{client.base_url}sandboxes/{box}/files/{what}?path={path}{more}")
        assert answer.status_code in {400, 404}, (what, answer.text)
    answer = client.put(f"{client.base_url}sandboxes/{box}/files/archive?path={path}", content=b"x" * 512)
    assert answer.status_code == 400, answer.text
    client.delete(f"/sandboxes/{box}")


SWAP = r"""
import os, shutil
os.chdir("/root/race")
while True:
    try:
        shutil.rmtree("d", ignore_errors=True)
        os.symlink("/root/secret", "d")
        os.unlink("d")
        os.mkdir("d")
        open("d/f", "w").write("mine")
    except OSError:
        if os.path.islink("d"):
            os.unlink("d")
"""
"""`d` is a directory, nothing, or a link to another directory, thousands of times a second."""


def test_case_22_a_swap_for_a_link_leads_no_walk_and_no_archive_elsewhere(client: httpx2.Client, sandbox: str) -> None:
    rounds = 2_000 if SOAK else 12  # of five operations each
    run(client, sandbox, "mkdir /root/race /root/secret; echo SECRET > /root/secret/f")
    client.post(f"/sandboxes/{sandbox}/commands", json={"command": ["python3", "-c", SWAP]})
    evil = archive(("d/x", FILE, "evil"), ("d/sub/y", FILE, "evil"))
    for number in range(rounds):
        assert unpack(client, sandbox, evil, "/root/race").status_code in {200, 404, 409}, number
        packed = client.get(f"/sandboxes/{sandbox}/files/archive", params={"path": "/root/race"})
        assert b"SECRET" not in packed.content
        found, _ = lines(client, sandbox, "search", path="/root/race", pattern="SECRET")
        assert found == []
        replaced = client.post(
            f"/sandboxes/{sandbox}/files/replace", json={"path": "/root/race", "pattern": "SECRET", "replacement": "x"}
        )
        assert replaced.json()["replacements"] == 0
        changed = {"path": "/root/race", "recursive": True, "mode": "0600", "directory_mode": "0700"}
        assert client.patch(f"/sandboxes/{sandbox}/files", json=changed).status_code in {200, 404, 409}
    assert run(client, sandbox, "cd /root/secret; find . | sort; cat f; stat -c %a f").split() == [
        ".",
        "./f",
        "SECRET",
        "644",
    ]


def test_case_23_what_is_endless_or_no_file_stops_no_walk(client: httpx2.Client, sandbox: str) -> None:
    run(
        client,
        sandbox,
        "mkdir /root/odd; cd /root/odd; mkfifo fifo; ln -s /dev/zero zero; ln -s /proc/kcore core; echo x > f",
    )
    started = time.monotonic()
    found, end = lines(client, sandbox, "search", path="/root/odd", pattern="x")
    assert [one["path"] for one in found] == ["/root/odd/f"]
    assert end["files"] == 1
    with tarfile.open(fileobj=io.BytesIO(packed(client, sandbox, "/root/odd"))) as tar:
        assert sorted(tar.getnames()) == [".", "core", "f", "zero"]
    for path in ("/dev/zero", "/proc/kcore", "/root/odd/fifo"):
        answer = client.get(f"/sandboxes/{sandbox}/files/search", params={"path": path, "pattern": "x"})
        assert answer.status_code in {200, 400, 403, 404}, (path, answer.text)
    everything, _ = lines(client, sandbox, "find", path="/", kind="file", glob="kcore")
    assert everything == []  # /proc is not walked into
    assert time.monotonic() - started < 90


def packed(client: httpx2.Client, box: str, path: str, **query: Any) -> bytes:
    answer = client.get(f"/sandboxes/{box}/files/archive", params={"path": path, **query})
    assert answer.status_code == 200, answer.text
    return answer.content


def test_case_24_a_sparse_giant_is_counted_and_not_sent(client: httpx2.Client, sandbox: str, driver: str) -> None:
    run(
        client,
        sandbox,
        "mkdir /root/s; truncate -s 4E /root/s/giant || truncate -s 1T /root/s/giant; echo x > /root/s/f",
    )
    used = client.get(f"/sandboxes/{sandbox}/files/usage", params={"path": "/root/s"}).json()
    assert used["bytes"] >= 2**40
    assert used["allocated_bytes"] < 2**20 or driver == "gvisor"  # which makes up its blocks from the size
    found, end = lines(client, sandbox, "search", path="/root/s", pattern="x")
    assert (len(found), end["too_large"]) == (1, 1)
    with (
        pytest.raises(httpx2.HTTPError),
        client.stream(
            "GET", f"/sandboxes/{sandbox}/files/archive", params={"path": "/root/s", "max_bytes": 2**30}
        ) as answer,
    ):
        sum(map(len, answer.iter_raw()))
    with client.stream(
        "GET", f"/sandboxes/{sandbox}/files/archive", params={"path": "/root/s", "gzip": "true"}
    ) as answer:
        next(answer.iter_raw())  # endless in effect: leaving it frees the agent
    assert run(client, sandbox, "echo on") == "on\n"


def test_case_25_hostile_members_are_refused_and_what_came_before_stays(client: httpx2.Client, sandbox: str) -> None:
    run(client, sandbox, "mkdir /root/out; echo old > /root/out/f")
    for number, (members, status) in enumerate(
        [
            ([("/root/out/f", FILE, "evil")], 400),
            ([("../out/f", FILE, "evil")], 400),
            ([("null", tarfile.CHRTYPE, "")], 400),
            ([("pipe", tarfile.FIFOTYPE, "")], 400),
            ([("h", tarfile.LNKTYPE, "../out/f"), ("h", FILE, "evil")], 400),
            ([("l", LINK, "/root/out"), ("l/f", FILE, "evil")], 400),
            ([("l", LINK, "."), ("l/f", FILE, "evil")], 409),
        ]
    ):
        answer = unpack(client, sandbox, archive(("ok", FILE, "ok\n"), *members), f"/root/in{number}")
        assert answer.status_code == status, (members, answer.text)
    assert run(client, sandbox, "cat /root/out/f /root/in*/ok | sort -u") == "ok\nold\n"
    assert unpack(client, sandbox, archive(("tool", FILE, "x"))).status_code == 200
    assert run(client, sandbox, "stat -c %a /root/in/tool") == "755\n"


def bomb(size: int) -> Iterator[bytes]:
    """A gzip of a tar with one file of `size` zeros: a thousandth of it on the wire."""
    packer = zlib.compressobj(9, wbits=31)
    member = tarfile.TarInfo("zeros")
    member.size = size
    yield packer.compress(member.tobuf(tarfile.GNU_FORMAT))
    for _ in range(size // 2**20):
        yield packer.compress(bytes(2**20))
    yield packer.flush()


def test_case_25_an_archive_bomb_fills_its_own_disk_alone(server: RunningServer, client: httpx2.Client) -> None:
    box = client.post("/sandboxes", json={"disk_mib": 64}).json()["id"]
    run(client, box, "true")
    before = Footprint.of(server)
    answer = unpack(client, box, bomb((4096 if SOAK else 256) * 2**20))
    assert (answer.status_code, answer.json()["reason"]) == (507, "no_space")
    assert Footprint.of(server).rss_kib - before.rss_kib < 65_536
    assert run(client, box, "ls -A /root/in") == ""
    refused = unpack(client, box, gzip.compress(archive(("a", FILE, "x" * 1000))), max_bytes=999)
    assert refused.status_code == 413
    client.delete(f"/sandboxes/{box}")


ODD = r"""
import os
os.mkdir("/root/odd")
os.chdir("/root/odd")
for name in (b"line\nbreak", "bidi\u202e", b"bad\xff", b"esc\x1b[2J"):
    open(name, "w")
for _ in range(30):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
    open("f", "w")
"""


def test_case_26_a_tree_of_many_and_odd_names_is_walked_with_flat_memory(
    server: RunningServer, client: httpx2.Client, sandbox: str
) -> None:
    count = 1_000_000 if SOAK else 20_000
    run(client, sandbox, f"mkdir /root/many; cd /root/many; seq {count} | xargs touch")
    run(client, sandbox, f"python3 -c '{ODD}'")
    before = Footprint.of(server)
    seen, last, query = 0, "", {"path": "/root/many"}
    with client.stream("GET", f"/sandboxes/{sandbox}/files/find", params=query, timeout=600) as answer:
        for line in answer.iter_lines():
            seen += '"path"' in line
            last = line or last
    assert (seen, json.loads(last)["end"]["entries"]) == (count, count)
    assert Footprint.of(server).rss_kib - before.rss_kib < 65_536
    found, end = lines(client, sandbox, "find", path="/root/odd", kind="file")
    assert {one["name"] for one in found} == {"line\nbreak", "bidi\u202e", "bad\ufffd", "esc\x1b[2J", "f"}
    assert end["unreadable"] > 0  # deeper than a path may be long: counted, not shown
    assert all(len(one["path"].encode()) <= 4200 for one in found)


def test_case_28_a_file_replaced_while_it_is_packed_is_one_of_the_two(client: httpx2.Client, sandbox: str) -> None:
    run(
        client, sandbox, "mkdir /root/p; cd /root; head -c 3000000 /dev/zero | tr '\\0' a > a; tr a b < a > b; cp a p/f"
    )
    swap = "cd /root; while :; do cp a t; mv t p/f; cp b t; mv t p/f; done"
    client.post(f"/sandboxes/{sandbox}/commands", json={"command": swap})
    for _ in range(200 if SOAK else 8):
        with tarfile.open(fileobj=io.BytesIO(packed(client, sandbox, "/root/p"))) as tar:
            for member in tar:
                if member.isfile():
                    content = tar.extractfile(member)
                    assert content is not None
                    data = content.read()
                    assert len(data) == 3_000_000
                    assert len(set(data)) == 1


def test_case_29_owners_of_an_archive_and_of_a_tree_are_those_inside(client: httpx2.Client, sandbox: str) -> None:
    member = tarfile.TarInfo("f")
    member.uid, member.gid = 1000, 70_000
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        tar.addfile(member)
    refused = unpack(client, sandbox, made.getvalue(), owners="true")
    assert refused.status_code in {400, 403}, refused.text
    assert unpack(client, sandbox, made.getvalue()).status_code == 200
    run(client, sandbox, "chmod 6755 /root/in/f")
    change = {"path": "/root/in", "owner": "nobody", "recursive": True}
    assert client.patch(f"/sandboxes/{sandbox}/files", json=change).status_code == 200
    assert run(client, sandbox, "stat -c %U:%a /root/in/f") == "nobody:755\n"
