"""Languages of executions as data: the commands that come of them."""

from __future__ import annotations

import shlex

import pytest

from cove.core.runtimes import RUNTIMES, command_of, installs_of, runtime_of, work_directory
from cove.model.errors import BadRequest
from cove.model.execution import ExecutionSpec


def test_they_are_told_in_their_order() -> None:
    with pytest.raises(BadRequest) as refused:
        runtime_of("x")
    assert refused.value.public == 'Unknown runtime: "x". Available: python, node, bun, bash, deno, agent'


@pytest.mark.parametrize(
    ("runtime", "path", "command"),
    [
        ("python", None, ("python3", "-c", "code")),
        ("python", "/sandbox/main.py", ("python3", "/sandbox/main.py")),
        ("node", None, ("node", "-e", "code")),
        ("bun", "/sandbox/main.ts", ("bun", "run", "/sandbox/main.ts")),
        ("bash", None, ("bash", "-c", "code")),
    ],
)
def test_commands(runtime: str, path: str | None, command: tuple[str, ...]) -> None:
    assert command_of(RUNTIMES[runtime], ExecutionSpec(runtime=runtime, code="code"), "code", path) == command


def test_deno_is_always_a_file_with_its_rights() -> None:
    command = command_of(RUNTIMES["deno"], ExecutionSpec(runtime="deno", code="x"), "x", "/sandbox/main.mts")
    assert command[:2] == ("deno", "run")
    assert command[-1] == "/sandbox/main.mts"
    assert RUNTIMES["deno"].inline is None


def test_the_agents_prompt_is_one_argument() -> None:
    code = 'it\'s "$HOME" `id`\n; rm -rf /'
    spec = ExecutionSpec(runtime="agent", code=code, flags="--model x")
    shell = command_of(RUNTIMES["agent"], spec, code, None)
    assert shell[:2] == ("bash", "-c")
    words = shlex.split(shell[2])
    assert words[:3] == ["pi", "--no-session", "--append-system-prompt"]
    assert words[4:] == ["--model", "x", "-p", code]


def test_packages_are_arguments_and_read_by_no_shell() -> None:
    bad = "x; touch /tmp/pwned"
    for name in ("python", "node", "bun", "agent", "bash"):
        (command,) = installs_of(RUNTIMES[name], ("a", bad))
        assert command[-2:] == ("a", bad)
    assert installs_of(RUNTIMES["deno"], ("a", bad)) == [("deno", "cache", "a"), ("deno", "cache", bad)]
    assert installs_of(RUNTIMES["python"], ()) == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("", "/sandbox"), ("a", "/sandbox/a"), ("/sandbox/a/../b/", "/sandbox/b"), ("./x", "/sandbox/x")],
)
def test_work_directories(wanted: str, found: str) -> None:
    assert work_directory(wanted) == found


@pytest.mark.parametrize("wanted", ["..", "/", "/sandboxx", "/sandbox/../etc", "a/../../b"])
def test_work_directories_outside(wanted: str) -> None:
    with pytest.raises(BadRequest, match="Working directory must be inside /sandbox"):
        work_directory(wanted)
