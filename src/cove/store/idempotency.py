"""Rows of idempotency keys: what was made for which key of a project."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from cove.model.request import Idempotency
from cove.model.sandbox import Sandbox
from cove.store.reader import Reader
from cove.store.sandboxes import saving
from cove.store.writer import Writer

_SAVE: Final = """
INSERT INTO idempotency (project, key, body_sha256, made, created_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (project, key) DO UPDATE SET
    body_sha256 = excluded.body_sha256, made = excluded.made, created_at = excluded.created_at
"""
_ONE: Final = "SELECT body_sha256, made FROM idempotency WHERE project = ? AND key = ? AND created_at >= ?"
_PURGE: Final = "DELETE FROM idempotency WHERE created_at < ?"


class IdempotencyRow(Struct, frozen=True):
    """What a key was used for. `made`: the ids of the sandboxes, or of the snapshot, that came of it."""

    body_sha256: str
    made: tuple[str, ...]


class IdempotencyRows:
    """The table of idempotency keys."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    def get(self, project: str, key: str, *, since: float) -> IdempotencyRow | None:
        """What `key` was used for, if that was after `since`."""
        row = self._reader.one(_ONE, (project, key, since))
        return None if row is None else IdempotencyRow(row[0], tuple(row[1].split()))

    async def save_with(self, sandbox: Sandbox, idempotency: Idempotency) -> None:
        """Save the intent of a sandbox and the key that asked for it: both or neither.

        Not synced to the disk, as the sandbox itself is not: after a power failure both may be unknown, no sandbox
        lives on, and the caller's retry rightly makes a new one.
        """
        await self._writer.write(saving_both(sandbox, idempotency))

    async def purge(self, *, before: float) -> int:
        """Forget the keys used before that time; returns how many."""
        return await self._writer.write(lambda db: db.execute(_PURGE, (before,)).rowcount)


def saving_both(sandbox: Sandbox, idempotency: Idempotency) -> Callable[[sqlite3.Connection], None]:
    """The write that saves both, for callers that put more into the same savepoint."""
    save = saving(sandbox)

    def save_both(db: sqlite3.Connection) -> None:
        save(db)
        remember(db, sandbox.project, idempotency, (sandbox.id,), sandbox.created_at)

    return save_both


def remember(db: sqlite3.Connection, project: str, idempotency: Idempotency, made: Sequence[str], at: float) -> None:
    """In the writer's thread, beside the row of what was made: the key that asked for it."""
    db.execute(_SAVE, (project, idempotency.key, idempotency.body_sha256, " ".join(made), at))
