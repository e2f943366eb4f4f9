"""`cove credential`: keys that sandboxes use and never have. A key never stands on a command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cove.cli.failures import usage
from cove.cli.options import pairs, read_key
from cove.cli.session import Session
from cove.cli.terminal import clean, put, table
from cove.cli.tree import noun, verb

if TYPE_CHECKING:
    from cove.sdk.credentials import Credential
    from cove.sdk.units import Unset

FIELDS = ("service", "key", "upstream", "url", "env", "endpoints", "created_at", "changed_at")
SERVICE_FIELDS = (
    "name",
    "description",
    "upstream",
    "header",
    "value",
    "strip_headers",
    "strip_query",
    "env",
    "builtin",
)
ALL = "all"


@verb("ls", fields=FIELDS)
@click.argument("box", required=False)
def ls_command(session: Session, *, box: str | None) -> None:
    """List the credentials of a sandbox, or without BOX those that the project keeps."""
    if box is None:
        found = session.client.credentials.list()
    else:
        found = session.on_box(box, lambda ref: _of(session, ref).list())
    for one in found:
        session.emit(one.raw)
    if session.json:
        return
    if not found:
        session.talk("There are none." if box is None else "It has none: cove credential set SERVICE BOX")
        return
    rows = [(one.service, one.key, one.upstream or "(gone)", _rules(one)) for one in found]
    put(table(("SERVICE", "KEY", "UPSTREAM", "REQUESTS"), rows, lambda _column, _cell: None))


def _of(session: Session, ref: str) -> Any:
    from cove.sdk.credentials import Credentials

    return Credentials(ref, session.client)


def _rules(one: Credential) -> str:
    """The rules in a line: `POST /v1/chat, GET *`."""
    shown = [
        f"{'|'.join(rule.get('methods') or ()) or '*'} {' '.join(rule.get('paths') or ()) or '*'}"
        for rule in one.endpoints
    ]
    return ", ".join(shown) or ALL


@verb("set", fields=FIELDS)
@click.argument("service")
@click.argument("box", required=False)
@click.option("--key", "source", metavar="@VAR", help="The variable that has the key; -: standard input. Else: asked.")
@click.option("--shared", is_flag=True, help="With BOX: use the key that the project keeps.")
@click.option(
    "--allow",
    multiple=True,
    metavar="[METHODS ]PATH",
    help="Only such requests: 'POST /v1/chat', '/v1/**', 'GET,HEAD /'. May be repeated; all: every request.",
)
def set_command(  # noqa: PLR0913 - one keyword for each option
    session: Session, *, service: str, box: str | None, source: str | None, shared: bool, allow: tuple[str, ...]
) -> None:
    """Give a sandbox a credential, or without BOX keep one for the project's sandboxes.

    cove credential set openai otter --key @OPENAI_API_KEY --allow 'POST /v1/chat'

    It holds for the next request. With --allow alone the key stays as it is. The key is asked for, or read from a
    variable or from standard input.
    """
    from cove.sdk.units import UNSET

    if shared and (source or box is None):
        raise usage("--shared needs BOX and no --key", "cove credential set --help")
    endpoints = _endpoints(allow) if allow else UNSET
    key: str | Unset | None = None if shared else UNSET
    if source is not None or not (shared or allow):
        key = read_key(service, "-" if source is None else source)
    if box is None:
        assert key is not None  # noqa: S101 - only `--shared` makes it None, and that has a box
        made = session.client.credentials.set(service, key, endpoints=endpoints)
    else:
        made = session.on_box(box, lambda ref: _of(session, ref).set(service, key, endpoints=endpoints))
    session.emit(made.raw, clean(made.url or made.service))
    if box is None:
        session.talk(f"Let a sandbox use it: cove run --credential {clean(service)} …")
    elif made.env:
        shown = " ".join(f"-e {clean(name)}={clean(value)}" for name, value in made.env.items())
        session.talk(f"A program finds it by: cove exec {shown} {clean(box)} -- …")


def _endpoints(words: tuple[str, ...]) -> list[dict[str, list[str]]]:
    """Read `--allow`. Raises: Failure."""
    if words == (ALL,):
        return []
    found: list[dict[str, list[str]]] = []
    for word in words:
        methods, space, path = word.strip().rpartition(" ")
        if not path.startswith("/"):
            raise usage(
                f'--allow: "{clean(word)}" is no [METHODS ]PATH', "cove credential set openai --allow 'POST /v1'"
            )
        rule = {"paths": [path]}
        if space:
            rule["methods"] = [one.strip().upper() for one in methods.split(",") if one.strip()]
        found.append(rule)
    return found


@verb("rm", fields=("service",))
@click.argument("service")
@click.argument("box", required=False)
def rm_command(session: Session, *, service: str, box: str | None) -> None:
    """Take a credential away, now: what is under way with it is cut. Without BOX the project's."""
    if box is None:
        session.client.credentials.remove(service)
    else:
        session.on_box(box, lambda ref: _of(session, ref).remove(service))
    session.emit({"service": service})
    session.talk(f"{clean(service)} opens nothing there from now on.")


@verb("services", fields=SERVICE_FIELDS)
def services_command(session: Session) -> None:
    """List the services that credentials can be for."""
    found = session.client.services.list()
    for one in found:
        session.emit(one.raw)
    if not session.json:
        rows = [(one.name, one.upstream, f"{one.header}: {one.value}", " ".join(one.env)) for one in found]
        put(table(("NAME", "UPSTREAM", "HEADER", "VARIABLES"), rows, lambda _column, _cell: None))


@verb("add-service", fields=SERVICE_FIELDS)
@click.argument("name")
@click.argument("upstream", metavar="URL")
@click.option("--header", metavar="NAME", help="The header that takes the key. Default: Authorization.")
@click.option("--value", metavar="TEXT", help="What it becomes. Default: Bearer {key}.")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="For sandboxes: {placeholder} and {url} in it.")
@click.option("--strip-header", "strip_headers", multiple=True, metavar="NAME", help="A further header to take out.")
@click.option("--strip-query", multiple=True, metavar="NAME", help="A parameter of the query to take out.")
def add_service_command(  # noqa: PLR0913 - one keyword for each option
    session: Session,
    *,
    name: str,
    upstream: str,
    header: str | None,
    value: str | None,
    env: tuple[str, ...],
    strip_headers: tuple[str, ...],
    strip_query: tuple[str, ...],
) -> None:
    """Add a service of your own, or change one: any HTTPS API that takes its key in a header.

    cove credential add-service search https://api.search.example/v2 --header X-Key --value '{key}' -e SEARCH_URL={url}
    """
    made = session.client.services.put(
        name,
        upstream,
        header=header,
        value=value,
        strip_headers=strip_headers,
        strip_query=strip_query,
        env=pairs(env, "--env"),
    )
    session.emit(made.raw, clean(made.name))


@verb("rm-service", fields=("name",))
@click.argument("name")
def rm_service_command(session: Session, *, name: str) -> None:
    """Forget a service of your own; one of the catalogue that it replaced is back."""
    session.client.services.remove(name)
    session.emit({"name": name})


@verb("rekey", fields=("secrets",))
def rekey_command(session: Session) -> None:
    """Put a new key into the server's secrets.key and seal every secret by it."""
    count = session.client.credentials.rekey()
    session.emit({"secrets": count})
    session.talk(f"{count} secrets are sealed by a new key. Copies of the database from before open with the old one.")


credential_command = noun(
    "credential",
    "Keys for services that sandboxes use and never have.",
    ls_command,
    set_command,
    rm_command,
    services_command,
    add_service_command,
    rm_service_command,
    rekey_command,
)
