"""Rows of public keys for SSH. Adding and removing is durable: a key that was taken away must stay so."""

from __future__ import annotations

from typing import Final

import msgspec

from cove.model.sshkey import SshKey
from cove.store.reader import Reader
from cove.store.writer import Writer

_COLUMNS: Final = "id, project, name, type, public_key, fingerprint, created_at, last_used_at"
_ADD: Final = (
    f"INSERT INTO ssh_keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "  # noqa: S608 - constants only, here and below
    "ON CONFLICT (project, fingerprint) DO NOTHING"
)
_BY_ID: Final = f"SELECT {_COLUMNS} FROM ssh_keys WHERE id = ?"  # noqa: S608
_BY_FINGERPRINT: Final = f"SELECT {_COLUMNS} FROM ssh_keys WHERE fingerprint = ? ORDER BY created_at, id LIMIT ?"  # noqa: S608
_OF_PROJECT: Final = f"SELECT {_COLUMNS} FROM ssh_keys WHERE project = ? ORDER BY created_at, id"  # noqa: S608
_ALL: Final = f"SELECT {_COLUMNS} FROM ssh_keys ORDER BY created_at, id"  # noqa: S608
_REMOVE: Final = "DELETE FROM ssh_keys WHERE id = ?"
_TOUCH: Final = "UPDATE ssh_keys SET last_used_at = ? WHERE id = ?"


class SshKeyRows:
    """The table of public keys."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def add(self, key: SshKey) -> bool:
        """Add a key unless its project has it; whether it was added. Durable."""
        row = msgspec.structs.astuple(key)
        return await self._writer.write(lambda db: db.execute(_ADD, row).rowcount > 0, durable=True)

    def by_id(self, key_id: str) -> SshKey | None:
        """The key of that id."""
        row = self._reader.one(_BY_ID, (key_id,))
        return None if row is None else _key(row)

    def by_fingerprint(self, fingerprint: str, *, limit: int) -> list[SshKey]:
        """That key in each project which has it, oldest first."""
        return [_key(row) for row in self._reader.all(_BY_FINGERPRINT, (fingerprint, limit))]

    def list(self, project: str | None) -> list[SshKey]:
        """The keys of a project, oldest first; None: of all."""
        rows = self._reader.all(_ALL, ()) if project is None else self._reader.all(_OF_PROJECT, (project,))
        return [_key(row) for row in rows]

    async def remove(self, key_id: str) -> None:
        """Forget a key. Durable."""
        await self._writer.write(lambda db: db.execute(_REMOVE, (key_id,)).rowcount, durable=True)

    async def touch(self, key_id: str, *, at: float) -> None:
        """Note when a key was last used."""
        await self._writer.write(lambda db: db.execute(_TOUCH, (at, key_id)).rowcount)


def _key(row: tuple[str, ...]) -> SshKey:
    return msgspec.convert(dict(zip(_COLUMNS.split(", "), row, strict=True)), SshKey)
