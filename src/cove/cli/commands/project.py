"""`cove project`: tenants."""

from __future__ import annotations

import click

from cove.cli.session import Session
from cove.cli.terminal import clean, put, table
from cove.cli.tree import noun, verb

FIELDS = ("id", "created_at")


@verb("create", fields=FIELDS)
@click.argument("project")
def create_command(session: Session, *, project: str) -> None:
    """Make a project: sandboxes and keys of one are not seen by another."""
    made = session.client.create_project(project)
    session.emit({name: getattr(made, name) for name in FIELDS}, clean(made.id))
    session.talk(f"A key for it: cove key create NAME --project {clean(made.id)}")


@verb("ls", fields=FIELDS)
def ls_command(session: Session) -> None:
    """List projects."""
    projects = session.client.projects()
    for one in projects:
        session.emit({name: getattr(one, name) for name in FIELDS})
    if not session.json:
        rows = [(one.id, f"{one.created_at:%Y-%m-%d %H:%M}" if one.created_at else "-") for one in projects]
        put(table(("ID", "CREATED"), rows, lambda _column, _cell: None))


project_command = noun("project", "Projects: tenants of one server.", create_command, ls_command)
