"""`cove project`: tenants."""

from __future__ import annotations

import click

from cove.cli.session import Session
from cove.cli.terminal import clean, put, table
from cove.cli.tree import noun, verb

FIELDS = ("id", "created_at", "default_driver", "drivers")


@verb("create", fields=FIELDS)
@click.argument("project")
@click.option("--default-driver", metavar="NAME", help="What its sandboxes get unasked. Default: the server's.")
@click.option("--drivers", metavar="NAMES", default="", help="What they may use: gvisor,runc. Default: any.")
def create_command(session: Session, *, project: str, default_driver: str | None, drivers: str) -> None:
    """Make a project: sandboxes and keys of one are not seen by another."""
    made = session.client.create_project(project, default_driver=default_driver, drivers=_names(drivers))
    session.emit({name: getattr(made, name) for name in FIELDS}, clean(made.id))
    session.talk(f"A key for it: cove key create NAME --project {clean(made.id)}")


@verb("set", fields=FIELDS)
@click.argument("project")
@click.option("--default-driver", metavar="NAME", help="What its sandboxes get unasked; `server`: the server's.")
@click.option("--drivers", metavar="NAMES", help="What they may use: gvisor,runc; `any`: all.")
def set_command(session: Session, *, project: str, default_driver: str | None, drivers: str | None) -> None:
    """Change which isolation drivers a project's new sandboxes may use."""
    from cove.sdk.units import UNSET

    changed = session.client.change_project(
        project,
        default_driver=UNSET if default_driver is None else None if default_driver == "server" else default_driver,
        drivers=UNSET if drivers is None else () if drivers == "any" else _names(drivers),
    )
    session.emit({name: getattr(changed, name) for name in FIELDS}, clean(changed.id))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)


@verb("ls", fields=FIELDS)
def ls_command(session: Session) -> None:
    """List projects."""
    projects = session.client.projects()
    for one in projects:
        session.emit({name: getattr(one, name) for name in FIELDS})
    if not session.json:
        rows = [
            (
                one.id,
                f"{one.created_at:%Y-%m-%d %H:%M}" if one.created_at else "-",
                one.default_driver or "-",
                ",".join(one.drivers) or "any",
            )
            for one in projects
        ]
        put(table(("ID", "CREATED", "DEFAULT DRIVER", "DRIVERS"), rows, lambda _column, _cell: None))


project_command = noun("project", "Projects: tenants of one server.", create_command, set_command, ls_command)
