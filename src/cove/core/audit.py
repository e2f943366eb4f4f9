"""Writing the audit trail. Whoever does something that belongs in it calls `note`; how lines are chained is not here.

What holds:

* `note` takes a few microseconds, never waits and never raises. Lines stand in the order of the calls.
* A sandbox's row and the line that tells of it are one transaction: neither is there without the other.
* An operation that runs code or moves bytes answers only after its first line is committed (`kept`). So `kill -9` loses
  the lines of operations that were not answered, and at most the last lines (`exec.exit`) of those that were.
* While lines cannot be written they wait here, and whatever would add to them is refused (`check`).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Final

from cove.engine.clock import Clock, sleep
from cove.model.access import Principal
from cove.model.audit import SERVER_PROJECT, AuditActor, AuditDraft, AuditEntry, AuditLink, AuditValue
from cove.model.auditchain import anchor_line, key_fingerprint, project_key, seal
from cove.model.errors import CapacityExceeded, CoveError
from cove.model.origin import current_origin
from cove.model.sandbox import Sandbox
from cove.store.audit import Appended
from cove.store.sandboxes import Also
from cove.store.store import Store

log = logging.getLogger(__name__)

TEXT_BYTES: Final = 4096
"""Longest text in a line; what is cut says so."""

CUT: Final = "…[cut]"
VALUES: Final = 24
BATCH: Final = 512
BACKLOG: Final = 16384
"""Lines that wait while none can be written. Operations are refused long before; past it they are only counted."""

RETRY_S: Final = 1.0
_KEY_META: Final = "audit_key"
RETRY_AFTER_S: Final = 5

LINGERING: Final = frozenset({"exec.exit"})
"""Nobody waits for these; a little later they share a transaction with what comes next."""

LINGER_S: Final = 0.005

FLOOD_EVENTS: Final = frozenset({"network.blocked", "credential.proxied", "port.dialed", "key.refused"})
"""What a program in a sandbox, or somebody without a key, causes as often as they like."""

FLOOD_PER_MINUTE: Final = 600


class Audit:
    """The trail of this server."""

    def __init__(self, store: Store, clock: Clock, key: bytes) -> None:
        self._rows = store.audit
        self._clock = clock
        self._master = key
        self._keys: dict[str, bytes] = {}
        self._ticket = self._written = self._rows.mark()
        self._pending: deque[AuditDraft] = deque()
        self._is_flushing = self._is_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._failure: CoveError | None = None
        self._dropped = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._news = asyncio.get_running_loop().create_future()
        self._floods: dict[str, _Flood] = {}

    # Writing.

    def note(
        self,
        event: str,
        *,
        project: str,
        sandbox: str | None,
        data: Mapping[str, AuditValue],
        who: Principal | None = None,
    ) -> int:
        """Add a line; `who` None: whoever the work in hand is for. Returns the ticket that `kept` takes.

        `data` holds no output, no environment and no secret; texts are cut at 4 KiB.
        """
        if event in FLOOD_EVENTS:
            suppressed = self._suppressed(f"{sandbox or project} {event}")
            if suppressed is None:
                return 0
            data = {**data, "suppressed": suppressed} if suppressed else data
        if len(self._pending) >= BACKLOG:
            self._dropped += 1
            return 0
        self._ticket += 1
        self._pending.append(self._draft(self._ticket, event, project, sandbox, data, who))
        if event in LINGERING:
            self._linger()
        else:
            self._schedule()
        return self._ticket

    async def kept(self, ticket: int) -> None:
        """Until the line of that ticket is committed, or it is known that none can be at the moment."""
        if ticket <= self._written or self._failure is not None:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((ticket, future))
        self._schedule()
        await future

    async def caught_up(self) -> None:
        """Until what was noted before this call is committed, or it is known that it cannot be at the moment."""
        await self.kept(self._ticket)

    def check(self) -> None:
        """Refuse what would go unrecorded. Raises: CapacityExceeded."""
        if self._failure is not None:
            raise CapacityExceeded(
                "the audit trail cannot be written at the moment, so nothing is done that belongs in it",
                internal=f"{self._failure} {self._failure.internal}",
                retry_after_s=RETRY_AFTER_S,
            )

    async def save(
        self,
        sandbox: Sandbox,
        event: str,
        data: Mapping[str, AuditValue],
        also: Also | None = None,
        *,
        durable: bool = False,
    ) -> None:
        """Write a sandbox's row, its line, and what `also` writes: all or nothing.

        Raises: CapacityExceeded, EngineFailure, Conflict.
        """
        draft = self._draft(0, event, sandbox.project, sandbox.id, data, None)
        future = self._rows.append_with(sandbox, (*self._pending, draft), self._seal, also, durable=durable)
        future.add_done_callback(self._saved)
        await asyncio.shield(future)

    async def retry_forever(self) -> None:
        """Write what could not be written before, until cancelled."""
        while True:
            await sleep(self._clock, RETRY_S)
            if self._failure is not None:
                self._flush()

    async def drain(self) -> None:
        """Write what waits; for the end of the server."""
        self._failure = None
        await self.kept(self._ticket)
        while self._pending and self._failure is None:
            await self.kept(self._ticket)
        if self._pending:
            log.error("%d lines of the audit trail could not be written", len(self._pending))

    async def news(self) -> None:
        """Return when lines were added after this call."""
        await asyncio.shield(self._news)

    async def adopt_key(self, store: Store) -> None:
        """Before anything is written: if another key signed what is there, a verifier begins at the first new line."""
        fingerprint = key_fingerprint(self._master)
        known = store.meta(_KEY_META)
        if known == fingerprint:
            return
        if known is not None:
            log.error("the key of the audit trail is another one than before: older lines verify only with the old key")
            await self._rows.begin_anew(self.sign)
            self.note("audit.key_changed", project=SERVER_PROJECT, sandbox=None, data={})
        await store.set_meta(_KEY_META, fingerprint)

    def sign(self, project: str, sandbox: str | None, link: AuditLink, reason: str) -> str:
        """The signed line that a chain begins at `link`. Also called in the writer's thread."""
        line = anchor_line(
            self.key_of(project), project=project, sandbox=sandbox, link=link, reason=reason, at=self._clock.now()
        )
        return line.decode()

    def _draft(  # noqa: PLR0913, PLR0917 - one parameter per field of a line
        self,
        ticket: int,
        event: str,
        project: str,
        sandbox: str | None,
        data: Mapping[str, AuditValue],
        who: Principal | None,
    ) -> AuditDraft:
        origin = current_origin()
        actor = AuditActor(
            key=_cut(origin.key if who is None else who.key_id),
            name=_cut(origin.name if who is None else who.name),
            address=_cut(origin.address),
            via=origin.via,
            dialect=origin.dialect,
            request_id=_cut(origin.request_id),
        )
        values = {name: _tame(value) for name, value in islice(data.items(), VALUES)}
        at = round(self._clock.now(), 3)
        return AuditDraft(ticket=ticket, at=at, project=project, sandbox=sandbox, event=event, actor=actor, data=values)

    def _seal(self, draft: AuditDraft, link: AuditLink, sandbox_link: AuditLink | None) -> AuditEntry:
        """In the writer's thread."""
        return seal(self.key_of(draft.project), draft, link, sandbox_link)

    def key_of(self, project: str) -> bytes:
        """The key of a project's chains."""
        key = self._keys.get(project)
        if key is None:
            key = self._keys[project] = project_key(self._master, project)
        return key

    def _schedule(self) -> None:
        if not self._is_scheduled and not self._is_flushing and self._failure is None:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _linger(self) -> None:
        """Write soon, but not while the answer that this line is about is on its way."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._over)

    def _over(self) -> None:
        self._timer = None
        self._schedule()

    def _flush(self) -> None:
        self._is_scheduled = False
        if self._is_flushing:
            return
        if not self._pending:
            self._wake()
            return
        self._is_flushing = True
        try:
            future = self._rows.append(tuple(islice(self._pending, BATCH)), self._seal)
        except CoveError as error:
            self._is_flushing = False
            self._fail(error)
            return
        future.add_done_callback(self._flushed)

    def _flushed(self, future: asyncio.Future[Appended]) -> None:
        self._is_flushing = False
        error = future.exception()
        if error is None:
            self._land(future.result())
        else:
            self._fail(error)

    def _saved(self, future: asyncio.Future[Appended]) -> None:
        if future.exception() is None:
            self._land(future.result())

    def _land(self, appended: Appended) -> None:
        """Lines are committed."""
        self._written = max(self._written, appended.ticket)
        while self._pending and self._pending[0].ticket <= self._written:
            self._pending.popleft()
        if self._failure is not None:
            log.warning("the audit trail can be written again")
            self._failure = None
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self.note("audit.dropped", project=SERVER_PROJECT, sandbox=None, data={"lines": dropped})
        self._wake()
        if appended.entries:
            self._news.set_result(None)
            self._news = asyncio.get_running_loop().create_future()
        if self._pending:
            self._schedule()

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, CoveError):
            raise error
        if self._failure is None:
            log.error("the audit trail cannot be written: %s %s", error, error.internal)
        self._failure = error
        self._wake()

    def _wake(self) -> None:
        """Answer those whose lines are committed, and all while none can be."""
        while self._waiting and (
            self._waiting[0][0] <= self._written or self._failure is not None or not self._pending
        ):
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)

    def _suppressed(self, cause: str) -> int | None:
        """How many lines of a flood were left out before this one; None: leave this one out too."""
        minute = int(self._clock.monotonic() // 60)
        flood = self._floods.get(cause)
        if flood is None:
            flood = self._floods[cause] = _Flood(minute)
        return flood.take(minute)

    def forget(self, sandbox: str) -> None:
        """The sandbox has ended."""
        for event in FLOOD_EVENTS:
            flood = self._floods.pop(f"{sandbox} {event}", None)
            if flood is not None and flood.suppressed:
                log.info("sandbox %s: %d audit lines %s were left out", sandbox, flood.suppressed, event)


class _Flood:
    """The lines of one kind that one sandbox causes by itself in a minute."""

    def __init__(self, minute: int) -> None:
        self._minute = minute
        self._count = 0
        self.suppressed = 0

    def take(self, minute: int) -> int | None:
        if minute != self._minute:
            self._minute, self._count = minute, 0
        self._count += 1
        if self._count > FLOOD_PER_MINUTE:
            self.suppressed += 1
            return None
        suppressed, self.suppressed = self.suppressed, 0
        return suppressed


def command_text(argv: tuple[str, ...] | None, shell: str | None) -> str:
    """A command as a line tells it: its words with spaces between, without its input and environment."""
    return shell if shell is not None else " ".join(argv or ())


def _tame(value: AuditValue) -> AuditValue:
    """A value that fits into a line, whatever a sandbox or a caller put into it."""
    if isinstance(value, str):
        return _cut(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and not -(2**53) <= value <= 2**53:
        return str(value)
    return value


def _cut(text: str) -> str:
    if len(text) > TEXT_BYTES // 4 or not text.isascii():
        raw = text[: TEXT_BYTES + 1].encode("utf-8", "backslashreplace")
        if len(raw) > TEXT_BYTES:
            return raw[: TEXT_BYTES - 16].decode("utf-8", "ignore") + CUT
        return raw.decode()
    return text
