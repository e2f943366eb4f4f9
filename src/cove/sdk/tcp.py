"""HTTP over TCP, synchronous: httpx2, for its TLS, proxies and connection pool. Imported only when it is needed."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

import h11
import httpx2

from cove.sdk.errors import BadAnswer, BadRequest, Error, Unreachable
from cove.sdk.transport import Body, Lost

CONNECT_TIMEOUT_S = 5.0
"""For connecting only. Waiting for an answer has no limit: a command may run for days."""


KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
]
"""Since no answer has a time limit, the kernel asks whether the other machine is still there: after 90 s it is not."""
WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class TcpTransport:
    """Requests to the server at `url` (scheme, host, port and perhaps a path)."""

    def __init__(self, url: str) -> None:
        self._url = url
        trust_env = not is_loopback(url)
        transport: httpx2.HTTPTransport | None = None
        if not (trust_env and has_proxy()):
            transport = httpx2.HTTPTransport(verify=verify_for(url), trust_env=trust_env, socket_options=KEEPALIVE)
        self._http = httpx2.Client(
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S), trust_env=trust_env, transport=transport
        )

    def send(
        self, method: str, target: str, head: list[tuple[str, str]], body: Body, silence_s: float | None
    ) -> TcpResponse:
        """Send one request and wait for the head of its answer.

        Raises: Unreachable (no connection), Lost (it broke), BadAnswer (what came is not HTTP).
        """
        timeout = httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S, read=silence_s)
        if body is None and method in WITH_BODY:
            body = b""
        request = self._http.build_request(method, self._url + target, headers=head, content=body, timeout=timeout)
        try:
            return TcpResponse(self._http.send(request, stream=True))
        except (httpx2.TransportError, httpx2.InvalidURL, h11.LocalProtocolError) as error:
            raise translated(error, self._url) from error

    def close(self) -> None:
        """Close idle connections."""
        self._http.close()


class TcpResponse:
    """An answer from a server over TCP."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.headers = {name.lower(): value for name, value in response.headers.items()}

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives."""
        try:
            yield from self._response.iter_raw()
        except httpx2.TransportError as error:
            raise translated(error, str(self._response.url)) from error

    def close(self) -> None:
        """Give the connection back, or drop it."""
        self._response.close()


def is_loopback(url: str) -> bool:
    """Whether the address is this machine: then no proxy of the environment is asked."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def verify_for(url: str) -> ssl.SSLContext | bool:
    """Return what certificates are checked against: the machine's for https.

    Plain http needs none, and loading them takes 20 ms: it gets an empty context, which trusts nobody.
    """
    return True if url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def has_proxy() -> bool:
    """Whether the environment names a proxy. httpx2 uses it only where it makes its own transport."""
    return bool(getproxies_environment())


def translated(error: Exception, url: str) -> Error:
    """Return our error for one of httpx2's."""
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
        return Unreachable(f"no server answers at {url}: {error}")
    if isinstance(error, httpx2.RemoteProtocolError) and "disconnected" not in str(error) and "peer" not in str(error):
        return BadAnswer(f"what answers at {url} does not speak HTTP/1.1")
    if isinstance(error, httpx2.LocalProtocolError | h11.LocalProtocolError):
        return BadRequest(f"the request cannot be sent: {error}")
    if isinstance(error, httpx2.ReadTimeout):
        return Lost("the server fell silent in the middle of a stream")
    if isinstance(error, httpx2.TransportError):
        return Lost(f"the connection to {url} broke: {error}")
    return BadAnswer(f"{url}: {error}")
