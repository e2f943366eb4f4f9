"""Rows of snapshots. Reads run on the loop, writes in the writer's thread.

All but the intent of a new one is synced to the disk: what was answered for must be there after a power failure, and
what was deleted must not come back with its files gone.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from cove.model.errors import BadRequest, EngineFailure
from cove.model.request import Idempotency
from cove.model.snapshot import Snapshot, SnapshotFilter, SnapshotPage, SnapshotState
from cove.store.database import BUSY_TIMEOUT_S
from cove.store.idempotency import remember
from cove.store.reader import Reader
from cove.store.writer import Writer

_SAVE: Final = """
INSERT INTO snapshots (id, seq, project, name, state, sandbox, image_digest, record)
VALUES (?, (SELECT COALESCE(max(seq), 0) + 1 FROM snapshots), ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET name = excluded.name, state = excluded.state, record = excluded.record
"""
_ONE: Final = "SELECT record FROM snapshots WHERE id = ?"
_NAMED: Final = "SELECT record FROM snapshots WHERE project = ? AND name = ?"
_ALL: Final = "SELECT record FROM snapshots ORDER BY seq"
_EXISTS: Final = "SELECT 1 FROM snapshots WHERE id = ? AND project = ?"
_IDS: Final = "SELECT id FROM snapshots WHERE project = ?"
_DIGESTS: Final = "SELECT DISTINCT image_digest FROM snapshots"
_ON_IMAGE: Final = "SELECT name FROM snapshots WHERE project = ? AND image_digest = ? ORDER BY seq"
_FORGET_TAGS: Final = "DELETE FROM snapshot_tags WHERE snapshot = ?"
_ADD_TAG: Final = "INSERT INTO snapshot_tags (snapshot, key, value) VALUES (?, ?, ?)"
_REMOVE: Final = "DELETE FROM snapshots WHERE id = ?"

_HAS_SNAPSHOTS: Final = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'snapshots'"
_UNENDED: Final = "SELECT record FROM sandboxes WHERE ended_at IS NULL"


class _OnImage(Struct, frozen=True):
    image_digest: str = ""


_decode_digest = msgspec.json.Decoder(_OnImage).decode
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Snapshot).decode


class SnapshotRows:
    """The table of snapshots."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def save(self, snapshot: Snapshot, idempotency: Idempotency | None = None) -> None:
        """Insert or replace one row, with the key of the request that made it: both or neither.

        Raises: Conflict (another one has the name), CapacityExceeded, EngineFailure.
        """
        record = _encode(snapshot).decode()
        row = (snapshot.id, snapshot.project, snapshot.name, snapshot.state.value, snapshot.sandbox)
        tags = [(snapshot.id, key, value) for key, value in snapshot.tags.items()]

        def save(db: sqlite3.Connection) -> None:
            db.execute(_SAVE, (*row, snapshot.image_digest, record))
            db.execute(_FORGET_TAGS, (snapshot.id,))
            db.executemany(_ADD_TAG, tags)
            if idempotency is not None:
                remember(db, snapshot.project, idempotency, (snapshot.id,), snapshot.created_at)

        await self._writer.write(save, durable=snapshot.state is not SnapshotState.CREATING)

    def get(self, snapshot_id: str) -> Snapshot | None:
        """One, in any state. 8 µs on the loop."""
        row = self._reader.one(_ONE, (snapshot_id,))
        return None if row is None else _decode(row[0])

    def named(self, project: str, name: str) -> Snapshot | None:
        """The one of a project that has this name."""
        row = self._reader.one(_NAMED, (project, name))
        return None if row is None else _decode(row[0])

    def all(self) -> list[Snapshot]:
        """All, oldest first: what a start must account for."""
        return [_decode(row[0]) for row in self._reader.all(_ALL, ())]

    def page(self, project: str, wanted: SnapshotFilter, *, limit: int, cursor: str | None) -> SnapshotPage:
        """One page, newest first. A cursor is the last id of the page before it. Raises: BadRequest (its cursor)."""
        if cursor is not None and self._reader.one(_EXISTS, (cursor, project)) is None:
            raise BadRequest("no such cursor", field="cursor")
        sql, values = _page_query(project, wanted, cursor)
        rows = self._reader.all(f"{sql} ORDER BY seq DESC LIMIT ?", (*values, limit + 1))
        found = tuple(_decode(row[0]) for row in rows[:limit])
        return SnapshotPage(snapshots=found, cursor=found[-1].id if len(rows) > limit else None)

    def ids(self, project: str) -> set[str]:
        """Those of a project."""
        return {row[0] for row in self._reader.all(_IDS, (project,))}

    def digests(self) -> set[str]:
        """Of the images that snapshots need."""
        return {row[0] for row in self._reader.all(_DIGESTS, ())}

    def names_on(self, project: str, image_digest: str) -> list[str]:
        """The names of a project's snapshots that need an image, oldest first."""
        return [row[0] for row in self._reader.all(_ON_IMAGE, (project, image_digest))]

    async def remove(self, snapshot_id: str) -> None:
        """Forget one. It is not there: nothing."""
        await self._writer.write(lambda db: db.execute(_REMOVE, (snapshot_id,)).rowcount, durable=True)


def needed_digests(path: Path) -> set[str]:
    """Of the images that snapshots and unended sandboxes need: for a process beside the server, which only reads.

    Raises: EngineFailure when the database cannot be read.
    """
    if not path.exists():
        return set()
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)) as db:
            found = {_decode_digest(row[0]).image_digest for row in db.execute(_UNENDED)}
            if db.execute(_HAS_SNAPSHOTS).fetchone():  # not where an older version was the last to serve
                found |= {row[0] for row in db.execute(_DIGESTS)}
    except (sqlite3.Error, msgspec.MsgspecError) as error:
        raise EngineFailure("the state database cannot be read", internal=f"{path}: {error}") from error
    return found


def _page_query(project: str, wanted: SnapshotFilter, cursor: str | None) -> tuple[str, tuple[str, ...]]:
    """The WHERE of a page. Built of fixed text only; every value of a caller is a parameter."""
    states = sorted(state.value for state in wanted.states or SnapshotState)
    clauses = ["project = ?", f"state IN ({', '.join('?' * len(states))})"]
    values = [project, *states]
    for column, value in (("sandbox", wanted.sandbox), ("name", wanted.name)):
        if value is not None:
            clauses.append(f"{column} = ?")
            values.append(value)
    for key, value in wanted.tags.items():
        clauses.append(
            "EXISTS (SELECT 1 FROM snapshot_tags t WHERE t.snapshot = snapshots.id AND t.key = ? AND t.value = ?)"
        )
        values += (key, value)
    if cursor is not None:
        clauses.append("seq < (SELECT seq FROM snapshots WHERE id = ?)")
        values.append(cursor)
    return f"SELECT record FROM snapshots WHERE {' AND '.join(clauses)}", tuple(values)  # noqa: S608 - see above
