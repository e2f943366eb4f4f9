"""Rows of executions' sessions. Not durable: a session whose last moments a power cut takes is a fresh one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final, cast

from cove.model.executionsession import ExecutionSession
from cove.store.reader import Reader, Value
from cove.store.writer import Writer

_COLUMNS: Final = "project, id, runtime, settings, sandbox, created_at, last_used_at"
_ALL: Final = f"SELECT {_COLUMNS} FROM execution_sessions ORDER BY created_at, id"  # noqa: S608 - constants only
_OF_PROJECT: Final = f"""
SELECT {_COLUMNS} FROM execution_sessions WHERE project = ? ORDER BY created_at, id
"""  # noqa: S608
_ONE: Final = f"SELECT {_COLUMNS} FROM execution_sessions WHERE project = ? AND id = ?"  # noqa: S608
_COUNT: Final = "SELECT count(*) FROM execution_sessions WHERE project = ?"
_ADD: Final = f"INSERT INTO execution_sessions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_ATTACH: Final = "UPDATE execution_sessions SET sandbox = ? WHERE project = ? AND id = ? AND created_at = ?"
_TOUCH: Final = "UPDATE execution_sessions SET last_used_at = ? WHERE project = ? AND id = ?"
_REMOVE: Final = "DELETE FROM execution_sessions WHERE project = ? AND id = ? AND created_at = ?"
_RESEAL: Final = "UPDATE execution_sessions SET settings = ? WHERE project = ? AND id = ?"


class ExecutionSessionRows:
    """The table of sessions."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    def all(self) -> list[ExecutionSession]:
        """Every one, oldest first."""
        return [_session(row) for row in self._reader.all(_ALL, ())]

    def of_project(self, project: str) -> list[ExecutionSession]:
        """A project's, oldest first."""
        return [_session(row) for row in self._reader.all(_OF_PROJECT, (project,))]

    def count(self, project: str) -> int:
        """How many a project has."""
        row = self._reader.one(_COUNT, (project,))
        return 0 if row is None else cast("int", row[0])

    def get(self, project: str, session_id: str) -> ExecutionSession | None:
        """One of a project."""
        row = self._reader.one(_ONE, (project, session_id))
        return None if row is None else _session(row)

    async def add(self, session: ExecutionSession) -> None:
        """Insert it. Raises: Conflict when there is one of that id."""
        row = (
            session.project, session.id, session.runtime, session.settings, session.sandbox, session.created_at,
            session.last_used_at,
        )  # fmt: skip
        await self._writer.write(lambda db: db.execute(_ADD, row).rowcount)

    async def attach(self, session: ExecutionSession, sandbox: str) -> bool:
        """Note its sandbox; False: it was removed meanwhile."""
        row = (sandbox, session.project, session.id, session.created_at)
        return await self._writer.write(lambda db: db.execute(_ATTACH, row).rowcount > 0)

    async def touch(self, project: str, session_id: str, *, at: float) -> None:
        """Note when it was last used."""
        await self._writer.write(lambda db: db.execute(_TOUCH, (at, project, session_id)).rowcount)

    async def remove(self, session: ExecutionSession) -> bool:
        """Forget this one, not a later one of its id; whether it was there."""
        row = (session.project, session.id, session.created_at)
        return await self._writer.write(lambda db: db.execute(_REMOVE, row).rowcount > 0)

    async def reseal(self, change: Callable[[ExecutionSession], str | None]) -> int:
        """Replace all sealed settings by what `change` makes of their row (None: they stay). Durable."""

        def reseal_all(db: sqlite3.Connection) -> int:
            found = [_session(row) for row in db.execute(_ALL).fetchall()]
            made = [(change(one), one.project, one.id) for one in found]
            changed = [row for row in made if row[0] is not None]
            db.executemany(_RESEAL, changed)
            return len(changed)

        return await self._writer.write(reseal_all, durable=True)


def _session(row: tuple[Value, ...]) -> ExecutionSession:
    project, session_id, runtime, settings, sandbox, created_at, last_used_at = row
    return ExecutionSession(
        project=cast("str", project),
        id=cast("str", session_id),
        runtime=cast("str", runtime),
        settings=cast("str", settings),
        sandbox=cast("str | None", sandbox),
        created_at=cast("float", created_at),
        last_used_at=cast("float", last_used_at),
    )
