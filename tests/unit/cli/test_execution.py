# ruff: noqa: ANN001 - fixtures are typed where they are defined
from __future__ import annotations

import os

import pytest

from cove.cli.execution import read_stdin, why_line
from cove.cli.main import main
from cove.sdk.results import Exit


class Pipe:
    """A standard input of which `data` has come; `is_open`: more may follow."""

    def __init__(self, data: bytes, *, is_open: bool) -> None:
        self.read_fd, self.write_fd = os.pipe()
        os.write(self.write_fd, data)
        if not is_open:
            os.close(self.write_fd)

    def fileno(self) -> int:
        return self.read_fd


def test_output_is_passed_on_byte_for_byte_on_two_streams(stub, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    stub.stream = stub.events(stub.output("stdout", b"\xff\x00\x1b[1mx"), stub.output("stderr", b"e\r"), stub.ended())
    main(["exec", "brave-otter", "x"])
    assert capfdbinary.readouterr() == (b"\xff\x00\x1b[1mx", b"e\r")


def test_the_exit_code_is_the_commands(cove, stub) -> None:
    stub.stream = stub.events(stub.output("stdout", b"a\n"), stub.output("stderr", b"b\n"), stub.ended(7))
    ran = cove("exec", "brave-otter", "x")
    assert (ran.code, ran.out, ran.err) == (7, "a\n", "b\n")


@pytest.mark.parametrize(
    ("why", "facts", "says"),
    [
        ("oom", {"memory_peak_bytes": 512 << 20}, "more memory than the sandbox may have (peak 512M)"),
        ("timeout", {"duration_ms": 1500.0}, "time limit after 1.5 s"),
        ("killed", {"signal": 9}, "ended by signal 9"),
    ],
)
def test_an_end_that_needs_a_word_gets_a_note(cove, stub, why: str, facts, says: str) -> None:
    stub.stream = stub.events(stub.ended(137, why, **facts))
    ran = cove("exec", "brave-otter", "x")
    assert ran.code == 137
    assert ran.err.startswith("note: ")
    assert says in ran.err


def test_a_whole_line_as_one_word_is_explained(cove, stub) -> None:
    stub.stream = stub.events(stub.output("stderr", b"ls | wc: not found\n"), stub.ended(127))
    assert "for the shell's language" in cove("exec", "brave-otter", "ls | wc").err
    assert "note:" not in cove("exec", "brave-otter", "nonesuch").err


def test_an_ordinary_end_gets_none() -> None:
    assert why_line(Exit(exit=1)) == ""


def test_a_sandbox_that_ended_is_our_failure_not_the_commands(cove, stub) -> None:
    stub.stream = stub.events(stub.ended(137, "sandbox-gone"))
    ran = cove("exec", "brave-otter", "x")
    assert (ran.code, ran.out) == (125, "")
    assert ran.err.startswith("error: the sandbox ended while the command ran (sandbox-gone)")


def test_an_error_in_the_stream_is_told(cove, stub) -> None:
    stub.stream = stub.events(stub.output("stdout", b"a"), ("error", {"code": "agent-timeout", "detail": "no answer"}))
    ran = cove("exec", "--json", "brave-otter", "x")
    assert ran.code == 124
    assert ran.objects == [{"event": "stdout", "data": "a"}]
    assert ran.error["code"] == "agent-timeout"


def test_json_is_a_stream_of_events(cove, stub) -> None:
    stub.stream = stub.events(
        stub.output("stdout", "é".encode()[:1]), stub.output("stdout", "é".encode()[1:]), stub.ended(3)
    )
    ran = cove("exec", "--json", "brave-otter", "x")
    assert ran.code == 3
    assert "".join(o.get("data", "") for o in ran.objects) == "é"
    assert ran.objects[-1] | {"ms": 0, "cpu_ms": 0} == {
        "event": "exit", "exit": 3, "why": "exited", "signal": None, "ms": 0, "cpu_ms": 0, "memory_peak_bytes": 0,
    }  # fmt: skip


def test_picked_fields_leave_out_events_without_them(cove, stub) -> None:
    stub.stream = stub.events(stub.output("stdout", b"a"), stub.ended(3))
    assert cove("exec", "--json", "exit", "brave-otter", "x").objects == [{"exit": 3}]


def test_options_become_fields_of_the_request(cove, stub) -> None:
    cove("exec", "-t", "2m", "-w", "/w", "-u", "me", "-e", "A=b=c", "brave-otter", "--", "ls", "-l")
    assert stub.seen[-1][2] == {
        "command": ["ls", "-l"], "encoding": "base64", "env": {"A": "b=c"}, "cwd": "/w", "user": "me",
        "timeout_s": 120.0,
    }  # fmt: skip


def test_a_bad_duration_is_wrong_usage_and_nothing_is_sent(cove, stub) -> None:
    ran = cove("exec", "-t", "soon", "brave-otter", "x")
    assert (ran.code, stub.seen) == (2, [])


def test_short_input_goes_along_with_the_request(cove, stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Pipe(b"hello", is_open=False))
    cove("exec", "brave-otter", "cat")
    assert stub.seen[-1][2]["stdin"] == "aGVsbG8="


def test_an_open_pipe_is_never_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Pipe(b"", is_open=True))
    assert read_stdin() == (b"", False)
    monkeypatch.setattr("sys.stdin", Pipe(b"x", is_open=True))
    assert read_stdin() == (b"x", False)


def test_no_stdin_leaves_ours_alone(cove, stub, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(b"hello", is_open=False)
    monkeypatch.setattr("sys.stdin", pipe)
    cove("exec", "-n", "brave-otter", "cat")
    assert "stdin" not in stub.seen[-1][2]
    assert os.read(pipe.read_fd, 9) == b"hello"


def test_the_null_device_is_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as null:  # noqa: PTH123 - a descriptor is the point
        monkeypatch.setattr("sys.stdin", null)
        assert read_stdin() == (b"", True)
