"""The click side of the tree: the lazy group, and the options that every command has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from cove.cli.failures import Interrupted, PipeClosed
from cove.cli.main import COMMANDS
from cove.cli.session import Session

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Root(click.Group):
    """Loads a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, in the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(
            import_module(f"cove.cli.commands.{COMMANDS[cmd_name]}"), f"{cmd_name.replace('-', '_')}_command"
        )
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a wrong name's error says what comes near. Raises: click.UsageError."""
        name = args[0] if args else ""
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            near = _TWINS.get(name) or difflib.get_close_matches(name, list(COMMANDS), 1)
            raise click.UsageError(f'no command "{name}"' + (f"; did you mean {near[0]}?" if near else ""), ctx)
        return super().resolve_command(ctx, args)


_TWINS = {
    "list": ["ls"],
    "ps": ["ls"],
    "create": ["new"],
    "delete": ["rm"],
    "kill": ["rm"],
    "destroy": ["rm"],
    "stop": ["pause"],
    "start": ["resume"],
    "unpause": ["resume"],
    "suspend": ["hibernate"],
    "snap": ["snapshot"],
    "snapshots": ["snapshot"],
    "checkpoint": ["snapshot"],
    "commit": ["snapshot"],
    "clone": ["fork"],
    "rewind": ["rollback"],
    "inspect": ["show"],
    "sh": ["shell"],
    "ssh": ["shell"],
    "terminal": ["shell"],
    "attach": ["shell"],
    "python": ["code"],
    "repl": ["code"],
    "keys": ["key"],
    "images": ["image"],
    "ports": ["port"],
    "credentials": ["credential"],
    "secret": ["credential"],
    "expose": ["port"],
    "net": ["network"],
}
"""What other tools call it. Only ever suggested: there is one spelling."""


class Verb(click.Command):
    """A command with `--json` and `--quiet`. `fields` are what `--json FIELD,…` can pick.

    `command_after`: everything from the first word after so many positional arguments on belongs to the command that
    is run in the sandbox, options of ours may stand before and between those. `none_before`: what stands for the
    positional argument that was left out before `--`.
    """

    def __init__(
        self,
        *args: Any,
        fields: Sequence[str] = (),
        command_after: int | None = None,
        none_before: str | None = None,
        verbatim: bool = False,
        **attrs: Any,
    ) -> None:
        super().__init__(*args, **attrs)
        self.verbatim = verbatim
        self.fields = tuple(fields)
        self.command_after = command_after
        self.none_before = none_before
        if command_after is not None:
            self.allow_interspersed_args = False
        self.params += [
            click.Option(
                ["--json"],
                metavar="[FIELD,…]",
                expose_value=False,
                callback=self._set_json,
                help="Print JSON, one object per line; with names, only those fields.",
            ),
            click.Option(
                ["-q", "--quiet"], is_flag=True, expose_value=False, callback=_set_quiet, help="Say nothing but errors."
            ),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, after making plain what `--json` and the sandbox's command take."""
        if self.command_after is not None:
            args = self._ordered(self._json_values(args, plain=True))
        else:
            args = self._json_values(args, plain=False)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; a reader of our stdout that has gone ends us quietly."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise PipeClosed from error
        except KeyboardInterrupt as error:  # click would print an empty line
            raise Interrupted from error

    def _json_values(self, args: list[str], *, plain: bool) -> list[str]:
        """Give each `--json` its value: the next word if it is a list of fields, else nothing, which means all."""
        done: list[str] = []
        words = iter(range(len(args)))
        positional = 0
        for index in words:
            word = args[index]
            if word == "--" or (plain and positional > (self.command_after or 0)):
                return done + args[index:]
            if word != "--json":
                positional += not word.startswith("-")
                done.append(word)
                continue
            follower = args[index + 1] if index + 1 < len(args) else ""
            if _are_fields(follower, self.fields):
                next(words)
                done.append(f"--json={follower}")
            else:
                done.append("--json=")
        return done

    def _ordered(self, args: list[str]) -> list[str]:
        """Put options that stand between our own arguments before them: click's parser stops at the first."""
        valued = {
            name
            for param in self.params
            if isinstance(param, click.Option) and not param.is_flag
            for name in param.opts
        }
        options: list[str] = []
        words: list[str] = []
        index = 0
        while index < len(args):
            word = args[index]
            if self.verbatim and len(words) == self.command_after:
                break
            if word == "--":
                left_out = [self.none_before] if self.none_before and not words else []
                return [*options, "--", *left_out, *words, *args[index + 1 :]]
            if word.startswith("-") and word != "-":
                taken = 1 + _takes_next(word, valued)
                options += args[index : index + taken]
                index += taken
                continue
            if len(words) == self.command_after:
                break
            words.append(word)
            index += 1
        return [*options, "--", *words, *args[index:]]

    def _set_json(self, ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        del param
        if value is None:
            return
        session = ctx.ensure_object(Session)
        fields = [part for part in value.split(",") if part]
        unknown = [field for field in fields if field not in self.fields]
        if unknown:
            raise click.UsageError(f"--json: no field {unknown[0]}; there are {', '.join(self.fields)}", ctx)
        session.json, session.fields = True, tuple(fields)


def _are_fields(word: str, fields: Sequence[str]) -> bool:
    """Whether the word after `--json` is its value; a list with a wrong name in it is, and will be refused."""
    parts = word.split(",")
    return bool(word) and (all(part in fields for part in parts) or (len(parts) > 1 and parts[0] in fields))


def _takes_next(word: str, valued: set[str]) -> bool:
    """Whether an option's value is the next word. A cluster such as `-nt` is decided by its first valued letter."""
    if word.startswith("--"):
        return word in valued
    for place, letter in enumerate(word[1:], start=2):
        if f"-{letter}" in valued:
            return place == len(word)
    return False


def _set_quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    del param
    if value:
        ctx.ensure_object(Session).quiet = True


def verb(
    name: str,
    *,
    fields: Sequence[str] = (),
    command_after: int | None = None,
    none_before: str | None = None,
    verbatim: bool = False,
) -> Callable[[Any], Verb]:
    """Decorate a function `(session, …)` into the command `name`.

    `verbatim`: what stands behind the first `command_after` words is all another program's, options too.
    """

    def decorate(function: Any) -> Verb:
        own = {"command_after": command_after, "none_before": none_before, "verbatim": verbatim}
        command = click.command(name, cls=Verb, fields=fields, **own)(click.pass_obj(function))
        assert isinstance(command, Verb)  # noqa: S101 - for the type checkers
        return command

    return decorate


def noun(name: str, help_text: str, *verbs: click.Command) -> click.Group:
    """Make the group of a noun's verbs."""
    return click.Group(name, help=help_text, commands={one.name or "": one for one in verbs}, no_args_is_help=True)


class MakingNoun(click.Group):
    """The group of a noun's verbs that makes one where no verb is named: `cove snapshot BOX`, `cove snapshot ls`.

    The first word decides: a verb's name is the verb. What is called as a verb is stands behind `--`.
    """

    def __init__(self, *args: Any, making: Verb, **attrs: Any) -> None:
        super().__init__(*args, **attrs)
        self.making = making

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put in what stands for the verb that is not named."""
        ctx.meta[_BEHIND_DASHES] = "--" in args
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_MAKING, *args]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a verb, or what makes one."""
        return self.making if cmd_name == _MAKING else super().get_command(ctx, cmd_name)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the options of making one, then the verbs."""
        self.making.format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer what one can be made of beside the verbs."""
        first = next(param for param in self.making.params if isinstance(param, click.Argument))
        return [*super().shell_complete(ctx, incomplete), *first.shell_complete(ctx, incomplete)]

    def check(self, ctx: click.Context, word: str) -> None:
        """Refuse what may be a verb behind an option. Raises: click.UsageError."""
        if word in self.commands and not ctx.meta.get(_BEHIND_DASHES):
            path = (ctx.parent or ctx).command_path
            raise click.UsageError(f'"{word}" is a verb: {path} {word} …; for a sandbox of that name: {path} -- {word}')


_MAKING: Final = ""
_BEHIND_DASHES: Final = "cove.behind-dashes"


def complete_snapshot(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return names of snapshots for the shell. Never fails: a completion has nobody to tell."""
    del ctx, param
    from cove.sdk.client import Client
    from cove.sdk.errors import Error

    try:
        return [one.name for one in Client().snapshots.list(page_size=1000) if one.name.startswith(incomplete)]
    except Error:
        return []


def complete_box(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return names of live sandboxes for the shell. Never fails: a completion has nobody to tell."""
    del ctx, param
    from cove.sdk.client import Client
    from cove.sdk.errors import Error

    try:
        return [box.name for box in Client().list(page_size=1000) if box.name.startswith(incomplete)]
    except Error:
        return []


def complete_image(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return names of images for the shell. Never fails: a completion has nobody to tell."""
    del ctx, param
    from cove.sdk.client import Client
    from cove.sdk.errors import Error

    try:
        return [image.name for image in Client().images() if image.name.startswith(incomplete)]
    except Error:
        return []


def root() -> click.Group:
    """Return the tree."""
    return Root(
        "cove",
        help=(
            "Sandboxes for agents and untrusted code, on this machine or another.\n\n"
            "A sandbox is named by its name, its id, a prefix of either that fits only one, `-` for the last one used, "
            "or `.` for the one that .cove.toml names. stdout is what was asked for, stderr is talk; every command has "
            "--json. Exit codes: the command's own for run, exec and shell; 2 usage, 120 not found, 121 refused, "
            "122 not authorised, 123 no server, 124 timed out, 125 Cove failed, 130 interrupted."
        ),
        params=[
            click.Option(
                ["--version"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_show_version,
                help="Show the version.",
            )
        ],
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        no_args_is_help=True,
    )


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    del param
    if value:
        from cove import __version__

        click.echo(f"cove {__version__}")
        ctx.exit()
