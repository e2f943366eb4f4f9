"""Programs that executions have fetched: only from hosts that the operator names, never from what is closed.

Each redirect is checked as the first address was; the address that is dialled is one that was checked (engine/webget).
"""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import hmac
from typing import Final
from urllib.parse import urljoin, urlsplit

from cove.core.executionpolicy import RemotePolicy
from cove.engine.webget import Getter, Got
from cove.engine.webpost import PostRefused
from cove.model.execution import RemoteFault, RemoteRefused, RemoteSource

_REDIRECTS: Final = 5
_MOVED: Final = frozenset((301, 302, 303, 307, 308))
_URL_CHARS: Final = 4096
_OK: Final = range(200, 300)


class RemoteCode:
    """Fetches by one policy. `getter` None: nothing can leave this machine."""

    def __init__(self, policy: RemotePolicy, getter: Getter | None) -> None:
        self._policy = policy
        self._getter = getter

    async def fetch(self, source: RemoteSource) -> str:
        """The program. Raises: RemoteRefused."""
        policy = self._policy
        if not policy.hosts or self._getter is None:
            raise RemoteRefused(RemoteFault.DISABLED)
        self._check(source.url, source)
        if source.sha256 is None and policy.hash_required:
            raise RemoteRefused(RemoteFault.UNHASHED)
        try:
            async with asyncio.timeout(policy.timeout_s):
                got = await self._follow(source, self._getter)
        except TimeoutError as error:
            raise RemoteRefused(RemoteFault.TIMEOUT, f"{policy.timeout_s * 1000:.0f}") from error
        return self._program(got, source)

    async def _follow(self, source: RemoteSource, getter: Getter) -> Got:
        url = source.url
        for _ in range(_REDIRECTS + 1):
            try:
                got = await getter(url, self._policy.most_bytes)
            except PostRefused as error:
                raise RemoteRefused(RemoteFault.HOST, urlsplit(url).hostname or "") from error
            except TimeoutError:
                raise
            except OSError as error:
                raise _failed(error, url) from error
            if got.status not in _MOVED or got.location is None:
                return got
            url = urljoin(url, got.location)
            self._check(url, source)
        raise RemoteRefused(RemoteFault.FAILED, "too many redirects")

    def _check(self, url: str, source: RemoteSource) -> None:
        """Whether this may be asked for at all. Raises: RemoteRefused."""
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise RemoteRefused(RemoteFault.INVALID) from error
        if not parts.scheme or len(url) > _URL_CHARS or not url.isascii() or not url.isprintable() or " " in url:
            raise RemoteRefused(RemoteFault.INVALID)
        if parts.scheme == "http" and not source.plain:
            raise RemoteRefused(RemoteFault.INSECURE)
        if parts.scheme != "https" and not (parts.scheme == "http" and self._policy.plain):
            raise RemoteRefused(RemoteFault.SCHEME, parts.scheme)
        if not host:
            raise RemoteRefused(RemoteFault.INVALID)
        if not any(fnmatch.fnmatchcase(host.lower(), pattern.lower()) for pattern in self._policy.hosts):
            raise RemoteRefused(RemoteFault.HOST, host)

    def _program(self, got: Got, source: RemoteSource) -> str:
        """Raises: RemoteRefused."""
        if got.status not in _OK:
            raise RemoteRefused(RemoteFault.STATUS, str(got.status))
        if len(got.body) > self._policy.most_bytes:
            raise RemoteRefused(RemoteFault.TOO_LARGE, str(self._policy.most_bytes))
        try:
            text = got.body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RemoteRefused(RemoteFault.BINARY) from error
        if "\0" in text:
            raise RemoteRefused(RemoteFault.BINARY)
        wanted = None if source.sha256 is None else source.sha256.strip().lower().removeprefix("sha256:")
        if wanted is not None and not hmac.compare_digest(
            hashlib.sha256(got.body).hexdigest().encode(), wanted.encode()
        ):
            raise RemoteRefused(RemoteFault.MISMATCH)
        return text


def _failed(error: OSError, url: str) -> RemoteRefused:
    if error.errno is None and "no HTTP" in str(error):
        return RemoteRefused(RemoteFault.FAILED, "the answer is no HTTP")
    host = urlsplit(url).hostname or ""
    if type(error).__name__ == "gaierror":
        return RemoteRefused(RemoteFault.UNRESOLVED, host)
    return RemoteRefused(RemoteFault.FAILED, "the host could not be connected to")
