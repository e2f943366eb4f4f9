"""`cove serve`: the server, in the foreground. Its flags are the rows of the settings table."""

from __future__ import annotations

import click

from cove.cli.failures import FAILED, Failure
from cove.cli.session import Session
from cove.cli.tree import verb
from cove.server.settings_table import TABLE

SECRETS = {"bootstrap_keys"}
"""Settings that are no flags: everybody on the machine can read a command line."""
PREFIX = "setting_"


def _flags(function: click.Command) -> click.Command:
    for row in TABLE:
        if row.name in SECRETS:
            continue
        default = f" Default: {row.default}." if row.default else ""
        function.params.insert(
            -2,
            click.Option(
                [f"--{row.name.replace('_', '-')}", f"{PREFIX}{row.name}"],
                metavar=row.unit.upper().replace(" ", "-"),
                help=f"{row.help}{default}",
            ),
        )
    return function


@_flags
@verb("serve")
@click.option("--welcome", is_flag=True, help="Run a first command in a sandbox and show what to try next.")
def serve_command(session: Session, *, welcome: bool, **settings: str | None) -> int:
    """Serve on this machine until Ctrl-C.

    Ctrl-C leaves the sandboxes running. Each flag is also a variable COVE_NAME and a line of DATA_DIR/cove.toml:
    docs/reference/settings.md. A machine that lacks something says so: cove setup installs it.
    """
    del session
    try:
        from cove.server.serve import main
    except ImportError as error:
        raise Failure(
            f"the server's part of Cove is not installed: {error}",
            code="not-installed",
            exit_code=FAILED,
            hint="uv tool install 'cove[server]'",
        ) from error
    given = {name.removeprefix(PREFIX): value for name, value in settings.items() if value is not None}
    return main(given, welcome)
