"""The kernel of JavaScript and TypeScript."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernels_support import NODE, PATIENCE_S, PLAIN, Kernel, kernel


@pytest.fixture(scope="module")
def node() -> Iterator[Kernel]:
    with kernel(NODE, "--language", "javascript") as one:
        yield one


@pytest.fixture
def fresh() -> Iterator[Kernel]:
    with kernel(NODE) as one:
        yield one


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("1 + 1", "2"),
        ("const x = 1; x", "1"),
        ("const x = 2; x", "2"),
        ("x", "2"),
        ("let {a, ...rest} = {a: 1, c: 2}; rest", "{ c: 2 }"),
        ("{a: 1}", "{ a: 1 }"),
        ("await new Promise((done) => setTimeout(done, 5)); 'done'", "'done'"),
        ("const y = await Promise.resolve(5); y", "5"),
        (
            "import fs, {existsSync as is} from 'fs'; import * as os from 'os'\nis('/') && fs.existsSync(os.tmpdir())",
            "true",
        ),
        ("(await import('node:path')).sep", "'/'"),
        ("require('path').sep + path.sep", "'//'"),
        ("class A { #p = 1; static s = 2 }; new A()", "A {}"),
        ("export const z = 9; z", "9"),
        ("function sum(a, b) { return a + b }\nsum(1, 2)", "3"),
        ("if (true) { 5 }", "5"),
        ("10n", "10n"),
        ("-0", "-0"),
        ("NaN", "NaN"),
        ("null", "null"),
        ("Symbol('s')", "Symbol(s)"),
        ("undefined", None),
        ("", None),
        ("// nothing", None),
        ("Promise.resolve(4)", "Promise { 4 }"),
        ("'text with import(x) and await in it'", "'text with import(x) and await in it'"),
    ],
)
def test_values(node: Kernel, code: str, value: str | None) -> None:
    run = node.run(code)
    assert (run.status, run.value) == ("ok", value), run.events


@pytest.mark.parametrize(
    ("code", "name", "value"),
    [
        ("throw new TypeError('bad')", "TypeError", "bad"),
        ("await Promise.reject(new RangeError('late'))", "RangeError", "late"),
        ("throw 5", "Thrown", "5"),
        ("throw undefined", "Thrown", "undefined"),
        ("let a = ;", "SyntaxError", "Unexpected token ';'"),
        ("function r() { r() }\nr()", "RangeError", "Maximum call stack size exceeded"),
        ("process.exit(3)", "SystemExit", None),
        ("await import('./no-such.mjs')", "Error", None),
        ("require('no-such')", "Error", None),
        ("await new Promise(() => {}); for (;;) {}", "KeyboardInterrupt", ""),
    ],
)
def test_errors_are_told_and_the_kernel_lives(node: Kernel, code: str, name: str, value: str | None) -> None:
    run = node.run_interrupted(f"console.log('ready'); {code}") if name == "KeyboardInterrupt" else node.run(code)
    assert run.error is not None
    assert run.error["name"] == name
    assert value is None or run.error["value"] == value
    assert not any("execute.mjs" in line or "\x1b" in line for line in run.error["traceback"])
    assert node.run("1").value == "1"


def test_a_traceback_is_the_codes_own(node: Kernel) -> None:
    run = node.run("function deep() {\n  throw new Error('x')\n}\ndeep()")
    assert run.error is not None
    number = run.last["count"]
    assert run.error["traceback"] == ["Error: x", f"    at deep (run-{number}.js:2:9)", f"    at run-{number}.js:4:1"]
    wrong = node.run("1\nlet = = 2")
    assert wrong.error is not None
    assert wrong.error["traceback"][1] == "let = = 2"


def test_output_is_in_order_with_that_of_programs(node: Kernel) -> None:
    code = """
const { execSync, spawn } = require("child_process");
console.log("a"); console.error("b");
execSync("echo c; echo d > /dev/stdout", { stdio: "inherit" });
display(1);
process.stdout.write("e\\n");
execSync("echo f >&2", { stdio: "inherit" });
console.log("g");
2
"""
    for _ in range(10):
        assert node.run(code).order == [
            ("stdout", "a\n"),
            ("stderr", "b\n"),
            ("stdout", "c\nd\n"),
            ("result", "1"),
            ("stdout", "e\n"),
            ("stderr", "f\n"),
            ("stdout", "g\n"),
            ("result", "2"),
        ]


def test_bytes_become_text_and_lone_surrogates_do_not_leave(node: Kernel) -> None:
    code = (
        "for (const n of [0xe2, 0x82, 0xac, 0xff]) process.stdout.write(Buffer.from([n])); console.log('\\ud800!'); 0"
    )
    assert node.run(code).out == "€��!\n"
    assert node.run("display({'text/plain': '\\ud800'})").results[0]["data"] == {"text/plain": "\ufffd"}


@pytest.mark.parametrize(
    "code",
    [
        "for (;;) {}",
        "await 1; for (;;) {}",
        "await new Promise(() => {})",
        "require('child_process').execSync('sleep 1000')",
        "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)",
        "setTimeout(() => { for (;;) {} }, 1); await new Promise((done) => setTimeout(done, 1e6))",
        "/(a+)+$/.test('a'.repeat(64) + 'b')",
    ],
)
def test_an_interrupt_ends_whatever_runs(node: Kernel, code: str) -> None:
    run = node.run_interrupted(f"console.log('ready'); {code}")
    assert run.status == "interrupted"
    for _ in range(20):
        assert node.run("1 + 1").value == "2"


def test_what_can_never_come_is_told() -> None:
    with kernel(NODE) as one:
        one.client.start("await new Promise(() => {})")
        one.client.expect("started")
        one.interrupt()
        assert one.client.expect("error")["name"] == "KeyboardInterrupt"
        assert one.client.expect("done")["status"] == "interrupted"


def test_late_errors_are_output_and_kill_nothing(node: Kernel) -> None:
    run = node.run(
        "setTimeout(() => { throw new Error('timer') }, 1); Promise.reject(new Error('promise'));"
        "await new Promise((done) => setTimeout(done, 50)); 7"
    )
    assert (run.status, run.value) == ("ok", "7")
    assert "timer" in run.err
    assert "promise" in run.err


def test_displays(node: Kernel) -> None:
    run = node.run(
        "display({'text/html': '<b>x</b>'}); ({[Symbol.for('Jupyter.display')]() { return {'text/markdown': '*y*'} }})"
    )
    shown, main = run.results
    assert shown["data"] == {"text/html": "<b>x</b>"}
    assert main["data"]["text/markdown"] == "*y*"
    whole = node.run("display({'text/html': 'é'.repeat(1e6)})").results[0]
    assert whole["data"]["text/html"] == "é" * 1_000_000
    cut = node.run("display({'text/plain': 'short', 'text/html': 'x'.repeat(33 * 2 ** 20)})").results[0]
    assert "33.0 MiB" in cut["data"]["text/plain"]


def test_setup_variables_and_completion(fresh: Kernel, tmp_path: Path) -> None:
    fresh.client.send(op="setup", env={"GIVEN": "yes"}, cwd=str(tmp_path))
    assert fresh.client.expect("ready")["cwd"] == str(tmp_path)
    (tmp_path / "own.mjs").write_text("export const name = 'own';")
    assert (
        fresh.run(
            "import { name } from './own.mjs'; [name, process.env.GIVEN, process.env.ONCE]", env={"ONCE": "1"}
        ).value
        == "[ 'own', 'yes', '1' ]"
    )
    assert fresh.run("process.env.ONCE").value is None
    fresh.client.send(op="complete", id=1, code="console.lo", cursor=10)
    assert fresh.client.expect("completed") == {"t": "completed", "id": 1, "matches": ["log"], "start": 8, "end": 10}


def test_the_death_of_the_interpreter_is_told_after_all_that_it_wrote(fresh: Kernel) -> None:
    run = fresh.run("console.log('last words'); process.kill(process.pid, 'SIGKILL'); await new Promise(() => {})")
    assert run.out == "last words\n"
    assert (run.last["t"], run.last["code"]) == ("died", -9)
    assert fresh.process.wait(PATIENCE_S) == 128 + 9


def test_a_flood_is_delivered_whole(node: Kernel) -> None:
    node.client.start(
        "require('child_process').execSync(\"head -c 20000000 /dev/zero | tr '\\\\0' x\", {stdio: 'inherit'});"
        "for (let n = 0; n < 5000; n++) console.log('y'.repeat(999))"
    )
    assert sum(len(event["d"]) for event in node.client.rest() if event["t"] == "stdout") == 25_000_000


def test_typescript() -> None:
    with kernel(NODE, "--language", "typescript") as one:
        assert one.run("interface A { a: string }\nconst x: A = { a: 's' }; x").value == "{ a: 's' }"
        assert one.run("enum E { A, B }\nE.B").value == "1"
        assert one.run("x.a as unknown as number").value == "'s'"
        wrong = one.run("let z: = 3").error
        assert wrong is not None
        assert wrong["name"] == "SyntaxError"


def test_a_kernel_that_is_not_used_ends() -> None:
    with kernel(NODE, "--idle-s", "0.5") as one:
        assert one.run("1").status == "ok"
        assert one.process.wait(PATIENCE_S) == 0


def test_what_cannot_start_says_why() -> None:
    refused = subprocess.run(
        [*NODE, "--context", "x", "--language", "cobol"], capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert (refused.returncode, refused.stderr) == (64, b"There is no kernel for cobol.\n")
    refused = subprocess.run(
        [*PLAIN, "--context", "x", "--language", "cobol"], capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert refused.returncode == 64
    assert b"no kernelspec" in refused.stderr


def test_the_probe_tells_what_the_image_has(tmp_path: Path) -> None:
    spec = tmp_path / "kernels" / "own"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": ["own", "{connection_file}"], "display_name": "Own"}))
    (tmp_path / "kernels" / "broken").mkdir()
    (tmp_path / "kernels" / "broken" / "kernel.json").write_text("no json")
    env = {**os.environ, "JUPYTER_PATH": str(tmp_path), "PATH": f"{Path(NODE[0]).parent}:{os.environ['PATH']}"}
    said = subprocess.run([*PLAIN, "--probe"], capture_output=True, timeout=PATIENCE_S, check=True, env=env)
    rows = {row["name"]: row for row in json.loads(said.stdout)["languages"]}
    assert rows["python"] == {
        "name": "python",
        "kernel": "python",
        "usable": True,
        "rich": False,
        "missing": ["IPython is not installed in this image: no magics, no !commands."],
    }
    assert rows["typescript"]["usable"]
    assert rows["own"]["usable"] is False
    assert "jupyter_client" in rows["own"]["missing"][0]
    assert "broken" not in rows
    own = subprocess.run([*NODE, "--probe"], capture_output=True, timeout=PATIENCE_S, check=True)
    assert [row["name"] for row in json.loads(own.stdout)["languages"]] == ["javascript", "typescript"]
