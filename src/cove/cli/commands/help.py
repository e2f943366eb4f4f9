"""`cove help`: the same as `--help`, and with `--json` the whole tree for programs."""

from __future__ import annotations

from typing import Any

import click

from cove.cli.failures import NOT_FOUND, Failure
from cove.cli.session import Session
from cove.cli.terminal import as_json, put
from cove.cli.tree import MakingNoun, Verb, verb


@verb("help")
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def help_command(ctx: click.Context, session: Session, *, words: tuple[str, ...]) -> None:
    """Explain a command; with --json, print the tree.

    The tree has all commands with their arguments, options and JSON fields.
    """
    parent = ctx.parent
    assert parent is not None  # noqa: S101 - it has no other place than below the root
    command, at = parent.command, parent
    for word in words:
        found = command.get_command(at, word) if isinstance(command, click.Group) else None
        if found is None:
            raise Failure(f'no command "{" ".join(words)}"', code="not-found", exit_code=NOT_FOUND, hint="cove help")
        command, at = found, click.Context(found, parent=at, info_name=word)
    if session.json:
        put(as_json(tree(command, at)))
    else:
        put(command.get_help(at))


def tree(command: click.Command, ctx: click.Context) -> dict[str, Any]:
    """Return a command as data, with everything below it."""
    facts: dict[str, Any] = {
        "name": ctx.command_path,
        "help": _text(command.help),
        "arguments": [_argument(param) for param in command.params if isinstance(param, click.Argument)],
        "options": [_option(param) for param in command.params if isinstance(param, click.Option)],
    }
    if isinstance(command, Verb):
        facts["fields"] = list(command.fields)
    if isinstance(command, MakingNoun):
        own = tree(command.making, ctx)
        facts |= {name: own[name] for name in ("arguments", "options", "fields")}
    if isinstance(command, click.Group):
        below = [(name, command.get_command(ctx, name)) for name in command.list_commands(ctx)]
        facts["commands"] = [
            tree(one, click.Context(one, parent=ctx, info_name=name)) for name, one in below if one is not None
        ]
    return facts


def _argument(param: click.Argument) -> dict[str, Any]:
    return {"name": param.human_readable_name, "required": param.required, "many": param.nargs == -1}


def _option(param: click.Option) -> dict[str, Any]:
    return {
        "names": [*param.opts, *param.secondary_opts],
        "value": None if param.is_flag else param.metavar or param.type.name,
        "many": param.multiple,
        "help": param.help or "",
    }


def _text(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))
