"""Many isorun clients at once, each with its 32 connections. `make soak`: 100 of them for 60 s."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from npm_support import Client, load_of, modules_at
from tests_support import SOAK, Footprint, NewServer

pytestmark = pytest.mark.real

CLIENTS: Final = 100 if SOAK else 10
SECONDS: Final = 60 if SOAK else 5


def test_clients_at_once_see_no_error_but_declared_ones(
    new_server: NewServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = new_server(COVE_DRIVERS="runc", COVE_POOL_SIZE="16")
    place = modules_at(tmp_path)
    client = Client(f"{server.url}/isorun", server.key, "base")
    found = load_of(place, client, clients=CLIENTS, seconds=SECONDS, memory_mib=128)
    with capsys.disabled():
        print(f"\n{CLIENTS} isorun clients for {SECONDS} s, refused {found['declared']}")  # noqa: T201 - its figures
        for kind, one in found["operations"].items():
            p50, p99 = one["p50"] or 0, one["p99"] or 0
            print(f"  {kind:8} {one['count']:7} p50 {p50:8.1f} ms  p99 {p99:8.1f} ms")  # noqa: T201
    assert found["failed"] == {}
    for kind, one in found["operations"].items():
        assert one["count"] > 0, kind
    with server.client() as native:
        assert native.get("/sandboxes").json()["sandboxes"] == []
    Footprint.of(server).assert_only_pool(server)
