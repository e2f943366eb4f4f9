"""Rows of webhooks."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

import msgspec

from cove.model.webhooks import Webhook
from cove.store.reader import Reader, Value
from cove.store.writer import Writer

_COLUMNS: Final = "id, project, url, events, secret, created_at, seq, delivered_at, failing_since, failure, disabled_at"
_ADD: Final = f"INSERT INTO webhooks ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - fixed text
_NOTE: Final = """
UPDATE webhooks SET seq = ?, delivered_at = ?, failing_since = ?, failure = ?, disabled_at = ? WHERE id = ?
"""
_SECRETS: Final = "SELECT id, secret FROM webhooks"
_RESEAL: Final = "UPDATE webhooks SET secret = ? WHERE id = ?"
_REMOVE: Final = "DELETE FROM webhooks WHERE id = ?"
_ONE: Final = f"SELECT {_COLUMNS} FROM webhooks WHERE id = ?"  # noqa: S608 - fixed text
_ALL: Final = f"SELECT {_COLUMNS} FROM webhooks ORDER BY created_at, id"  # noqa: S608 - fixed text
_OF_PROJECT: Final = f"SELECT {_COLUMNS} FROM webhooks WHERE project = ? ORDER BY created_at, id"  # noqa: S608


class WebhookRows:
    """The table of webhooks."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def add(self, hook: Webhook) -> None:
        """Add one. Durable."""
        row = _row(hook)
        await self._writer.write(lambda db: db.execute(_ADD, row).rowcount, durable=True)

    async def note(self, hook: Webhook) -> None:
        """Write how far it is and how it goes."""
        row = (hook.seq, hook.delivered_at, hook.failing_since, hook.failure, hook.disabled_at, hook.id)
        await self._writer.write(lambda db: db.execute(_NOTE, row).rowcount)

    async def remove(self, hook_id: str) -> None:
        """Forget one. Durable."""
        await self._writer.write(lambda db: db.execute(_REMOVE, (hook_id,)).rowcount, durable=True)

    async def reseal(self, change: Callable[[str, str], str | None]) -> int:
        """Replace every secret by what `change` makes of id and secret (None: it stays). One transaction, durable."""

        def reseal_all(db: sqlite3.Connection) -> int:
            made = [(change(*row), row[0]) for row in db.execute(_SECRETS).fetchall()]
            changed = [row for row in made if row[0] is not None]
            db.executemany(_RESEAL, changed)
            return len(changed)

        return await self._writer.write(reseal_all, durable=True)

    def get(self, hook_id: str) -> Webhook | None:
        """One."""
        row = self._reader.one(_ONE, (hook_id,))
        return None if row is None else _hook(row)

    def list(self, project: str | None) -> list[Webhook]:
        """Those of a project, None: all; oldest first."""
        rows = self._reader.all(_ALL, ()) if project is None else self._reader.all(_OF_PROJECT, (project,))
        return [_hook(row) for row in rows]


def _row(hook: Webhook) -> tuple[Value, ...]:
    head = (hook.id, hook.project, hook.url, " ".join(hook.events), hook.secret, hook.created_at, hook.seq)
    return (*head, hook.delivered_at, hook.failing_since, hook.failure, hook.disabled_at)


def _hook(row: tuple[str, ...]) -> Webhook:
    fields = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return msgspec.convert({**fields, "events": fields["events"].split()}, Webhook)
