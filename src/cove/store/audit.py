"""Rows of the audit trail. Appending is one function that runs inside a write, so that a row and its line are one.

What a line's HMAC covers is not known here: the core hands in how a draft becomes an entry.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from typing import Final, cast

import msgspec
from msgspec import Struct

from cove.model.audit import AuditActor, AuditDraft, AuditEntry, AuditFilter, AuditLink, AuditValue
from cove.model.sandbox import Sandbox
from cove.store.reader import Reader, Value
from cove.store.sandboxes import Also, saving
from cove.store.writer import Writer

Seal = Callable[[AuditDraft, AuditLink, AuditLink | None], AuditEntry]
"""Makes a draft the next line of its project's chain and of its sandbox's."""

Sign = Callable[[str, str | None, AuditLink, str], str]
"""Makes the signed line that a chain (project, sandbox) begins at a link, for a reason."""

CUT_BATCH: Final = 500
"""Lines removed in one transaction, so that no create waits behind a big one."""


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
_CHAIN: Final = "SELECT seq, last, anchor, anchor_seq FROM audit_chains WHERE project = ? AND sandbox = ?"
_CHAINS: Final = "SELECT project, sandbox, seq, last FROM audit_chains"
_PROJECTS: Final = "SELECT project FROM audit_chains WHERE sandbox = '' ORDER BY project"
_PROJECT_OF: Final = "SELECT project FROM audit WHERE sandbox = ? LIMIT 1"
_OLDEST: Final = """
SELECT seq, at, sandbox, sandbox_seq, sandbox_hmac, hmac, event FROM audit WHERE project = ? ORDER BY seq LIMIT ?
"""
_REMOVE: Final = "DELETE FROM audit WHERE project = ? AND seq < ?"
_HAS_LINES: Final = "SELECT 1 FROM audit WHERE sandbox = ? LIMIT 1"
_FORGET_CHAIN: Final = "DELETE FROM audit_chains WHERE project = ? AND sandbox = ?"
_SET_ANCHOR: Final = """
UPDATE audit_chains SET anchor = ?, anchor_seq = ?
WHERE project = ? AND sandbox = ? AND COALESCE(anchor_seq, 0) <= ?
"""
_LAST_EVENTS: Final = frozenset({"sandbox.destroyed", "sandbox.create_failed"})
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
        self,
        sandbox: Sandbox,
        drafts: Sequence[AuditDraft],
        seal: Seal,
        also: Also | None = None,
        *,
        durable: bool = False,
    ) -> asyncio.Future[Appended]:
        """As `append`, in one savepoint with the sandbox's row and what `also` writes. Raises: CapacityExceeded."""
        save, append = saving(sandbox, also), appending(drafts, seal)

        def save_both(db: sqlite3.Connection) -> Appended:
            save(db)
            return append(db)

        return self._writer.submit(save_both, durable=durable)

    def window(self, project: str, wanted: AuditFilter, *, first: int, end: int, limit: int) -> list[AuditEntry]:
        """The first lines of a project's chain with a number from `first` on and below `end`, in order."""
        sql, values = _window(project, wanted, first, end)
        return [_entry(row) for row in self._reader.all(f"{sql} ORDER BY seq LIMIT ?", (*values, limit))]

    def last(self, project: str, wanted: AuditFilter, *, first: int, end: int, limit: int) -> list[AuditEntry]:
        """As `window`, but the last such lines, newest first."""
        sql, values = _window(project, wanted, first, end)
        return [_entry(row) for row in self._reader.all(f"{sql} ORDER BY seq DESC LIMIT ?", (*values, limit))]

    def chain(self, project: str, sandbox: str | None) -> AuditChain:
        """Where a chain goes on, and where what is left of it begins."""
        row = self._reader.one(_CHAIN, (project, sandbox or ""))
        if row is None:
            return AuditChain(link=AuditLink(), anchor=None, first_seq=0)
        link = AuditLink(seq=int(row[0]), last=row[1])
        return AuditChain(link=link, anchor=row[2], first_seq=int(row[3] or 0))

    def projects(self) -> list[str]:
        """The projects that have a chain."""
        return [row[0] for row in self._reader.all(_PROJECTS, ())]

    def project_of(self, sandbox: str) -> str | None:
        """Whose sandbox it was, as far as the trail knows."""
        row = self._reader.one(_PROJECT_OF, (sandbox,))
        return None if row is None else row[0]

    async def cut(self, project: str, *, before: float, sign: Sign) -> int:
        """Remove some lines of the beginning that are older than `before`; returns how many, CUT_BATCH at most."""
        return await self._writer.write(lambda db: _cut(db, project, before, sign))

    async def begin_anew(self, sign: Sign) -> None:
        """Let every chain begin, for a verifier, where it is now: what signed the older lines is gone."""
        await self._writer.write(lambda db: _begin_anew(db, sign), durable=True)


class AuditChain(Struct, frozen=True):
    """One chain: its next link, and the signed line that stands for what is gone, up to `first_seq`."""

    link: AuditLink
    anchor: str | None
    first_seq: int


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


def _window(project: str, wanted: AuditFilter, first: int, end: int) -> tuple[str, list[Value]]:
    """Built of fixed text only; every value of a caller is a parameter."""
    clauses = ["project = ?", "seq >= ?", "seq < ?"]
    values: list[Value] = [project, first, end]
    if wanted.sandbox is not None:
        clauses.append("sandbox = ?")
        values.append(wanted.sandbox)
    if wanted.event is not None:
        clauses.append("substr(event, 1, ?) = ?")
        values += (len(wanted.event), wanted.event)
    if wanted.since is not None:
        clauses.append("at >= ?")
        values.append(wanted.since)
    index = " INDEXED BY audit_by_sandbox" if wanted.sandbox is not None else ""
    return f"SELECT {_COLUMNS} FROM audit{index} WHERE {' AND '.join(clauses)}", values  # noqa: S608 - see above


def _cut(db: sqlite3.Connection, project: str, before: float, sign: Sign) -> int:
    rows = db.execute(_OLDEST, (project, CUT_BATCH)).fetchall()
    gone: list[tuple[object, ...]] = []
    for row in rows:
        if row[1] >= before:
            break  # a clock may have gone back: only what stands before the first line to keep is removed
        gone.append(row)
    if not gone:
        return 0
    ends: dict[str, AuditLink] = {}
    over: set[str] = set()
    for seq, _, sandbox, sandbox_seq, sandbox_hmac, hmac, event in gone:
        ends[""] = AuditLink(seq=cast("int", seq) + 1, last=str(hmac))
        if sandbox is not None:
            ends[str(sandbox)] = AuditLink(seq=cast("int", sandbox_seq) + 1, last=str(sandbox_hmac))
            if event in _LAST_EVENTS:
                over.add(str(sandbox))
    db.execute(_REMOVE, (project, ends[""].seq))
    for sandbox, link in ends.items():
        if sandbox in over and db.execute(_HAS_LINES, (sandbox,)).fetchone() is None:
            db.execute(_FORGET_CHAIN, (project, sandbox))
        else:
            anchor = sign(project, sandbox or None, link, "retention")
            db.execute(_SET_ANCHOR, (anchor, link.seq, project, sandbox, link.seq))
    return len(gone)


def _begin_anew(db: sqlite3.Connection, sign: Sign) -> None:
    for project, sandbox, seq, last in db.execute(_CHAINS).fetchall():
        anchor = sign(project, sandbox or None, AuditLink(seq=seq, last=last), "key")
        db.execute(_SET_ANCHOR, (anchor, seq, project, sandbox, seq))


def _row(entry: AuditEntry) -> tuple[Value, ...]:
    place = (entry.project, entry.seq, entry.at, entry.sandbox, entry.sandbox_seq, entry.event)
    texts = (_encode(entry.actor).decode(), _encode(entry.data).decode())
    return (*place, *texts, entry.sandbox_hmac, entry.hmac)


def _entry(row: tuple[str, ...]) -> AuditEntry:
    fields = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return msgspec.convert({**fields, "actor": _actor(row[6]), "data": _data(row[7])}, AuditEntry)
