# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import base64
import json
import time

import pytest


def events_of(answer):
    parsed = []
    for one in answer.text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in one.splitlines() if not line.startswith(":"))
        if "event" in lines:
            parsed.append((lines["event"], json.loads(lines["data"])))
    return parsed


@pytest.fixture
def shell(server, box):
    made = server.client.post(f"/sandboxes/{box}/shells", json={"program": "bash"})
    assert made.status_code == 201, made.text
    where = f"/sandboxes/{box}/shells/{made.json()['id']}"
    assert made.headers["location"] == "/api/v1" + where
    yield where
    server.client.delete(where)


def run(server, shell, command, **more):  # noqa: ANN003
    answer = server.client.post(f"{shell}/run", json={"command": command, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_shell_keeps_directory_and_variables(server, shell):
    run(server, shell, "cd /usr; x='a b'; f() { echo \"f $1\"; }")
    found = run(server, shell, 'pwd; f "$x"; echo err >&2; (exit 7)')
    assert (found["stdout"], found["stderr"]) == ("/usr\nf a b\n", "err\n")
    assert (found["exit_code"], found["why"], found["signal"]) == (7, "exited", None)
    facts = server.client.get(shell).json()
    assert (facts["cwd"], facts["program"], facts["running"], facts["queued"]) == ("/usr", "bash", None, 0)
    assert facts["id"] in [one["id"] for one in server.client.get(shell.rpartition("/")[0]).json()["shells"]]


def test_a_shell_takes_environment_directory_and_program(server, box):
    body = {"program": "sh", "env": {"A": "1"}, "cwd": "/usr"}
    made = server.client.post(f"/sandboxes/{box}/shells", json=body).json()
    where = f"/sandboxes/{box}/shells/{made['id']}"
    assert (made["program"], made["cwd"]) == ("sh", "/usr")
    assert run(server, where, 'pwd; echo "$A"; [ -z "$BASH_VERSION" ] || [ "$0" = sh ] && echo sh')["stdout"] == (
        "/usr\n1\nsh\n"
    )
    assert server.client.delete(where).status_code == 204
    assert server.client.get(where).status_code == 404


def test_base64_is_exact(server, shell):
    found = run(server, shell, r"printf '\x00\xff\x80'", encoding="base64")
    assert base64.b64decode(found["stdout"]) == b"\x00\xff\x80"


def test_a_stream_is_told_as_that_of_exec(server, shell):
    with server.client.stream("POST", f"{shell}/run/stream", json={"command": "echo a; echo b >&2; exit 3"}) as answer:
        answer.read()
        events = events_of(answer)
    assert [name for name, _ in events if name != "stderr"] == ["started", "stdout", "exit"]
    assert "".join(data["data"] for name, data in events if name == "stderr") == "b\nexit\n"  # the last is bash's own
    assert events[-1][1]["exit_code"] == 3
    ended = server.client.get(shell).json()
    assert ended["exit"]["exit_code"] == 3
    again = server.client.post(f"{shell}/run", json={"command": "true"})
    assert (again.status_code, again.json()["code"]) == (409, "conflict")


def test_a_queued_command_is_a_background_command(server, box, shell):
    first = server.client.post(f"{shell}/commands", json={"command": "echo 1; sleep 30"}).json()
    second = server.client.post(f"{shell}/commands", json={"command": "echo 2"}).json()
    third = server.client.post(f"{shell}/commands", json={"command": "echo 3"}).json()
    assert (first["queued"], second["queued"]) == (False, True)
    assert {first["shell"], second["shell"]} == {shell.rpartition("/")[2]}
    commands = f"/sandboxes/{box}/commands"
    assert server.client.post(f"{commands}/{third['id']}/signal", json={"signal": "TERM"}).status_code == 204
    facts = server.client.get(shell).json()
    assert (facts["running"], facts["queued"]) == (first["id"], 1)
    page = server.client.get(f"{commands}/{first['id']}/output", params={"wait_s": 10}).json()
    assert page["chunks"] == [{"stream": "stdout", "data": "1\n"}]
    assert server.client.post(f"{shell}/signal", json={"signal": "INT"}).status_code == 204
    ends = [server.client.post(f"{commands}/{one['id']}/wait", json={}).json() for one in (first, second, third)]
    assert [(one["exit"]["exit_code"], one["exit"]["why"]) for one in ends] == [
        (130, "killed"),
        (0, "exited"),
        (125, "canceled"),
    ]
    assert server.client.get(f"{commands}/{second['id']}/output").json()["chunks"][0]["data"] == "2\n"
    nothing = server.client.post(f"{shell}/signal", json={"signal": "INT"})
    assert (nothing.status_code, nothing.json()["code"]) == (409, "conflict")


def test_a_time_limit_ends_the_command_and_not_the_shell(server, shell):
    run(server, shell, "x=kept")
    began = time.monotonic()
    found = run(server, shell, "while :; do sleep 30; done", timeout_s=0.2)
    assert (found["exit_code"], found["why"]) == (124, "timeout")
    assert time.monotonic() - began < 25
    assert run(server, shell, "echo $x")["stdout"] == "kept\n"


def test_a_caller_who_goes_away_ends_his_command(server, shell):
    with server.client.stream("POST", f"{shell}/run/stream", json={"command": "echo on; sleep 60"}) as answer:
        assert "started" in next(answer.iter_text())
    assert run(server, shell, "echo next", timeout_s=10)["stdout"] == "next\n"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "command"),
        ({"command": " \n"}, "command"),
        ({"command": "a\0b"}, "command"),
        ({"command": ["ls"]}, "command"),
        ({"command": "true", "timeout_s": 0}, "timeout_s"),
        ({"command": "true", "cwd": "/"}, "cwd"),
    ],
)
def test_a_bad_command_names_its_field(server, shell, body, field):
    answer = server.client.post(f"{shell}/run", json=body)
    assert (answer.status_code, answer.json()["field"]) == (400, field)


def test_a_command_has_a_size(server, shell):
    answer = server.client.post(f"{shell}/run", json={"command": "#" * (128 * 1024 + 1)})
    assert (answer.status_code, answer.json()["field"]) == (413, "command")
    assert run(server, shell, "#" * (128 * 1024))["exit_code"] == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"program": "fish"}, "program"),
        ({"cwd": "relative"}, "cwd"),
        ({"user": "a b"}, "user"),
        ({"env": {"1": "x"}}, "env"),
        ({"rows": 24}, "rows"),
    ],
)
def test_a_bad_shell_names_its_field(server, box, body, field):
    answer = server.client.post(f"/sandboxes/{box}/shells", json=body)
    assert (answer.status_code, answer.json()["field"]) == (400, field)


def test_what_is_not_there_is_not_found(server, box):
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/run"), ("POST", "/commands"), ("POST", "/signal")):
        body = {"signal": "INT"} if path == "/signal" else {"command": "true"} if method == "POST" else None
        answer = server.client.request(method, f"/sandboxes/{box}/shells/s123{path}", json=body)
        assert answer.status_code == 404, (method, path)
    assert server.client.get(f"/sandboxes/{box}/shells/S.1").json()["field"] == "shell"


def test_a_key_for_reading_may_look_and_not_run(server, box, shell):
    made = server.client.post("/keys", json={"name": "reader", "scopes": ["read"]}).json()["key"]
    headers = {"Authorization": f"Bearer {made}"}
    assert server.client.get(shell, headers=headers).status_code == 200
    assert server.client.post(f"{shell}/run", json={"command": "true"}, headers=headers).status_code == 403
    assert server.client.post(f"/sandboxes/{box}/shells", json={}, headers=headers).status_code == 403
