"""The shell: section 7 of docs/protocols/isorun.md."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any, Self

import pytest
from tests.dialects.conftest import DialectServer
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

LIMIT_S = 30.0


class Shell:
    """A client of one shell."""

    def __init__(self, server: DialectServer, box: str, root: str = "/isorun", *, header: bool = True) -> None:
        run = box.replace("sb_", "run")
        where = f"{server.url.replace('http', 'ws')}{root}/v1/runs/{run}/shell"
        headers = {"Authorization": f"Bearer {server.key}"} if header else {}
        query = "" if header else f"?token={server.key}"
        self._connection = connect(where + query, additional_headers=headers, max_size=None)

    def __enter__(self) -> Self:
        self.socket = self._connection.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, **frame: Any) -> None:
        self.socket.send(json.dumps(frame))

    def next(self) -> dict[str, Any]:
        message = self.socket.recv(timeout=LIMIT_S)
        assert isinstance(message, str)
        found: dict[str, Any] = json.loads(message)
        return found

    def run(self, command: str, **more: Any) -> tuple[str, str, int]:
        """One command: what it wrote, apart, and its exit code."""
        self.send(id="r", command=command, **more)
        return self.result("r")

    def result(self, tag: object) -> tuple[str, str, int]:
        texts = {"stdout": "", "stderr": ""}
        while (frame := self.next())["type"] != "exit":
            assert frame["id"] == tag, frame
            texts[frame["type"]] += frame["data"]
        assert frame["id"] == tag
        assert isinstance(frame["duration_ms"], int)
        assert frame["duration_ms"] >= 0
        return texts["stdout"], texts["stderr"], frame["exit_code"]

    def rest(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        with suppress(ConnectionClosed):
            while True:
                found.append(self.next())
        return found


@pytest.fixture
def shell(server: DialectServer, box: str) -> Any:
    with Shell(server, box) as made:
        yield made


@pytest.mark.parametrize("root", ["/isorun", ""])
@pytest.mark.parametrize("header", [True, False])
def test_a_key_opens_a_shell(server: DialectServer, box: str, root: str, header: bool) -> None:  # noqa: FBT001
    with Shell(server, box, root, header=header) as shell:
        assert shell.run("echo ${BASH_VERSION:+bash}") == ("bash\n", "", 0)


def test_directory_variables_and_jobs_last_from_one_command_to_the_next(shell: Shell) -> None:
    assert shell.run("cd /tmp && export A=1; b=2; f() { echo f$1; }") == ("", "", 0)
    assert shell.run("pwd; echo $A$b; f 3; env | grep ^A=") == ("/tmp\n12\nf3\nA=1\n", "", 0)
    assert shell.run("sleep 600 & echo started")[0] == "started\n"
    assert shell.run("kill %1 && echo killed")[0].endswith("killed\n")


def test_the_streams_come_apart_with_the_exit_code(shell: Shell) -> None:
    assert shell.run("echo out; echo err >&2; (exit 7)") == ("out\n", "err\n", 7)
    assert shell.run("false") == ("", "", 1)
    assert shell.run("no-such-program")[2] == 127


def test_commands_queue_in_order(shell: Shell) -> None:
    for number in range(20):
        shell.send(id=number, cmd=f"echo {number}", type="run")
    for number in range(20):
        assert shell.result(number) == (f"{number}\n", "", 0)
    shell.send(command="echo x")
    assert shell.result(None) == ("x\n", "", 0)


def test_a_time_limit_counts_from_the_command_s_turn_and_spares_the_shell(shell: Shell) -> None:
    shell.run("a=1")
    shell.send(id="1", command="sleep 1")
    shell.send(id="2", command="echo before; sleep 600", timeout=0.5)
    assert shell.result("1") == ("", "", 0)
    out, _, code = shell.result("2")
    assert (out, code) == ("before\n", 124)
    assert shell.run("echo $a") == ("1\n", "", 0)


def test_a_signal_interrupts_what_runs(shell: Shell) -> None:
    shell.send(id="1", command="sh -c 'echo on; exec sleep 600'")
    assert shell.next()["data"] == "on\n"
    shell.send(type="signal", signal="SIGINT")
    assert shell.result("1")[2] == 130
    assert shell.run("echo still") == ("still\n", "", 0)


def test_a_signal_right_behind_its_command_reaches_it(shell: Shell) -> None:
    shell.send(id="1", command="sleep 600")
    shell.send(type="signal", signal="KILL")
    assert shell.result("1")[2] != 0
    shell.send(type="signal", signal="SIGTERM")
    assert shell.next() == {"type": "error", "id": None, "error": "nothing runs in this shell"}


@pytest.mark.parametrize(
    ("message", "tag"),
    [
        ("{", None), ("[]", None), ('"x"', None), ("\x00", None), (b"\xff\x00", None), ('{"id":"a"}', "a"),
        ('{"id":"a","command":""}', "a"), ('{"id":"a","command":"x\\u0000y"}', "a"), ('{"id":{},"command":"x"}', None),
        ('{"id":"a","command":"x","timeout":-1}', "a"), ('{"id":7,"type":"dance"}', 7),
        ('{"type":"signal","signal":"NOPE"}', None), ('{"type":"signal"}', None),
        ('{"type":"signal","signal":900}', None),
        (json.dumps({"id": "a", "command": "x" * 200_000}), "a"),
    ],
)  # fmt: skip
def test_a_bad_message_is_answered_and_changes_nothing(shell: Shell, message: str | bytes, tag: object) -> None:
    shell.socket.send(message)
    found = shell.next()
    assert (found["type"], found["id"]) == ("error", tag), found
    assert found["error"]
    assert shell.run("echo on") == ("on\n", "", 0)


def test_no_more_than_64_commands_wait(shell: Shell) -> None:
    shell.send(id="first", command="sh -c 'echo on; exec sleep 600'")
    assert shell.next()["data"] == "on\n"
    for number in range(64):
        shell.send(id=number, command=f"echo {number}")
    shell.send(id="many", command="echo many")
    found = shell.next()
    assert (found["type"], found["id"]) == ("error", "many")
    shell.send(type="signal", signal="SIGKILL")
    shell.result("first")
    for number in range(64):
        assert shell.result(number) == (f"{number}\n", "", 0)


def test_the_end_of_the_shell_is_told(shell: Shell) -> None:
    shell.send(id="1", command="exit 3")
    *others, exited, closed = shell.rest()
    assert all(frame["type"] == "stderr" for frame in others)  # an interactive bash says `exit`
    assert (exited["type"], exited["exit_code"]) == ("exit", 3)
    assert closed == {"type": "closed", "exit_code": 3}
    assert shell.socket.close_code == 1000


def test_a_shell_that_its_own_job_kills_is_told_too(shell: Shell) -> None:
    assert shell.run("(sleep 0.2; kill -9 $$) & echo soon")[0] == "soon\n"
    assert shell.rest() == [{"type": "closed", "exit_code": 137}]


def test_close_ends_it(server: DialectServer, box: str, shell: Shell) -> None:
    shell.send(id="1", command="sh -c 'echo on; exec sleep 600'")
    assert shell.next()["data"] == "on\n"
    shell.send(type="close")
    assert shell.rest()[-1] == {"type": "closed", "exit_code": 0}
    assert shell.socket.close_code == 1000
    no_shells(server, box)


def test_closing_the_socket_ends_the_shell_and_what_it_runs(server: DialectServer, box: str) -> None:
    with Shell(server, box) as shell:
        shell.send(id="1", command="sleep 6789")
        deadline = time.monotonic() + LIMIT_S
        while "sleep 6789" not in processes(server, box):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    no_shells(server, box)
    while "sleep 6789" in processes(server, box):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes(server: DialectServer, box: str) -> str:
    script = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"
    found: str = server.client.post(f"/sandboxes/{box}/exec", json={"command": script}).json()["stdout"]
    return found.replace(script, "")


def no_shells(server: DialectServer, box: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while server.client.get(f"/sandboxes/{box}/shells").json()["shells"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_large_output_comes_whole_and_characters_are_not_cut(shell: Shell) -> None:
    out, _, code = shell.run("for i in $(seq 20000); do printf 'äöü€𝄞%s\\n' $i; done; printf '\\xff'")
    assert code == 0
    assert out == "".join(f"äöü€𝄞{number}\n" for number in range(1, 20001)) + "�"


def test_each_command_is_on_record(server: DialectServer) -> None:
    box = str(server.sandbox()["id"])
    with Shell(server, box) as shell:
        shell.run("echo secret-output; (exit 5)")
        found, deadline = [], time.monotonic() + LIMIT_S
        while len(found) < 2:
            assert time.monotonic() < deadline, found
            lines = server.client.get("/audit", params={"sandbox": box, "limit": 1000}).json()["lines"]
            found = [line["data"] for line in lines if line["event"] in {"exec.start", "exec.exit"}]
        assert found[0]["command"] == "echo secret-output; (exit 5)"
        assert found[1]["exit_code"] == 5
        assert "secret-output\\n" not in json.dumps(found)
    server.client.delete(f"/sandboxes/{box}")


def test_the_end_of_the_sandbox_ends_the_shell(server: DialectServer) -> None:
    box = str(server.sandbox()["id"])
    with Shell(server, box) as shell:
        shell.run("true")
        assert server.client.delete(f"/sandboxes/{box}").status_code in {200, 204}
        assert shell.rest()[-1]["type"] in {"closed", "error"}


@pytest.mark.parametrize("key", ["", "nobody"])
def test_a_bad_key_is_401_before_the_upgrade(server: DialectServer, box: str, key: str) -> None:
    where = f"{server.url.replace('http', 'ws')}/isorun/v1/runs/{box.replace('sb_', 'run')}/shell?token={key}"
    with pytest.raises(InvalidStatus) as refused, connect(where):
        pass
    assert refused.value.response.status_code == 401


def test_an_unknown_run_is_404_before_the_upgrade(server: DialectServer) -> None:
    with pytest.raises(InvalidStatus) as refused, Shell(server, "run0123456789abcdef"):
        pass
    assert refused.value.response.status_code == 404
    assert set(json.loads(refused.value.response.body or b"")) == {"error"}
