# ruff: noqa: ANN001, ANN003, ANN201 - fixtures are typed where they are defined

from __future__ import annotations

import base64
import hashlib
import json
import time

import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from terminal_support import Viewer


def opened(server, box, **body):
    answer = server.client.post(f"/sandboxes/{box}/terminals", json=body)
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert answer.headers["location"] == f"/api/v1/sandboxes/{box}/terminals/{found['id']}"
    return f"/sandboxes/{box}/terminals/{found['id']}"


def ends(server, at, within_s):
    deadline = time.monotonic() + within_s
    while server.client.get(at).json()["running"]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def drained(server, at, cursor=0, wait_s=10):
    """Output from a cursor to the end of the terminal, by long polls."""
    text = b""
    while True:
        page = server.client.get(
            f"{at}/output", params={"cursor": cursor, "wait_s": wait_s, "encoding": "base64"}
        ).json()
        text += b"".join(base64.b64decode(one["data"]) for one in page["chunks"])
        cursor = page["cursor"]
        if page["ended"]:
            return text.decode(), page["exit"]


def says(server, at, want):
    text, cursor, deadline = "", 0, time.monotonic() + 60
    while want not in text:
        assert time.monotonic() < deadline, text
        page = server.client.get(f"{at}/output", params={"cursor": cursor, "wait_s": 5}).json()
        text += "".join(one["data"] for one in page["chunks"])
        cursor = page["cursor"]
        assert not page["ended"], text
    return text


def test_a_terminal_from_opened_to_forgotten(server, box):
    at = opened(server, box, command="stty size; read line; echo got $line; exit 3", cols=100, rows=30)
    shown = server.client.get(at).json()
    assert (shown["cols"], shown["rows"], shown["running"], shown["exit"]) == (100, 30, True, None)
    assert shown["id"] in [one["id"] for one in server.client.get(f"/sandboxes/{box}/terminals").json()["terminals"]]
    says(server, at, "30 100\r\n")
    assert server.client.post(f"{at}/input", content=b"hello\r").json() == {"written": 6}
    text, exit_ = drained(server, at)
    assert text.split("\r\n") == ["30 100", "hello", "got hello", ""]
    assert (exit_["exit_code"], exit_["why"]) == (3, "exited")
    assert server.client.get(at).json()["exit"]["exit_code"] == 3
    assert server.client.delete(at).status_code == 204
    assert server.client.get(at).status_code == 404


def test_without_a_command_it_is_a_shell(server, box):
    at = opened(server, box)
    server.client.post(f"{at}/input", content=b"echo $((6*7)) $- $TERM\r")
    assert "42 " in says(server, at, "xterm-256color\r\n")
    assert server.client.delete(at).status_code == 204


def test_environment_directory_and_user_are_as_of_a_command(server, box):
    at = opened(server, box, command=["sh", "-c", "pwd; echo $A $TERM"], cwd="/tmp", env={"A": "x", "TERM": "dumb"})
    assert drained(server, at)[0] == "/tmp\r\nx dumb\r\n"


def test_a_resize_is_seen_by_the_program(server, box):
    at = opened(server, box, command="trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done")
    says(server, at, "ready")
    assert server.client.post(f"{at}/resize", json={"cols": 132, "rows": 43}).status_code == 204
    says(server, at, "43 132")
    shown = server.client.get(at).json()
    assert (shown["cols"], shown["rows"]) == (132, 43)
    server.client.delete(at)


def test_a_signal_reaches_the_foreground(server, box):
    at = opened(server, box, command=["sleep", "60"])
    assert server.client.post(f"{at}/signal", json={"signal": "INT"}).status_code == 204
    exit_ = drained(server, at)[1]
    assert (exit_["signal"], exit_["why"]) == (2, "killed")
    assert server.client.post(f"{at}/signal", json={"signal": "INT"}).status_code == 409
    assert server.client.post(f"{at}/resize", json={"cols": 80, "rows": 24}).status_code == 409


def test_a_time_limit_ends_it_with_why(server, box):
    exit_ = drained(server, opened(server, box, command=["sleep", "60"], timeout_s=0.2))[1]
    assert (exit_["exit_code"], exit_["why"]) == (124, "timeout")


def test_hanging_up_ends_what_runs_on_it(server, box):
    at = opened(server, box, command="trap '' HUP; sleep 73 & echo $!; wait")
    pid = says(server, at, "\r\n").strip()
    assert server.client.delete(at).status_code == 204
    found = server.client.post(f"/sandboxes/{box}/exec", json={"command": f"cat /proc/{pid}/stat"}).json()
    assert found["exit_code"] == 1 or ") Z " in found["stdout"]


def test_output_that_was_dropped_is_told(server, box):
    at = opened(server, box, command=["seq", "20000"], keep_bytes=4096)
    drained(server, at)
    page = server.client.get(f"{at}/output").json()
    assert page["lost_bytes"] == page["cursor"] - 4096 > 0
    assert page["chunks"][-1]["data"].endswith("20000\r\n")


def test_a_long_poll_waits_no_longer_than_asked(server, box):
    at = opened(server, box, command=["sleep", "60"])
    before = time.monotonic()
    page = server.client.get(f"{at}/output", params={"wait_s": 0.3}).json()
    assert 0.25 < time.monotonic() - before < 30
    assert (page["chunks"], page["cursor"], page["ended"]) == ([], 0, False)
    server.client.delete(at)


def test_terminals_are_no_commands_and_commands_no_terminals(server, box):
    at = opened(server, box, command=["sleep", "60"])
    terminal = at.rsplit("/", 1)[1]
    command = server.client.post(f"/sandboxes/{box}/commands", json={"command": ["sleep", "60"]}).json()["id"]
    ids = [one["id"] for one in server.client.get(f"/sandboxes/{box}/commands").json()["commands"]]
    assert command in ids
    assert terminal not in ids
    ids = [one["id"] for one in server.client.get(f"/sandboxes/{box}/terminals").json()["terminals"]]
    assert terminal in ids
    assert command not in ids
    assert server.client.get(f"/sandboxes/{box}/commands/{terminal}").status_code == 404
    for wrong in (command, "nope", "t0123456789ab", "%2e%2e"):
        assert server.client.get(f"/sandboxes/{box}/terminals/{wrong}").status_code == 404
    server.client.delete(at)
    server.client.delete(f"/sandboxes/{box}/commands/{command}")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"cols": 0}, "cols"),
        ({"rows": 10001}, "rows"),
        ({"cols": "80"}, "cols"),
        ({"command": []}, "command"),
        ({"command": ""}, "command"),
        ({"command": ["/no/such/program"]}, "argv"),
        ({"cwd": "relative"}, "cwd"),
        ({"keep_bytes": 1}, "keep_bytes"),
        ({"stdin": "x"}, "stdin"),
        ({"user": "nobody-of-this-name"}, None),
    ],
)
def test_a_bad_terminal_names_the_field(server, box, body, field):
    answer = server.client.post(f"/sandboxes/{box}/terminals", json=body)
    assert (answer.status_code, answer.json().get("field")) == (400, field)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("resize", {"cols": 80}, "rows"),
        ("resize", {"cols": 80, "rows": -1}, "rows"),
        ("signal", {"signal": "NOPE"}, "signal"),
        ("signal", {"signal": 65}, "signal"),
    ],
)
def test_a_bad_request_to_a_terminal_names_the_field(server, box, path, body, field):
    at = f"/sandboxes/{box}/terminals/t0123456789ab"
    answer = server.client.post(f"{at}/{path}", json=body)
    assert (answer.status_code, answer.json()["field"]) == (400, field)


def test_a_cursor_beyond_the_end_is_refused(server, box):
    at = opened(server, box, command=["true"])
    drained(server, at)
    assert server.client.get(f"{at}/output", params={"cursor": 10**9}).status_code == 400
    assert server.client.get(f"{at}/output", params={"wait_s": 601}).json()["field"] == "wait_s"


def test_a_resize_is_seen_by_a_job_of_a_shell(server, box):
    at = opened(server, box, command=["bash", "--norc"])
    job = "bash -c \"trap 'stty size' WINCH; echo re''ady; while :; do sleep 0.05; done\"\r"
    server.client.post(f"{at}/input", content=job.encode())
    says(server, at, "ready")
    server.client.post(f"{at}/resize", json={"cols": 132, "rows": 43})
    says(server, at, "43 132")
    for _ in range(20):  # a bash whose program ended just then takes a Ctrl-C for handled, and goes on
        server.client.post(f"{at}/input", content=b"\x03")
        time.sleep(0.2)
        server.client.post(f"{at}/input", content=b"echo st''atus $?; exit 4\r")
        if ends(server, at, within_s=2):
            break
    text, exit_ = drained(server, at)
    assert ("status 130" in text, exit_["exit_code"]) == (True, 4)


def test_who_attaches_sees_types_resizes_and_learns_the_exit_code(server, box):
    at = opened(server, box, command="echo hello; read a; stty size; exit 5", cols=90, rows=20)
    with Viewer(server, at) as viewer:
        assert viewer.first == {"type": "attached", "cursor": 0, "cols": 90, "rows": 20}
        viewer.until(b"hello\r\n").say(type="resize", cols=91, rows=21)
        while server.client.get(at).json()["cols"] != 91:
            time.sleep(0.01)
        viewer.peer.send(b"x\r")
        assert viewer.ended() == {"type": "exit", "exit": 5, "why": "exited", "signal": None, "cursor": viewer.cursor}
        assert viewer.seen == b"hello\r\nx\r\n21 91\r\n"
    with Viewer(server, at, cursor=7) as again:
        assert (again.ended()["exit"], again.seen) == (5, b"x\r\n21 91\r\n")


def test_control_c_and_a_signal_reach_the_program(server, box):
    for how in ("typed", "sent"):
        at = opened(server, box, command="echo on; exec sleep 60")
        with Viewer(server, at) as viewer:
            viewer.until(b"on\r\n")
            viewer.peer.send(b"\x03") if how == "typed" else viewer.say(type="signal", signal="INT")
            last = viewer.ended()
            assert (last["exit"], last["signal"], last["why"]) == (130, 2, "killed")


def test_several_viewers_see_the_same_and_one_leaving_changes_nothing(server, box):
    at = opened(server, box, command="read a; read b; echo $b")
    with Viewer(server, at) as one:
        with Viewer(server, at, one.cursor) as two:
            two.peer.send(b"first\r")
            one.until(b"first\r\n")
            two.until(b"first\r\n")
        one.peer.send(b"second\r")
        one.ended()
    assert one.seen == b"first\r\nsecond\r\nsecond\r\n"


def test_coming_back_with_the_cursor_repeats_and_loses_nothing(server, box):
    at = opened(server, box, command="for i in $(seq 2000); do echo line $i; done; read a")
    seen, cursor = bytearray(), None
    while b"line 2000\r\n" not in seen:
        with Viewer(server, at, cursor) as viewer:
            viewer.take()
            seen, cursor = seen + viewer.seen, viewer.cursor
    assert seen.split(b"\r\n")[:2000] == [b"line %d" % n for n in range(1, 2001)]
    with Viewer(server, at, cursor) as viewer:
        viewer.peer.send(b"\r")
        assert viewer.ended()["cursor"] == len(seen) + 2


def test_ten_megabytes_arrive_whole(server, box):
    at = opened(server, box, command="stty -opost; seq 1400000 | sha256sum; seq 1400000")
    with Viewer(server, at) as viewer:
        assert viewer.ended()["exit"] == 0
    digest, _, rest = viewer.seen.partition(b"  -\n")
    assert (hashlib.sha256(rest).hexdigest(), len(rest) > 10_000_000, viewer.lost) == (digest.decode(), True, 0)


def test_bytes_pass_untouched(server, box, driver):
    # gVisor's terminals take these three as signals even where a program has asked for them raw (reference/drivers.md).
    signals = b"\x03\x1a\x1c" if driver == "gvisor" else b""
    data = (
        bytes(one for one in range(256) if one not in signals)
        + b"\x1b]0;title\x07\x1b[2J\x1b[9999;9999H\x1b[6n\x1bP$q\x9c"
        + b"\xff\xfe" * 10
    )
    at = opened(server, box, command="stty raw -echo; echo ready; head -c 1000 | head -c 1000")
    with Viewer(server, at) as viewer:
        viewer.until(b"ready").seen.clear()
        viewer.peer.send((data * 5)[:1000])
        viewer.ended()
    assert viewer.seen.lstrip(b"\r\n") == (data * 5)[:1000]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "{}",
        "[" * 5000,
        '{"type":"resize"}',
        '{"type":"resize","cols":0,"rows":1}',
        '{"type":"resize","cols":80,"rows":24,"more":1}',
        '{"type":"signal","signal":"NO"}',
        '{"type":"exit"}',
    ],
)
def test_a_text_message_that_is_none_ends_the_socket_with_its_reason(server, box, text):
    at = opened(server, box, command="read a")
    with Viewer(server, at) as viewer:
        viewer.peer.send(text)
        error = json.loads(viewer.peer.recv(timeout=60))
        assert (error["type"], error["code"]) == ("error", "bad-request")
        with pytest.raises(ConnectionClosedError):
            viewer.peer.recv(timeout=60)
    assert server.client.get(at).json()["running"]
    server.client.delete(at)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("t0123456789ab/attach", 404),
        ("c0123456789ab/attach", 404),
        ("{id}/attach?cursor=-1", 400),
        ("{id}/attach?cursor=99999999", 400),
        ("{id}/attach?no=1", 400),
    ],
)
def test_what_cannot_be_attached_is_a_status(server, box, path, status):
    at = opened(server, box, command="read a")
    url = f"{server.url}/api/v1/sandboxes/{box}/terminals/".replace("http", "ws", 1) + path.format(id=at[-13:])
    for key, expected in ((server.key, status), ("cove_no_such_key", 401)):
        head = {"Authorization": f"Bearer {key}"}
        with pytest.raises(InvalidStatus) as caught, connect(url, additional_headers=head):
            pass
        assert caught.value.response.status_code == expected
    assert server.client.get(f"{at}/attach").status_code == 426
    server.client.delete(at)


def test_forgetting_an_attached_terminal_is_its_end(server, box):
    at = opened(server, box)
    with Viewer(server, at) as viewer:
        viewer.take()
        server.client.delete(at)
        assert viewer.ended()["why"] in {"killed", "exited"}


def test_a_sandbox_that_ends_is_the_terminals_end(server):
    made = server.sandbox()
    at = opened(server, made["id"], command="echo on; read a")
    with Viewer(server, at) as viewer:
        viewer.until(b"on")
        server.client.delete(f"/sandboxes/{made['id']}")
        assert viewer.ended()["why"] == "sandbox-gone"
