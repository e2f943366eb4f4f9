"""The terminal: section 6 of docs/protocols/isorun.md."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from tests.dialects.conftest import DialectServer
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

LIMIT_S = 30.0
ROOTS = ["/isorun", ""]


def address(server: DialectServer, box: str, root: str = "/isorun", query: str = "") -> str:
    run = box.replace("sb_", "run")
    return f"{server.url.replace('http', 'ws')}{root}/v1/runs/{run}/terminal?{query}"


def opened(server: DialectServer, box: str, query: str = "") -> ClientConnection:
    return connect(address(server, box, query=f"token={server.key}{query}"), max_size=None)


def until(socket: ClientConnection, want: Callable[[str], Any]) -> str:
    """What the terminal shows until `want` is true of it."""
    text, deadline = "", time.monotonic() + LIMIT_S
    while not want(text):
        message = socket.recv(timeout=max(0.0, deadline - time.monotonic()))
        assert isinstance(message, bytes), message
        text += message.decode(errors="replace")
    return text


def rest(socket: ClientConnection) -> list[Any]:
    """The text messages up to the end."""
    found: list[Any] = []
    with suppress(ConnectionClosed):
        while True:
            message = socket.recv(timeout=LIMIT_S)
            if isinstance(message, str):
                found.append(json.loads(message))
    return found


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("how", ["token", "header"])
def test_a_key_opens_a_terminal(server: DialectServer, box: str, root: str, how: str) -> None:
    headers = {"Authorization": f"Bearer {server.key}"} if how == "header" else {}
    query = f"token={server.key}" if how == "token" else ""
    with connect(address(server, box, root, query), additional_headers=headers) as socket:
        socket.send(b"stty size; echo $TERM $((6*7))\r")
        assert "24 80\r\n" in until(socket, lambda text: "xterm-256color 42\r\n" in text)


def test_it_runs_bash_where_the_image_has_it(server: DialectServer, box: str) -> None:
    with opened(server, box) as socket:
        socket.send("echo shell=${BASH_VERSION:+bash}.\r")
        until(socket, lambda text: "shell=bash.\r\n" in text)


@pytest.mark.parametrize("query", ["", "token=", "token=nobody", "token=isorun_live_local_0_0"])
def test_a_bad_key_is_401_before_the_upgrade(server: DialectServer, box: str, query: str) -> None:
    with pytest.raises(InvalidStatus) as refused, connect(address(server, box, query=query)):
        pass
    assert refused.value.response.status_code == 401
    assert set(json.loads(refused.value.response.body or b"")) == {"error"}


@pytest.mark.parametrize("run", ["sb_0123456789abcdef", "x", "sb_short"])
def test_an_unknown_run_is_404_before_the_upgrade(server: DialectServer, run: str) -> None:
    with pytest.raises(InvalidStatus) as refused, opened(server, run):
        pass
    assert refused.value.response.status_code == 404


def test_a_size_that_cannot_be_is_400_before_the_upgrade(server: DialectServer, box: str) -> None:
    with pytest.raises(InvalidStatus) as refused, opened(server, box, "&cols=0"):
        pass
    assert refused.value.response.status_code == 400


def test_the_end_of_the_shell_is_told(server: DialectServer, box: str) -> None:
    with opened(server, box, "&cols=100&rows=30") as socket:
        socket.send(json.dumps({"type": "input", "data": "stty size; exit 3\n"}))
        assert "30 100" in until(socket, lambda text: "30 100\r\n" in text)
        assert rest(socket) == [{"type": "exit", "exit_code": 3}]
        assert socket.close_code == 1000


def test_a_resize_reaches_the_shell(server: DialectServer, box: str) -> None:
    with opened(server, box) as socket:
        socket.send(json.dumps({"type": "resize", "cols": 120, "rows": 40}))
        socket.send("stty size\r")
        until(socket, lambda text: "40 120\r\n" in text)


def test_a_wrong_message_changes_nothing(server: DialectServer, box: str) -> None:
    with opened(server, box) as socket:
        for wrong in ({"type": "resize", "cols": 0, "rows": 1}, {"type": "resize"}, {"type": "input", "data": 1}):
            socket.send(json.dumps(wrong))
            while isinstance(message := socket.recv(timeout=LIMIT_S), bytes):
                pass
            assert json.loads(message)["type"] == "error", message
        socket.send("echo go$((1+1))on\r")
        until(socket, lambda text: "go2on" in text)


def test_any_other_text_is_typed(server: DialectServer, box: str) -> None:
    with opened(server, box) as socket:
        socket.send("echo re''ady; read -r a; echo got-$a-\r")
        until(socket, lambda text: "ready\r\n" in text)
        socket.send('{"type":"other","n":1}')
        socket.send("\r")
        until(socket, lambda text: 'got-{"type":"other","n":1}-' in text)


def test_closing_the_socket_hangs_the_shell_up_and_forgets_the_terminal(server: DialectServer, box: str) -> None:
    deadline = time.monotonic() + 2 * LIMIT_S
    while not hears_the_hang_up(server, box):  # it is killed a second later, which a busy machine needs itself
        assert time.monotonic() < deadline


def hears_the_hang_up(server: DialectServer, box: str) -> bool:
    path = f"/tmp/hung-up-{time.monotonic_ns()}"
    with opened(server, box) as socket:
        socket.send(f"sh -c 'trap \"echo hup >{path}; exit\" HUP; echo ready; while :; do sleep 0.05; done'\r")
        until(socket, lambda text: "ready\r\n" in text)
        assert server.client.get(f"/sandboxes/{box}/terminals").json()["terminals"]
    deadline = time.monotonic() + LIMIT_S
    while server.client.get(f"/sandboxes/{box}/terminals").json()["terminals"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    found = server.client.post(f"/sandboxes/{box}/exec", json={"command": ["cat", path]}).json()
    return bool(found["stdout"] == "hup\n")


def test_a_plain_request_is_told_to_upgrade(server: DialectServer, box: str) -> None:
    answer = server.client.get(address(server, box, query=f"token={server.key}").replace("ws", "http", 1))
    assert answer.status_code == 426, answer.text
    assert set(answer.json()) == {"error"}
