"""Where isorun has the key of a request: a header, or `?token=` of the paths that are WebSockets."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote_plus

from cove.edge.auth import bearer_or_x_api_key
from cove.edge.exchange import Exchange

_SOCKETS: Final = ("/terminal", "/shell")
_TOKEN: Final = b"token="


def key_of(exchange: Exchange) -> str | None:
    """The header's; else the query's, for a browser cannot give a WebSocket a header."""
    key = bearer_or_x_api_key(exchange)
    if key is not None or not exchange.scope["path"].endswith(_SOCKETS):
        return key
    for part in exchange.scope["query_string"].split(b"&"):
        if part.startswith(_TOKEN):
            return unquote_plus(part.removeprefix(_TOKEN).decode("latin-1"))
    return None
