"""One sandbox's life: the only code that changes a sandbox's state. It decides no policy and knows no caller.

Each sandbox has one task with an inbox. Requests post an action and await its outcome, so a cancelled request leaves
nothing half done; timers and the death of the box post to the same inbox, so nothing here needs a lock. It stops by
message, never by cancel. Each change is written as intent first and as fact afterwards::

    create   pending ──> (take or make a box, claim) ──> running
    pause    paused  ──> freeze            a restart makes true what was written
    resume   running ──> thaw
    end      stopping ──> destroy ──> terminated | failed

To add an action: a public method that calls `_ask`, a private one that acts, and a test in `test_supervisor.py`.
Collections of supervisors are in `supervisors.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from msgspec.structs import replace

from cove.engine.birth import Birth, Ports, bounded, give_birth
from cove.engine.deadlines import Deadlines
from cove.engine.driver import Box
from cove.engine.inbox import Action, Inbox, was_seen
from cove.engine.pool import is_connected
from cove.engine.records import ended, ended_error, moved, with_network
from cove.model.errors import CoveError, EngineFailure, Gone
from cove.model.network import NetworkUse
from cove.model.origin import working_for
from cove.model.sandbox import IdleAction, Sandbox, Source, Usage
from cove.model.state import FINAL, EndReason, State

log = logging.getLogger(__name__)


class Supervisor:
    """Owns one sandbox and its box. Made only by `Supervisors`."""

    def __init__(self, sandbox: Sandbox, ports: Ports) -> None:
        self.sandbox = sandbox
        self._ports = ports
        self._box: Box | None = None
        self._inbox = Inbox(sandbox.id)
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._started.add_done_callback(was_seen)
        self._is_moving = False
        self._is_detached = False
        self._oom_kills = 0
        self._deadlines = Deadlines(sandbox, ports.clock, lambda: self._inbox.post(self._ring))

    # For requests.

    def view(self) -> Sandbox:
        """The sandbox now, with its last activity."""
        if self.sandbox.state in FINAL:
            return self.sandbox
        return replace(self.sandbox, last_active_at=self._deadlines.last_active_at())

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

    async def resume(self) -> Sandbox:
        """Thaw it; running already: nothing. Raises: Gone, CapacityExceeded, EngineFailure, SandboxGone."""
        return await self._ask(self._open)

    async def change(self, edit: Callable[[Sandbox], Sandbox]) -> Sandbox:
        """Apply `edit` to timers, name, metadata, limits, network; all of it holds when this returns.

        Raises: what `edit` raises, Gone, Conflict, Unsupported, EngineFailure.
        """
        return await self._ask(lambda: self._change(edit))

    @property
    def address(self) -> str:
        """Its address on the sandboxes' network; empty while it has none."""
        return "" if self._box is None else self._box.facts.address

    async def network_use(self) -> NetworkUse:
        """Bytes over its interface so far."""
        return NetworkUse() if self._box is None else await bounded(self._box.network_use())

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
        self._inbox.post(self._detach)

    @asynccontextmanager
    async def lease(self) -> AsyncGenerator[Box]:
        """The box, for work in it. A paused sandbox is resumed, an idle one stays awake until the lease ends.

        Raises: Gone, CapacityExceeded, EngineFailure, SandboxGone; while it is being created also what that raises.
        """
        self._deadlines.acquire()
        try:
            if not self._is_open():
                await asyncio.shield(self._started)
                await self._ask(self._open)
            if self._box is None:
                raise ended_error(self.sandbox)
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
        watch: asyncio.Task[None] | None = None
        try:
            if birth is not None:
                with working_for(birth.origin):
                    box = await self._be_born(birth)
            if box is not None:
                self._box, self._oom_kills = box, box.oom_kills()
                watch = self._ports.tasks.create_task(self._watch(box))
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
            if watch is not None:
                watch.cancel()
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
        if self._box is not None:
            self._box.let_go()
        self._box = None
        error = ended_error(self.sandbox)
        if not self._started.done():
            self._started.set_exception(error)
        self._inbox.refuse_all(error)
        self._ports.on_end(self.sandbox)

    # Actions, in the task only.

    async def _pause(self) -> None:
        if self.sandbox.state is State.PAUSED:
            return
        await self._shift(State.PAUSED, lambda box: box.pause())

    async def _open(self) -> None:
        """Make it usable: thawed, and its agent connected."""
        if self.sandbox.state is State.PAUSED:
            self._ports.may_resume(self.sandbox)
            await self._shift(State.RUNNING, lambda box: box.resume())
        if self._box is not None and not is_connected(self._box):
            await bounded(self._box.reconnect())

    async def _shift(self, state: State, act: Callable[[Box], Awaitable[None]]) -> None:
        """Between running and paused. Written first; taken back if the kernel refuses."""
        if self._box is None:
            raise ended_error(self.sandbox)
        self._is_moving = True
        try:
            shifted = moved(self.view(), state)
            await self._ports.journal.write(shifted)
            try:
                await bounded(act(self._box))
            except CoveError:
                await self._ports.journal.write_surely(self.sandbox)
                raise
            self.sandbox = shifted
            self._deadlines.touch()
        finally:
            self._is_moving = False

    async def _change(self, edit: Callable[[Sandbox], Sandbox]) -> None:
        if self._box is None:
            raise ended_error(self.sandbox)
        before, changed = self.sandbox, edit(self.view())
        if changed.limits != before.limits:
            await bounded(self._box.set_limits(changed.limits))
        try:
            await self._ports.journal.write(changed)
            if changed.network != before.network:
                changed = await self._change_network(self._box, before, changed)
        except CoveError:
            if changed.limits != before.limits:
                await bounded(self._box.set_limits(before.limits))
            raise
        self.sandbox = changed
        self._deadlines.set_expiry(changed)

    async def _change_network(self, box: Box, before: Sandbox, changed: Sandbox) -> Sandbox:
        """Make true what was written, so that a restart in between applies it; taken back if the machine refuses."""
        try:
            await bounded(box.set_network(changed.network, self._ports.links(changed)))
        except CoveError:
            await self._ports.journal.write_surely(before)
            await bounded(box.set_network(before.network, self._ports.links(before)))
            raise
        return replace(changed, isolation=box.isolation)

    async def _reconnect(self) -> None:
        if self._box is None or self.sandbox.state in FINAL or not self.sandbox.network.links:
            return
        try:
            await bounded(self._box.set_network(self.sandbox.network, self._ports.links(self.sandbox)))
        except CoveError as error:
            log.warning("sandbox %s keeps the links it had: %s %s", self.sandbox.id, error, error.internal)

    async def _end(self, reason: EndReason, detail: str | None) -> None:
        """Never fails: what cannot be written now is written later, what cannot be freed is swept by the next start."""
        if self.sandbox.state in FINAL:
            return
        self._is_moving = True
        if self.sandbox.state is not State.STOPPING:  # a bug may have ended an earlier try
            self.sandbox = moved(self.view(), State.STOPPING, end_reason=reason, end_detail=detail)
        await self._ports.journal.write_surely(self.sandbox)
        if self._box is not None:
            await self._destroy(self._box)
        self.sandbox = self._ended(reason, detail)
        await self._ports.journal.write_surely(self.sandbox)

    async def _detach(self) -> None:
        self._is_detached = True
        await self._ports.journal.write_surely(self.view())
        if self._box is not None and is_connected(self._box):
            await self._box.agent.close()

    async def _note(self) -> None:
        """Write the last activity, so that a restart counts the idle time from about there."""
        if self.sandbox.state not in FINAL:
            await self._ports.journal.write(self.view())

    async def _destroy(self, box: Box) -> None:
        try:
            over_network = await bounded(box.network_use())
            self.sandbox = replace(self.sandbox, usage=with_network(await bounded(box.destroy()), over_network))
        except CoveError as error:
            log.exception("sandbox %s left something, the next start sweeps it: %s", self.sandbox.id, error.internal)

    async def _use(self, box: Box) -> Usage:
        return with_network(await bounded(box.usage()), await bounded(box.network_use()))

    async def _watch(self, box: Box) -> None:
        """A task of its own, until the box dies or the supervisor stops."""
        try:
            await box.wait_dead()
        except Exception:  # this task's outermost frame: nothing is known, so nothing is ended
            log.exception("sandbox %s cannot be watched", self.sandbox.id)
        else:
            self._inbox.post(self._bury)

    async def _bury(self) -> None:
        is_memory = self._box is not None and self._box.oom_kills() > self._oom_kills
        detail = "its first process ended" if self._box is None else self._box.obituary
        await self._end(EndReason.OUT_OF_MEMORY if is_memory else EndReason.DIED, detail)

    async def _ring(self) -> None:
        if self._deadlines.has_expired():
            await self._end(EndReason.EXPIRED, None)
        elif self._deadlines.is_idle(self.sandbox):
            if self.sandbox.idle_action is IdleAction.TERMINATE:
                await self._end(EndReason.IDLE, None)
            else:
                self._deadlines.touch()  # should the pause fail, it is tried again one idle time later
                await self._pause()

    def _ended(self, reason: EndReason, detail: str | None) -> Sandbox:
        return ended(self.view(), reason, detail, at=self._ports.clock.now())
