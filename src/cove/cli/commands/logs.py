"""`cove logs`: the kept output of background commands."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import click

from cove.cli.execution import Output, why_line
from cove.cli.failures import NOT_FOUND, Failure
from cove.cli.options import box_argument
from cove.cli.session import Session
from cove.cli.terminal import clean, paint, put, say, size, table
from cove.cli.tree import verb
from cove.sdk.jobs import Job

if TYPE_CHECKING:
    from cove.sdk.results import Chunk, Exit
    from cove.sdk.sandbox import Sandbox

FIELDS = ("event", "data", "exit", "why", "signal", "ms", "cpu_ms", "memory_peak_bytes", "id", "pid", "command",
          "started_at", "running", "cursor", "oldest_cursor")  # fmt: skip


@verb("logs", fields=FIELDS)
@click.option("-f", "--follow", is_flag=True, help="Go on until the command ends. Ctrl-C stops reading, nothing else.")
@click.option("-l", "--list", "only_list", is_flag=True, help="List the background commands instead.")
@box_argument(required=False)
@click.argument("command_id", metavar="[ID]", required=False)
def logs_command(session: Session, *, box: str | None, command_id: str | None, follow: bool, only_list: bool) -> None:
    """Print what a background command wrote.

    cove logs -f otter

    One that cove exec --detach started; without an id, the latest. Both streams come as they were written, stdout
    to stdout, stderr to stderr. The sandbox keeps the last MiB.
    """
    sandbox = session.on_box(box, session.client.get)
    if only_list:
        _list(session, sandbox)
        return
    job = sandbox.attach(command_id) if command_id else _latest(session, sandbox)
    output = Output(session)
    if follow:
        for chunk in job:
            _pass_on(output, chunk)
    else:
        while chunks := job.output():
            for chunk in chunks:
                _pass_on(output, chunk)
        job.refresh()
    if job.exit is not None:
        _tell_end(session, output, job.exit)
    elif not follow:
        session.talk("It still runs. To go on reading: cove logs -f")


def _pass_on(output: Output, chunk: Chunk) -> None:
    if chunk.lost:
        say(f"{paint('note:', 'yellow', sys.stderr)} {size(chunk.lost)} before this are no longer kept")
    output.chunk(chunk)


def _tell_end(session: Session, output: Output, exit_: Exit) -> None:
    output.event("exit", {name: getattr(exit_, name) for name in ("exit", "why", "signal", "ms", "cpu_ms")})
    why = why_line(exit_)
    session.talk(f"It ended with exit code {exit_.exit}" + (f": {why}" if why else "."))


def _latest(session: Session, sandbox: Sandbox) -> Job:
    jobs = sandbox.jobs()
    if not jobs:
        name = clean(sandbox.name)
        raise Failure(
            f"no background command in {name}",
            code="not-found",
            exit_code=NOT_FOUND,
            hint=f"cove exec --detach {name} -- COMMAND",
        )
    if len(jobs) > 1:
        session.talk(f"Of the latest of {len(jobs)}; all: cove logs --list {clean(sandbox.name)}")
    return jobs[-1]


def _list(session: Session, sandbox: Sandbox) -> None:
    rows: list[tuple[str, ...]] = []
    for job in sandbox.jobs():
        info = job.info
        if session.json:
            session.emit(info.raw)
            continue
        state = "running" if info.running else f"exit {job.exit.exit if job.exit else '?'}"
        rows.append((info.id, state, size(info.cursor), shlex.join(info.command)))
    if rows:
        put(table(("ID", "STATE", "OUTPUT", "COMMAND"), rows, lambda _column, _cell: None))
    elif not session.json:
        session.talk("No background commands.")
