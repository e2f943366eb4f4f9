"""Snapshots as files: giving one away, and taking one in. What such a file is: `engine/checkpoints/transfer.py`.

What a file says of itself was written by whoever made it: it is checked as if its bearer had asked for it, and opens
nothing that they could not have asked for. Its image must be here, and theirs to use.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from cove.core.access import require
from cove.core.restoring import StateParts, facts_of
from cove.core.snapshotbook import Making, SnapshotBook
from cove.core.validation import check_label, check_limits, check_metadata, check_snapshot, check_timeout
from cove.engine.checkpoints.model import Checkpoint, CheckpointFacts
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, CoveError, NotFound, Unsupported
from cove.model.ids import is_core_id, is_name, new_core_id
from cove.model.network import NO_NETWORK, NetworkPolicy
from cove.model.sandbox import IdleAction, Kept, Limits
from cove.model.snapshot import Snapshot, SnapshotSpec, SnapshotState

IMPORTS: Final = 2
"""Files that are taken in at a time, the others wait: each may be as large as the disk."""


class _About(Struct, frozen=True, kw_only=True):
    """What the file says beyond the checkpoint's own facts."""

    name: str
    sandbox: str
    sandbox_name: str
    image: str
    image_used: str
    created_at: float
    tags: dict[str, str] = field(default_factory=dict[str, str])
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    network: NetworkPolicy = NO_NETWORK
    idle_timeout_s: float | None = None
    idle_action: IdleAction = IdleAction.PAUSE
    auto_resume: bool = True


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_About).decode


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A file on its way out: iterate over its bytes, once. How many there will be is not known before."""

    pieces: AsyncIterator[bytes]
    size_bytes: None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The bytes, in pieces."""
        return self.pieces


class SnapshotFiles:
    """Exports and imports."""

    def __init__(self, parts: StateParts, book: SnapshotBook) -> None:
        self._parts = parts
        self._book = book
        self._slots = asyncio.Semaphore(IMPORTS)

    @asynccontextmanager
    async def export(self, who: Principal, ref: str) -> AsyncGenerator[Outgoing]:
        """A snapshot as one file; it is kept from being deleted until the context is left.

        It holds all that the sandbox held, so it takes the scope `files`, too.
        Raises: Forbidden, NotFound, Conflict (not ready), EngineFailure (damaged), CapacityExceeded.
        """
        require(who, Scope.CREATE)
        require(who, Scope.FILES)
        self._parts.audit.check()
        snapshot = self._book.known(who, ref)
        done = self._book.hold(snapshot, "an export")
        try:
            await self._book.checkpoint(snapshot, with_memory=True)
            ticket = self._parts.audit.note(
                "snapshot.exported", project=snapshot.project, sandbox=None, data=facts_of(snapshot), who=who
            )
            await self._parts.audit.kept(ticket)
            pieces = self._parts.checkpoints.export(snapshot.id, _encode(_about(snapshot)))
            try:
                first = await anext(pieces, b"")  # what fails at the beginning fails before the answer begins
                yield Outgoing(_from(first, pieces))
            finally:
                await pieces.aclose()
        finally:
            done()

    async def import_(
        self, who: Principal, chunks: AsyncIterator[bytes], *, name: str | None = None, dialect: str = "native"
    ) -> Snapshot:
        """A snapshot of a file, whoever made it; `name` None: its own, where that is free.

        Memory comes along only from a file of this server, or where the operator lets any in.
        Raises: Forbidden, BadRequest, TooLarge, Unsupported (field `file`: what does not fit here), Conflict (name),
        NotFound (field `image`), QuotaExceeded, CapacityExceeded, EngineFailure. Nothing is left then.
        """
        require(who, Scope.CREATE)
        spec = SnapshotSpec(name=name)
        check_snapshot(spec)
        self._parts.audit.check()
        held = self._book.free_name(who.project, name)
        self._parts.quotas.check_count(who.project, "snapshots")
        making = Making(_placeholder(who, held, dialect, self._parts.clock.now()), spec, None, keep_failed=False)
        self._book.making[making.row.id] = making
        try:
            async with self._slots:
                made = await self._imported(who, making, chunks)
        finally:
            del self._book.making[making.row.id]
        ticket = self._parts.audit.note(
            "snapshot.imported", project=made.project, sandbox=None, data=facts_of(made), who=who
        )
        await self._parts.audit.kept(ticket)
        return made

    async def _imported(self, who: Principal, making: Making, chunks: AsyncIterator[bytes]) -> Snapshot:
        def accept(facts: CheckpointFacts, about: bytes) -> None:
            self._check(who, facts, _parsed(about))

        checkpoint, raw = await self._parts.checkpoints.import_(chunks, making.row.id, accept=accept)
        try:
            about = _parsed(raw)
            row = replace(_row(making.row, checkpoint, about), network=await self._network(who.project, about.network))
            if making.spec.name is None and not self._book.is_taken(who.project, about.name):
                row = replace(row, name=about.name)
            await self._parts.store.snapshots.save(row)
        except BaseException:
            await asyncio.shield(self._parts.checkpoints.remove(making.row.id))
            raise
        return row

    def _check(self, who: Principal, facts: CheckpointFacts, about: _About) -> None:
        """Raises: BadRequest, Unsupported (field `file`), NotFound (field `image`)."""
        try:
            _check_values(facts, about)
        except BadRequest as error:
            raise BadRequest(f"the file says what no snapshot can: {error.public}", field="file") from error
        if facts.driver not in self._parts.drivers:
            raise Unsupported(
                f"the file is of a sandbox on {facts.driver}, which this machine cannot use now", field="file"
            )
        try:
            self._parts.images.version(who.project, about.image_used, facts.image_digest, is_known=False)
        except NotFound as error:
            raise NotFound(
                f"the image under it is not here: {about.image_used} with the content {facts.image_digest[:12]}; "
                "bring it first, with the very same content",
                field="image",
            ) from error

    async def _network(self, project: str, policy: NetworkPolicy) -> NetworkPolicy:
        """What it had, without links to names that mean others here; if that cannot hold here, none."""
        try:
            return await self._parts.networks.renew(project, replace(policy, links=(), profile=None, broker=False))
        except CoveError:
            return NO_NETWORK


async def _from(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def _about(snapshot: Snapshot) -> _About:
    return _About(**{name: getattr(snapshot, name) for name in _About.__struct_fields__})


def _parsed(about: bytes) -> _About:
    try:
        return _decode(about)
    except msgspec.MsgspecError as error:
        raise BadRequest(
            "the file is no snapshot's, or of a version of Cove that is not known here",
            field="file",
            internal=str(error),
        ) from error


def _check_values(facts: CheckpointFacts, about: _About) -> None:
    for value, what in ((about.name, "name"), (about.sandbox_name, "the sandbox's name")):
        if not is_name(value) or is_core_id(value):
            raise BadRequest(f"{what} is none")
    if not is_core_id(about.sandbox):
        raise BadRequest("the sandbox's id is none")
    check_label(about.image, "image", limit=255)
    check_label(about.image_used, "image", limit=255)
    check_metadata(about.tags, "tags")
    check_metadata(about.metadata)
    check_timeout(about.idle_timeout_s, "idle_timeout_s")
    check_limits(facts.limits)


def _placeholder(who: Principal, name: str, dialect: str, now: float) -> Snapshot:
    """What is shown, and counted, while the file comes in: what it is of is not known yet."""
    return Snapshot(
        id=new_core_id(),
        project=who.project,
        name=name,
        state=SnapshotState.CREATING,
        tags={},
        sandbox="",
        sandbox_name="",
        parent=None,
        kept=Kept(memory=False),
        driver="",
        image="",
        image_used="",
        image_digest="",
        limits=Limits(),
        created_at=now,
        created_by="local" if who.key_id == "local" else f"key:{who.name}",
        key=who.key_id,
        dialect=dialect,
        is_imported=True,
    )


def _row(row: Snapshot, checkpoint: Checkpoint, about: _About) -> Snapshot:
    facts = checkpoint.facts
    return replace(
        row,
        state=SnapshotState.READY,
        tags=about.tags,
        sandbox=about.sandbox,
        sandbox_name=about.sandbox_name,
        kept=Kept(memory=facts.has_memory, reason=None if facts.has_memory else facts.why_no_memory),
        driver=facts.driver,
        image=about.image,
        image_used=about.image_used,
        image_digest=facts.image_digest,
        limits=facts.limits,
        metadata=about.metadata,
        idle_timeout_s=about.idle_timeout_s,
        idle_action=about.idle_action,
        auto_resume=about.auto_resume,
        memory_bytes=checkpoint.memory_bytes,
        disk_bytes=checkpoint.disk_bytes,
        processes=facts.processes,
    )
