"""Sections 4 and 5 of docs/protocols/isorun.md: exec, and exec as a stream."""

from __future__ import annotations

import base64
import json
import time

import httpx2
import pytest


def execute(runs: httpx2.Client, run: str, command: str, **more: object) -> dict[str, object]:
    answer = runs.post(f"/v1/runs/{run}/exec", json={"command": command, **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found


def streamed(runs: httpx2.Client, run: str, command: str, **more: object) -> list[dict[str, object]]:
    events: list[dict[str, object]] = []
    with runs.stream("POST", f"/v1/runs/{run}/exec/stream", json={"command": command, **more}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = "".join(answer.iter_text())
    for frame in text.split("\n\n")[:-1]:
        if not frame.startswith(":"):
            name, data = frame.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
    return events


def test_exec_answers_with_three_fields(runs: httpx2.Client, run: str) -> None:
    found = execute(runs, run, "echo out; echo err >&2; exit 7", timeout=30)
    assert found == {"exit_code": 7, "stdout": "out\n", "stderr": "err\n"}


def test_a_command_runs_in_sh_as_root(runs: httpx2.Client, run: str, driver: str) -> None:
    assert execute(runs, run, "echo $0")["stdout"] == "/bin/sh\n"
    if driver != "fake":  # whose sandboxes have the test's own user
        assert execute(runs, run, "id -u")["stdout"] == "0\n"


def test_one_that_takes_too_long_is_killed_with_its_group(runs: httpx2.Client, run: str) -> None:
    begun = time.monotonic()
    found = execute(runs, run, "printf early; printf fault >&2; sleep 600 & sleep 600", timeout=1)
    assert time.monotonic() - begun < 60
    assert found == {"exit_code": 124, "stdout": "early", "stderr": "fault\ncommand timed out after 1s"}


def test_a_background_process_lives_on(runs: httpx2.Client, run: str, make_path: str) -> None:
    command = f"nohup setsid sh -c 'sleep 1; echo done > {make_path}' >/dev/null 2>&1 &"
    assert execute(runs, run, command) == {"exit_code": 0, "stdout": "", "stderr": ""}
    deadline = time.monotonic() + 60
    while execute(runs, run, f"cat {make_path}")["stdout"] != "done\n":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_code_through_base64_as_the_tools_of_the_client_send_it(runs: httpx2.Client, run: str, make_path: str) -> None:
    text = base64.b64encode(b"echo from a file\n").decode()
    found = execute(runs, run, f"echo {text} | base64 -d > {make_path} && sh {make_path}", timeout=60)
    assert found == {"exit_code": 0, "stdout": "from a file\n", "stderr": ""}


def test_bytes_that_are_no_utf8_become_replacement_characters(runs: httpx2.Client, run: str) -> None:
    assert execute(runs, run, r"printf 'a\377b'")["stdout"] == "a\ufffdb"


def test_large_output_arrives_whole(runs: httpx2.Client, run: str) -> None:
    found = execute(runs, run, "head -c 3000000 /dev/zero | tr '\\0' x")
    assert found["stdout"] == "x" * 3_000_000


@pytest.mark.parametrize(
    "body",
    [{}, {"command": 3}, {"command": ""}, {"command": "a\0b"}, {"command": ["ls"]}],
)
def test_a_wrong_command_is_400_and_named(runs: httpx2.Client, run: str, body: dict[str, object]) -> None:
    for path in ("exec", "exec/stream"):
        answer = runs.post(f"/v1/runs/{run}/{path}", json=body)
        assert answer.status_code == 400
        assert "command" in answer.json()["error"]


@pytest.mark.parametrize("timeout", ["soon", 0, -1])
def test_a_wrong_timeout_is_400_and_named(runs: httpx2.Client, run: str, timeout: object) -> None:
    answer = runs.post(f"/v1/runs/{run}/exec", json={"command": "true", "timeout": timeout})
    assert answer.status_code == 400
    assert "timeout" in answer.json()["error"]


def test_a_stream_has_pieces_and_ends_with_exit(runs: httpx2.Client, run: str) -> None:
    events = streamed(runs, run, "echo one; echo two >&2; sleep 0.1; echo three; exit 3")
    assert "".join(str(one["data"]) for one in events if one["type"] == "stdout") == "one\nthree\n"
    assert "".join(str(one["data"]) for one in events if one["type"] == "stderr") == "two\n"
    assert set(events[-1]) == {"type", "exit_code", "duration_ms"}
    assert (events[-1]["type"], events[-1]["exit_code"]) == ("exit", 3)
    assert isinstance(events[-1]["duration_ms"], int)
    assert [one["type"] for one in events].count("exit") == 1


def test_a_streamed_command_that_times_out_has_124(runs: httpx2.Client, run: str) -> None:
    events = streamed(runs, run, "echo early; sleep 600", timeout=1)
    assert events[-1]["exit_code"] == 124
    assert "".join(str(one["data"]) for one in events if one["type"] == "stderr").endswith("command timed out after 1s")


def test_a_cut_character_of_a_stream_arrives_whole(runs: httpx2.Client, run: str) -> None:
    events = streamed(runs, run, r"printf '\303'; sleep 0.3; printf '\244\377'")
    assert "".join(str(one["data"]) for one in events if one["type"] == "stdout") == "ä\ufffd"


def test_a_stream_that_cannot_begin_is_a_status(runs: httpx2.Client) -> None:
    answer = runs.post("/v1/runs/run0123456789abcdef/exec/stream", json={"command": "true"})
    assert (answer.status_code, set(answer.json())) == (404, {"error"})


def test_pieces_are_flushed_as_they_come(runs: httpx2.Client, run: str) -> None:
    with runs.stream("POST", f"/v1/runs/{run}/exec/stream", json={"command": "echo now; sleep 600"}) as answer:
        assert "now" in next(one for one in answer.iter_text() if "stdout" in one)


def test_a_client_that_goes_kills_the_command(runs: httpx2.Client, run: str, make_path: str) -> None:
    command = f"echo $$ > {make_path}; echo up; sleep 600"
    with runs.stream("POST", f"/v1/runs/{run}/exec/stream", json={"command": command}) as answer:
        assert any("up" in one for one in answer.iter_text())
    deadline = time.monotonic() + 60
    while execute(runs, run, f"kill -0 $(cat {make_path})")["exit_code"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
