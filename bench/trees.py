"""Trees over the API: a directory as a tar both ways, walks and searches, and how much the server grows by them."""

from __future__ import annotations

import http.client
import io
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.common import MIB, Api, Report, RunningServer

SIZE_BYTES = 512 * MIB
PIECE_BYTES = MIB
MANY = 20_000


def bench_trees(report: Report, server: RunningServer, *, quick: bool) -> None:
    """Rates in MB/s (10^6), entries and bytes per second, and how much the server grew over all of it."""
    api, size = Api(server), SIZE_BYTES // (8 if quick else 1)
    box = str(api.call("POST", "/sandboxes", {"disk_mib": 8192})["id"])
    files = f"/api/v1/sandboxes/{box}/files"
    before = _rss_kib(server)
    member = tarfile.TarInfo("large")
    member.size = size
    tar = [member.tobuf(), *_zeros(size), bytes(10_240)]
    for what, work in (
        ("upload a directory (tar)", lambda: _send(server, f"{files}/archive?path=/root/tree", iter(tar))),
        ("download a directory (tar)", lambda: _fetch(server, f"{files}/archive?path=/root/tree")),
    ):
        rate = _best(work, size)
        report.add(f"trees, {what}", ">= 300 MB/s", f"{rate:.0f} MB/s", ok=rate >= 300)
    api.call("POST", f"/sandboxes/{box}/exec", {"command": _MAKE_MANY})
    _rate(report, "entries found", "entries/s", lambda: _fetch(server, f"{files}/find?path=/root/many"), MANY)
    _rate(
        report,
        "small files searched",
        "files/s",
        lambda: _fetch(server, f"{files}/search?path=/root/many&pattern=zz"),
        MANY,
    )
    text = f"{files}/search?path=/root/text&pattern=needle&max_file_bytes=1073741824"
    _rate(report, "bytes searched, one file", "MB/s", lambda: _fetch(server, text), 100)
    _rate(report, "small files packed", "files/s", lambda: _fetch(server, f"{files}/archive?path=/root/many"), MANY)
    small = _many_small()
    _rate(
        report,
        "small files unpacked",
        "files/s",
        lambda: _send(server, f"{files}/archive?path=/root/small", iter([small])),
        MANY,
    )
    report.add(
        "trees, the server's growth over all of this", "<= 64 MiB", f"{(_rss_kib(server) - before) / 1024:.0f} MiB"
    )
    api.call("DELETE", f"/sandboxes/{box}")


_MAKE_MANY = f"""
mkdir /root/many; cd /root/many
for d in $(seq 100); do mkdir $d; for f in $(seq {MANY // 100 - 1}); do echo "line $f" > $d/$f; done; done
head -c 75000000 /dev/urandom | base64 -w 100 | head -c 100000000 > /root/text
"""


def _rate(report: Report, what: str, unit: str, work: Callable[[], int], count: int) -> None:
    took = min(_timed(work) for _ in range(3))
    report.add(f"trees, {what}", "-", f"{count / took:,.0f} {unit}")


def _best(work: Callable[[], int], size: int) -> float:
    return size / 1_000_000 / min(_timed(work) for _ in range(3))


def _timed(work: Callable[[], int]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _zeros(size: int) -> Iterator[bytes]:
    piece = bytes(PIECE_BYTES)
    for _ in range(size // PIECE_BYTES):
        yield piece


def _many_small() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(MANY):
            member = tarfile.TarInfo(f"{number % 100}/{number}")
            member.size = 8
            tar.addfile(member, io.BytesIO(b"12345678"))
    return made.getvalue()


def _send(server: RunningServer, target: str, body: Iterator[bytes]) -> int:
    return _exchange(server, "PUT", target, body)


def _fetch(server: RunningServer, target: str) -> int:
    return _exchange(server, "GET", target, None)


def _exchange(server: RunningServer, method: str, target: str, body: Iterator[bytes] | None) -> int:
    link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    link.request(method, target, body, {"Authorization": f"Bearer {server.key}"}, encode_chunked=body is not None)
    answer = link.getresponse()
    if answer.status >= 400:
        raise SystemExit(f"{method} {target}: {answer.status} {answer.read(500)!r}")
    buffer, total = bytearray(PIECE_BYTES), 0
    while count := answer.readinto(buffer):
        total += count
    link.close()
    return total


def _rss_kib(server: RunningServer) -> int:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
