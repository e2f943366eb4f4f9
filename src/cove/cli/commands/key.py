"""`cove key`: API keys, for other machines and other people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from cove.cli.failures import NOT_FOUND, Failure, usage
from cove.cli.session import Session
from cove.cli.terminal import clean, duration, put, table
from cove.cli.tree import noun, verb

if TYPE_CHECKING:
    from cove.sdk.models import Key

_USES = {
    "isorun": "ISORUN_API_URL=http://HOST:PORT/isorun ISORUN_API_KEY=…",
    "isol8": "isol8 login --host http://HOST:PORT/isol8 --key …",
}
"""How the clients of a dialect are told of a key."""

FIELDS = ("id", "name", "project", "scopes", "dialect", "created_at", "expires_at", "revoked_at", "last_used_at")


def _wire(key: Key, *extra: str) -> dict[str, Any]:
    return {name: getattr(key, name) for name in (*extra, *FIELDS)}


@verb("create", fields=("key", *FIELDS))
@click.argument("name")
@click.option("--project", metavar="PROJECT", help="The project it is for. Default: default.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    metavar="SCOPE",
    help="What it may do. May be repeated. Default: all of a user's.",
)
@click.option("--life", metavar="TIME", help="It is worthless after so long: 30d, never. Default: never.")
@click.option(
    "--dialect", metavar="NAME", help="Only for this dialect of the API (isorun, isol8, native), and in its form."
)
def create_command(  # noqa: PLR0913 - one keyword for each option
    session: Session, *, name: str, project: str | None, scopes: tuple[str, ...], life: str | None, dialect: str | None
) -> None:
    """Make a key and print it. It is shown only now: the server keeps no copy."""
    key = session.client.create_key(name, project=project, scopes=scopes or None, timeout=life, dialect=dialect)
    session.emit(_wire(key, "key"), clean(key.key or ""))
    use = _USES.get(dialect or "", "COVE_URL=http://HOST:PORT COVE_API_KEY=…")
    session.talk(f"Use it from anywhere: {use}   Revoke it: cove key rm {key.id}")


@verb("ls", fields=FIELDS)
def ls_command(session: Session) -> None:
    """List keys, without their secrets."""
    keys = session.client.keys()
    for key in keys:
        session.emit(_wire(key))
    if session.json:
        return
    rows = [(key.id, key.name, key.project, ",".join(key.scopes), _ago(key.last_used_at), _state(key)) for key in keys]
    put(table(("ID", "NAME", "PROJECT", "SCOPES", "USED", "STATE"), rows, lambda _column, _cell: None))


def _ago(when: datetime | None) -> str:
    return f"{duration((datetime.now(UTC) - when).total_seconds())} ago" if when else "-"


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "valid"
    left = (key.expires_at - datetime.now(UTC)).total_seconds()
    return f"valid for {duration(left)}" if left > 0 else "expired"


@verb("rm", fields=("id", "name"))
@click.argument("key")
def rm_command(session: Session, *, key: str) -> None:
    """Make a key worthless, now. By its id, its name, or a prefix of either."""
    keys = session.client.keys()
    found = [one for one in keys if one.revoked_at is None]
    exact = [one for one in found if key in {one.id, one.name}]
    near = exact or [one for one in found if one.id.startswith(key) or one.name.startswith(key)]
    if not near:
        raise Failure(f'no key "{key}"', code="not-found", exit_code=NOT_FOUND, hint="cove key ls")
    if len(near) > 1:
        raise usage(f'"{key}" may be any of {", ".join(one.id for one in near[:5])}', "cove key ls")
    session.client.revoke_key(near[0].id)
    session.emit({"id": near[0].id, "name": near[0].name})
    session.talk(f"Revoked {clean(near[0].name)} ({clean(near[0].id)}).")


key_command = noun("key", "Keys for the API. The local socket needs none.", create_command, ls_command, rm_command)
