"""POST /execute/stream: the events of section 5, exactly, and what a quiet stream has in it."""

# ruff: noqa: ANN001, ANN003, ANN201 - fixtures are typed where they are defined

from __future__ import annotations

import json
from itertools import groupby

import pytest

from isol8_support import told

pytestmark = pytest.mark.real


@pytest.fixture
def lines(client):
    """All that a stream says, as text."""

    def read(options=None, **request) -> tuple[dict[str, str], str]:
        body = {"request": {"runtime": "bash", **request}, "options": options or {}}
        with client.stream("POST", "/execute/stream", json=body) as answer:
            assert answer.status_code == 200
            return dict(answer.headers), "".join(answer.iter_text())

    return read


@pytest.fixture
def events(lines):
    def read(options=None, **request) -> list[dict[str, str]]:
        text = lines(options, **request)[1]
        return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]

    return read


def test_the_bytes_of_a_stream(lines):
    headers, text = lines(code="echo hello")
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-cache"
    data = "".join(part for part in text.splitlines(keepends=True) if not part.startswith(":")).strip("\n")
    wanted = (
        'data: {"type":"stdout","data":"hello\\n","phase":"code"}',
        'data: {"type":"exit","data":"0","phase":"code"}',
    )
    assert [part for part in data.split("\n") if part] == list(wanted)


def test_streams_keep_their_order_and_are_not_trimmed_or_cut(events):
    found = events(
        {"maxOutputSize": 5}, code="printf ' a \\n\\n'; sleep 0.3; printf 'b ' >&2; sleep 0.3; printf cccccccc; exit 3"
    )
    assert [kind for kind, _ in groupby(one["type"] for one in found)] == ["stdout", "stderr", "stdout", "exit"]
    assert told(found) == " a \n\ncccccccc"
    assert told(found, "stderr") == "b "
    assert found[-1]["data"] == "3"


def test_a_set_up_is_a_phase_of_its_own(events):
    found = events(code="echo code", setupScript="echo setup; echo err >&2")
    assert [(one["type"], one["phase"]) for one in found if one["type"] == "exit"] == [
        ("exit", "setup"),
        ("exit", "code"),
    ]
    at = next(place for place, one in enumerate(found) if one["type"] == "exit")
    assert told(found[:at]) == "setup\n"
    assert told(found[:at], "stderr") == "err\n"
    assert {one["phase"] for one in found[: at + 1]} == {"setup"}
    assert told(found[at:]) == "code\n"


def test_a_failed_set_up_ends_the_stream(events):
    found = events(code="echo code", setupScript="echo told; exit 5")
    assert found == [
        {"type": "stdout", "data": "told\n", "phase": "setup"},
        {"type": "error", "data": "Setup script failed (exit code 5)", "phase": "setup"},
        {"type": "exit", "data": "5", "phase": "setup"},
    ]


def test_time_outs_are_an_error_and_137(events):
    found = events(code="sleep 60", timeoutMs=300)
    assert found == [
        {"type": "error", "data": "EXECUTION TIMED OUT", "phase": "code"},
        {"type": "exit", "data": "137", "phase": "code"},
    ]
    found = events(code="echo", setupScript="sleep 60", timeoutMs=300)
    assert found == [
        {"type": "error", "data": "SETUP SCRIPT TIMED OUT", "phase": "setup"},
        {"type": "exit", "data": "137", "phase": "setup"},
    ]


def test_a_refused_request_is_one_error_in_a_200(events):
    assert events(code="x", cmd="y")[0]["data"].startswith("ExecutionRequest.code, ")
    text = 'Unknown runtime: "z". Available: python, node, bun, bash, deno, agent'
    assert events(code="x", runtime="z") == [{"type": "error", "data": text}]
    found = events(code="print(1)", runtime="python", installPackages=["no-such-package-of-ours"])
    assert len(found) == 1
    assert found[0]["data"].startswith("Package install failed (exit code 1): ")
    assert "phase" not in found[0]
    assert events(code="x", files={"/proc/x": "y"})[0]["data"].startswith("Failed to write file /proc/x in container")


def test_secrets_are_masked_over_pieces_and_in_the_set_up(events):
    secrets = {"S": "topsecret"}
    code = "printf top; sleep 0.4; printf 'secret and top'; sleep 0.4; printf hat"
    found = events({"secrets": secrets}, code=code, setupScript="echo $S")
    assert told([one for one in found if one["phase"] == "setup"]) == "***\n"
    assert told([one for one in found if one["phase"] == "code"]) == "*** and tophat"


def test_characters_are_whole(events):
    found = events(code=r"printf '\xc3'; sleep 0.4; printf '\xa4'; printf '\xff'")
    assert told(found) == "ä�"


def test_stdin_files_and_a_kill_for_memory(events):
    assert told(events(code="cat; cat f", stdin="in ", files={"f": "file"})) == "in file"
    found = events({"memoryLimit": "48m"}, runtime="python", code="x = bytearray(200 * 1024**2)")
    assert found[-1] == {"type": "exit", "data": "137", "phase": "code"}


def test_a_session_is_used(events, remote):
    session = remote("stream-session", ws=False)
    assert told(list(session.execute_stream(runtime="bash", code="echo one > kept"))) == ""
    assert told(list(session.execute_stream(runtime="bash", code="cat kept"))) == "one\n"


def test_who_leaves_ends_the_execution(client, machine):
    body = {"request": {"code": "echo on; sleep 600", "runtime": "bash", "timeoutMs": 600_000}}
    with client.stream("POST", "/execute/stream", json=body) as answer:
        for line in answer.iter_lines():
            if "on" in line:
                break
    with machine.client() as native:
        for _ in range(600):
            found = native.get("/sandboxes").json()["sandboxes"]
            if not [one for one in found if one["state"] == "running" and one["metadata"].get("execution")]:
                break
        else:
            pytest.fail("the sandbox goes on")
