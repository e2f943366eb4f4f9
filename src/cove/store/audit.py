"""Rows of the audit trail. Appending is one function that runs inside a write, so that a row and its line are one.

What a line's HMAC covers is not known here: the core hands in how a draft becomes an entry.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from cove.model.audit import AuditActor, AuditDraft, AuditEntry, AuditFilter, AuditLink, AuditValue
from cove.model.sandbox import Sandbox
from cove.store.reader import Reader, Value
from cove.store.sandboxes import Also, saving
from cove.store.writer import Writer

Seal = Callable[[AuditDraft, AuditLink, AuditLink | None], AuditEntry]
"""Makes a draft the next line of its project's chain and of its sandbox's."""


class Appended(Struct, frozen=True):
    """The lines that a write added, and the last ticket that has become one by now."""

    entries: tuple[AuditEntry, ...]
    ticket: int


_COLUMNS: Final = "project, seq, at, sandbox, sandbox_seq, event, actor, data, sandbox_hmac, hmac"
_ADD: Final = f"INSERT INTO audit ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - fixed text
_LINK: Final = "SELECT seq, last FROM audit_chains WHERE project = ? AND sandbox = ?"
_SET_LINK: Final = """
INSERT INTO audit_chains (project, sandbox, seq, last) VALUES (?, ?, ?, ?)
ON CONFLICT (project, sandbox) DO UPDATE SET seq = excluded.seq, last = excluded.last
"""
_MARK: Final = "SELECT ticket FROM audit_mark WHERE id = 0"
_SET_MARK: Final = "UPDATE audit_mark SET ticket = ? WHERE id = 0"

_encode = msgspec.json.Encoder().encode
_actor = msgspec.json.Decoder(AuditActor).decode
_data = msgspec.json.Decoder(dict[str, AuditValue]).decode


class AuditRows:
    """The table of lines."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    def mark(self) -> int:
        """The last ticket that became a line."""
        row = self._reader.one(_MARK, ())
        return 0 if row is None else int(row[0])

    def append(self, drafts: Sequence[AuditDraft], seal: Seal) -> asyncio.Future[Appended]:
        """Queue lines for the next transaction; the future has them once committed. Raises: CapacityExceeded."""
        return self._writer.submit(appending(drafts, seal))

    def append_with(
        self, sandbox: Sandbox, drafts: Sequence[AuditDraft], seal: Seal, also: Also | None = None
    ) -> asyncio.Future[Appended]:
        """As `append`, in one savepoint with the sandbox's row and what `also` writes. Raises: CapacityExceeded."""
        save, append = saving(sandbox, also), appending(drafts, seal)

        def save_both(db: sqlite3.Connection) -> Appended:
            save(db)
            return append(db)

        return self._writer.submit(save_both)

    def page(self, project: str, wanted: AuditFilter, *, after: int, limit: int) -> list[AuditEntry]:
        """Lines of a project's chain after number `after`, oldest first."""
        clauses = ["project = ?", "seq > ?"]
        values: list[Value] = [project, after]
        if wanted.sandbox is not None:
            clauses.append("sandbox = ?")
            values.append(wanted.sandbox)
        if wanted.event is not None:
            clauses.append("substr(event, 1, ?) = ?")
            values += (len(wanted.event), wanted.event)
        if wanted.since is not None:
            clauses.append("at >= ?")
            values.append(wanted.since)
        sql = f"SELECT {_COLUMNS} FROM audit WHERE {' AND '.join(clauses)} ORDER BY seq LIMIT ?"  # noqa: S608 - fixed text
        return [_entry(row) for row in self._reader.all(sql, (*values, limit))]


def appending(drafts: Sequence[AuditDraft], seal: Seal) -> Callable[[sqlite3.Connection], Appended]:
    """The write that makes drafts lines, for callers that put more into the same savepoint."""

    def append(db: sqlite3.Connection) -> Appended:
        mark = int(db.execute(_MARK).fetchone()[0])
        links: dict[tuple[str, str], AuditLink] = {}
        entries: list[AuditEntry] = []
        for draft in drafts:
            if not draft.ticket or draft.ticket > mark:
                entries.append(_appended(db, draft, seal, links))
                mark = max(mark, draft.ticket)
        db.executemany(_ADD, [_row(entry) for entry in entries])
        db.executemany(_SET_LINK, [(*chain, link.seq, link.last) for chain, link in links.items()])
        db.execute(_SET_MARK, (mark,))
        return Appended(tuple(entries), mark)

    return append


def _appended(
    db: sqlite3.Connection, draft: AuditDraft, seal: Seal, links: dict[tuple[str, str], AuditLink]
) -> AuditEntry:
    whole, own = (draft.project, ""), (draft.project, draft.sandbox or "")
    for chain in {whole, own} - links.keys():
        row = db.execute(_LINK, chain).fetchone()
        links[chain] = AuditLink() if row is None else AuditLink(seq=row[0], last=row[1])
    entry = seal(draft, links[whole], None if draft.sandbox is None else links[own])
    links[whole] = AuditLink(seq=entry.seq + 1, last=entry.hmac)
    if entry.sandbox_seq is not None:
        links[own] = AuditLink(seq=entry.sandbox_seq + 1, last=entry.sandbox_hmac or "")
    return entry


def _row(entry: AuditEntry) -> tuple[Value, ...]:
    place = (entry.project, entry.seq, entry.at, entry.sandbox, entry.sandbox_seq, entry.event)
    texts = (_encode(entry.actor).decode(), _encode(entry.data).decode())
    return (*place, *texts, entry.sandbox_hmac, entry.hmac)


def _entry(row: tuple[str, ...]) -> AuditEntry:
    fields = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return msgspec.convert({**fields, "actor": _actor(row[6]), "data": _data(row[7])}, AuditEntry)
