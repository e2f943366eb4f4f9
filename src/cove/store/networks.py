"""Rows of network profiles, and what projects' sandboxes get unasked. Durable: what was closed must stay so."""

from __future__ import annotations

from typing import Final

import msgspec

from cove.model.network import NetworkProfile, NetworkRequest
from cove.store.reader import Reader
from cove.store.writer import Writer

_ALL: Final = "SELECT profile FROM network_profiles ORDER BY name"
_ONE: Final = "SELECT profile FROM network_profiles WHERE name = ?"
_SAVE: Final = """
INSERT INTO network_profiles (name, profile, changed_at) VALUES (?, ?, ?)
ON CONFLICT (name) DO UPDATE SET profile = excluded.profile, changed_at = excluded.changed_at
"""
_REMOVE: Final = "DELETE FROM network_profiles WHERE name = ?"
_SET_DEFAULT: Final = "UPDATE projects SET network = ? WHERE id = ?"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(NetworkProfile).decode


class NetworkRows:
    """The table of profiles, and one column of the table of projects."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    def profiles(self) -> list[NetworkProfile]:
        """Every stored profile, by name."""
        return [_decode(row[0]) for row in self._reader.all(_ALL, ())]

    def profile(self, name: str) -> NetworkProfile | None:
        """One stored profile."""
        row = self._reader.one(_ONE, (name,))
        return None if row is None else _decode(row[0])

    async def save_profile(self, profile: NetworkProfile, *, at: float) -> None:
        """Insert or replace one. Durable."""
        row = (profile.name, _encode(profile).decode(), at)
        await self._writer.write(lambda db: db.execute(_SAVE, row).rowcount, durable=True)

    async def remove_profile(self, name: str) -> bool:
        """Forget one; whether there was one. Durable."""
        return await self._writer.write(lambda db: db.execute(_REMOVE, (name,)).rowcount > 0, durable=True)

    async def set_default(self, project: str, network: NetworkRequest | None) -> bool:
        """Write what a project's sandboxes get unasked; whether there is such a project. Durable."""
        row = (None if network is None else _encode(network).decode(), project)
        return await self._writer.write(lambda db: db.execute(_SET_DEFAULT, row).rowcount > 0, durable=True)
