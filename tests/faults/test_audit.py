"""The audit trail when the server is killed in the middle of writing it."""

from __future__ import annotations

import secrets
import threading
import time
from pathlib import Path

import httpx2
import pytest

from cove.model.auditchain import AuditVerdict, project_key, verify
from tests_support import SOAK, NewServer, RunningServer

pytestmark = pytest.mark.real

KILLS = 20 if SOAK else 3
WRITERS = 6


def client_of(server: RunningServer) -> httpx2.Client:
    head = {"Authorization": f"Bearer {server.key}"}
    return httpx2.Client(base_url=f"{server.url}/api/v1", headers=head, timeout=30)


def exported(server: RunningServer) -> list[bytes]:
    with client_of(server) as client:
        answer = client.get("/audit/export")
        assert answer.status_code == 200, answer.text
        return [line for line in answer.content.splitlines() if line]


def key_of(server: RunningServer) -> bytes:
    return project_key(bytes.fromhex((Path(server.data_dir) / "audit.key").read_text().strip()), "default")


class Load:
    """Writers that run marked commands until the server is gone."""

    def __init__(self, server: RunningServer, box: str) -> None:
        self._server = server
        self._box = box
        self.answered: set[str] = set()
        self._threads = [threading.Thread(target=self._write) for _ in range(WRITERS)]
        for thread in self._threads:
            thread.start()

    def _write(self) -> None:
        with client_of(self._server) as client:
            while True:
                mark = f"m{secrets.token_hex(8)}"
                try:
                    answer = client.post(f"/sandboxes/{self._box}/exec", json={"command": ["true", mark]})
                except httpx2.HTTPError:
                    return
                if answer.status_code == 200:
                    self.answered.add(mark)

    def wait(self) -> None:
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


def test_a_killed_server_breaks_no_chain_and_loses_nothing_that_was_answered(new_server: NewServer) -> None:
    """Case 74 for the trail: everything answered before the kill has its line, numbered and chained without a gap."""
    server = new_server(COVE_POOL_SIZE="0")
    with client_of(server) as client:
        box = client.post("/sandboxes", json={"idle_timeout_s": None}).json()["id"]
    answered: set[str] = set()
    earlier: AuditVerdict | None = None
    for number in range(KILLS):
        load = Load(server, box)
        time.sleep(0.2 + 0.03 * number)
        server.kill()
        load.wait()
        answered |= load.answered
        server.start()
        lines = exported(server)
        verdict = verify(lines, key_of(server), earlier=earlier)
        assert verdict.is_good, verdict
        text = b"\n".join(lines).decode()
        missing = {mark for mark in answered if mark not in text}
        assert not missing, f"{len(missing)} of {len(answered)} answered commands are not in the trail"
        earlier = verdict
    assert len(answered) > KILLS * WRITERS


def test_a_key_that_changed_between_two_starts_is_told_and_the_server_goes_on(new_server: NewServer) -> None:
    server = new_server(COVE_POOL_SIZE="0")
    with client_of(server) as client:
        box = client.post("/sandboxes", json={}).json()["id"]
    server.kill()
    (Path(server.data_dir) / "audit.key").unlink()
    server.start()
    with client_of(server) as client:
        assert client.delete(f"/sandboxes/{box}").status_code == 200
        told = client.get(f"/sandboxes/{box}/audit").json()["lines"]
        assert [line["event"] for line in told] == ["sandbox.created", "sandbox.destroyed"]
    verdict = verify(exported(server), key_of(server))
    assert verdict.is_good, verdict
    assert verdict.reason == "key"
    assert (Path(server.data_dir) / "audit.key").stat().st_mode & 0o777 == 0o600
