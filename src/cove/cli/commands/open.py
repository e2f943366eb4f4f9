"""`cove open`: the API page of the server."""

from __future__ import annotations

import os

import click

from cove.cli.session import Session
from cove.cli.terminal import put
from cove.cli.tree import verb
from cove.sdk import server_calls


@verb("open", fields=("url",))
@click.option("--print", "only_print", is_flag=True, help="Print the address and open nothing.")
def open_command(session: Session, *, only_print: bool) -> None:
    """Print the address of the API page, and open it.

    It is opened where there is a browser.
    """
    url = f"{address(session)}/docs"
    if session.json:
        session.emit({"url": url})
        return
    put(url)
    if not only_print and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        import webbrowser

        webbrowser.open(url)


def address(session: Session) -> str:
    """Return the server's HTTP address. Of a local server: as its settings say, because the socket has none."""
    target = session.client.target
    session.client.call(server_calls.health())
    if target.url:
        return target.url
    from cove.server.config import load

    return load(os.environ).settings.url
