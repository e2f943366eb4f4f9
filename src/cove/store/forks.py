"""Rows of forks that are being made: which children are all kept, or none of them."""

from __future__ import annotations

import sqlite3
from typing import Final, cast

from msgspec import Struct

from cove.model.request import Idempotency
from cove.store.idempotency import remember
from cove.store.reader import Reader
from cove.store.writer import Writer

_ADD: Final = "INSERT INTO forks (id, project, sandbox, children, created_at) VALUES (?, ?, ?, ?, ?)"
_ALL: Final = "SELECT id, project, sandbox, children, created_at FROM forks"
_REMOVE: Final = "DELETE FROM forks WHERE id = ?"


class ForkRow(Struct, frozen=True, kw_only=True):
    """A fork in the making. `id` is also that of the checkpoint that its children are made of."""

    id: str
    project: str
    sandbox: str
    children: tuple[str, ...]
    created_at: float


class ForkRows:
    """The table of forks."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def add(self, fork: ForkRow) -> None:
        """Write the intent, before a child is there. Raises: CapacityExceeded, EngineFailure."""
        row = (fork.id, fork.project, fork.sandbox, " ".join(fork.children), fork.created_at)
        await self._writer.write(lambda db: db.execute(_ADD, row).rowcount)

    async def finish(self, fork: ForkRow, idempotency: Idempotency | None = None) -> None:
        """All children run, or none is left: forget it, and keep the key of the request that made them."""

        def finish(db: sqlite3.Connection) -> None:
            db.execute(_REMOVE, (fork.id,))
            if idempotency is not None:
                remember(db, fork.project, idempotency, fork.children, fork.created_at)

        await self._writer.write(finish)

    def all(self) -> list[ForkRow]:
        """What a start finds half made."""
        return [
            ForkRow(id=id_, project=project, sandbox=sandbox, children=tuple(children.split()), created_at=at)
            for id_, project, sandbox, children, at in cast(
                "list[tuple[str, str, str, str, float]]", self._reader.all(_ALL, ())
            )
        ]
