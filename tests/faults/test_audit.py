"""The audit trail when the server is killed in the middle of writing it."""

from __future__ import annotations

import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from cove.model.auditchain import AuditVerdict, project_key, verify
from cove.sdk.webhook_calls import is_genuine
from tests_support import SOAK, NewServer, RunningServer
from waiting_support import until

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
            thread.join(60)
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
        until(lambda load=load: len(load.answered) > 2 * WRITERS)
        time.sleep(0.007 * number)
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


class Receiver:
    """A web server of the test that keeps what it is told, and answers 503 while it is `down`."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.down = False
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert is_genuine(receiver.secret, dict(self.headers), body, now=time.time())
                receiver.told.append((self.headers["webhook-id"], json.loads(body)["type"]))
                self.send_response(503 if receiver.down else 204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the parent's name
                del format, args

        self.secret = ""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_events_outlive_a_receiver_that_is_down_and_a_server_that_is_killed(new_server: NewServer) -> None:
    receiver = Receiver()
    opened = f"127.0.0.1/32:{receiver.port}"
    server = new_server(COVE_POOL_SIZE="0", COVE_WEBHOOK_PLAIN="1", COVE_NETWORK_OPENED_RANGES=opened)
    with client_of(server) as client:
        for refused in (f"http://127.0.0.1:{receiver.port + 1}/", f"http://127.0.0.2:{receiver.port}/"):
            assert client.post("/webhooks", json={"url": refused}).status_code == 403
        made = client.post("/webhooks", json={"url": f"http://127.0.0.1:{receiver.port}/in"})
        assert made.status_code == 201, made.text
        receiver.secret = made.json()["secret"]
        assert receiver.secret not in client.get("/webhooks").text
        box = client.post("/sandboxes", json={}).json()["id"]
        until(lambda: receiver.told)
        receiver.down = True
        client.post(f"/sandboxes/{box}/pause")
        until(lambda: len(receiver.told) >= 2)
        client.delete(f"/sandboxes/{box}")
    server.kill()
    receiver.down = False
    server.start()
    until(lambda: receiver.told[-1][1] == "sandbox.destroyed")
    told = list(dict.fromkeys(receiver.told))
    assert [event for _, event in told] == ["sandbox.created", "sandbox.paused", "sandbox.destroyed"]
    assert receiver.secret not in (server.data_dir / "cove.db").read_bytes().decode("latin-1")
    receiver.close()
