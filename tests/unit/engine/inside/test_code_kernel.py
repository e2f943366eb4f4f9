"""Kernels of Python: IPython's machinery and plain Python keep the same promises."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernels_support import PATIENCE_S, PLAIN, RICH, Client, Kernel, kernel


@pytest.fixture(scope="module", params=[RICH, PLAIN], ids=["rich", "plain"])
def python(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    with kernel(request.param) as one:
        yield one


@pytest.fixture(scope="module")
def rich() -> Iterator[Kernel]:
    with kernel(RICH) as one:
        yield one


@pytest.fixture
def fresh() -> Iterator[Kernel]:
    with kernel(PLAIN) as one:
        yield one


def test_the_last_expression_is_the_main_result_and_state_stays(python: Kernel) -> None:
    first = python.run("x = 20\nx + 1")
    assert (first.value, first.status, first.results[0]["main"]) == ("21", "ok", True)
    assert python.run("x").value == "20"
    assert python.run("x = 3").results == []
    assert python.run("5;").results == []
    assert python.run("None").results == []


def test_runs_are_numbered(python: Kernel) -> None:
    one, two = python.run("1"), python.run("raise ValueError")
    assert one.events[0]["count"] + 1 == two.events[0]["count"] == two.last["count"]


def test_what_is_written_and_shown_comes_in_its_order(python: Kernel) -> None:
    code = """
import os, sys
print("a")
sys.stderr.write("b\\n")
os.system("echo c")
display(1)
os.write(2, b"d\\n")
print("e")
os.system("echo f >&2")
print("g")
2
"""
    for _ in range(20):
        assert python.run(code).order == [
            ("stdout", "a\n"),
            ("stderr", "b\n"),
            ("stdout", "c\n"),
            ("result", "1"),
            ("stderr", "d\n"),
            ("stdout", "e\n"),
            ("stderr", "f\n"),
            ("stdout", "g\n"),
            ("result", "2"),
        ]


def test_a_split_character_is_kept_whole_and_garbage_is_replaced(python: Kernel) -> None:
    code = "import os, time\nfor n in (0xe2, 0x82, 0xac, 0x20, 0xff, 0xe2): os.write(1, bytes([n])); time.sleep(0.01)"
    assert python.run(code).out == "€ �" + "�"


def test_no_lone_surrogate_leaves_a_kernel(python: Kernel) -> None:
    run = python.run("class Odd:\n    def __repr__(self): return '\\ud800 \\ud83d\\ude00'\nprint('\\udc80')\nOdd()")
    assert run.value == "� 😀"
    assert run.out == "\\udc80\n"
    run = python.run("raise ValueError('\\ud800')")
    assert run.error is not None
    assert run.error["value"] == "�"


@pytest.mark.parametrize(
    ("code", "name", "value"),
    [
        ("1/0", "ZeroDivisionError", "division by zero"),
        ("raise SystemExit(3)", "SystemExit", "3"),
        ("import sys; sys.exit()", "SystemExit", ""),
        ("class Odd(BaseException): pass\nraise Odd('x')", "Odd", "x"),
        ("raise GeneratorExit", "GeneratorExit", ""),
        ("bytearray(10**15)", "MemoryError", ""),
        ("def f(): f()\nf()", "RecursionError", "maximum recursion depth exceeded"),
        ("x = '\0'", "SyntaxError", None),
        ("def f(:", "SyntaxError", None),
        (" x = 1\ny = 2", "IndentationError", None),
        ("input()", "StdinNotImplementedError", None),
        ("x = '\ud800'", "UnicodeEncodeError", None),
        ("[" * 1000, "SyntaxError", None),
    ],
)
def test_whatever_code_raises_is_told_and_the_kernel_lives(
    python: Kernel, code: str, name: str, value: str | None
) -> None:
    if name == "IndentationError" and not python.client.hello()["rich"]:
        code = "x = 1\n  y = 2"
    run = python.run(code)
    assert run.status == "error"
    assert run.error is not None
    assert run.error["name"] == name
    assert value is None or run.error["value"] == value
    assert not any("\x1b" in line for line in run.error["traceback"])
    assert python.run("1 + 1").value == "2"


def test_a_syntax_error_shows_its_line(python: Kernel) -> None:
    run = python.run("x = 1\ndef broken(:\n    pass")
    assert run.error is not None
    assert any("def broken(:" in line for line in run.error["traceback"])


def test_a_traceback_begins_with_the_code(python: Kernel) -> None:
    run = python.run("def inner():\n    raise KeyError('deep')\ninner()")
    assert run.error is not None
    text = "\n".join(run.error["traceback"])
    assert "raise KeyError('deep')" in text
    assert "engine/inside" not in text


def test_an_exception_whose_text_fails_is_told(python: Kernel) -> None:
    run = python.run("class Odd(Exception):\n    def __str__(self): raise ValueError('no')\nraise Odd()")
    assert run.status == "error"
    assert python.run("1").value == "1"


def test_a_form_that_fails_does_not_hide_the_others(python: Kernel) -> None:
    code = """
class Half:
    def _repr_html_(self): raise ValueError("no form")
    def __repr__(self): return "half"
Half()
"""
    run = python.run(code)
    assert run.value == "half"
    assert "no form" in run.err


def test_every_form_of_an_object_is_shown(python: Kernel) -> None:
    code = """
class All:
    def __repr__(self): return "text"
    def _repr_html_(self): return "<b>html</b>"
    def _repr_png_(self): return b"\\x89PNG"
    def _repr_json_(self): return {"a": [1, None]}
    def _repr_latex_(self): return "$x$"
    def _repr_mimebundle_(self, include=None, exclude=None): return {"text/x-own": "own"}, {"text/x-own": {"k": 1}}
All()
"""
    (result,) = python.run(code).results
    wanted = {"text/plain": "text", "text/html": "<b>html</b>", "text/latex": "$x$", "text/x-own": "own"}
    assert wanted.items() <= result["data"].items()
    assert result["data"]["image/png"].strip() == "iVBORw=="
    assert result["data"]["application/json"] == '{"a": [1, null]}'


def test_await_at_the_top_level(python: Kernel) -> None:
    assert python.run("import asyncio\nawait asyncio.sleep(0.001)\n'slept'").value == "'slept'"
    assert (
        python.run(
            "task = asyncio.ensure_future(asyncio.sleep(0, 7)) if False else None\nawait asyncio.sleep(0, 8)"
        ).value
        == "8"
    )
    assert python.run("async def main(): return 9\nasyncio.run(main())").value == "9"


def test_a_value_of_many_pieces_is_whole_and_one_that_is_too_large_is_a_sentence(python: Kernel) -> None:
    whole = python.run("display({'text/plain': 'short', 'text/html': 'é' * 1_000_000}, raw=True)").results[0]
    assert whole["data"] == {"text/plain": "short", "text/html": "é" * 1_000_000}
    cut = python.run("display({'text/plain': 'short', 'text/html': 'x' * (33 << 20)}, raw=True)").results[0]
    assert list(cut["data"]) == ["text/plain"]
    assert "33.0 MiB" in cut["data"]["text/plain"]


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(1000)",
        "while True: pass",
        "import os; os.system('sleep 1000'); print('went on')",
        "import subprocess; subprocess.run(['sleep', '1000'])",
        "import asyncio; await asyncio.sleep(1000)",
        "import asyncio\nasync def main(): await asyncio.sleep(1000)\nasyncio.run(main())",
        "import re; re.match('(a+)+$', 'a' * 64 + 'b')",
        "import threading, time; threading.Event().wait()",
    ],
)
def test_an_interrupt_ends_whatever_runs(python: Kernel, code: str) -> None:
    run = python.run_interrupted(f"print('ready')\n{code}\nprint('not reached')")
    assert run.status == "interrupted"
    assert "not reached" not in run.out
    assert "went on" not in run.out
    assert run.error is not None
    assert run.error["name"] == "KeyboardInterrupt"
    assert python.run("1 + 1").value == "2"


def test_code_may_take_an_interrupt(python: Kernel) -> None:
    run = python.run_interrupted(
        "try:\n    print('ready')\n    while True: pass\nexcept KeyboardInterrupt: print('taken')\n'on'"
    )
    assert (run.status, run.value) == ("ok", "'on'")
    assert run.out.endswith("taken\n")


def test_an_interrupt_works_after_code_has_ignored_the_signal(python: Kernel) -> None:
    python.run("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);")
    assert python.run_interrupted("print('ready')\nwhile True: pass").status == "interrupted"


def test_an_interrupt_of_nothing_harms_nothing(python: Kernel) -> None:
    for _ in range(20):
        python.interrupt()
        assert python.run("1").status == "ok"


def test_runs_of_all_connections_queue_and_one_that_waits_can_be_taken_back(python: Kernel) -> None:
    with Client(python.context) as other:
        python.client.start("import sys; print('ready'); sys.stdin.read(); import time; time.sleep(0.2)")
        assert python.client.expect("started")
        first, second = other.start("'first'"), other.start("'second'")
        ready = other.hello()
        other.send(op="interrupt", run=first)
        done = other.expect("done")
        assert ready["busy"] in (True, False)
        if done["run"] == first:
            assert (done["status"], done["count"]) == ("interrupted", 0)
        list(python.client.rest())
        events = list(other.rest())
        assert events[-1]["run"] == second
        assert events[-1]["status"] == "ok"


def test_hello_is_answered_while_code_holds_the_interpreter(python: Kernel) -> None:
    with Client(python.context) as other:
        python.client.start("print('ready', flush=True)\nimport re; re.match('(a+)+$', 'a' * 64 + 'b')")
        for event in python.client.rest():
            if event["t"] == "stdout":
                assert other.hello()["busy"] is True
                python.interrupt()


def test_a_connection_that_closes_interrupts_its_run_and_drops_what_waits(python: Kernel) -> None:
    other = Client(python.context)
    other.start(
        "left = []\ntry:\n    print('r')\n    while True: pass\nexcept KeyboardInterrupt: left.append('interrupted')"
    )
    other.start("left.append('dropped')")
    assert other.expect("started")
    assert other.expect("stdout")
    other.close()
    assert python.run("left").value == "['interrupted']"


def test_variables_of_one_run_are_gone_after_it(python: Kernel) -> None:
    python.run("import os; os.environ['KEPT'] = 'before'; os.environ.pop('ONCE', None)")
    look = "os.environ.get('ONCE'), os.environ['KEPT']"
    assert python.run(look, env={"ONCE": "1", "KEPT": "during"}).value == "('1', 'during')"
    assert python.run(look).value == "(None, 'before')"
    assert python.run(look, env={"": "no name", "A=B": "none", "NUL": "\0"}).value == "(None, 'before')"


def test_closed_and_replaced_streams_are_put_right(python: Kernel) -> None:
    python.run("import os; os.close(1); os.close(2)")
    assert python.run("print('one')").out == "one\n"
    python.run("import sys; sys.stdout.close()")
    assert python.run("print('two')").out == "two\n"
    python.run("sys.stdout = None")
    assert python.run("print('three')").out == "three\n"
    assert python.run("import io; sys.stdout = io.StringIO(); print('not shown')").out == ""
    assert python.run("sys.stdout = sys.__stdout__; print('four')").out == "four\n"


def test_threads_write_to_the_run_that_is_under_way(python: Kernel) -> None:
    code = """
import os, threading
all_ = [threading.Thread(target=os.write, args=(1, b"thread %d\\n" % n)) for n in range(20)]
for one in all_: one.start()
for one in all_: one.join()
"""
    assert set(python.run(code).out.splitlines()) == {f"thread {n}" for n in range(20)}


def test_a_copy_of_the_process_ends_with_the_run(python: Kernel) -> None:
    run = python.run(
        "import os\npid = os.fork()\nos.write(1, b'child ' if pid == 0 else b'parent ')\nif pid: os.waitpid(pid, 0)"
    )
    assert sorted(run.out.split()) == ["child", "parent"]
    code = "import os, sys\npid = os.fork()\nif pid == 0: sys.exit(3)\nos.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])"
    assert python.run(code).value == "3"
    code = "pid = os.fork()\nif pid == 0: raise ValueError('of the copy')\nos.waitpid(pid, 0)[1] >> 8"
    run = python.run(code)
    assert run.value == "1"
    assert "of the copy" in run.err


def test_a_pool_of_processes_works(python: Kernel) -> None:
    code = """
import multiprocessing
def square(n): return n * n
with multiprocessing.get_context("fork").Pool(2) as pool: squares = pool.map(square, range(4))
squares
"""
    assert python.run(code).value == "[0, 1, 4, 9]"


def test_a_flood_is_delivered_whole_and_the_kernel_stays_small(python: Kernel) -> None:
    python.client.start(
        "import os\nos.system(\"head -c 40000000 /dev/zero | tr '\\\\0' x\");\nfor _ in range(10000): print('y' * 999)"
    )
    size = sum(len(event["d"]) for event in python.client.rest() if event["t"] == "stdout")
    assert size == 50_000_000
    status = Path(f"/proc/{python.process.pid}/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak < 40_000


def test_a_reader_that_does_not_read_holds_the_code_up(python: Kernel) -> None:
    with Client(python.context) as slow, Client(python.context) as other:
        slow.start("import itertools\nfor n in itertools.count():\n    print('z' * 100_000)\n    if n == 300: break\nn")
        seen = ""
        while True:  # until it stands still
            status = other.hello()
            assert status["busy"]
            done = Path(f"/proc/{python.process.pid}/io").read_text(encoding="utf-8").splitlines()[0]
            if done == seen:
                break
            seen = done
            time.sleep(0.5)
        events = list(slow.rest())
        assert sum(len(event["d"]) for event in events if event["t"] == "stdout") == 301 * 100_001


def test_completion(python: Kernel) -> None:
    python.run("import collections")
    python.client.send(op="complete", id=7, code="collections.Ord", cursor=15)
    answer = python.client.expect("completed")
    assert answer["id"] == 7
    assert any(match.endswith("OrderedDict") for match in answer["matches"])
    assert answer["end"] == 15
    python.client.send(op="complete", id=8, code="no.such.thing", cursor=-5)
    assert python.client.expect("completed")["id"] == 8


def test_setup_before_the_first_run(fresh: Kernel, tmp_path: Path) -> None:
    fresh.client.send(op="setup", env={"GIVEN": "yes", "HOME": None}, cwd=str(tmp_path))
    assert fresh.client.expect("ready")["cwd"] == str(tmp_path)
    fresh.client.send(op="setup", env={}, cwd="/no/such/place")
    answer = fresh.client.expect("ready")
    assert answer["cwd"] == str(tmp_path)
    assert answer["problem"] == "cannot work in /no/such/place: No such file or directory"
    assert fresh.run("import os; os.environ['GIVEN'], 'HOME' in os.environ, os.getcwd()").value == str(
        ("yes", False, str(tmp_path))
    )


@pytest.mark.parametrize(("code", "exit_code"), [("os._exit(7)", 7), ("os.kill(os.getpid(), 9)", -9)])
def test_the_death_of_the_interpreter_is_told_after_all_that_it_wrote(fresh: Kernel, code: str, exit_code: int) -> None:
    run = fresh.run(f"import os, sys\nsys.stdout.write('last words')\n{code}")
    assert run.out == "last words"
    assert run.last["t"] == "died"
    assert run.last["code"] == exit_code
    assert fresh.client.receive() is None
    assert fresh.process.wait(PATIENCE_S) == (exit_code if exit_code >= 0 else 128 - exit_code)


def test_what_is_no_request_ends_its_connection_only(python: Kernel) -> None:
    for bad in (b"no json\n", b'{"op": "run"' + b" " * (2 << 20), b"[" * 100_000 + b"\n"):
        with Client(python.context) as other:
            try:
                other.socket.sendall(bad)
                assert other.receive() is None
            except (BrokenPipeError, ConnectionResetError):
                pass
    with Client(python.context) as other:
        other.socket.sendall(b'[1]\n"text"\n{"op": "unknown"}\n{}\n')
        assert other.hello()["t"] == "ready"


def test_a_kernel_that_is_not_used_ends() -> None:
    with kernel(PLAIN, "--idle-s", "0.5") as one:
        assert one.run("1").status == "ok"
        assert one.process.wait(PATIENCE_S) == 0


def test_a_background_program_that_writes_for_ever_does_not_keep_a_run(python: Kernel) -> None:
    run = python.run("import subprocess; noisy = subprocess.Popen(['yes'])")
    assert run.status == "ok"
    assert python.run("noisy.kill(); noisy.wait()").value == "-9"


def test_the_last_kernel_frees_its_name() -> None:
    with kernel(PLAIN) as one:
        again = subprocess.run([*PLAIN, "--context", one.context], capture_output=True, timeout=PATIENCE_S, check=False)
        assert again.returncode == 64
        assert b"cannot be made" in again.stderr
        one.run("import subprocess; left = subprocess.Popen(['sleep', '1000'])")
        assert one.run("import os; os._exit(0)").last["t"] == "died"
        one.process.wait(PATIENCE_S)
        second = subprocess.Popen([*PLAIN, "--context", one.context], stdout=subprocess.PIPE, start_new_session=True)
        assert second.stdout is not None
        with second.stdout:
            assert second.stdout.readline() == b"listening\n"
            os.killpg(second.pid, signal.SIGKILL)
            second.wait(PATIENCE_S)


# -- IPython's own


def test_magics_and_shell_lines(rich: Kernel) -> None:
    assert rich.run("!echo from a shell").out == "from a shell\n"
    assert rich.run("said = !echo taken\nsaid").value == "['taken']"
    assert rich.run("%%bash\necho in bash\necho oops >&2").out == "in bash\n"
    assert "Wall time" in rich.run("%time 1").out
    unknown = rich.run("%nosuch").error
    assert unknown is not None
    assert unknown["name"] == "UsageError"
    assert "Docstring" in rich.run("len?").out
    stopped = rich.run_interrupted("!echo ready; sleep 1000\nprint('not reached')")
    assert (stopped.status, "not reached" in stopped.out) == ("interrupted", False)


def test_displays_can_be_updated_and_cleared(rich: Kernel) -> None:
    code = """
from IPython.display import HTML, clear_output, display, update_display
display(HTML("<i>a</i>"), display_id="one"); update_display(2, display_id="one"); clear_output(wait=True)
"""
    shown, update, clear = (event for event in rich.run(code).events if event["t"] in ("result", "clear"))
    assert (shown["id"], shown["update"], shown["data"]["text/html"]) == ("one", False, "<i>a</i>")
    assert (update["id"], update["update"], update["data"]["text/plain"]) == ("one", True, "2")
    assert clear["wait"] is True


def test_leaving_by_name_is_an_error_and_the_kernel_lives(rich: Kernel) -> None:
    for code in ("exit", "quit()"):
        run = rich.run(code)
        assert run.error is not None
        assert (run.error["name"], run.err) == ("SystemExit", "")


def test_it_says_what_it_is(rich: Kernel, fresh: Kernel) -> None:
    full, less = rich.client.hello(), fresh.client.hello()
    assert (full["kernel"], full["rich"], full["protocol"]) == ("ipython", True, 1)
    assert (less["kernel"], less["rich"]) == ("python", False)
    assert "IPython is not installed" in less["missing"][0]


def test_a_started_kernel_leaves_nothing_in_the_home_directory(tmp_path: Path) -> None:
    with kernel(RICH, env={"HOME": str(tmp_path)}) as one:
        one.run("1")
        assert list(tmp_path.iterdir()) == []
