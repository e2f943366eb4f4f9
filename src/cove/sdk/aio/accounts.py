"""What was used, what it costs, and who may use how much. The twin of `cove.sdk.accounts`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from cove.sdk import account_calls
from cove.sdk.account_calls import Moment
from cove.sdk.account_models import Bill, Quota, QuotaInfo, UsageLine, usage_line

if TYPE_CHECKING:
    from cove.sdk.aio.client import Client


class Account:
    """`client.account`: usage and quotas."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def usage(  # noqa: PLR0913 - one keyword for each filter
        self,
        *,
        since: Moment = None,
        until: Moment = None,
        group_by: str | Sequence[str] = (),
        project: str | None = None,
        key: str | None = None,
        sandbox: str | None = None,
    ) -> AsyncIterator[UsageLine]:
        """Yield the lines of a report, in the order of their groups; without `group_by` one line with the sum.

        `group_by`: up to three of `project`, `key`, `sandbox`, `day`, `hour`. `since` is included, `until` is not.
        """
        cursor: str | None = None
        while True:
            page, cursor = await self._client.call(
                account_calls.usage_page(
                    since=since,
                    until=until,
                    group_by=group_by,
                    project=project,
                    key=key,
                    sandbox=sandbox,
                    cursor=cursor,
                )
            )
            for wire in page:
                yield usage_line(wire)
            if cursor is None:
                return

    async def bill(self, ref: str) -> Bill:
        """Return all that one sandbox used and costs, also long after its end (by its id). Raises: NotFound."""
        return await self._client.call(account_calls.bill(ref))

    async def quotas(self) -> list[QuotaInfo]:
        """Return all that limits the caller: its project's quota, its key's, and those of the keys that made it."""
        return await self._client.call(account_calls.quotas())

    async def quota(self, *, project: str | None = None, key: str | None = None) -> QuotaInfo:
        """Return the limits and use of a project or a key (its id). Raises: NotFound."""
        return await self._client.call(account_calls.quota(project, key))

    async def set_quota(self, limits: Quota, *, project: str | None = None, key: str | None = None) -> QuotaInfo:
        """Replace the limits of a project or a key. Raises: Forbidden (admins only), NotFound."""
        return await self._client.call(account_calls.set_quota(project, key, limits))
