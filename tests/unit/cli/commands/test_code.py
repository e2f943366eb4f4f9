# ruff: noqa: ANN001 - fixtures are typed where they are defined
from __future__ import annotations

import io
import json
import os
import signal
import stat
import threading
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from cove.cli import repl
from cove.cli.coding import handling

BOX = "/sandboxes/sb_0000000000000001"
STREAM = f"{BOX}/code/stream"
PNG = b"\x89PNG\r\n\x1a\n"
SVG = "<svg/>"


def events(*pairs: tuple[str, dict[str, Any]]) -> bytes:
    return b"".join(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode() for name, data in pairs)


def done(status: str = "ok", **facts: Any) -> tuple[str, dict[str, Any]]:
    return "done", {"status": status, "count": 1, "duration_ms": 1500.0, "detail": None, **facts}


def result(main: bool = False, **data: str) -> tuple[str, dict[str, Any]]:  # noqa: FBT001, FBT002 - as it is on the wire
    kinds = {"text": "text/plain", "png": "image/png", "svg": "image/svg+xml", "html": "text/html", "vega": "x/vega"}
    return "result", {"data": {kinds[kind]: value for kind, value in data.items()}, "main": main}


RAISED = ("error", {"name": "E", "value": "v", "traceback": ["Traceback:", "E: v"]})
PICTURE = result(text="<Figure>", png=b64encode(PNG).decode())


@pytest.fixture
def asked(stub) -> Any:
    """The bodies of all runs so far."""
    return lambda: [body for _, path, body in stub.seen if path.endswith("/code/stream")]


def test_code_is_run_and_its_value_printed(cove, stub, asked) -> None:
    stub.extra["POST", STREAM] = events(
        ("stdout", {"text": "a\x1b[1m"}), ("stderr", {"text": "b"}), result(True, text="42"), done()
    )
    ran = cove("code", "brave", "-c", "6*7", "-l", "python", "-t", "1m", "-e", "A=1")
    assert (ran.code, ran.out, ran.err) == (0, "a\x1b[1m42\n", "b")
    assert asked() == [{"code": "6*7", "language": "python", "env": {"A": "1"}, "timeout_s": 60.0}]
    assert cove("code", "-", "--context", "c1", "-c", "1").code == 0
    assert asked()[1] == {"code": "1", "context": "c1"}


def test_a_file_or_our_input_is_run_as_it_is(cove, stub, asked, monkeypatch, tmp_path: Path) -> None:
    stub.extra["POST", STREAM] = events(done())
    (tmp_path / "cell.py").write_text("x = 1\n\ny = 2\n")
    assert cove("code", "brave", "cell.py").code == 0
    for words in (["brave"], ["brave", "-"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"z = 3\n")))
        assert cove("code", *words).code == 0
    assert [body["code"] for body in asked()] == ["x = 1\n\ny = 2\n", "z = 3\n", "z = 3\n"]
    (tmp_path / "bad").write_bytes(b"\xff")
    assert cove("code", "brave", "bad").code == 2
    assert cove("code", "brave", "none").code == 120
    assert cove("code", "brave", "cell.py", "-c", "1").code == 2
    assert "already" in cove("code", "brave", "--image", "code", "-c", "1").err


@pytest.mark.parametrize(
    ("end", "code", "note"),
    [
        (done("error"), 1, ""),
        (done("timeout"), 124, "note: it ran into its time limit after 1.5 s and was interrupted\n"),
        (done("interrupted"), 130, ""),
        (done("kernel-died", detail="it was\x1b killed"), 1, "note: it was killed\n"),
        (done("kernel-died"), 1, "note: the interpreter ended; the next run gets a fresh one\n"),
    ],
)
def test_the_exit_code_tells_how_it_ended(cove, stub, end, code: int, note: str) -> None:
    stub.extra["POST", STREAM] = events(RAISED, end)
    ran = cove("code", "brave", "-c", "x")
    assert (ran.code, ran.out, ran.err) == (code, "", f"Traceback:\nE: v\n{note}")


def test_a_sandbox_that_ends_is_a_failure(cove, stub) -> None:
    stub.extra["POST", STREAM] = events(done("sandbox-gone"))
    ran = cove("code", "brave", "-c", "x")
    assert ran.code == 125
    assert "(sandbox-gone)" in ran.err


def test_pictures_become_files_that_replace_none(cove, stub, tmp_path: Path) -> None:
    Path("cove-output-1.png").write_text("mine")
    stub.extra["POST", STREAM] = events(
        PICTURE, result(svg=SVG), result(html="<b>"), result(vega="{}"), result(), done()
    )
    ran = cove("code", "brave", "-c", "x")
    assert ran.out == "./cove-output-2.png\n./cove-output-3.svg\n<b>\n<x/vega>\n"
    assert Path("cove-output-1.png").read_text() == "mine"
    assert Path("cove-output-2.png").read_bytes() == PNG
    assert Path("cove-output-3.svg").read_text() == SVG
    assert cove("code", "brave", "-c", "x", "--output", "new/dir").out.startswith("new/dir/cove-output-1.png\n")
    assert (tmp_path / "new" / "dir" / "cove-output-2.svg").exists()


def test_json_is_one_object_for_each_event(cove, stub, tmp_path: Path) -> None:
    stub.extra["POST", STREAM] = events(("stdout", {"text": "a"}), PICTURE, RAISED, done("error"))
    ran = cove("code", "brave", "--json", "-c", "x")
    assert (ran.code, ran.err) == (1, "")
    kinds = [one["event"] for one in ran.objects]
    assert kinds == ["stdout", "result", "error", "done"]
    assert ran.objects[1]["data"]["image/png"] == b64encode(PNG).decode()
    assert ran.objects[2] == {"event": "error", "name": "E", "value": "v", "traceback": ["Traceback:", "E: v"]}
    assert ran.objects[3]["status"] == "error"
    assert not list(tmp_path.glob("cove-output*"))
    ran = cove("code", "brave", "--json", "path,status", "-o", ".", "-c", "x")
    assert ran.objects == [{"path": "./cove-output-1.png"}, {"status": "error"}]


def test_without_a_sandbox_one_is_made_and_removed(cove, stub) -> None:
    stub.extra["POST", "/sandboxes/sb_0000000000000063/code/stream"] = events(done())
    ran = cove("code", "-c", "1")
    assert (ran.code, ran.out) == (0, "")
    assert "Removed new-box. Keep one: cove new --image code, then cove code BOX" in ran.err
    (made,) = [body for method, path, body in stub.seen if (method, path) == ("POST", "/api/v1/sandboxes")]
    assert made == {"image": "code"}
    assert len(stub.boxes) == 2


def test_restart_begins_anew(cove, stub) -> None:
    stub.extra["POST", STREAM] = events(done())
    context = {"id": "bash", "language": "bash"}
    stub.extra["GET", f"{BOX}/contexts/bash"] = context
    stub.extra["POST", f"{BOX}/contexts/bash/restart"] = context
    assert cove("code", "brave", "--restart", "-l", "bash", "-c", "1").code == 0
    assert ("POST", f"/api/v1{BOX}/contexts/bash/restart", None) in stub.seen
    stub.extra["GET", f"{BOX}/contexts/python"] = {"status": 404, "code": "not-found", "detail": "none"}
    assert cove("code", "brave", "--restart", "-c", "1").code == 0, "it never ran: nothing to restart"


def test_ctrl_c_interrupts_the_code_and_shows_what_it_says(cove, stub, monkeypatch) -> None:
    interrupted = threading.Event()
    stub.extra["GET", f"{BOX}/contexts/python"] = {"id": "python", "language": "python"}
    stub.extra["POST", f"{BOX}/contexts/python/interrupt"] = b""
    stub.extra["POST", STREAM] = events(("stdout", {"text": "on"}), RAISED, done("interrupted"))
    answer = stub.answer

    def wait(method: str, path: str, *rest: Any) -> Any:
        if path == STREAM:
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupted.wait(30)
        if path.endswith("/interrupt"):
            interrupted.set()
        return answer(method, path, *rest)

    monkeypatch.setattr(stub, "answer", wait)
    ran = cove("code", "brave", "-c", "while True: pass")
    assert (ran.code, ran.out, ran.err) == (130, "on", "Traceback:\nE: v\n")


def test_a_second_ctrl_c_leaves(cove, stub, monkeypatch) -> None:
    stub.extra["GET", f"{BOX}/contexts/python"] = {"status": 404, "code": "not-found", "detail": "none"}
    answer = stub.answer

    def twice(method: str, path: str, *rest: Any) -> Any:
        if path == STREAM:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return answer(method, path, *rest)

    monkeypatch.setattr(stub, "answer", twice)
    ran = cove("code", "brave", "-c", "while True: pass")
    assert (ran.code, ran.err) == (130, "error: interrupted (interrupted)\n")


def test_only_the_main_thread_handles_signals() -> None:
    before = signal.getsignal(signal.SIGINT)
    entered: list[bool] = []

    def other() -> None:
        with handling(signal.SIGINT, lambda _number, _frame: None):
            entered.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert entered == [True]


# ---- the prompt


class Typed:
    """Stands where a person types: a line for each prompt; an exception is a key."""

    def __init__(self, *lines: Any) -> None:
        self.lines = list(lines)
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = self.lines.pop(0) if self.lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        return str(line)


def ran_at_prompt(language: str, *lines: Any) -> list[str]:
    ran: list[str] = []
    repl.Repl(language, ran.append, Typed(*lines)).loop()
    return ran


def test_lines_are_gathered_until_they_are_whole() -> None:
    assert ran_at_prompt("python", "x = 1", "", "def f():", "    return 1", "", "f()") == [
        "x = 1",
        "def f():\n    return 1\n",
        "f()",
    ]
    assert ran_at_prompt("python", "(1,", "2)", "%pip list", "!ls (", "await f()", "1 +* 2", "x?") == [
        "(1,\n2)",
        "%pip list",
        "!ls (",
        "await f()",
        "1 +* 2",
        "x?",
    ]
    assert ran_at_prompt("python", "%%bash", "ls", "") == ["%%bash\nls\n"]


def test_ctrl_c_drops_what_was_typed_and_ctrl_d_leaves(capsys) -> None:
    assert ran_at_prompt("python", "def f():", KeyboardInterrupt(), "1", EOFError(), "2") == ["1"]
    assert capsys.readouterr().err == "\n\n"
    for word in ("exit", "quit()"):
        assert ran_at_prompt("python", "1", word, "2") == ["1"]


@pytest.mark.parametrize(
    ("language", "code", "whole"),
    [
        ("javascript", "const a = 1", True),
        ("javascript", "function f() {", False),
        ("javascript", "function f() {\n}", True),
        ("javascript", "function f() {\n", True),  # an empty line ends it
        ("javascript", "const s = 'a{'", True),
        ("javascript", "const s = `a", False),
        ("javascript", "const s = `a${1}\\``", True),
        ("javascript", "f( // {", False),
        ("javascript", "1 /* {", False),
        ("javascript", "1 /* { */", True),
        ("javascript", "'open", True),
        ("javascript", "f)", True),
        ("typescript", "let a: {x: number} = {", False),
        ("javascript", "a \\", False),
        ("bash", "for i in 1 2; do", False),
        ("bash", "for i in 1 2; do echo $i; done", True),
        ("bash", "if true", False),
        ("bash", "if true\nthen echo", False),
        ("bash", "if true\nthen echo\nfi", True),
        ("bash", "echo 'a", False),
        ("bash", "echo if do done", True),
        ("bash", "f() {", False),
        ("bash", "f() { echo; }", True),
        ("bash", "echo a \\", False),
        ("ruby", "[1,", False),
    ],
)
def test_what_is_whole_in_other_languages(language: str, code: str, whole: bool) -> None:  # noqa: FBT001
    assert repl.is_whole(language, code) is whole


class Readline:
    line, begin = "", 0

    def get_line_buffer(self) -> str:
        return self.line

    def get_begidx(self) -> int:
        return self.begin

    def get_endidx(self) -> int:
        return len(self.line)


class Kernel:
    """A context that completes as it is told."""

    def __init__(self, start: int, *matches: str) -> None:
        self.start, self.matches = start, matches
        self.asked: list[tuple[str, int]] = []

    def complete(self, code: str, cursor: int) -> Any:
        from cove.sdk.code_calls import Completion
        from cove.sdk.errors import Unsupported

        self.asked.append((code, cursor))
        if not self.matches:
            raise Unsupported("no completion")
        return Completion(self.matches, self.start, cursor)


def completed(kernel: Kernel, line: str, begin: int, *before: str) -> list[str]:
    typed = repl.Repl("python", lambda _code: None, Typed())
    typed._lines = list(before)
    keys = Readline()
    keys.line, keys.begin = line, begin
    complete = repl._Completer(kernel, lambda: typed, keys)  # type: ignore[arg-type]
    found = [complete(line[begin:], state) for state in range(len(kernel.matches) + 1)]
    assert found[-1] is None
    return [match for match in found if match is not None]


def test_a_name_is_completed_by_the_kernel_wherever_it_begins() -> None:
    kernel = Kernel(2, "json.dumps", "json.dump")
    assert completed(kernel, "x=json.du", 7) == ["dumps", "dump"], "the kernel begins before readline's word"
    assert completed(Kernel(3, "path"), "a/pa", 2) == [], "a match that fits nothing is no match"
    inside = Kernel(10, "print")
    assert completed(inside, "    pr", 4, "if x:") == ["print"]
    assert inside.asked == [("if x:\n    pr", 12)]
    assert completed(Kernel(1, "whole"), "    pr", 4, "if x:") == [], "what would change earlier lines is none"
    assert completed(Kernel(0), "pr", 0) == []


def test_the_history_is_the_users_alone(monkeypatch, tmp_path: Path) -> None:
    readline = pytest.importorskip("readline")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    old = os.umask(0)
    try:
        repl.equip(Kernel(0), lambda: repl.Repl("python", print))  # type: ignore[arg-type]
        readline.clear_history()
        readline.add_history("import secret")
        repl.keep_history()
    finally:
        os.umask(old)
        readline.set_completer(None)
    path = tmp_path / "state" / "cove" / "code-history"
    assert path.read_text() == "import secret\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    repl.equip(Kernel(0), lambda: repl.Repl("python", print))  # type: ignore[arg-type]
    assert readline.get_history_item(readline.get_current_history_length()) == "import secret"
    readline.clear_history()
    readline.set_completer(None)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    repl.equip(Kernel(0), lambda: repl.Repl("python", print))  # type: ignore[arg-type]
    repl.keep_history()
    readline.set_completer(None)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_at_a_terminal_one_types(cove, stub, asked, monkeypatch) -> None:
    info = {"id": "python", "language": "python", "kernel": "python", "version": "3.11", "missing": ["no IPython"]}
    stub.extra["GET", f"{BOX}/contexts/python"] = info
    stub.extra["POST", f"{BOX}/code"] = {"status": "ok", "results": []}
    stub.extra["POST", STREAM] = events(result(True, text="42"), done())
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", Typed("6*7"))
    monkeypatch.setattr(repl, "equip", lambda *_: None)
    monkeypatch.setattr(repl, "keep_history", lambda: None)
    ran = cove("code", "brave")
    assert (ran.code, ran.out) == (0, "42\n")
    assert "python 3.11 in brave-otter. Ctrl-C interrupts, Ctrl-D leaves.\nnote: no IPython\n" in ran.err
    assert [body["code"] for body in asked()] == ["6*7"]
    assert cove("code", "brave", "--json").code == 2
