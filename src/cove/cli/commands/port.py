"""`cove port`: what listens in a sandbox, and who may reach it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cove.cli.failures import usage
from cove.cli.session import Session
from cove.cli.terminal import clean, put, table
from cove.cli.tree import verb
from cove.sdk import ports

if TYPE_CHECKING:
    from cove.sdk.ports import Port

FIELDS = ("port", "access", "url", "path", "listening", "address", "host_port", "created_at", "token")
WORDS = ("key", "token", "public")


@verb("port", fields=FIELDS)
@click.argument("box")
@click.argument("port", required=False, type=click.IntRange(1, 65535))
@click.option("--access", type=click.Choice(WORDS), help="Open it by keys alone, by a new token too, or to everybody.")
@click.option("--host-port", metavar="PORT", help="A port of the server's machine for raw TCP: a number, any, or none.")
@click.option("--close", is_flag=True, help="Back to keys alone; a token of it ends.")
def port_command(  # noqa: PLR0913 - one keyword for each option
    session: Session, *, box: str, port: int | None, access: str | None, host_port: str | None, close: bool
) -> None:
    """List the ports of a sandbox, or show or change how one is reached.

    Without PORT: those on which something listens, and those that are exposed. With PORT its address is printed.
    """
    if port is None:
        if access or close or host_port:
            raise usage("say which port", "cove port BOX PORT --access public")
        _list(session, session.on_box(box, lambda ref: session.client.call(ports.ports(ref))))
        return
    if close and (access or host_port):
        raise usage("--close and the other options exclude each other", "cove port --help")
    number, wish = port, _wish(host_port)
    if close:
        session.on_box(box, lambda ref: session.client.call(ports.unexpose(ref, number)))
    found = session.on_box(
        box,
        lambda ref: session.client.call(
            ports.expose(ref, number, access, host_port=wish) if access or host_port else ports.port(ref, number)
        ),
    )
    session.emit(found.raw, clean(found.link))
    if access is None and found.listening is False:
        session.talk(f"Nothing listens on port {port} inside yet.")
    if found.host_port is not None:
        session.talk(f"Port {found.host_port} of the server's machine leads there, without a key.")
    if found.access == "key":
        session.talk("It takes a key of the project: curl -H 'X-API-Key: KEY' URL")
    elif found.token:
        session.talk("The token is shown only now. A new one: the same command again.")


def _wish(word: str | None) -> int | bool | None:
    """Read `--host-port`. Raises: Failure."""
    if word is None:
        return None
    if word in {"any", "none"}:
        return word == "any"
    if not (word.isascii() and word.isdigit()):
        raise usage(f'--host-port: "{clean(word)}" is no port, and neither any nor none', "cove port --help")
    return int(word)


def _list(session: Session, found: list[Port]) -> None:
    if session.json:
        for one in found:
            session.emit(one.raw)
        return
    if not found:
        session.talk("Nothing listens in it, and nothing is exposed.")
        return
    rows: list[tuple[Any, ...]] = [
        (str(one.port), _listens(one), one.access, str(one.host_port or "-"), clean(one.url)) for one in found
    ]
    put(table(("PORT", "LISTENS", "ACCESS", "HOST PORT", "URL"), rows, lambda _column, _cell: None))


def _listens(one: Port) -> str:
    if one.listening is None:
        return "paused"
    return clean(one.address or "yes") if one.listening else "no"
