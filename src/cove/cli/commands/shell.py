"""`cove shell`: sit at a sandbox. The sitting itself is `cove.cli.interactive`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from cove.cli.execution import Output, ends_on_sigterm, finish, why_line
from cove.cli.failures import NOT_FOUND, USAGE, Failure, usage
from cove.cli.launch import with_server
from cove.cli.options import box_argument, pairs
from cove.cli.session import LAST, Session
from cove.cli.terminal import clean, put, say, size, table
from cove.cli.tree import complete_image, verb
from cove.sdk.errors import Conflict, Error, Gone, NotFound, Unreachable

if TYPE_CHECKING:
    from cove.sdk.sandbox import Sandbox
    from cove.sdk.terminals import Terminal

FIELDS = ("id", "pid", "command", "started_at", "running", "exit", "cursor", "oldest_cursor", "cols", "rows")
NO_BOX = "--"
"""Stands for BOX where only a command was given, behind `--`."""
NOTHING_TO_START = "--attach comes back to a program that runs; there is nothing to start"
PASSED = ("TERM", "COLORTERM")
"""What a program has to know of our terminal."""


@verb("shell", fields=FIELDS, command_after=1, none_before=NO_BOX)
@click.option("-a", "--attach", metavar="ID", help="Come back to this terminal; - is the latest.")
@click.option("-l", "--list", "only_list", is_flag=True, help="List the sandbox's terminals instead.")
@click.option("--image", metavar="IMAGE", shell_complete=complete_image, help="Of a new sandbox. Default: base.")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Set a variable. May be repeated.")
@click.option("-u", "--user", metavar="USER", help="Be this user of the sandbox. Default: root.")
@click.option("-w", "--cwd", metavar="DIR", help="Begin in this directory of the sandbox.")
@box_argument(required=False)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def shell_command(  # noqa: PLR0913 - one keyword for each option
    session: Session,
    *,
    box: str | None,
    command: tuple[str, ...],
    attach: str | None,
    only_list: bool,
    image: str | None,
    env: tuple[str, ...],
    user: str | None,
    cwd: str | None,
) -> int:
    """Sit at a sandbox: a shell, or COMMAND, on a terminal.

    cove shell otter

    cove shell otter -- vim /etc/hosts

    Keys, size, colours and exit code are the program's. ~. after a line break detaches: the program goes on, and
    --attach comes back to it, also after this window was closed or the server was started anew. ~? shows help.

    Without BOX: the one that .cove.toml names, else a new sandbox, which is removed when its shell has ended.
    """
    ref = None if box == NO_BOX else box
    if only_list:
        _list(session, session.on_box(ref, session.client.get))
        return 0
    _check(session, command, attach, image, ref)
    if attach is not None and (env or user or cwd):
        raise usage(NOTHING_TO_START, "cove shell --help")
    words = list(command[1:] if command[:1] == ("--",) else command)
    wanted: dict[str, Any] = {"command": words or None, "env": _environment(env), "user": user, "cwd": cwd}
    if ref is None and attach is None and (image is not None or session.client.target.box is None):
        return _in_new_sandbox(session, image or "base", wanted)
    sandbox = session.on_box(ref, session.client.get)
    return _sit(session, sandbox, _opened(sandbox, wanted) if attach is None else _found(sandbox, attach))


def _check(session: Session, command: tuple[str, ...], attach: str | None, image: str | None, ref: str | None) -> None:
    """Refuse what cannot be, before anything is made. Raises: Failure."""
    from cove.cli.interactive import is_terminal

    if session.json:
        raise usage(
            "--json goes with --list only: a terminal's output is for a terminal", "cove exec --json BOX COMMAND"
        )
    if attach is not None and command:
        raise usage(NOTHING_TO_START, "cove shell --help")
    if image is not None and (ref is not None or attach is not None):
        raise usage("--image is for a new sandbox, and this one is there already", "cove new --image IMAGE")
    if not is_terminal():
        words = " ".join(shlex.quote(word) for word in command if word != "--") or "COMMAND"
        raise Failure(
            "cove shell needs a terminal for its input and output",
            code="usage",
            exit_code=USAGE,
            hint=f"cove exec {ref or 'BOX'} -- {words}" if ref or attach else f"cove run -- {words}",
        )


def _environment(env: tuple[str, ...]) -> dict[str, str]:
    passed = {name: value for name in PASSED if (value := os.environ.get(name))}
    return passed | pairs(env, "--env")


def _opened(sandbox: Sandbox, wanted: dict[str, Any]) -> Terminal:
    from cove.cli.interactive import window_size

    cols, rows = window_size()
    return sandbox.terminal(cols=cols, rows=rows, keep=True, **wanted)


def _found(sandbox: Sandbox, terminal_id: str) -> Terminal:
    """Return the terminal to come back to, to be read from the oldest byte that is kept. Raises: Failure."""
    name = clean(sandbox.name)
    if terminal_id == LAST:
        terminals = sandbox.terminals()
        if not terminals:
            raise Failure(f"no terminal in {name}", code="not-found", exit_code=NOT_FOUND, hint=f"cove shell {name}")
        terminal_id = max(terminals, key=lambda one: one.info.raw.get("started_at") or "").id
    try:
        info = sandbox.attach_terminal(terminal_id).info
    except NotFound as error:
        error.hint = f"cove shell --list {name}"
        raise
    return sandbox.attach_terminal(terminal_id, after=info.oldest_cursor)


def _sit(session: Session, sandbox: Sandbox, terminal: Terminal) -> int:
    """Sit at a terminal; returns the program's exit code, or 0 after detaching."""
    from cove.cli.interactive import Interaction, window_size

    info = terminal.info
    replayed = info.cursor - terminal.cursor
    if (info.cols, info.rows) != window_size():
        with suppress(Conflict):
            terminal.resize(*window_size())
    interaction = Interaction(terminal, replayed=max(replayed, 0))
    back = f"cove shell {clean(sandbox.name)} --attach {clean(terminal.id)}"
    try:
        exit_ = interaction.run()
    except Unreachable as error:
        error.hint = f"the terminal goes on; come back to it: {back}"
        raise
    if exit_ is None:
        session.talk(f"Detached from {clean(terminal.id)}, which goes on. Back: {back}")
        return 0
    with suppress(Error):  # the sandbox may be gone
        terminal.forget()
    if interaction.is_mid_line and why_line(exit_):
        say("")  # a note stands on a line of its own
    return finish(session, exit_, Output(session), list(info.command))


def _in_new_sandbox(session: Session, image: str, wanted: dict[str, Any]) -> int:
    box, _ = with_server(session, lambda: session.client.create(image, keep=True))
    name = clean(box.name)
    with ends_on_sigterm(), _removed(session, box) as kept:
        terminal = _opened(box, wanted)
        code = _sit(session, box, terminal)
        if terminal.exit is None:
            kept.append(name)
            session.remember(box.id)
            session.talk(f"Its sandbox {name} stays. Remove it: cove rm {name}")
        return code


@contextmanager
def _removed(session: Session, box: Sandbox) -> Generator[list[str]]:
    """Remove the sandbox at the end, however it comes, unless its name was put into the list."""
    kept: list[str] = []
    try:
        yield kept
    finally:
        if not kept:
            with suppress(Gone, NotFound):
                box.destroy()
            session.talk(f"Removed {clean(box.name)}. Keep one: cove new, then cove shell BOX")


def _list(session: Session, sandbox: Sandbox) -> None:
    rows: list[tuple[str, ...]] = []
    for terminal in sandbox.terminals():
        info = terminal.info
        if session.json:
            session.emit(info.raw)
            continue
        state = "running" if info.running else f"exit {terminal.exit.exit if terminal.exit else '?'}"
        rows.append((info.id, state, f"{info.cols}x{info.rows}", size(info.cursor), shlex.join(info.command)))
    if rows:
        put(table(("ID", "STATE", "SIZE", "OUTPUT", "COMMAND"), rows, lambda _column, _cell: None))
    elif not session.json:
        session.talk("No terminals.")
