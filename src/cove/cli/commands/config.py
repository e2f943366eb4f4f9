"""`cove config`: every value with where it comes from."""

from __future__ import annotations

import os
from collections.abc import Iterator

from cove.cli.session import Session
from cove.cli.terminal import put, table
from cove.cli.tree import verb

SHOWN_OF_KEY = 10


@verb("config", fields=("name", "value", "origin"))
def config_command(session: Session) -> None:
    """Print each setting with its value and its origin.

    The client's first, then those of a server that would be started here.
    """
    rows = [*_client(session), *_server()]
    for name, value, origin in rows:
        session.emit({"name": name, "value": value, "origin": origin})
    if not session.json:
        put(table(("NAME", "VALUE", "ORIGIN"), rows, lambda _column, _cell: None))


def _client(session: Session) -> Iterator[tuple[str, str, str]]:
    target = session.client.target
    address = f"unix:{target.socket}" if target.socket else target.url
    yield "url", address, target.address.source if target.is_local else target.address.detail
    key = target.key_found
    yield "api_key", masked(key.value) if key else "", key.detail if key else "not set"
    yield "box", target.box.value if target.box else "", target.box.detail if target.box else "not set"


def _server() -> Iterator[tuple[str, str, str]]:
    from cove.server.config import load
    from cove.server.settings_table import TABLE

    loaded = load(os.environ)
    for row in TABLE:
        value: object = getattr(loaded.settings, row.name)
        if row.name == "bootstrap_keys":
            text = ",".join(masked(key) for key in loaded.settings.bootstrap_keys)
        elif isinstance(value, tuple):
            text = ",".join(map(str, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        elif isinstance(value, bool):
            text = str(int(value))
        else:
            text = "" if value is None else str(value)
        yield row.name, text, loaded.origins[row.name]


def masked(key: str) -> str:
    """Return enough of a key to know it by, and not enough to use it."""
    return f"{key[:SHOWN_OF_KEY]}…" if len(key) > 2 * SHOWN_OF_KEY else "…"
