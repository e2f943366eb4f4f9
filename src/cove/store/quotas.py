"""Rows of quotas, and which key made which. There are few, so the core holds all of them in memory."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from cove.model.quota import Quota
from cove.store.reader import Reader
from cove.store.writer import Writer

_ALL: Final = "SELECT subject, id, COALESCE(quota, ''), parent FROM quotas"
_SAVE: Final = """
INSERT INTO quotas (subject, id, quota, parent) VALUES (?, ?, ?, ?)
ON CONFLICT (subject, id) DO UPDATE SET quota = excluded.quota, parent = excluded.parent
"""
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Quota).decode


class QuotaRow(Struct, frozen=True, kw_only=True):
    """The limits of one project or key (`subject`); `parent`: the id of the key that made a key."""

    subject: str
    id: str
    quota: Quota | None = None
    parent: str | None = None


class QuotaRows:
    """The table of quotas."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    def all(self) -> list[QuotaRow]:
        """Every row."""
        return [
            QuotaRow(subject=subject, id=of, quota=_decode(quota) if quota else None, parent=parent or None)
            for subject, of, quota, parent in self._reader.all(_ALL, ())
        ]

    async def save(self, row: QuotaRow) -> None:
        """Insert or replace one. Durable: a limit that was set must stay so."""
        quota = None if row.quota is None else _encode(row.quota).decode()
        values = (row.subject, row.id, quota, row.parent)
        await self._writer.write(lambda db: db.execute(_SAVE, values).rowcount, durable=True)
