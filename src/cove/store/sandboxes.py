"""Rows of sandboxes. Reads run on the loop, writes in the writer's thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from cove.model.errors import BadRequest
from cove.model.request import UNENDED, SandboxFilter, SandboxPage
from cove.model.sandbox import Sandbox
from cove.store.reader import Reader
from cove.store.writer import Writer

_SAVE: Final = """
INSERT INTO sandboxes (id, seq, project, name, state, image, driver, ended_at, record)
VALUES (?, (SELECT COALESCE(max(seq), 0) + 1 FROM sandboxes), ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    name = excluded.name, state = excluded.state, ended_at = excluded.ended_at, record = excluded.record
"""
_ONE: Final = "SELECT record FROM sandboxes WHERE id = ?"
_UNENDED: Final = "SELECT record FROM sandboxes WHERE ended_at IS NULL ORDER BY seq"
_IMAGES: Final = """
SELECT DISTINCT image FROM (SELECT image FROM sandboxes WHERE project = ? ORDER BY seq DESC LIMIT 10000) LIMIT 1000
"""
_EXISTS: Final = "SELECT 1 FROM sandboxes WHERE id = ? AND project = ?"
_FORGET_METADATA: Final = "DELETE FROM sandbox_metadata WHERE sandbox = ?"
_FORGET_CREDENTIALS: Final = "DELETE FROM credentials WHERE sandbox = ?"
_FORGET_EXPOSURES: Final = "DELETE FROM exposures WHERE sandbox = ?"
_ADD_METADATA: Final = "INSERT INTO sandbox_metadata (sandbox, key, value) VALUES (?, ?, ?)"
_PURGE: Final = """
DELETE FROM sandboxes WHERE id IN (SELECT id FROM sandboxes WHERE ended_at < ? ORDER BY ended_at LIMIT ?)
"""
PURGE_BATCH: Final = 500
"""Rows deleted in one transaction, so that no create waits behind a big one."""

Also = Callable[[sqlite3.Connection], None]
"""What else is written in the savepoint of a sandbox's row."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Sandbox).decode


class SandboxRows:
    """The table of sandboxes, live and ended."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def save(self, sandbox: Sandbox, also: Also | None = None, *, durable: bool = False) -> None:
        """Insert or replace one row, and write what `also` writes: both or neither.

        Raises: Conflict (a live one has the name), CapacityExceeded, EngineFailure.
        """
        await self._writer.write(saving(sandbox, also), durable=durable)

    def get(self, sandbox_id: str) -> Sandbox | None:
        """One sandbox in any state. 6 µs on the loop."""
        row = self._reader.one(_ONE, (sandbox_id,))
        return None if row is None else _decode(row[0])

    def unended(self) -> list[Sandbox]:
        """All that have not ended, oldest first: what a restart must account for."""
        return [_decode(row[0]) for row in self._reader.all(_UNENDED, ())]

    def images(self, project: str) -> list[str]:
        """The names of images that its sandboxes were asked for with, of the last 10 000."""
        return [row[0] for row in self._reader.all(_IMAGES, (project,))]

    def page(self, project: str, wanted: SandboxFilter, *, limit: int, cursor: str | None) -> SandboxPage:
        """One page, newest first. A cursor is the last id of the page before it. Raises: BadRequest (its cursor)."""
        if cursor is not None and self._reader.one(_EXISTS, (cursor, project)) is None:
            raise BadRequest("no such cursor", field="cursor")
        sql, values = _page_query(project, wanted, cursor)
        rows = self._reader.all(f"{sql} ORDER BY seq DESC LIMIT ?", (*values, limit + 1))
        found = tuple(_decode(row[0]) for row in rows[:limit])
        return SandboxPage(sandboxes=found, cursor=found[-1].id if len(rows) > limit else None)

    async def purge(self, *, ended_before: float) -> int:
        """Forget some of those that ended before that time; returns how many, PURGE_BATCH at most."""
        return await self._writer.write(lambda db: db.execute(_PURGE, (ended_before, PURGE_BATCH)).rowcount)


def saving(sandbox: Sandbox, also: Also | None = None) -> Callable[[sqlite3.Connection], None]:
    """The write that saves `sandbox`, for callers that put more into the same savepoint."""
    record = _encode(sandbox).decode()  # encoded here, on the loop: 3 µs, and the thread then holds the GIL for less

    def save(db: sqlite3.Connection) -> None:
        row = (sandbox.id, sandbox.project, sandbox.name, sandbox.state.value, sandbox.image, sandbox.driver)
        is_known = db.execute(_ONE, (sandbox.id,)).fetchone() is not None
        db.execute(_SAVE, (*row, sandbox.ended_at, record))
        if is_known:
            db.execute(_FORGET_METADATA, (sandbox.id,))
        if sandbox.ended_at is not None:
            db.execute(_FORGET_EXPOSURES, (sandbox.id,))
            db.execute(_FORGET_CREDENTIALS, (sandbox.id,))
        if sandbox.metadata:
            db.executemany(_ADD_METADATA, _metadata_rows(sandbox))
        if also is not None:
            also(db)

    return save


def _metadata_rows(sandbox: Sandbox) -> Iterable[tuple[str, str, str]]:
    return ((sandbox.id, key, value) for key, value in sandbox.metadata.items())


def _page_query(project: str, wanted: SandboxFilter, cursor: str | None) -> tuple[str, tuple[str, ...]]:
    """The WHERE of a page. Built of fixed text only; every value of a caller is a parameter."""
    states = sorted(state.value for state in wanted.states or UNENDED)
    clauses = ["project = ?", f"state IN ({', '.join('?' * len(states))})"]
    values = [project, *states]
    for column, value in (("image", wanted.image), ("driver", wanted.driver), ("name", wanted.name)):
        if value is not None:
            clauses.append(f"{column} = ?")
            values.append(value)
    for key, value in wanted.metadata.items():
        clauses.append(
            "EXISTS (SELECT 1 FROM sandbox_metadata m WHERE m.sandbox = sandboxes.id AND m.key = ? AND m.value = ?)"
        )
        values += (key, value)
    if cursor is not None:
        clauses.append("seq < (SELECT seq FROM sandboxes WHERE id = ?)")
        values.append(cursor)
    return f"SELECT record FROM sandboxes WHERE {' AND '.join(clauses)}", tuple(values)  # noqa: S608 - see above
