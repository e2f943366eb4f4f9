from __future__ import annotations

import subprocess
import sys

import pytest

from cove.cli.main import COMMANDS, commands, is_plain_exec, wants_json


@pytest.mark.parametrize("line", ["exec box true", "exec box -- true -x", "exec - ls -l", "exec box -- -odd"])
def test_a_plain_exec_needs_no_parser(line: str) -> None:
    assert is_plain_exec(line.split())


@pytest.mark.parametrize("line", ["exec", "exec box", "exec box --", "exec -n box true", "exec box -n true", "ls a b"])
def test_anything_else_does(line: str) -> None:
    assert not is_plain_exec(line.split())


def test_a_plain_exec_loads_neither_click_nor_the_http_library() -> None:
    code = (
        "import sys; from cove.cli.main import main; main(['exec', 'x', 'true']);"
        "print([n for n in ('click', 'httpx2', 'asyncio', 'msgspec', 'cove.server') if n in sys.modules])"
    )
    env = {"COVE_RUN_DIR": "/nowhere", "HOME": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "[]", done.stderr


def test_json_is_looked_for_among_our_own_words_only() -> None:
    assert wants_json(["ls", "--json"])
    assert wants_json(["ls", "--json=id"])
    assert not wants_json(["exec", "b", "--", "x", "--json"])


def test_the_commands_own_json_option_does_not_change_our_errors(cove) -> None:  # noqa: ANN001
    assert cove("exec", "nope", "prog", "--json").err.startswith("error: ")
    assert cove("exec", "-n", "nope", "prog", "--json").err.startswith("error: ")


def test_every_row_of_the_table_is_a_command_with_help() -> None:
    root = commands()
    for name in COMMANDS:
        command = root.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.name == name
        assert command.help


def test_an_unknown_command_names_the_one_that_was_meant(cove) -> None:  # noqa: ANN001
    assert "did you mean ls?" in cove("list").err
    assert "did you mean pause?" in cove("stop").err
    assert "did you mean exec?" in cove("exce").err
    ran = cove("frobnicate")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == 'error: no command "frobnicate" (usage)\nhint: cove --help\n'


def test_usage_errors_name_the_help_to_read(cove) -> None:  # noqa: ANN001
    assert cove("key", "create").err.splitlines()[1] == "hint: cove key create --help"
    assert cove("ls", "--bogus", "--json").error["code"] == "usage"


def test_a_noun_alone_shows_its_verbs(cove) -> None:  # noqa: ANN001
    for noun in ("image", "snapshot"):
        ran = cove(noun)
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith(f"Usage: cove {noun}")
        assert "error:" not in ran.err
