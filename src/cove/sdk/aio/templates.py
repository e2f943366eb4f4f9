"""Templates, awaited. The twin of `cove.sdk.templates`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cove.sdk import template_calls
from cove.sdk.template_calls import Template

if TYPE_CHECKING:
    from cove.sdk.aio.client import Client

__all__ = ["Template", "Templates"]


class Templates:
    """`client.templates`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def list(self) -> list[Template]:
        """Return the project's, by name."""
        return await self._client.call(template_calls.templates())

    async def get(self, name: str) -> Template:
        """Return one. Raises: NotFound."""
        return await self._client.call(template_calls.get(name))

    async def set(self, name: str, snapshot: str | None = None, *, ready: int | None = None) -> Template:
        """Make one of a snapshot (its id or name), or change it; None: as it is. `ready` copies are kept ready.

        Raises: Forbidden (it wants the scope admin), NotFound, Conflict, CapacityExceeded.
        """
        return await self._client.call(template_calls.set_template(name, snapshot=snapshot, ready=ready))

    async def remove(self, name: str) -> None:
        """Forget one; its snapshot stays. Raises: NotFound."""
        await self._client.call(template_calls.remove(name))
