"""What a brokered request and its answer say: which headers go out, which come back, which never do. Pure.

The one header that carries the key is put in here, after everything that could carry another or override it is out.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_plus

from cove.edge.proxyheaders import HOP_BY_HOP, NEVER_BACK, Headers, named_in_connection
from cove.model.credentials import Secret, Service

_CARRIERS: Final = frozenset(
    {
        b"authorization", b"proxy-authorization", b"x-authorization", b"cookie", b"cookie2", b"x-api-key", b"api-key",
        b"apikey", b"x-apikey", b"x-goog-api-key", b"x-auth-token", b"x-access-token", b"private-token", b"job-token",
        b"x-amz-security-token", b"x-goog-iam-authorization-token", b"x-csrf-token", b"x-xsrf-token",
    }
)  # fmt: skip
"""What carries keys of one API or another. Whoever knows a further one names it in the service (`strip_headers`)."""

_STEERING: Final = frozenset(
    {
        b"host", b"content-length", b"expect", b"forwarded", b"x-real-ip", b"proxy", b"x-host", b"x-http-method",
        b"x-http-method-override", b"x-method-override", b"x-original-url", b"x-original-uri", b"x-original-host",
        b"x-rewrite-url", b"x-override-url", b"true-client-ip", b"cf-connecting-ip",
    }
)  # fmt: skip
"""What frames a request, or lets some servers take it for another method or path than the one that was judged."""

_NOT_BACK: Final = frozenset(
    {
        b"set-cookie", b"set-cookie2", b"strict-transport-security", b"public-key-pins", b"clear-site-data", b"nel",
        b"report-to", b"reporting-endpoints", b"origin-agent-cluster",
    }
)  # fmt: skip
"""A cookie may stand for the key; the others speak for an origin, which is the broker's."""

_ALIKE: Final = re.compile(
    rb"(?:^|-)(?:api-?key|api-?token|auth|auth-?(?:key|token)|authentication|authorization|access-?(?:key|token)|bearer|"
    rb"credentials?|secret)(?:-|$)"
)
"""Names of headers that say themselves that they carry a key."""

_SUBPROTOCOL: Final = re.compile(rb"api-?key|auth|bearer|secret|token", re.IGNORECASE)
"""WebSocket subprotocols that carry a key, where a browser could set no header: `openai-insecure-api-key.sk-…`."""

_SEPARATORS: Final = re.compile(rb"([&;])")
_LINK: Final = re.compile(rb"<([^<>]*)>")


def authority(service: Service) -> bytes:
    """The Host header of an upstream."""
    return service.host.encode() if service.port == 443 else b"%b:%d" % (service.host.encode(), service.port)  # noqa: PLR2004 - of https


def outgoing(headers: Headers, service: Service, header: tuple[bytes, Secret], upgrade: bytes | None) -> Headers:
    """What the upstream gets of a sandbox's headers (lowercase names), with the key. No framing."""
    name_of_key, key = header
    dropped = HOP_BY_HOP | named_in_connection(headers) | _CARRIERS | _STEERING | {name_of_key}
    dropped |= {word.encode() for word in service.strip_headers}
    # A gateway interface (WSGI, CGI) cannot tell `_` from `-`.
    plain = {name.replace(b"_", b"-") for name in dropped}
    found: Headers = [(b"host", authority(service))]
    for name, value in headers:
        alike = name.replace(b"_", b"-")
        if name in dropped or alike in plain or alike.startswith(b"x-forwarded-") or _ALIKE.search(alike):
            continue
        if alike == b"sec-websocket-protocol":
            value = b", ".join(one.strip() for one in value.split(b",") if not _SUBPROTOCOL.search(one))  # noqa: PLW2901
            if not value:
                continue
        found.append((name, value))
    if upgrade is not None:
        found += [(b"connection", b"Upgrade"), (b"upgrade", upgrade)]
    found.append((name_of_key, key.reveal().encode("ascii")))
    return found


def outgoing_query(query: bytes, service: Service) -> bytes:
    """The query without parameters that could carry a key, otherwise byte for byte."""
    names = {name.lower() for name in service.strip_query}
    if not names or not query:
        return query
    parts = _SEPARATORS.split(query)
    kept: list[bytes] = []
    for place in range(0, len(parts), 2):
        name = unquote_plus(parts[place].partition(b"=")[0].decode("latin-1")).strip().lower()
        if name not in names:
            separator = parts[place - 1] if place and kept else b""
            kept.append(separator + parts[place])
    return b"".join(kept)


def incoming(headers: Headers, service: Service, key: Secret, *, has_length: bool) -> Headers:
    """What the sandbox gets of the upstream's headers (lowercase names). `has_length`: Content-Length may stay.

    A header with the key in it is left out. Addresses of the upstream itself become the broker's.
    """
    dropped = HOP_BY_HOP | named_in_connection(headers) | NEVER_BACK | _NOT_BACK
    if not has_length:
        dropped |= {b"content-length"}
    secret = key.reveal().encode("ascii")
    found: Headers = []
    for name, value in headers:
        if name in dropped or secret in value:
            continue
        if name in {b"location", b"content-location"}:
            found.append((name, rewritten(value, service)))
        elif name == b"link":
            found.append((name, _LINK.sub(lambda match: b"<%b>" % rewritten(match[1], service), value)))
        else:
            found.append((name, value))
    return found


def rewritten(address: bytes, service: Service) -> bytes:
    """An address of this same upstream as the sandbox reaches it; any other stays as it is."""
    rest = address
    scheme, has_scheme, after = address.partition(b"://")
    if has_scheme:
        host, slash, path = after.partition(b"/")
        with_port = b"%b:%d" % (service.host.encode(), service.port)
        if scheme.lower() != b"https" or host.lower() not in {authority(service), with_port}:
            return address
        rest = slash + path
    if not rest.startswith(b"/") or rest[1:2] in {b"/", b"\\"}:
        return address  # relative to the page, or `//host`: another machine
    base = service.url.encode()
    return base + rest if has_scheme else base[base.index(b"/proxy/") :] + rest
