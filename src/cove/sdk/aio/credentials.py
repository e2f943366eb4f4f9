"""Credentials and services, awaited. The twin of `cove.sdk.credentials`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cove.sdk import credential_calls
from cove.sdk.credential_calls import Credential, Rules, Service
from cove.sdk.units import UNSET, Unset

if TYPE_CHECKING:
    from cove.sdk.aio.client import Client

__all__ = ["Credential", "Credentials", "ProjectCredentials", "Service", "Services"]


class Credentials:
    """`sandbox.credentials`: what one sandbox may use. Changes hold for its next request."""

    def __init__(self, ref: str, client: Client) -> None:
        self._ref = ref
        self._client = client

    async def list(self) -> list[Credential]:
        """Return them, by service."""
        return await self._client.call(credential_calls.of_box(self._ref))

    async def set(
        self, service: str, key: str | Unset | None = UNSET, *, endpoints: Rules | Unset = UNSET
    ) -> Credential:
        """Give it a credential, or change one. `key` None: the project's. What is not given stays.

        Another key lets requests under way end by themselves, other `endpoints` cut them. The sandbox's environment is
        as it was made: `.env` of the answer is what a program needs. Raises: NotFound, BadRequest, Unsupported.
        """
        return await self._client.call(credential_calls.set_of_box(self._ref, service, key, endpoints))

    async def remove(self, service: str) -> None:
        """Take one away; requests and streams under way with it are cut. There is none: nothing happens."""
        await self._client.call(credential_calls.remove_of_box(self._ref, service))


class ProjectCredentials:
    """`client.credentials`: keys that a project keeps, for its sandboxes to use by the name of the service."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def list(self, *, project: str | None = None) -> list[Credential]:
        """Return them, by service. `project` None: your own."""
        return await self._client.call(credential_calls.shared(project))

    async def set(
        self,
        service: str,
        key: str | Unset = UNSET,
        *,
        endpoints: Rules | Unset = UNSET,
        project: str | None = None,
    ) -> Credential:
        """Keep a key, or change it or its rules; what is not given stays. Sandboxes use it from their next request."""
        return await self._client.call(credential_calls.set_shared(service, key, endpoints, project))

    async def remove(self, service: str, *, project: str | None = None) -> None:
        """Forget one; what uses it is cut. There is none: nothing happens."""
        await self._client.call(credential_calls.remove_shared(service, project))

    async def rekey(self) -> int:
        """Seal every secret of the server by a new key; returns how many there are. For an admin."""
        return await self._client.call(credential_calls.rekey())


class Services:
    """`client.services`: the HTTPS APIs that credentials can be for. Changing them is for an admin."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def list(self) -> list[Service]:
        """Return them, by name."""
        return await self._client.call(credential_calls.services())

    async def put(  # noqa: PLR0913 - one keyword for each property of a service
        self,
        name: str,
        upstream: str,
        *,
        header: str | None = None,
        value: str | None = None,
        strip_headers: Sequence[str] | None = None,
        strip_query: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        description: str | None = None,
    ) -> Service:
        """Add a service, or change one. `upstream` is https; `value` of the header has `{key}` in it.

        `env`: what sandboxes get, with `{placeholder}` and `{url}`. Raises: BadRequest, Forbidden.
        """
        fields = {
            "header": header,
            "value": value,
            "strip_headers": None if strip_headers is None else list(strip_headers),
            "strip_query": None if strip_query is None else list(strip_query),
            "env": None if env is None else dict(env),
            "description": description,
        }
        return await self._client.call(credential_calls.put_service(name, upstream, fields))

    async def remove(self, name: str) -> None:
        """Forget one of your own; one of the catalogue that it replaced is back. Raises: NotFound."""
        await self._client.call(credential_calls.remove_service(name))
