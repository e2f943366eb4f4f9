"""What sandboxes tried to reach and did not: the last of each, and their lines of the audit trail. Bounded.

What repeats within a minute is one entry and one line; a line says how many there were since the one before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from cove.core.audit import Audit
from cove.engine.clock import Clock
from cove.model.network import Refusal
from cove.model.sandbox import Sandbox

KEPT: Final = 200
"""Refusals kept per sandbox: the least recent go first."""

QUIET_S: Final = 60.0
"""How long a repeated refusal adds no line to the audit trail."""

_Key = tuple[str, str | None, str | None, int, str, str, bool]


class _Entry(Struct):
    last: Refusal
    unnoted: int
    noted_at: float


class Refusals:
    """The refusals of live sandboxes."""

    def __init__(self, audit: Audit, clock: Clock, find: Callable[[str], Sandbox | None]) -> None:
        self._audit = audit
        self._clock = clock
        self._find = find
        self._by_sandbox: dict[str, OrderedDict[_Key, _Entry]] = {}

    def hear(self, refusal: Refusal) -> None:
        """Take one. One of a sandbox that has ended is dropped."""
        sandbox = self._find(refusal.sandbox)
        if sandbox is None:
            return
        kept = self._by_sandbox.setdefault(refusal.sandbox, OrderedDict())
        key = _key(refusal)
        entry = kept.pop(key, None)
        if entry is None:
            entry = _Entry(last=replace(refusal, count=0), unnoted=0, noted_at=float("-inf"))
        entry.last = replace(refusal, count=entry.last.count + refusal.count)
        entry.unnoted += refusal.count
        kept[key] = entry
        if self._clock.monotonic() - entry.noted_at >= QUIET_S:
            self._note(sandbox, entry)
        if len(kept) > KEPT:
            _, oldest = kept.popitem(last=False)
            self._note(sandbox, oldest)

    def recent(self, sandbox_id: str) -> list[Refusal]:
        """The last of each kind, newest first."""
        return [entry.last for entry in reversed(self._by_sandbox.get(sandbox_id, OrderedDict()).values())]

    def forget(self, sandbox: Sandbox) -> None:
        """It has ended: what was not told yet is told."""
        for entry in self._by_sandbox.pop(sandbox.id, OrderedDict()).values():
            self._note(sandbox, entry)

    def _note(self, sandbox: Sandbox, entry: _Entry) -> None:
        if not entry.unnoted:
            return
        refusal, count = entry.last, entry.unnoted
        entry.unnoted, entry.noted_at = 0, self._clock.monotonic()
        self._audit.note(
            "network.blocked",
            project=sandbox.project,
            sandbox=sandbox.id,
            data={
                "layer": refusal.layer,
                "host": refusal.name,
                "ip": refusal.address,
                "port": refusal.port,
                "protocol": refusal.protocol,
                "rule": refusal.rule,
                "count": count,
                "dry_run": refusal.dry_run,
            },
        )


def _key(one: Refusal) -> _Key:
    return (one.layer, one.name, one.address, one.port, one.protocol, one.rule, one.dry_run)
