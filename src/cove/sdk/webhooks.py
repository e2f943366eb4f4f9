"""Webhooks: be told of a project's events by signed POSTs. The awaited twin is `aio/webhooks.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cove.sdk import webhook_calls
from cove.sdk.webhook_calls import Webhook

if TYPE_CHECKING:
    from cove.sdk.client import Client

__all__ = ["Webhook", "Webhooks"]


class Webhooks:
    """`client.webhooks`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, url: str, *, events: Sequence[str] | None = None, project: str | None = None) -> Webhook:
        """Tell `url` of events that begin so (None: `sandbox.`), from now on. Its `secret` is in this answer only.

        Raises: BadRequest, Forbidden (an address that may not be reached), Conflict (16 are there).
        """
        return self._client.call(webhook_calls.create(url, events=events, project=project))

    def list(self) -> list[Webhook]:
        """Return those of the project, and how they go."""
        return self._client.call(webhook_calls.webhooks())

    def remove(self, webhook_id: str) -> None:
        """Tell it nothing more. Raises: NotFound."""
        self._client.call(webhook_calls.remove(webhook_id))

    @staticmethod
    def verify(secret: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Whether a POST that came was sent by this server's webhook, in the last five minutes."""
        import time

        return webhook_calls.is_genuine(secret, headers, body, now=time.time())
