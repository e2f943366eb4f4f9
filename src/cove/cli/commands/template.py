"""`cove template`: names for snapshots, with copies kept ready."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from cove.cli.session import Session
from cove.cli.terminal import clean, put, table
from cove.cli.tree import noun, verb

if TYPE_CHECKING:
    from cove.sdk.template_calls import Template

FIELDS: Final = (
    "name", "snapshot", "snapshot_name", "ready", "ready_now", "claimed", "missed", "reason", "created_at",
    "created_by",
)  # fmt: skip


def _wire(template: Template) -> dict[str, Any]:
    return {name: getattr(template, name) for name in FIELDS}


@verb("set", fields=FIELDS)
@click.argument("name")
@click.argument("snapshot", required=False)
@click.option("--ready", type=click.IntRange(0, 1000), metavar="N", help="How many copies to keep ready. New: 0.")
def set_command(session: Session, *, name: str, snapshot: str | None, ready: int | None) -> None:
    """Make NAME stand for a snapshot, or change it.

    cove template set warm-python imports-done --ready 4

    Copies that are ready are started already and stand still: a sandbox of the template claims one in milliseconds.
    Their memory is the machine's until then, so the key needs the scope admin.
    """
    template = session.client.templates.set(name, snapshot, ready=ready)
    session.emit(_wire(template), clean(template.name))
    if template.reason is not None:
        session.talk(f"No copies are kept ready: {clean(template.reason)}.")
    session.talk(f"Make a sandbox of it: cove restore --template {clean(template.name)}")


@verb("ls", fields=FIELDS)
def ls_command(session: Session) -> None:
    """List templates and what is ready of them."""
    templates = session.client.templates.list()
    for template in templates:
        session.emit(_wire(template))
    if session.json:
        return
    if not templates:
        session.talk("No templates. Make one of a snapshot: cove template set NAME SNAPSHOT")
        return
    rows = [(one.name, one.snapshot_name or one.snapshot, _ready(one), str(one.claimed)) for one in templates]
    put(table(("NAME", "SNAPSHOT", "READY", "CLAIMED"), rows, lambda _column, _cell: None))


def _ready(template: Template) -> str:
    count = f"{template.ready_now}/{template.ready}"
    return count if template.reason is None else f"{count} ({template.reason})"


@verb("rm", fields=("name",))
@click.argument("name")
def rm_command(session: Session, *, name: str) -> None:
    """Remove a template. Its snapshot stays, and what was made of it goes on."""
    session.client.templates.remove(name)
    session.emit({"name": name})
    session.talk(f"Template {clean(name)} is gone; its snapshot stays.")


template_command = noun("template", "Names for snapshots, with copies kept ready.", set_command, ls_command, rm_command)
