"""`cove new`, `ls`, `show`, `rm`: sandboxes as such. What happens to their state: `state.py`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cove.cli.failures import usage
from cove.cli.launch import with_server
from cove.cli.options import SANDBOX_FIELDS, box_argument, create_options, pairs, sandbox_of
from cove.cli.session import Session
from cove.cli.terminal import clean, duration, facts, put, size, table
from cove.cli.tree import verb
from cove.sdk import calls
from cove.sdk.config import PROJECT_FILE
from cove.sdk.errors import Error

if TYPE_CHECKING:
    from cove.sdk.models import SandboxInfo

MEASURED = 32
"""So many sandboxes of a list are asked for their present usage, which costs a request each."""
STATE_COLOURS = {"running": "green", "paused": "yellow", "hibernated": "yellow", "failed": "red", "terminated": "dim"}


@verb("new", fields=SANDBOX_FIELDS)
@create_options
@click.option("--here", is_flag=True, help=f"Write {PROJECT_FILE}, so that this directory's box is `.`.")
def new_command(session: Session, *, here: bool, **properties: Any) -> None:
    """Make a sandbox and print its name.

    box=$(cove new)
    """
    pin = Path(PROJECT_FILE)
    if here and pin.exists():
        raise usage(f"{PROJECT_FILE} exists already", f"cat {PROJECT_FILE}")
    box, _ = with_server(session, lambda: sandbox_of(session.client, **properties))
    session.remember(box.id)
    if here:
        pin.write_text(f'box = "{clean(box.name)}"\n', encoding="utf-8")
    session.emit(box.info.raw, clean(box.name))
    session.talk(
        f"Ready in {duration((box.info.create_ms or 0) / 1000)}. In it: cove exec {clean(box.name)} -- COMMAND"
    )


@verb("ls", fields=SANDBOX_FIELDS)
@click.option("-a", "--all", "every", is_flag=True, help="Also those that have ended, for 30 days.")
@click.option("--state", multiple=True, metavar="STATE", help="Only this state. May be repeated.")
@click.option("--image", metavar="IMAGE", help="Only of this image.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Only with this label. May be repeated.")
def ls_command(
    session: Session, *, every: bool, state: tuple[str, ...], image: str | None, metadata: tuple[str, ...]
) -> None:
    """List sandboxes, newest first, all of them."""
    states = list(state)
    if every and not states:
        states = ["pending", "running", "paused", "hibernated", "stopping", "terminated", "failed"]
    found = session.client.list(
        state=states or None, image=image, metadata=pairs(metadata, "--metadata") or None, page_size=1000
    )
    if session.json:
        for box in found:
            session.emit(box.info.raw)
        return
    infos = [box.info for box in found]
    if not infos:
        session.talk("No sandboxes. Make one: cove new")
        return
    infos = [_measured(session, info) if index < MEASURED else info for index, info in enumerate(infos)]
    now = datetime.now(UTC)
    head = ("NAME", "STATE", "ISOLATION", "IMAGE", "CPU", "MEM", "IDLE", "ENDS", "BY")
    put(table(head, [_row(info, now) for info in infos], lambda i, cell: STATE_COLOURS.get(cell) if i == 1 else None))


def _measured(session: Session, info: SandboxInfo) -> SandboxInfo:
    if info.state not in {"running", "paused"}:
        return info
    try:
        return session.client.call(calls.get(info.id))
    except Error:  # it ended in between
        return info


def _row(info: SandboxInfo, now: datetime) -> tuple[str, ...]:
    is_live = info.ended_at is None
    tier = info.driver + ("+user" if info.isolation and info.isolation.user_namespace else "")
    used = size(info.usage.memory_bytes) if is_live and info.usage.memory_bytes else "-"
    memory = f"{used}/{size(info.memory_mib * 1024**2)}"
    if info.state == "hibernated":
        memory = f"0 (disk {size(info.kept_bytes)})"
    if info.ended_at is not None:
        ends = f"{duration((now - info.ended_at).total_seconds())} ago: {info.end_reason or '?'}"
    elif info.expires_at is not None:
        ends = f"in {duration(max((info.expires_at - now).total_seconds(), 0))}"
    else:
        ends = "never"
    idle = info.last_active_at if is_live else None
    return (
        info.name,
        info.state,
        tier,
        info.image,
        duration(info.usage.cpu_ms / 1000) if info.usage.cpu_ms else "-",
        memory,
        duration(max((now - idle).total_seconds(), 0)) if idle else "-",
        ends,
        info.created_by,
    )


@verb("show", fields=SANDBOX_FIELDS)
@box_argument(required=False)
def show_command(session: Session, *, box: str | None) -> None:
    """Show a sandbox: all that is known of it, and what it uses now."""
    info = session.on_box(box, lambda ref: session.client.call(calls.get(ref)))
    session.emit(info.raw)
    if not session.json:
        put(facts(info.raw))


@verb("rm", fields=SANDBOX_FIELDS)
@click.option("--all", "every", is_flag=True, help="All sandboxes of the project.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before removing several.")
@box_argument(required=False, nargs=-1)
def rm_command(session: Session, *, boxes: tuple[str, ...], every: bool, yes: bool) -> None:
    """Remove sandboxes and all that is in them.

    By its id, one that is gone already is no failure.
    """
    if bool(boxes) == every:
        raise usage("name the sandboxes to remove, or give --all", "cove ls")
    refs = [box.id for box in session.client.list(page_size=1000)] if every else list(boxes)
    if every and len(refs) > 1 and not yes:
        if not sys.stdin.isatty():
            raise usage(f"--all would remove {len(refs)} sandboxes: give --yes too", "cove rm --all --yes")
        click.confirm(f"Remove {len(refs)} sandboxes and all that is in them?", abort=True, err=True)
    for ref in refs:
        info = session.on_box(ref, lambda one: session.client.call(calls.destroy(one)))
        session.emit(info.raw)
        session.talk(f"Removed {clean(info.name)}.")
