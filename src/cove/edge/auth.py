"""Who is calling: a key from the headers, or the local operator over the unix socket.

The core decides what a key is.
"""

from __future__ import annotations

from typing import Final

from cove.core.access import LOCAL
from cove.core.facade import Core
from cove.edge.errors import KeyMissing
from cove.edge.exchange import Exchange
from cove.model.access import Principal
from cove.model.errors import Forbidden, RateLimited, Unauthorized

LOCAL_MARK: Final = "cove.local"
"""Set in the ASGI scope by the unix socket's listener alone; nothing in a request can set it."""


def bearer_or_x_api_key(exchange: Exchange) -> str | None:
    """The key in `Authorization: Bearer KEY`, else in `X-API-Key: KEY`."""
    value = exchange.header(b"authorization")
    if value is not None:
        scheme, _, key = value.decode("latin-1").partition(" ")
        return key.strip() if scheme.lower() == "bearer" else None
    other = exchange.header(b"x-api-key")
    return None if other is None else other.decode("latin-1").strip()


def is_foreign_page(exchange: Exchange) -> bool:
    """Whether a browser sent this for a page of another origin: any page may open a WebSocket to any host."""
    origin = exchange.header(b"origin")
    return origin is not None and origin.lower().partition(b"://")[2] != (exchange.header(b"host") or b"").lower()


def authenticate(exchange: Exchange, core: Core, key: str | None, dialect: str) -> Principal:
    """The caller. A presented key counts even on the unix socket, so that the operator can try one.

    Raises: KeyMissing, Unauthorized (one that nobody knows), Forbidden (a key for another dialect only), RateLimited
    (too many failed before from this address).
    """
    if key:
        who = log_in(exchange, core, key)
        if who.dialect is not None and who.dialect != dialect:
            raise Forbidden(f"this key is for the API {who.dialect} only")
        return who
    # What a page of another origin sends must have a key that the page itself knew: nothing that the way brings along.
    if exchange.scope.get(LOCAL_MARK) and not is_foreign_page(exchange):
        return LOCAL
    limits, address = core.rate_limits, exchange.origin.address
    limits.check_login(address, None)
    limits.failed(address)
    raise KeyMissing("no API key was sent")


def log_in(exchange: Exchange, core: Core, key: str, *, place: str = "") -> Principal:
    """Who presents this key. From an address where too many failed, only one that has come from there before.

    Raises: Unauthorized, RateLimited: also for a key that is right, so a guess that hits tells nothing.
    """
    limits, address = core.rate_limits, exchange.origin.address
    try:
        who = core.keys.authenticate(key)
    except Unauthorized:
        limits.check_login(address, None, place)
        limits.failed(address, place)
        raise
    limits.check_login(address, who.key_id, place)
    limits.succeeded(address, who.key_id)
    return who


def count_request(exchange: Exchange, core: Core, who: Principal) -> None:
    """Take it from what the caller may ask, and let the answer say what is left. Raises: RateLimited."""
    try:
        exchange.rate = core.rate_limits.take(who)
    except RateLimited:
        exchange.rate = core.rate_limits.refused_state(who)
        raise
