"""`cove run` and `cove exec`: commands in sandboxes."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from cove.cli.execution import ends_on_sigterm, execute
from cove.cli.launch import with_server
from cove.cli.options import box_argument, create_options, pairs, sandbox_of
from cove.cli.session import Session
from cove.cli.terminal import clean, duration
from cove.cli.tree import verb
from cove.sdk import calls
from cove.sdk.errors import Gone, NotFound
from cove.sdk.models import CommandInfo

if TYPE_CHECKING:
    from cove.sdk.sandbox import Sandbox

EVENT_FIELDS = (
    "event", "id", "name", "data", "exit", "why", "signal", "ms", "cpu_ms", "memory_peak_bytes",
)  # fmt: skip
COMMAND = click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)


def command_options(function: Any) -> Any:
    """Add the options of a command's surroundings."""
    for option in (
        click.option(
            "-t", "--timeout", metavar="TIME", help="Kill the command after so long: 30s, 2h. Default: never."
        ),
        click.option("-n", "--no-stdin", is_flag=True, help="Do not pass our standard input on."),
        click.option("-u", "--user", metavar="USER", help="Run as this user of the sandbox. Default: root."),
        click.option("-w", "--cwd", metavar="DIR", help="Run in this directory of the sandbox."),
    ):
        function = option(function)
    return function


@verb("run", fields=EVENT_FIELDS, command_after=0)
@create_options
@command_options
@click.option("--keep", is_flag=True, help="Leave the sandbox there when the command has ended.")
@COMMAND
def run_command(  # noqa: PLR0913 - one keyword for each option
    session: Session,
    *,
    command: tuple[str, ...],
    timeout: str | None,
    no_stdin: bool,
    user: str | None,
    cwd: str | None,
    keep: bool,
    **properties: Any,
) -> int:
    """Run a command in a new sandbox.

    cove run -- python3 -c 'print(6*7)'

    The sandbox is removed when the command has ended, unless --keep. Output, piped input and the exit code are the
    command's own. Where no server runs on this machine, root starts one.
    """
    body = calls.exec_body(list(command), env=None, cwd=cwd, user=user, timeout=timeout)
    box, started = with_server(session, lambda: sandbox_of(session.client, **properties))
    if started:
        session.talk(f"Sandbox {box.name} ready in {duration((box.info.create_ms or 0) / 1000)}.")
    if keep:
        session.remember(box.id)
    with ends_on_sigterm(), _removed(session, box, keep=keep):
        if session.json:
            session.emit({"event": "sandbox", "id": box.id, "name": box.name})
        return execute(session, box.id, body, has_stdin=not no_stdin)


@contextmanager
def _removed(session: Session, box: Sandbox, *, keep: bool) -> Generator[None]:
    """Remove the sandbox at the end, however it comes, and say what to do next."""
    try:
        yield
    finally:
        if not keep:
            with suppress(Gone, NotFound):
                box.destroy()
    name = clean(box.name)
    if keep:
        session.talk(f"Kept {name}. In it: cove exec {name} -- sh -c 'ls' · Remove it: cove rm {name}")
    else:
        session.talk(f"Removed {name}. Keep one: cove run --keep · API page: cove open · All checks: cove doctor")


@verb("exec", fields=(*EVENT_FIELDS, "pid", "command", "started_at", "running"), command_after=1)
@command_options
@click.option("-e", "--env", "env", multiple=True, metavar="NAME=VALUE", help="Set a variable. May be repeated.")
@click.option("-d", "--detach", is_flag=True, help="Start it in the background and print its id; see cove logs.")
@click.option(
    "--in",
    "shell",
    metavar="SHELL",
    help="Run it as a line of this long-lived shell; new: open one and tell its id; -: the latest.",
)
@box_argument()
@COMMAND
def exec_command(  # noqa: PLR0913 - one keyword for each option
    session: Session,
    *,
    box: str,
    command: tuple[str, ...],
    timeout: str | None,
    no_stdin: bool,
    user: str | None,
    cwd: str | None,
    env: tuple[str, ...],
    detach: bool,
    shell: str | None,
) -> int:
    """Run a command in a sandbox.

    cove exec otter -- make test

    cove exec --in new otter -- 'cd /srv; export A=1'

    Words are passed as they are; for pipes and the like: cove exec otter -- sh -c 'ls | wc -l'. Ctrl-C kills the
    command. With --detach it goes on without us, and its output is kept.

    With --in a shell keeps directory, variables and jobs from one command to the next. One word is a line of its
    language, several are one program and its arguments; its input is empty, and `exit` ends the shell.
    """
    words = list(command[1:] if command[0] == "--" else command)
    if shell is not None:
        from cove.cli.shells import Line, run_in_shell

        line = Line(words, shell=shell, timeout=timeout, detach=detach, env=pairs(env, "--env"), cwd=cwd, user=user)
        return session.on_box(box, lambda ref: run_in_shell(session, ref, line))
    body = calls.exec_body(words, env=pairs(env, "--env"), cwd=cwd, user=user, timeout=timeout)
    if detach:
        return _start(session, box, body)
    return session.on_box(box, lambda ref: execute(session, ref, body, has_stdin=not no_stdin))


def _start(session: Session, box: str, body: Mapping[str, Any]) -> int:
    def start(ref: str) -> tuple[str, CommandInfo]:
        return ref, session.client.call(calls.start(ref, dict(body)))

    ref, info = session.on_box(box, start)
    session.emit(info.raw, clean(info.id))
    session.talk(f"Running as {clean(info.id)}. Its output: cove logs -f {ref} {clean(info.id)}")
    return 0
