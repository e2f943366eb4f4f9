"""`cove service`: the server as a systemd service."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from cove.cli.session import Session
from cove.cli.terminal import put
from cove.cli.tree import noun, verb

if TYPE_CHECKING:
    from cove.server.service import ServiceSettings

UNIT_NAME = click.option("--name", default="cove", show_default=True, metavar="NAME", help="The unit's name.")


def _settings(session: Session, name: str) -> ServiceSettings:
    from cove.server.service import ServiceSettings, default_program
    from cove.server.settings_table import TABLE

    variables = {row.variable for row in TABLE if row.name != "bootstrap_keys"} | {"COVE_CONFIG"}
    environment = {variable: os.environ[variable] for variable in sorted(variables & os.environ.keys())}
    if os.environ.get("COVE_BOOTSTRAP_KEYS"):
        session.talk("COVE_BOOTSTRAP_KEYS is a secret and does not go into the unit: put it into DATA_DIR/cove.toml.")
    return ServiceSettings(program=default_program(), environment=environment, name=name)


@verb("install", fields=("name", "path", "done"))
@UNIT_NAME
@click.option("--print", "only_print", is_flag=True, help="Print the unit and install nothing.")
def install_command(session: Session, *, name: str, only_print: bool) -> None:
    """Install, enable and start the service, with the COVE_* settings that are set now. As root.

    The server starts with the machine; when it stops or fails, sandboxes go on.
    """
    from cove.server.service import install, unit_text

    settings = _settings(session, name)
    if only_print:
        put(unit_text(settings).rstrip("\n"))
        return
    done = install(settings)
    session.emit({"name": name, "path": str(settings.path), "done": done})
    session.talk(done)


@verb("uninstall", fields=("name", "done"))
@UNIT_NAME
def uninstall_command(session: Session, *, name: str) -> None:
    """Stop and remove the service. Running sandboxes go on."""
    from cove.server.service import uninstall

    done = uninstall(_settings(session, name))
    session.emit({"name": name, "done": done})
    session.talk(done)


@verb("status", fields=("name", "status"))
@UNIT_NAME
def status_command(session: Session, *, name: str) -> None:
    """Print active, inactive, failed, not installed, or no systemd."""
    from cove.server.service import status

    found = status(_settings(session, name))
    session.emit({"name": name, "status": found}, found)


service_command = noun(
    "service", "The server as a systemd service.", install_command, uninstall_command, status_command
)
