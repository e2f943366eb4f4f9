"""What the wire tests of snapshots share."""

from __future__ import annotations

from typing import Any, Final

import httpx2

SMALL: Final[dict[str, Any]] = {"memory_mib": 64, "disk_mib": 64, "cpus": 0.5}
USER: Final = ["read", "create", "exec", "files", "destroy"]


def took(server: Any, source: dict[str, Any], head: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
    """A snapshot of a sandbox."""
    answer = server.client.post(f"/sandboxes/{source['id']}/snapshots", json=body, headers=head or {})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def exported(server: Any, ref: str) -> httpx2.Response:
    """Its file."""
    answer: httpx2.Response = server.client.get(f"/snapshots/{ref}/export")
    assert answer.status_code == 200, answer.text
    return answer
