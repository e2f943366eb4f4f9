"""Which limits there are, for whom they hold, and which key made which: in memory, from the store. No sums, no checks.

A *subject* is `project:ID` or `key:ID`. What a key does counts for its project, for itself, and for the key that made
it, that key's maker, and so on: nobody gets more by making keys.
"""

from __future__ import annotations

from typing import Final

from cove.model.quota import SUBJECT_KEY, SUBJECT_PROJECT, UNLIMITED, Quota
from cove.store.quotas import QuotaRow
from cove.store.store import Store

DEPTH: Final = 16
"""Most keys that made each other: a longer chain would make every request dearer."""


def project_subject(project: str) -> str:
    """How a project is written."""
    return f"{SUBJECT_PROJECT}:{project}"


def key_subject(key: str) -> str:
    """How a key is written."""
    return f"{SUBJECT_KEY}:{key}"


class QuotaBook:
    """The rows. Everything but writing is a look into a dictionary."""

    def __init__(self, store: Store) -> None:
        self._store = store
        rows = store.quotas.all()
        self._rows = {f"{row.subject}:{row.id}": row for row in rows}
        self.limited = {subject for subject, row in self._rows.items() if row.quota is not None}
        self.has_rates = False
        self._look()

    def quota(self, subject: str) -> Quota:
        """A subject's limits."""
        row = self._rows.get(subject)
        return UNLIMITED if row is None or row.quota is None else row.quota

    def chain(self, project: str, key: str) -> tuple[str, ...]:
        """The subjects that pay for what a key of a project does: the project first, then the key, then its makers."""
        found = [f"{SUBJECT_PROJECT}:{project}", f"{SUBJECT_KEY}:{key}"]
        row = self._rows.get(found[1])
        while row is not None and row.parent is not None and len(found) <= DEPTH + 1:
            found.append(f"{SUBJECT_KEY}:{row.parent}")
            row = self._rows.get(found[-1])
        return tuple(found)

    async def set(self, kind: str, of: str, quota: Quota | None) -> None:
        """Write a subject's limits anew. Durable."""
        before = self._rows.get(f"{kind}:{of}")
        await self._save(QuotaRow(subject=kind, id=of, quota=quota, parent=None if before is None else before.parent))

    async def add_key(self, key: str, quota: Quota | None, parent: str | None) -> None:
        """Write whose child a new key is, and its limits, before the key itself is written. Durable."""
        if quota is not None or parent is not None:
            await self._save(QuotaRow(subject=SUBJECT_KEY, id=key, quota=quota, parent=parent))

    async def _save(self, row: QuotaRow) -> None:
        await self._store.quotas.save(row)
        subject = f"{row.subject}:{row.id}"
        self._rows[subject] = row
        if row.quota is None:
            self.limited.discard(subject)
        else:
            self.limited.add(subject)
        self._look()

    def _look(self) -> None:
        self.has_rates = any(self.quota(one).requests_per_minute is not None for one in self.limited)
