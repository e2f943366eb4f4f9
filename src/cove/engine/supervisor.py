"""One sandbox's life: the only code that changes a sandbox's state. It decides no policy and knows no caller.

Each sandbox has one task with an inbox. Requests post an action and await its outcome, so a cancelled request leaves
nothing half done; timers and the death of the box post to the same inbox, so nothing here needs a lock. It stops by
message, never by cancel. Each change is written as intent first and as fact afterwards::

    create     pending ──> (take or make a box, claim) ──> running
    pause      paused  ──> freeze            a restart makes true what was written
    resume     running ──> thaw
    hibernate  freeze ──> checkpoint ──> hibernated ──> destroy the box
    resume     make a box of the checkpoint ──> running ──> remove the checkpoint
    end        stopping ──> destroy ──> terminated | failed

What is whole is written before what it replaces is destroyed: a sandbox is always either in its box or in a checkpoint
of its own id. What a restart makes of each step: `core/reconcile.py`.

To add an action: a public method that calls `_ask`, one in `life.py` that acts, and a test in `test_supervisor.py`.
Collections of supervisors are in `supervisors.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final

from msgspec.structs import replace

from cove.engine.birth import Birth, Ports, bounded, give_birth
from cove.engine.checkpoints.model import Checkpoint
from cove.engine.driver import Box, BoxImage
from cove.engine.inbox import Action, was_seen
from cove.engine.life import Life
from cove.engine.pool import is_connected
from cove.engine.records import AT_REST, at_rest_error, ended_error, moved
from cove.model.errors import CoveError, EngineFailure, Gone
from cove.model.network import NetworkUse
from cove.model.origin import working_for
from cove.model.sandbox import Kept, Sandbox, Source
from cove.model.state import FINAL, EndReason, State

log = logging.getLogger(__name__)

LEASE_TRIES: Final = 8
"""So often work resumes a sandbox that others bring to rest again at once."""


class Supervisor(Life):
    """Owns one sandbox and its box. Made only by `Supervisors`."""

    def __init__(self, sandbox: Sandbox, ports: Ports) -> None:
        super().__init__(sandbox, ports)
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._started.add_done_callback(was_seen)
        self._is_detached = False

    # For requests.

    async def wait_started(self) -> Sandbox:
        """Until it runs. Cancelling changes nothing. Raises: what its creation raised."""
        await asyncio.shield(self._started)
        return self.view()

    def call_when_started(self, callback: Callable[[], None]) -> None:
        """Call on the loop when its creation is over, well or ill."""
        self._started.add_done_callback(lambda _: callback())

    async def measure(self) -> Sandbox:
        """The sandbox with what it uses now."""
        if self._box is None:
            return self.view()
        return replace(self.view(), usage=await self._use(self._box))

    async def pause(self) -> Sandbox:
        """Freeze it; paused already: nothing. Raises: Gone, CapacityExceeded, EngineFailure."""
        return await self._ask(self._pause)

    async def resume(self, *, memory: bool | None = None) -> Sandbox:
        """Let it go on; running already: nothing. `memory` False: a hibernated one begins anew, with its files only.

        Raises: Gone, Conflict, CapacityExceeded, QuotaExceeded, Unsupported, EngineFailure (a damaged checkpoint, too),
        SandboxGone. A hibernated one then stays so.
        """
        return await self._ask(lambda: self._open(memory=memory))

    async def hibernate(self, *, memory: bool | None = None) -> Sandbox:
        """Keep it on the disk only; hibernated already: nothing. `memory` None: with it where that can be had.

        Raises: Gone, Unsupported (`memory` True), CapacityExceeded, EngineFailure, SandboxGone. It then is as it was.
        """
        return await self._ask(lambda: self._hibernate(memory=memory))

    async def snapshot(self, checkpoint_id: str, *, memory: bool | None, is_lasting: bool = True) -> Checkpoint:
        """A checkpoint of it as it is now; then it goes on, or stays at rest. Cancelling does not stop that.

        `is_lasting` False: for copies that are made at once, see `Checkpoints.lend`. Raises: as `hibernate`.
        """
        made: list[Checkpoint] = []

        async def act() -> None:
            made.append(await self._snapshot(checkpoint_id, memory=memory, is_lasting=is_lasting))

        await self._ask(act)
        return made[0]

    async def roll_back(self, checkpoint: Checkpoint, image: BoxImage, *, kept: Kept) -> Sandbox:
        """Make it again what it was at `checkpoint`, and run. If that fails, it is what it was before.

        `kept`: what of the checkpoint is to be there, and where not all, why.

        Raises: Gone, Conflict, Unsupported, CapacityExceeded, EngineFailure, SandboxGone.
        """
        return await self._ask(lambda: self._roll_back(checkpoint, image, kept))

    async def change(self, edit: Callable[[Sandbox], Sandbox], *, is_use: bool = False) -> Sandbox:
        """Apply `edit` to timers, name, metadata, limits, network; all of it holds when this returns.

        `is_use`: its idle time begins anew.

        Raises: what `edit` raises, Gone, Conflict, Unsupported, EngineFailure.
        """
        return await self._ask(lambda: self._change(edit, is_use=is_use))

    @property
    def address(self) -> str:
        """Its address on the sandboxes' network; empty while it has none."""
        return "" if self._box is None else self._box.facts.address

    async def network_use(self) -> NetworkUse:
        """Bytes over its interfaces so far."""
        before = self.sandbox.usage
        if self._box is None:
            return NetworkUse(sent_bytes=before.sent_bytes, received_bytes=before.received_bytes)
        now = await bounded(self._box.network_use())
        return NetworkUse(
            sent_bytes=before.sent_bytes + now.sent_bytes, received_bytes=before.received_bytes + now.received_bytes
        )

    def connect_soon(self) -> None:
        """Apply its network policy again, with the addresses that its links have now, without waiting for it."""
        self._inbox.post(self._reconnect)

    async def end(self, reason: EndReason, detail: str | None = None) -> Sandbox:
        """End it and free all it holds; ended already: nothing. Cancelling does not stop it."""
        try:
            return await self._ask(lambda: self._end(reason, detail))
        except Gone:
            return self.sandbox  # before we came, or for another reason while we waited

    def end_soon(self, reason: EndReason, detail: str) -> None:
        """End it without waiting for it."""
        self._inbox.post(lambda: self._end(reason, detail))

    def detach(self) -> None:
        """Let go of it, running as it is, once what was posted before is done. The next start adopts it."""
        self._hurry()
        self._inbox.post(self._detach)

    @asynccontextmanager
    async def lease(self) -> AsyncGenerator[Box]:
        """The box, for work in it. A sandbox at rest is resumed, an idle one stays awake until the lease ends.

        Raises: Gone, Conflict (at rest, and work does not resume it), CapacityExceeded, QuotaExceeded, EngineFailure,
        SandboxGone; while it is being created also what that raises.
        """
        self._deadlines.acquire()
        try:
            for _ in range(LEASE_TRIES):
                if self._is_open():
                    break
                await asyncio.shield(self._started)
                await self._ask(self._open_for_work)
            if self._box is None:
                raise at_rest_error(self.sandbox) if self.sandbox.state in AT_REST else ended_error(self.sandbox)
            yield self._box
        finally:
            self._deadlines.release(self.sandbox)
            if self._deadlines.must_note():
                self._inbox.post(self._note)

    def _is_open(self) -> bool:
        is_running = self.sandbox.state is State.RUNNING and not self._is_moving
        return is_running and self._box is not None and is_connected(self._box)

    async def _ask(self, action: Action) -> Sandbox:
        if self.sandbox.state in FINAL or self._is_detached:
            raise ended_error(self.sandbox)
        await self._inbox.ask(action)
        return self.view()

    # The task.

    async def live(self, birth: Birth | None, box: Box | None) -> None:
        """The sandbox's task, from its creation or adoption to its end or to `detach`."""
        try:
            if birth is not None:
                with working_for(birth.asked_by):
                    box = await self._be_born(birth)
            if box is not None:
                self._take_on(box)
            if not self._started.done():
                self._started.set_result(None)
            while self.sandbox.state not in FINAL and not self._is_detached:
                self._deadlines.arm(self.sandbox)
                await self._inbox.do_next()
        except CoveError as error:
            self._started.set_exception(error)
        except Exception as error:  # the task's outermost frame: a bug here must not end the other sandboxes
            log.exception("sandbox %s: its supervisor failed, the next start adopts or ends it", self.sandbox.id)
            if not self._started.done():
                await self._end(EndReason.CREATE_FAILED, "Cove failed")
                self._started.set_exception(EngineFailure("Cove failed", internal=repr(error)))
        finally:
            self._close()

    async def _be_born(self, birth: Birth) -> Box:
        try:
            await birth.intent(self.sandbox)
        except CoveError:
            if birth.box is not None:
                self._ports.pool.give_back(birth.box)
            self.sandbox = self._ended(EndReason.CREATE_FAILED, None)
            raise
        box = None
        try:
            box, source = await give_birth(self.sandbox, birth, self._ports)
            await self._become(birth, box, source)
        except CoveError as error:
            if box is not None:
                await self._destroy(box)
            self.sandbox = self._ended(EndReason.CREATE_FAILED, error.public)
            await self._ports.journal.write_surely(self.sandbox)
            raise
        return box

    async def _become(self, birth: Birth, box: Box, source: Source) -> None:
        """Running is a fact only once it is written: before that a restart would end it as half made."""
        create_ms = (self._ports.clock.monotonic() - birth.asked_at) * 1000
        running = moved(self.view(), State.RUNNING, isolation=box.isolation, create_ms=create_ms, source=source)
        await self._ports.journal.write(running)
        self.sandbox = running

    def _close(self) -> None:
        """Answer whoever still waits, forget the timer, tell the owner."""
        self._deadlines.stop()
        box = self._let_off()
        if box is not None:
            box.let_go()
        error = ended_error(self.sandbox)
        if not self._started.done():
            self._started.set_exception(error)
        self._inbox.refuse_all(error)
        self._ports.on_end(self.sandbox)

    # Actions, in the task only.

    async def _detach(self) -> None:
        self._is_detached = True
        await self._forget_checkpoint()
        await self._ports.journal.write_surely(self.view())
        if self._box is not None and is_connected(self._box):
            await self._box.agent.close()

    async def _note(self) -> None:
        """Write the last activity, so that a restart counts the idle time from about there."""
        if self.sandbox.state not in FINAL:
            await self._ports.journal.write(self.view())
