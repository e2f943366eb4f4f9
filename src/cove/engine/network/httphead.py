"""What an HTTP/1 request asks for, read in one way only: whatever two readers could take for two things is refused.

h11 has checked the grammar before (one Host, lawful header bytes). Here: where the request goes, what of its head is
for the proxy alone, and how its body is framed. Source: RFC 9112 sections 3.2 and 6, RFC 9110 section 7.6.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

import h11
from msgspec import Struct

from cove.engine.network.exits import Asked, parse_authority

HTTP_PORT: Final = 80
HEAD_BYTES: Final = 32 * 1024
Headers = list[tuple[bytes, bytes]]

_BEGINNING: Final = re.compile(rb"[\r\n]*[A-Za-z]{1,24}[ \t]")
_COULD_BEGIN: Final = re.compile(rb"[\r\n]*[A-Za-z]{0,24}")
_BEGINNING_BYTES: Final = 32
_HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"upgrade")
)
_NEVER_LISTED: Final = frozenset((b"host", b"content-length", b"transfer-encoding"))
_SWITCHES: Final = b"websocket"


class BadRequest(Exception):
    """The request is not passed on. The text is for the client."""


class Wanted(Struct, frozen=True, kw_only=True):
    """A request as it is passed on: to `asked`, with `target` and `headers`. `switches`: it may become a WebSocket."""

    asked: Asked
    method: bytes
    target: bytes
    headers: Headers
    switches: bool


def could_be_http(data: bytes) -> bool | None:
    """Whether a connection that begins so speaks HTTP/1; None: more bytes are needed to tell.

    Generous: what some server would take for HTTP is judged as such, and fails there if it is not.
    """
    if _BEGINNING.match(data):
        return True
    return None if len(data) < _BEGINNING_BYTES and _COULD_BEGIN.fullmatch(data) else False


def is_folded(data: bytes) -> bool:
    """Whether the head at the beginning of `data` has a header in several lines, which h11 would put into one."""
    head = data.partition(b"\r\n\r\n")[0]
    return b"\n " in head or b"\n\t" in head


def read_direct(request: h11.Request, address: str, port: int) -> Wanted:
    """A request of a client that believes to speak to `address`:`port`. Raises: BadRequest, ValueError."""
    host = _host(request)
    target = request.target
    if target.lower().startswith((b"http:", b"https:")):
        authority, target = _absolute(request)
        if host is None or authority.lower() != host.lower():
            raise BadRequest("the request names two hosts")
    elif not (target.startswith(b"/") or (target == b"*" and request.method == b"OPTIONS")):
        raise BadRequest("the request has no path")
    named = Asked(name=None, address=address, port=port) if host is None else parse_authority(host, port)
    return _wanted(request, Asked(name=named.name, address=address, port=port), target)


def read_proxied(request: h11.Request) -> Wanted:
    """A request of a client that speaks to a proxy. Raises: BadRequest, ValueError."""
    authority, target = _absolute(request)
    if not request.target.lower().startswith(b"http://"):
        raise BadRequest("a proxy passes http on, and https by CONNECT")
    host = _host(request)
    asked = parse_authority(authority, HTTP_PORT)
    if host is not None and parse_authority(host, HTTP_PORT) != asked:
        raise BadRequest("the request names two hosts")
    return _wanted(request, asked, target)


def read_connect(request: h11.Request) -> Asked:
    """Where CONNECT wants to go. Raises: BadRequest, ValueError."""
    text = request.target.decode("ascii")
    if ":" not in text:
        raise BadRequest("CONNECT names a port")
    return parse_authority(text, 0)


def _absolute(request: h11.Request) -> tuple[str, bytes]:
    """The authority and the path of an absolute-form target."""
    text = request.target.decode("ascii")
    if not text.lower().startswith(("http://", "https://")) or "\\" in text:
        raise BadRequest("a proxy needs the whole address of what is asked for")
    parts = urlsplit(text)
    if "@" in parts.netloc:
        raise BadRequest("a host name has no user before it")
    path = text[len(parts.scheme) + 3 + len(parts.netloc) :].partition("#")[0]
    return parts.netloc, (path if path.startswith("/") else f"/{path}").encode("ascii")


def _host(request: h11.Request) -> str | None:
    values = [value for name, value in request.headers if name == b"host"]
    return values[0].decode("ascii") if values and values[0] else None


def _wanted(request: h11.Request, asked: Asked, target: bytes) -> Wanted:
    if len(request.target) + sum(len(name) + len(value) for name, value in request.headers) > HEAD_BYTES:
        raise BadRequest("its head is too long")
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version != b"1.1"):
        raise BadRequest("the length of the request is said in two ways")
    connection = [value for name, value in request.headers if name == b"connection"]
    listed = {word.strip().lower() for value in connection for word in value.split(b",")}
    if listed & _NEVER_LISTED:
        raise BadRequest("the request would hide a header that frames it")
    upgrades = {value.strip().lower() for name, value in request.headers if name == b"upgrade"}
    switches = upgrades == {_SWITCHES} and b"upgrade" in listed
    kept = [pair for pair in request.headers.raw_items() if pair[0].lower() not in _HOP_BY_HOP | (listed - {b""})]
    if b"host" not in names:  # HTTP/1.0; what we send on is 1.1
        kept.insert(0, (b"Host", (asked.address or "").encode("ascii")))
    if switches:
        kept += [(b"Connection", b"Upgrade"), (b"Upgrade", _SWITCHES)]
    return Wanted(asked=asked, method=request.method, target=target, headers=kept, switches=switches)


def answer_headers(answer: h11.Response | h11.InformationalResponse) -> Headers:
    """The headers of an answer that are for the client."""
    return [pair for pair in answer.headers.raw_items() if pair[0].lower() not in _HOP_BY_HOP - {b"upgrade"}]
