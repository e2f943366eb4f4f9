"""Rows of projects and keys. Their writes are durable: a key that was shown once, or revoked, must stay so."""

from __future__ import annotations

from typing import Final

import msgspec

from cove.model.access import Key, Project
from cove.store.reader import Reader, Value
from cove.store.writer import Writer

_COLUMNS: Final = "id, name, project, dialect, scopes, digest, created_at, expires_at, revoked_at, last_used_at, label"
_ADD: Final = f"INSERT INTO keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO NOTHING"  # noqa: S608
_BY_DIGEST: Final = f"SELECT {_COLUMNS} FROM keys WHERE digest = ?"  # noqa: S608 - constants only, here and below
_BY_ID: Final = f"SELECT {_COLUMNS} FROM keys WHERE id = ?"  # noqa: S608
_OF_PROJECT: Final = f"SELECT {_COLUMNS} FROM keys WHERE project = ? ORDER BY created_at, id"  # noqa: S608
_ALL: Final = f"SELECT {_COLUMNS} FROM keys ORDER BY created_at, id"  # noqa: S608
_REVOKE: Final = "UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL"
_TOUCH: Final = "UPDATE keys SET last_used_at = ? WHERE id = ?"
_PROJECT_COLUMNS: Final = "id, created_at, default_driver, drivers, network"
_ADD_PROJECT: Final = "INSERT INTO projects (id, created_at, default_driver, drivers) VALUES (?, ?, ?, ?)"
_CHANGE_PROJECT: Final = "UPDATE projects SET default_driver = ?, drivers = ? WHERE id = ?"
_ENSURE_PROJECT: Final = "INSERT INTO projects (id, created_at) VALUES (?, ?) ON CONFLICT (id) DO NOTHING"
_PROJECT: Final = f"SELECT {_PROJECT_COLUMNS} FROM projects WHERE id = ?"  # noqa: S608
_PROJECTS: Final = f"SELECT {_PROJECT_COLUMNS} FROM projects ORDER BY created_at, id"  # noqa: S608


class KeyRows:
    """The table of keys."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def add(self, key: Key) -> bool:
        """Add a key unless its digest is known; whether it was added. Durable."""
        row = _row(key)
        return await self._writer.write(lambda db: db.execute(_ADD, row).rowcount > 0, durable=True)

    def by_digest(self, digest: str) -> Key | None:
        """The key of that digest, revoked and expired ones too."""
        row = self._reader.one(_BY_DIGEST, (digest,))
        return None if row is None else _key(row)

    def by_id(self, key_id: str) -> Key | None:
        """The key of that id."""
        row = self._reader.one(_BY_ID, (key_id,))
        return None if row is None else _key(row)

    def list(self, project: str | None) -> list[Key]:
        """The keys of a project, oldest first; None: of all."""
        rows = self._reader.all(_ALL, ()) if project is None else self._reader.all(_OF_PROJECT, (project,))
        return [_key(row) for row in rows]

    async def revoke(self, key_id: str, *, at: float) -> None:
        """Mark a key revoked; the first time counts. Durable."""
        await self._writer.write(lambda db: db.execute(_REVOKE, (at, key_id)).rowcount, durable=True)

    async def touch(self, key_id: str, *, at: float) -> None:
        """Note when a key was last used."""
        await self._writer.write(lambda db: db.execute(_TOUCH, (at, key_id)).rowcount)


class ProjectRows:
    """The table of projects."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def add(self, project: Project) -> None:
        """Add a project. Durable. Raises: Conflict when there is one of that id."""
        row = (project.id, project.created_at, project.default_driver, " ".join(project.drivers))
        await self._writer.write(lambda db: db.execute(_ADD_PROJECT, row).rowcount, durable=True)

    async def change(self, project: Project) -> None:
        """Write its drivers anew. Durable."""
        row = (project.default_driver, " ".join(project.drivers), project.id)
        await self._writer.write(lambda db: db.execute(_CHANGE_PROJECT, row).rowcount, durable=True)

    async def ensure(self, project: Project) -> None:
        """Add a project unless it is there. Durable."""
        row = (project.id, project.created_at)
        await self._writer.write(lambda db: db.execute(_ENSURE_PROJECT, row).rowcount, durable=True)

    def get(self, project_id: str) -> Project | None:
        """One project."""
        row = self._reader.one(_PROJECT, (project_id,))
        return None if row is None else _project(row)

    def list(self) -> list[Project]:
        """All projects, oldest first."""
        rows = self._reader.all(_PROJECTS, ())
        return [_project(row) for row in rows]


def _project(row: tuple[str, ...]) -> Project:
    fields = dict(zip(_PROJECT_COLUMNS.split(", "), row, strict=True))
    network = msgspec.json.decode(fields["network"] or "null")
    return msgspec.convert({**fields, "drivers": fields["drivers"].split(), "network": network}, Project)


def _row(key: Key) -> tuple[Value, ...]:
    scopes = " ".join(sorted(scope.value for scope in key.scopes))
    times = (key.created_at, key.expires_at, key.revoked_at, key.last_used_at)
    return (key.id, key.name, key.project, key.dialect, scopes, key.digest, *times, key.label)


def _key(row: tuple[str, ...]) -> Key:
    fields = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return msgspec.convert({**fields, "scopes": fields["scopes"].split()}, Key)
