"""What each kind of failure is called and what to do about it: one table for API, SDK, CLI and docs. No I/O.

To add a kind: a row here, a heading in docs/reference/errors.md.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, NamedTuple


class Hint(NamedTuple):
    """A short title, and one runnable line or sentence; empty where the failure's own sentence says it all."""

    title: str
    hint: str = ""
    retryable: bool = False


HINTS: Final = MappingProxyType(
    {
        "bad-request": Hint("The request must change"),
        "too-large": Hint("Something is too large"),
        "unauthorized": Hint(
            "No valid API key",
            "send `Authorization: Bearer KEY`; the first key is in admin.key of the server's data directory, "
            "`cove key create` makes others",
        ),
        "forbidden": Hint("This key may not do that", "use a key with that scope: cove key create --scopes ..."),
        "not-found": Hint("No such object", "list what there is: cove ls"),
        "conflict": Hint("The object's state forbids it now"),
        "idempotency-conflict": Hint(
            "The Idempotency-Key was used for another request", "use a fresh key for each distinct request"
        ),
        "gone": Hint("The sandbox has ended", "make a new one: cove new"),
        "capacity": Hint("No room on this machine now", "try again shortly, or end what is not needed: cove rm", True),
        "quota-exceeded": Hint("The quota is used up", "see it: cove quota show; end what is not needed: cove rm"),
        "quota-too-small": Hint("That is more than the whole quota", "ask for less, or see it: cove quota show"),
        "budget-exceeded": Hint("The budget is used up", "see what was used: cove usage"),
        "rate-limited": Hint("Too many requests", "wait as long as Retry-After says", True),
        "unsupported": Hint("This machine cannot do it", "see what it can: cove doctor"),
        "sandbox-error": Hint("The sandbox failed"),
        "sandbox-gone": Hint("The sandbox died", "make a new one: cove new"),
        "agent-timeout": Hint("The sandbox did not answer in time", "it may be overloaded; try again", True),
        "agent-violation": Hint("The sandbox broke the protocol", "it cannot be trusted any more: cove rm"),
        "registry-error": Hint("The registry of the image failed or refused", "see what is here: cove image ls"),
        "registry-unreachable": Hint("The registry cannot be reached", "see what is here: cove image ls", True),
        "file-error": Hint("The file operation was refused"),
        "engine-failure": Hint(
            "Cove or the machine failed", "look for the request id in the server's log, then: cove doctor"
        ),
        "forbidden:image": Hint(
            "This registry is not allowed", "the settings registries and insecure_registries say which ones are"
        ),
        "unsupported:memory": Hint(
            "Its memory cannot be kept or brought back", "its files can be had alone: --files-only, or memory: false"
        ),
        "not-found:snapshot": Hint("No such snapshot", "see what is there: cove snapshot ls"),
        "conflict:snapshot": Hint("The snapshot's state forbids it now", "see it: cove snapshot show NAME"),
        "conflict:state": Hint("The sandbox stands still", "let it go on: cove resume BOX"),
        "not-found:image": Hint("No such image", "see what is here: cove image ls"),
        "conflict:image": Hint("The image cannot be changed now", "see what runs: cove ls"),
    },
)
"""By `CoveError.kind`, and by `KIND:FIELD` where more can be said."""
