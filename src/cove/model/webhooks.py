"""Who is told of a project's events. Frozen values, no I/O."""

from __future__ import annotations

from msgspec import Struct


class Webhook(Struct, frozen=True, kw_only=True):
    """One address that gets signed POSTs. `events`: beginnings of events (`sandbox.`). `secret` is sealed.

    `seq`: the last line of the project's audit trail that it was told, or that was none of its. `failing_since`: the
    first failure after the last success, with `failure` saying what the last one was. `disabled_at`: given up.
    """

    id: str
    project: str
    url: str
    events: tuple[str, ...]
    secret: str
    created_at: float
    seq: int
    delivered_at: float | None = None
    failing_since: float | None = None
    failure: str | None = None
    disabled_at: float | None = None

    def wants(self, event: str) -> bool:
        """Whether it is told of an event."""
        return event.startswith(self.events)
