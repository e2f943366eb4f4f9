from __future__ import annotations

import click
import pytest

from cove.cli.main import commands
from cove.cli.session import Session
from cove.cli.tree import Verb


def verb_named(name: str) -> Verb:
    command = commands().get_command(None, name)  # type: ignore[arg-type]
    assert isinstance(command, Verb)
    return command


def parsed(name: str, *words: str) -> tuple[dict[str, object], Session]:
    command = verb_named(name)
    session = Session()
    context = command.make_context(name, list(words), obj=session)
    return context.params, session


@pytest.mark.parametrize(
    "line",
    ["-t 5s b true -t x", "b -t 5s true -t x", "b -t5s -- true -t x", "--timeout 5s b -- true -t x",
     "b --timeout=5s true -t x", "-t 5s -- b true -t x"],
)  # fmt: skip
def test_our_options_stand_before_the_command_and_its_own_after_it(line: str) -> None:
    params, _ = parsed("exec", *line.split())
    assert (params["box"], params["command"], params["timeout"]) == ("b", ("true", "-t", "x"), "5s")


@pytest.mark.parametrize("line", ["b -i key -L 1:a:2 make -j", "-q b -i key -L 1:a:2 make -j"])
def test_behind_the_sandbox_everything_is_the_other_programs(line: str) -> None:
    params, _ = parsed("ssh", *line.split())
    assert (params["box"], params["arguments"]) == ("b", ("-i", "key", "-L", "1:a:2", "make", "-j"))


def test_a_cluster_of_short_options_takes_its_value() -> None:
    params, _ = parsed("exec", "-nt", "5s", "b", "true")
    assert (params["no_stdin"], params["timeout"], params["command"]) == (True, "5s", ("true",))


def test_options_behind_the_first_word_are_the_commands() -> None:
    params, session = parsed("run", "ls", "--json", "--image", "x", "--", "y")
    assert params["command"] == ("ls", "--json", "--image", "x", "--", "y")
    assert not session.json


def test_a_command_that_is_missing_is_wrong_usage() -> None:
    for line in (["b"], ["b", "--"], []):
        with pytest.raises(click.UsageError):
            parsed("exec", *line)


@pytest.mark.parametrize(
    ("line", "fields", "box"),
    [
        ("--json b", (), "b"),
        ("b --json", (), "b"),
        ("--json id,state b", ("id", "state"), "b"),
        ("--json=id b", ("id",), "b"),
        ("b --json name", ("name",), "b"),
    ],
)
def test_json_takes_the_next_word_only_if_it_names_fields(line: str, fields: tuple[str, ...], box: str) -> None:
    params, session = parsed("pause", *line.split())
    assert (session.json, session.fields, params["box"]) == (True, fields, box)


def test_json_before_the_command_of_exec() -> None:
    params, session = parsed("exec", "--json", "b", "true")
    assert (session.json, params["box"], params["command"]) == (True, "b", ("true",))
    params, session = parsed("exec", "b", "--json", "exit,why", "true")
    assert (session.fields, params["command"]) == (("exit", "why"), ("true",))


def test_an_unknown_field_is_refused_with_the_known_ones() -> None:
    with pytest.raises(click.UsageError, match="no field bogus; there are id, name"):
        parsed("ls", "--json=bogus")
    with pytest.raises(click.UsageError, match="no field bogus"):
        parsed("ls", "--json", "id,bogus")
