# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import base64
import json
import time
import uuid

import pytest


def events_of(answer):
    text = "".join(answer.iter_text())
    parsed = []
    for one in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in one.splitlines() if not line.startswith(":"))
        if lines:
            parsed.append((lines["event"], json.loads(lines["data"])))
    return parsed


def test_exec_gives_both_streams_and_the_code(server, box):
    found = server.client.post(f"/sandboxes/{box}/exec", json={"command": "echo out; echo err >&2; exit 7"}).json()
    assert (found["exit_code"], found["why"], found["stdout"], found["stderr"]) == (7, "exited", "out\n", "err\n")
    assert found["duration_ms"] > 0


def test_exec_takes_argv_env_cwd_and_stdin(server, box):
    body = {"command": ["sh", "-c", 'pwd; echo "$A"; cat'], "env": {"A": "x y"}, "cwd": "/", "stdin": "in"}
    assert server.client.post(f"/sandboxes/{box}/exec", json=body).json()["stdout"] == "/\nx y\nin"


def test_exec_in_base64_is_exact(server, box):
    data = bytes(range(256))
    body = {"command": "cat", "stdin": base64.b64encode(data).decode(), "encoding": "base64"}
    found = server.client.post(f"/sandboxes/{box}/exec", json=body).json()
    assert base64.b64decode(found["stdout"]) == data
    bad = server.client.post(f"/sandboxes/{box}/exec", json=body | {"stdin": "!"})
    assert (bad.status_code, bad.json()["field"]) == (400, "stdin")


def test_exec_ends_at_its_time_with_why(server, box):
    found = server.client.post(f"/sandboxes/{box}/exec", json={"command": "sleep 60", "timeout_s": 0.2}).json()
    assert (found["exit_code"], found["why"]) == (124, "timeout")


def test_what_cannot_start_is_a_result(server, box):
    found = server.client.post(f"/sandboxes/{box}/exec", json={"command": ["/no/such"]}).json()
    assert found["exit_code"] == 127
    assert found["stderr"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "command"),
        ({"command": ""}, "command"),
        ({"command": []}, "command"),
        ({"command": ["a", 1]}, "command"),
        ({"command": "a\0b"}, "command"),
        ({"command": "true", "cwd": "rel"}, "cwd"),
        ({"command": "true", "cwd": "/a/../b"}, "cwd"),
        ({"command": "true", "user": "a b"}, "user"),
        ({"command": "true", "timeout_s": -1}, "timeout_s"),
        ({"command": "true", "encoding": "latin-1"}, "encoding"),
    ],
)
def test_a_bad_exec_names_the_field(server, box, body, field):
    for path in ("exec", "exec/stream", "commands"):
        answer = server.client.post(f"/sandboxes/{box}/{path}", json=body)
        assert (answer.status_code, answer.json()["field"]) == (400, field), path


def test_a_stream_is_live_and_ends_with_exit(server, box):
    gate = f"/tmp/cove-gate-{uuid.uuid4().hex}"
    script = f"printf 'caf\\303'; until [ -e {gate} ]; do sleep 0.01; done; rm {gate}; printf '\\251\\n'; exit 3"
    body = {"command": script}
    with server.client.stream("POST", f"/sandboxes/{box}/exec/stream", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert server.client.post(f"/sandboxes/{box}/exec", json={"command": f"touch {gate}"}).json()["exit_code"] == 0
        found = events_of(answer)
    assert [name for name, _ in found] == ["started", "stdout", "stdout", "exit"]
    assert "".join(data["data"] for name, data in found if name == "stdout") == "café\n"
    assert found[-1][1]["exit_code"] == 3


def test_leaving_a_stream_kills_its_command(server, box):
    mark = "cove-left-behind-31415"
    script = f"exec -a {mark} sleep 300"
    with server.client.stream(
        "POST", f"/sandboxes/{box}/exec/stream", json={"command": ["bash", "-c", script]}
    ) as answer:
        next(answer.iter_bytes())
    deadline = time.monotonic() + 60
    look = {
        "command": f"for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline | grep -q '^{mark} ' && echo $p; done; true"
    }
    while server.client.post(f"/sandboxes/{box}/exec", json=look).json()["stdout"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_background_command_from_start_to_forgotten(server, box):
    body = {"command": ["sh", "-c", "read x; echo got $x; sleep 0.2; exit 5"], "stdin_open": True}
    made = server.client.post(f"/sandboxes/{box}/commands", json=body)
    path = f"/sandboxes/{box}/commands/{made.json()['id']}"
    assert (made.status_code, made.headers["location"]) == (201, f"/api/v1{path}")
    assert server.client.post(f"{path}/wait", json={"timeout_s": 0.05}).json()["running"] is True
    assert server.client.post(f"{path}/stdin?close=true", content=b"it\n").json() == {"written": 3}
    with server.client.stream("GET", f"{path}/output", params={"follow": "true"}) as answer:
        found = events_of(answer)
    assert [name for name, _ in found] == ["stdout", "exit"]
    assert found[-1][1]["cursor"] == 7
    ended = server.client.post(f"{path}/wait", json={}).json()
    assert (ended["running"], ended["exit"]["exit_code"]) == (False, 5)
    page = server.client.get(f"{path}/output", params={"cursor": 4}).json()
    assert (page["chunks"], page["ended"], page["cursor"]) == ([{"stream": "stdout", "data": "it\n"}], True, 7)
    assert made.json()["id"] in [
        one["id"] for one in server.client.get(f"/sandboxes/{box}/commands").json()["commands"]
    ]
    assert server.client.post(f"{path}/signal", json={"signal": "TERM"}).status_code == 409
    assert server.client.delete(path).status_code == 204
    assert server.client.get(path).status_code == 404


def test_signals_have_names_and_numbers(server, box):
    for word in ("TERM", "SIGTERM", "term", 15):
        made = server.client.post(f"/sandboxes/{box}/commands", json={"command": ["sleep", "60"]}).json()
        path = f"/sandboxes/{box}/commands/{made['id']}"
        assert server.client.post(f"{path}/signal", json={"signal": word}).status_code == 204
        ended = server.client.post(f"{path}/wait", json={"timeout_s": 5}).json()
        assert (ended["exit"]["signal"], ended["exit"]["why"]) == (15, "killed")
    for word in ("NOPE", "__class__", 0, 65, -9):
        answer = server.client.post(f"{path}/signal", json={"signal": word})
        assert (answer.status_code, answer.json()["field"]) == (400, "signal"), word
