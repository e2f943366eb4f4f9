"""GET /execute/ws: the table of section 5 with its close codes, and the original client's ways."""

# ruff: noqa: ANN001, ANN201, ANN202 - fixtures are typed where they are defined

from __future__ import annotations

import json
from contextlib import contextmanager

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from isol8_support import RemoteIsol8, told

pytestmark = pytest.mark.real


@pytest.fixture
def opened(machine):
    @contextmanager
    def open_it(key: str | None = None):
        head = {"Authorization": f"Bearer {machine.key if key is None else key}"}
        url = machine.url.replace("http", "ws") + "/isol8/execute/ws"
        with connect(url, additional_headers=head if key != "" else None, max_size=None) as ws:
            yield ws

    return open_it


def all_of(ws) -> tuple[list[dict[str, str]], int, str]:
    """What still comes, and how it ends."""
    found = []
    with pytest.raises(ConnectionClosed) as closed:  # noqa: PT012 - so it ends
        while True:
            found.append(json.loads(ws.recv(60)))
    assert closed.value.rcvd is not None
    return found, closed.value.rcvd.code, closed.value.rcvd.reason


def ask(**request: object) -> str:
    return json.dumps({"type": "execute", "request": {"runtime": "bash", **request}})


def test_execute_sends_the_events_and_closes_1000(opened):
    with opened() as ws:
        ws.send(ask(code="echo hello"))
        events, code, reason = all_of(ws)
    assert events == [
        {"type": "stdout", "data": "hello\n", "phase": "code"},
        {"type": "exit", "data": "0", "phase": "code"},
    ]
    assert (code, reason) == (1000, "Execution complete")


def test_a_refused_execution_closes_1000_too(opened):
    with opened() as ws:
        ws.send(ask())
        found = all_of(ws)
    text = "ExecutionRequest must include exactly one of: code, codeUrl, or cmd."
    assert found == ([{"type": "error", "data": text}], 1000, "Execution complete")


@pytest.mark.parametrize("text", ["{", "no json", ""])
def test_no_json_closes_1003(opened, text):
    with opened() as ws:
        ws.send(text)
        assert all_of(ws) == ([{"type": "error", "data": "Invalid JSON message"}], 1003, "Invalid JSON")


@pytest.mark.parametrize(
    ("text", "kind"), [('{"type":"x"}', "x"), ("{}", "undefined"), ('{"type":null}', "null"), ("null", "undefined")]
)
def test_another_type_is_named_and_the_socket_stays_open(opened, text, kind):
    with opened() as ws:
        ws.send(text)
        assert json.loads(ws.recv(30)) == {"type": "error", "data": f"Unknown message type: {kind}"}
        ws.send(ask(code="echo open"))
        assert told(all_of(ws)[0]) == "open\n"


def test_stdin_and_signal_are_reserved(opened):
    with opened() as ws:
        ws.send('{"type":"stdin","data":"x"}')
        ws.send('{"type":"signal","signal":"SIGINT"}')
        ws.send(ask(code="echo a; sleep 0.3; echo b"))
        ws.send('{"type":"stdin","data":"x"}')
        events, code, _ = all_of(ws)
    assert (told(events), code) == ("a\nb\n", 1000)


def test_execute_without_request_is_said(opened):
    with opened() as ws:
        ws.send('{"type":"execute"}')
        events, code, _ = all_of(ws)
    assert [event["type"] for event in events] == ["error"]
    assert code == 1000


def test_the_handshake_wants_a_key(opened, client):
    for key, status in (("", 401), ("wrong", 403)):
        with pytest.raises(InvalidStatus) as refused, opened(key):
            pass
        assert refused.value.response.status_code == status
    answer = client.get("/execute/ws")
    assert (answer.status_code, answer.text) == (404, "404 Not Found")


def test_a_message_may_be_large(opened):
    with opened() as ws:
        ws.send(ask(code="wc -c < f", files={"f": "x" * 5_000_000}))
        assert told(all_of(ws)[0]) == "5000000\n"


def test_a_session_over_the_socket(opened, client):
    def run(code: str) -> str:
        with opened() as ws:
            ws.send(json.dumps({"type": "execute", "request": {"runtime": "bash", "code": code}, "sessionId": "ws s"}))
            return told(all_of(ws)[0])

    assert run("echo kept > f; echo ok") == "ok\n"
    assert run("cat f") == "kept\n"
    assert client.delete("/session/ws%20s").json() == {"ok": True}


def test_who_leaves_ends_the_execution(opened, machine):
    with opened() as ws:
        ws.send(ask(code="echo on; sleep 600", timeoutMs=600_000))
        assert "on" in ws.recv(60)
    with machine.client() as native:
        for _ in range(600):
            found = native.get("/sandboxes").json()["sandboxes"]
            if not [one for one in found if one["state"] == "running" and one["metadata"].get("execution")]:
                break
        else:
            pytest.fail("the sandbox goes on")


def test_the_client_takes_the_socket_first_and_only_then_sse(remote, machine):
    one = remote()
    one.start()
    assert told(list(one.execute_stream(runtime="bash", code="echo ws"))) == "ws\n"
    assert told(list(one.execute_stream(runtime="bash", code="echo ws"))) == "ws\n"
    assert one.events == ["ws", "ws"]
    other = remote("fallback", ws=False)
    assert told(list(other.execute_stream(runtime="bash", code="echo sse > f; cat f"))) == "sse\n"
    assert other.events == ["sse"]
    assert other.execute(runtime="bash", code="cat f")["stdout"] == "sse"
    assert httpx2.get(f"{machine.url}/health").is_success
    wrong = RemoteIsol8(f"{machine.url}/isol8", "wrong")
    with pytest.raises(Exception, match="Execution failed: Invalid API key"):
        wrong.execute(runtime="bash", code="echo")
    with pytest.raises(Exception, match="Stream failed: Forbidden"):
        list(wrong.execute_stream(runtime="bash", code="echo"))
    wrong.close()
