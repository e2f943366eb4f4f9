"""A snapshot behind the warm pool: an interpreter that has done its imports is claimed, not started."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from state_support import Caller, until
from tests_support import RunningServer, make_server

pytestmark = pytest.mark.real

WARM = """
import decimal, fractions, http.server, json, os, random, sqlite3, statistics
loaded = {name: random.random() for name in map(str, range(200_000))}

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"loaded": len(loaded), "pid": os.getpid(), "first": loaded["0"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

print("ready", flush=True)
http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""


@pytest.fixture
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    server: RunningServer = make_server(tmp_path_factory.mktemp("server"), COVE_POOL_SIZE="0")
    server.start()
    with Caller(server) as made:
        yield made
    server.down()
    shutil.rmtree(server.data_dir, ignore_errors=True)


def ready(caller: Caller, name: str, count: int) -> None:
    until(lambda: caller.ask("GET", f"/templates/{name}")["ready_now"] == count, f"{count} copies are not ready")


def test_a_warm_interpreter_is_claimed_and_belongs_to_its_owner_alone(caller: Caller) -> None:
    source = caller.create(env={"WHOSE": "source"})
    command = caller.start(source, WARM)
    until(lambda: "ready" in caller.output(source, command), "the interpreter does not start")
    before = caller.fetch(source)
    snapshot = caller.snapshot(source, name="imports-done")
    assert snapshot["memory"] is True
    caller.end(source)
    caller.ask("PUT", "/templates/warm", {"snapshot": "imports-done", "ready": 2})
    ready(caller, "warm", 2)

    made = [
        caller.ask("POST", "/templates/warm/sandboxes", {"name": f"mine-{n}", "env": {"WHOSE": str(n)}})
        for n in range(2)
    ]
    for n, one in enumerate(made):
        assert one["source"] == "warm"
        assert one["came_from"]["memory"] is True
        assert caller.fetch(one["id"]) == before, "the same program goes on"
        assert caller.said(one["id"], "echo $WHOSE; cat /etc/hostname").split() == [str(n), f"mine-{n}"]
        caller.put(one["id"], "/root/mine", str(n))
    assert [caller.read(one["id"], "/root/mine") for one in made] == [b"0", b"1"]

    # What waits is nobody's: a restart of the server makes it anew, and no plain sandbox ever gets one.
    ready(caller, "warm", 2)
    caller.server.stop()
    caller.server.start()
    ready(caller, "warm", 2)
    plain = caller.ask("POST", "/sandboxes", {})
    assert plain["came_from"] is None
    assert caller.run(plain["id"], "ls /root/program-*.py")["exit_code"] != 0

    refused = caller.refused("DELETE", f"/snapshots/{snapshot['id']}")
    assert "in use: template warm" in refused["detail"]
    caller.ask("DELETE", "/templates/warm")
    caller.ask("DELETE", f"/snapshots/{snapshot['id']}")
