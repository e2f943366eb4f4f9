"""Fixtures of the native dialect's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from snapshots_support import SMALL


@pytest.fixture
def source(server: Any) -> Iterator[dict[str, Any]]:
    """A sandbox of a test's own, removed with all that was made of it."""
    made = server.sandbox(metadata={"of": "source"}, **SMALL)
    yield made
    for snapshot in server.client.get("/snapshots", params={"sandbox": made["id"]}).json()["snapshots"]:
        server.client.delete(f"/snapshots/{snapshot['id']}")
    for one in server.client.get("/sandboxes").json()["sandboxes"]:
        if one["id"] == made["id"] or (one["came_from"] or {}).get("sandbox") == made["id"]:
            server.client.delete(f"/sandboxes/{one['id']}")
