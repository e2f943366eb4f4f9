"""The two addresses of a sandbox's port: below a path of a dialect, and under a host name of its own.

Here a request to one of them is recognized by the bytes that the client sent, its keys and tokens are found, and what
they open is asked of the core. The forwarding is `proxy.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from cove.core.access import LOCAL
from cove.edge.auth import LOCAL_MARK, is_foreign_page, log_in
from cove.edge.errors import Malformed, NoSuchRoute, Where
from cove.edge.exchange import Exchange
from cove.edge.forwarding import check_coding
from cove.edge.ops import Answer, Raw, Services
from cove.edge.proxy import Proxied, Target
from cove.edge.proxyheaders import (
    TOKEN_HEADER,
    Headers,
    Place,
    cookie_tokens,
    own_path,
    split_token,
    token_cookie,
    wanted_upgrade,
)
from cove.model.access import Principal
from cove.model.errors import CoveError

_HOST: Final = re.compile(rb"[A-Za-z0-9._\[\]:-]{1,255}")
_LABEL: Final = re.compile(r"(\d{1,5})-([a-z0-9-]{1,63})")
_LOOKS: Final = frozenset({"GET", "HEAD"})


class PathForm(Struct, frozen=True):
    """Where a dialect has its proxied ports.

    Args:
        pattern: of the raw path, below the dialect's prefix and below its roots; groups `prefix`, `ref`, `port`, and
            `rest`, which is None where the slash is missing.
        mark: what each of its paths has in it, so that the others cost no match.
        ref_of: the core's reference of `ref`. Raises: NotFound.
        label_ref: the same of what a host name has behind the port.
    """

    pattern: re.Pattern[bytes]
    mark: bytes
    ref_of: Callable[[str], str]
    label_ref: Callable[[str], str]


class Found(Struct, frozen=True):
    """A port that a request is for. `rest`: the application's own path; None: the prefix alone, without a slash."""

    label: str
    port: int
    prefix: bytes
    rest: bytes | None
    ref_of: Callable[[str], str]


def by_path(form: PathForm, raw_path: bytes) -> Found | None:
    """The port that a path names. The bytes decide, not what they decode to."""
    match = form.pattern.fullmatch(raw_path) if form.mark in raw_path else None
    if match is None:
        return None
    return Found(match["ref"].decode(), int(match["port"]), match["prefix"], match["rest"], form.ref_of)


def by_host(form: PathForm, domain: str, host: bytes | None, raw_path: bytes) -> Found | None:
    """The port that a host name `PORT-SANDBOX.domain` names; None: it is no name of that kind.

    One below the domain that begins like a port's and is none is found too, and `ref_of` says so.
    """
    if host is None:
        return None
    name = host.decode("latin-1").lower().rpartition(":")[0] if b":" in host else host.decode("latin-1").lower()
    label, dot, rest = name.partition(".")
    if not dot or rest.rstrip(".") != domain:
        return None
    match = _LABEL.fullmatch(label)
    if match is None:
        if not label[:1].isdigit():
            return None
        return Found(label, 1, b"", raw_path, _nowhere)
    return Found(match[2], int(match[1]), b"", raw_path, form.label_ref)


def _nowhere(label: str) -> str:
    raise NoSuchRoute(f"no port of a sandbox has the host name {label[:63]}: it would be PORT-SANDBOX")


async def open_port(exchange: Exchange, services: Services, found: Found, key_forms: tuple[str, ...]) -> Answer:
    """Whoever may reach the port gets what answers there. Raises: what `Exposures.admit` does, Malformed, NotFound.

    What begins as `key_forms` looks like a key of ours: it never reaches a sandbox, even if it has been revoked.
    """
    scope = exchange.scope
    headers: Headers = scope["headers"]
    place = _place(exchange, services, found)
    check_coding(headers)
    query_token, query = split_token(scope["query_string"])
    who, drop = _caller(exchange, services, key_forms)
    tokens = [text for text in (query_token, _text(exchange.header(TOKEN_HEADER))) if text]
    ref = found.ref_of(found.label)
    if not _is_anothers_page(exchange, found):
        tokens += cookie_tokens(headers)
    visitor = services.core.exposures.admit(ref, found.port, who, tokens)
    exchange.principal = exchange.origin.key = visitor.key_id
    exchange.origin.name = visitor.name
    may_redirect = scope["method"] in _LOOKS and wanted_upgrade(headers) is None
    if query_token is not None and may_redirect:
        is_shown = services.core.exposures.is_token(ref, found.port, query_token)
        return _redirect(place, found, query, query_token if is_shown else None)
    if found.rest is None and may_redirect:
        return _redirect(place, found, query, None)
    target = Target(who=visitor, ref=ref, place=place, path=found.rest or b"/", query=query, drop=drop)
    return Proxied(services.core.ports, target)


def _redirect(place: Place, found: Found, query: bytes, token: str | None) -> Raw:
    """To the same address without the token, or with the slash that relative links need."""
    headers = [
        (b"location", own_path(place.prefix + (found.rest or b"/"), query)),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-store"),
    ]
    if token is not None:
        headers.append((b"set-cookie", token_cookie(token.encode(), place)))
    return Raw(status=303, headers=headers)


def _caller(
    exchange: Exchange, services: Services, key_forms: tuple[str, ...]
) -> tuple[Principal | None, frozenset[bytes]]:
    """Who shows a key of ours, and the headers that brought one: any other Authorization is the application's."""
    who: Principal | None = None
    drop: set[bytes] = set()
    for name, value in exchange.scope["headers"]:
        if name not in {b"authorization", b"x-api-key"}:
            continue
        key = _text(value) or ""
        if name == b"authorization":
            scheme, _, key = key.partition(" ")
            key = key.strip() if scheme.lower() == "bearer" else ""
        if not key:
            continue
        if key.startswith(key_forms):
            drop.add(name)
        try:
            # What is no key of ours may be the application's own: it fails apart from logins to the API.
            found = log_in(exchange, services.core, key, place="port")
        except CoveError:
            continue
        drop.add(name)
        if who is None and found.dialect in {None, exchange.dialect}:
            who = found
    if who is None and exchange.scope.get(LOCAL_MARK) and not is_foreign_page(exchange):
        who = LOCAL
    return who, frozenset(drop)


def _is_anothers_page(exchange: Exchange, found: Found) -> bool:
    """Whether a page of anything but this sandbox sent it, under host names: those of all sandboxes are of one site.

    So a browser adds our cookie to what any sandbox's page sends here, and any page may open a WebSocket.
    """
    origin = exchange.header(b"origin")
    if origin is None or found.prefix:
        return False
    return _sandbox_of(origin.partition(b"://")[2]) != _sandbox_of(exchange.header(b"host") or b"")


def _sandbox_of(host: bytes) -> bytes:
    """What stands behind `PORT-` in a host name."""
    return host.lower().partition(b":")[0].rstrip(b".").partition(b"-")[2]


def _place(exchange: Exchange, services: Services, found: Found) -> Place:
    """Where the client sees the port. Only a proxy that the operator has put before us may say otherwise."""
    scope = exchange.scope
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        raise Malformed("the request must have one Host header with a host name", where=Where.HEADER, field="Host")
    scheme: str = scope["scheme"]
    client = exchange.client_address(behind_proxy=services.facts.behind_proxy)
    if services.facts.behind_proxy:
        proto = _text(exchange.header(b"x-forwarded-proto"))
        scheme = proto if proto in {"http", "https"} else scheme
    return Place(port=found.port, prefix=found.prefix, scheme=scheme.encode(), host=hosts[0], client=client.encode())


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1").strip()
