"""What a proxied request and its answer say about themselves: headers, cookies, redirects, tokens. Pure.

Two forms: below a path of the API (`Place.prefix`), where all sandboxes and the API share one origin, and under a host
name of its own (no prefix). What differs between them is decided here and nowhere else.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

Headers = list[tuple[bytes, bytes]]

TOKEN: Final = b"cove_token"
"""Query parameter and cookie that bring a port's token."""

TOKEN_HEADER: Final = b"x-cove-token"

SANDBOX_POLICY: Final = b"sandbox allow-scripts allow-forms allow-popups allow-modals allow-downloads"
"""Without `allow-same-origin`: a page of a sandbox below a path of the API is not of the API's origin to a browser."""

HOP_BY_HOP: Final = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
        b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings",
    }
)  # fmt: skip
_OURS_TO_SAY: Final = frozenset({b"forwarded", b"x-real-ip", b"proxy", b"host", b"content-length", b"expect"})
"""Of a request: set by us or not at all. `Proxy` becomes HTTP_PROXY in a CGI program."""

_OF_THE_ORIGIN: Final = frozenset(
    {
        b"clear-site-data", b"strict-transport-security", b"public-key-pins", b"service-worker-allowed", b"report-to",
        b"nel", b"reporting-endpoints", b"origin-agent-cluster", b"x-cove-token",
    }
)  # fmt: skip
"""Of an answer in path form: they would speak for the API's whole origin."""

NEVER_BACK: Final = frozenset({b"alt-svc"})
"""Of an answer in any form: it names another way to the origin, which is us."""

_COOKIE_DOMAIN: Final = re.compile(rb"\s*domain\s*(?:=|$)", re.IGNORECASE)
_COOKIE_PATH: Final = re.compile(rb"\s*path\s*(?:=\s*(.*?)\s*)?$", re.IGNORECASE | re.DOTALL)
_ABSOLUTE: Final = re.compile(rb"(https?)://([^/?#\\]*)([^\r\n]*)", re.IGNORECASE)


class Place(Struct, frozen=True, kw_only=True):
    """Where a proxied port is seen from outside.

    Args:
        port: the port inside.
        prefix: what stands before the application's own path, without a slash at the end; empty in host form.
        scheme: `http` or `https`, as the client speaks it.
        host: the Host header as the client sent it.
        client: the client's address, empty where there is none (a unix socket).
    """

    port: int
    prefix: bytes
    scheme: bytes
    host: bytes
    client: bytes = b""


def named_in_connection(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """The header names that Connection declares to be for this hop only."""
    names: set[bytes] = set()
    for name, value in headers:
        if name == b"connection":
            names.update(word.strip().lower() for word in value.split(b","))
    return names


def wanted_upgrade(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The protocol that a request wants to switch to. Never h2c: inside of it nobody would set headers any more."""
    headers = list(headers)
    if b"upgrade" not in named_in_connection(headers):
        return None
    words = [value.strip() for name, value in headers if name == b"upgrade"]
    if len(words) != 1 or not words[0] or any(word.strip().lower().startswith(b"h2") for word in words[0].split(b",")):
        return None
    return words[0]


def request_headers(headers: Headers, place: Place, *, drop: frozenset[bytes], upgrade: bytes | None) -> Headers:
    """What the application gets. `headers` have lowercase names; `drop` are those that brought our own secrets.

    The framing (Content-Length, Transfer-Encoding, Expect) is not in it: whoever sends the body adds it.
    """
    hop = HOP_BY_HOP | named_in_connection(headers) | drop
    found: Headers = [(b"host", place.host)]
    for name, value in headers:
        # A gateway interface (WSGI, CGI) cannot tell `_` from `-`.
        alike = name.replace(b"_", b"-")
        if (
            name in hop
            or alike in hop
            or alike in _OURS_TO_SAY
            or alike == TOKEN_HEADER
            or alike.startswith(b"x-forwarded-")
        ):
            continue
        if name == b"cookie":
            kept = _without_our_cookies(value)
            if kept:
                found.append((name, kept))
            continue
        found.append((name, value))
    if place.client:
        found.append((b"x-forwarded-for", place.client))
    found += [(b"x-forwarded-proto", place.scheme), (b"x-forwarded-host", place.host)]
    if place.prefix:
        found.append((b"x-forwarded-prefix", place.prefix))
    if upgrade is not None:
        found += [(b"connection", b"Upgrade"), (b"upgrade", upgrade)]
    return found


def response_headers(headers: Headers, place: Place, *, has_length: bool) -> Headers:
    """What the client gets of an application's headers (lowercase names). `has_length`: Content-Length may stay."""
    dropped = HOP_BY_HOP | named_in_connection(headers) | NEVER_BACK
    if place.prefix:
        dropped |= _OF_THE_ORIGIN
    if not has_length:
        dropped |= {b"content-length"}
    found: Headers = []
    for name, value in headers:
        if name in dropped:
            continue
        if name in {b"location", b"content-location"}:
            found.append((name, rewritten_location(value, place)))
        elif name == b"set-cookie":
            cookie = rewritten_cookie(value, place)
            if cookie is not None:
                found.append((name, cookie))
        else:
            found.append((name, value))
    if place.prefix:
        found.append((b"content-security-policy", SANDBOX_POLICY))
    return found


def rewritten_location(value: bytes, place: Place) -> bytes:
    """A redirect to the application itself, as seen from outside; any other stays as it is."""
    rest = value
    match = _ABSOLUTE.fullmatch(value)
    if match is not None:
        if not _is_the_application(match.group(2), place):
            return value
        rest = match.group(3)
        if not rest.startswith(b"/"):
            rest = b"/" + rest
    elif not value.startswith(b"/") or value[1:2] in {b"/", b"\\"}:
        return value  # relative to the page that is shown, or `//host`: another machine
    if place.prefix and (rest == place.prefix or rest.startswith((place.prefix + b"/", place.prefix + b"?"))):
        return _outside(rest, match is not None, place)  # it knows X-Forwarded-Prefix and has put it there itself
    return _outside(place.prefix + rest, match is not None, place)


def _outside(path: bytes, was_absolute: bool, place: Place) -> bytes:  # noqa: FBT001 - one caller
    return b"%b://%b%b" % (place.scheme, place.host, path) if was_absolute else path


def _is_the_application(authority: bytes, place: Place) -> bool:
    """Whether `host[:port]` of an absolute URL is what the application takes itself for."""
    authority = authority.lower()
    if authority == place.host.lower():
        return True
    host, _, port = authority.rpartition(b":")
    if not host or not port.isdigit():
        return False
    return int(port[:6]) == place.port and is_loopback_name(host)


def is_loopback_name(host: bytes) -> bool:
    """`localhost`, an address of loopback, or the address of all (servers print that as their own)."""
    if host == b"localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip(b"[]").decode("ascii"))
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def rewritten_cookie(value: bytes, place: Place) -> bytes | None:
    """An application's cookie, kept to its own port: never for a whole domain. None: it takes a name of ours."""
    pair, *attributes = value.split(b";")
    if _is_ours(pair):
        return None
    attributes = [one for one in attributes if not _COOKIE_DOMAIN.match(one)]
    if not place.prefix:
        return b";".join((pair, *attributes))
    kept: list[bytes] = []
    path = b"/"
    for attribute in attributes:
        found = _COOKIE_PATH.fullmatch(attribute)
        if found is None:
            kept.append(attribute)
        elif (found.group(1) or b"").startswith(b"/"):
            path = found.group(1)
    inside = path if path == place.prefix or path.startswith(place.prefix + b"/") else place.prefix + path
    return b";".join((pair, *kept, b" Path=" + inside))


def token_cookie(token: bytes, place: Place) -> bytes:
    """The cookie that goes on opening a port after its token was shown once."""
    secure = b"; Secure" if place.scheme == b"https" else b""
    return b"%b=%b; Path=%b; HttpOnly; SameSite=Lax%b" % (TOKEN, token, place.prefix or b"/", secure)


def cookie_tokens(headers: Headers) -> list[str]:
    """The tokens in a request's cookies: several, if somebody has set one for a wider domain."""
    found: list[str] = []
    for name, value in headers:
        if name == b"cookie":
            for pair in value.split(b";"):
                key, _, text = pair.strip().partition(b"=")
                if key == TOKEN:
                    found.append(text.decode("latin-1"))
    return found


def split_token(query: bytes) -> tuple[str | None, bytes]:
    """The token in a query string, and the query string without it, otherwise byte for byte."""
    if TOKEN not in query:
        return None, query
    token: str | None = None
    kept: list[bytes] = []
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name == TOKEN:
            token = token or value.decode("latin-1")
        else:
            kept.append(part)
    return token, b"&".join(kept)


def own_path(path: bytes, query: bytes) -> bytes:
    """A Location that can lead to this same host only: two slashes of either kind mean another to a browser."""
    plain = b"/" + path.lstrip(b"/\\")
    return plain + b"?" + query if query else plain


def _without_our_cookies(value: bytes) -> bytes:
    pairs = [pair.strip() for pair in value.split(b";")]
    return b"; ".join(pair for pair in pairs if pair and not _is_ours(pair))


def _is_ours(pair: bytes) -> bool:
    name = pair.strip().partition(b"=")[0].strip().lower()
    return name.removeprefix(b"__host-").removeprefix(b"__secure-").startswith(b"cove_")
