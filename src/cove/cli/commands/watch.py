"""`cove watch`: what happens in a directory of a sandbox, a line for each event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from cove.cli.execution import ends_on_sigterm
from cove.cli.failures import FAILED, Failure, PipeClosed
from cove.cli.options import box_argument
from cove.cli.session import Session
from cove.cli.terminal import clean, say
from cove.cli.tree import verb

if TYPE_CHECKING:
    from cove.sdk.watches import Change, Watch

FIELDS = ("kind", "path", "source", "directory", "at", "lost")
KINDS = ("create", "modify", "attributes", "remove", "move")
WHY: Final = {
    "removed": "the directory was removed",
    "moved": "the directory was moved away",
    "limit": "there are more directories than can be watched",
    "sandbox-gone": "the sandbox ended",
}


@verb("watch", fields=FIELDS)
@click.option("-k", "--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Only these. May be repeated.")
@click.option("-g", "--glob", metavar="PATTERN", help="Only these: '*.py' by name, 'src/**/*.py' by path below DIR.")
@click.option("--flat", is_flag=True, help="Only what is in DIR itself, not below.")
@box_argument()
@click.argument("path", metavar="DIR")
def watch_command(  # noqa: PLR0913 - one keyword for each option
    session: Session, *, box: str, path: str, kinds: tuple[str, ...], glob: str | None, flat: bool
) -> None:
    """Print what happens to the files in a directory.

    cove watch otter /root

    A line for each event, until Ctrl-C. Directories made later are watched too; many writes to a file are few lines.
    """

    def start(ref: str) -> Watch:
        from cove.sdk.sandbox import Sandbox

        sandbox = Sandbox(ref, client=session.client)
        return sandbox.watch(path, recursive=not flat, kinds=kinds or None, glob=glob)

    with ends_on_sigterm(), session.on_box(box, start) as watch:
        session.talk(f"Watching {clean(path)}. Ctrl-C ends it.")
        for change in watch:
            _print(session, change)
    if watch.ended in WHY:
        raise Failure(WHY[watch.ended], code=f"watch-{watch.ended}", exit_code=FAILED, hint="cove ls")


def _print(session: Session, change: Change) -> None:
    if change.lost and not session.json:
        say(f"note: {change.lost} events before this are no longer kept")
    if change.kind == "overflow" and not session.json:
        say("note: too much happened at once; some events were lost")
        return
    fields: dict[str, Any] = {name: getattr(change, name) for name in FIELDS}
    fields["at"] = change.at.isoformat() if change.at else None
    try:
        session.emit(fields, _line(change))
    except BrokenPipeError as error:
        raise PipeClosed from error


def _line(change: Change) -> str:
    slash = "/" if change.directory else ""
    before = f"{clean(change.source)}{slash} -> " if change.source is not None else ""
    return f"{change.kind:<10} {before}{clean(change.path)}{slash}"
