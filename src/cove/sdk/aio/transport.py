"""Awaited HTTP over TCP and over the local unix socket: httpx2. Imported when the first request is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import h11
import httpx2

from cove.sdk.config import Target
from cove.sdk.errors import Unreachable
from cove.sdk.local import why_unreachable
from cove.sdk.tcp import CONNECT_TIMEOUT_S, KEEPALIVE, WITH_BODY, has_proxy, is_loopback, translated, verify_for

KEEP_IDLE_S = 30.0
"""Idle connections older than this are not used again: the server closes after 75 s."""


class AioTransport:
    """Requests to the server at `target`. Cancelling a request closes its connection."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._url = target.url or "http://localhost"
        limits = httpx2.Limits(keepalive_expiry=KEEP_IDLE_S)
        trust_env = not target.socket and not is_loopback(target.url)
        transport: httpx2.AsyncHTTPTransport | None = None
        if target.socket:
            transport = httpx2.AsyncHTTPTransport(uds=target.socket, verify=verify_for(self._url), limits=limits)
        elif not (trust_env and has_proxy()):
            transport = httpx2.AsyncHTTPTransport(
                verify=verify_for(self._url), trust_env=trust_env, limits=limits, socket_options=KEEPALIVE
            )
        self._http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=limits,
            trust_env=trust_env,
            transport=transport,
        )

    async def send(
        self, method: str, target: str, head: list[tuple[str, str]], body: Any, silence_s: float | None
    ) -> AioResponse:
        """Send one request and wait for the head of its answer.

        Raises: Unreachable (no connection), Lost (it broke), BadAnswer (what came is not HTTP).
        """
        timeout = httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S, read=silence_s)
        if body is None and method in WITH_BODY:
            body = b""
        request = self._http.build_request(method, self._url + target, headers=head, content=body, timeout=timeout)
        try:
            return AioResponse(await self._http.send(request, stream=True))
        except (httpx2.TransportError, httpx2.InvalidURL, h11.LocalProtocolError) as error:
            raise self._translated(error) from error

    async def close(self) -> None:
        """Close all connections; the transport is done then."""
        await self._http.aclose()

    def _translated(self, error: Exception) -> Exception:
        failure = translated(error, self._url)
        cause = _os_error(error)
        if self._target.socket and type(failure) is Unreachable and cause is not None:
            return Unreachable(why_unreachable(cause, self._target.socket))
        return failure


class AioResponse:
    """An answer whose head has arrived."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, names in lower case."""
        return {name.lower(): value for name, value in self._response.headers.items()}

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives."""
        try:
            async for piece in self._response.aiter_raw():
                yield piece
        except httpx2.TransportError as error:
            raise translated(error, str(self._response.url)) from error

    async def close(self) -> None:
        """Give the connection back, or drop it when the body was not read to its end."""
        await self._response.aclose()


def _os_error(error: BaseException | None) -> OSError | None:
    """Find the system's own error below the HTTP library's."""
    seen = 0
    while error is not None and seen < 8:  # noqa: PLR2004 - chains are three long; a ring must not hang us
        if isinstance(error, OSError) and error.errno is not None:
            return error
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None
