"""What a sandbox's record and its box go through together: the moves, each with what is undone when it fails.

Everything here runs in the sandbox's one task (`supervisor.py`), so nothing changes under a move but time. The order of
its steps decides what a crash leaves; `core/reconcile.py` has the table.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

from msgspec.structs import replace

from cove.engine.birth import Birth, Ports, bounded, checkpoint_timeout_s, give_birth
from cove.engine.checkpoints.model import Checkpoint
from cove.engine.deadlines import Deadlines
from cove.engine.driver import Box, BoxImage, Driver
from cove.engine.inbox import Inbox
from cove.engine.keeping import Environment, environment_of, keep, kept_of
from cove.engine.pool import is_connected
from cove.engine.records import AT_REST, at_rest_error, ended, ended_error, moved, summed, timed, with_network
from cove.model.errors import Conflict, CoveError, EngineFailure, SandboxGone, Unsupported
from cove.model.sandbox import IdleAction, Kept, Sandbox, Usage
from cove.model.state import FINAL, EndReason, State

log = logging.getLogger(__name__)

HIBERNATE_AGAIN_S: Final = 600.0
"""After an idle sandbox could not be hibernated, it is tried again so much later: it may be the disk that is full."""

STOP_GRACE_S: Final = 10.0
"""A server that stops waits so long for a checkpoint in progress. The sandbox then goes on as it was."""

WENT_TO_REST: Final = (
    "the sandbox was hibernated; commands go on when it is resumed, and are background commands from then on"
)


class Life:
    """One sandbox's record and box. Its one user is `Supervisor`, which says what happens when."""

    def __init__(self, sandbox: Sandbox, ports: Ports) -> None:
        self.sandbox = sandbox
        self._ports = ports
        self._inbox = Inbox(sandbox.id)
        self._box: Box | None = None
        self._remains: Box | None = None
        self._environment: Environment | None = None
        self._watching: asyncio.Task[None] | None = None
        self._is_moving = False
        self._oom_kills = 0
        self._is_kept = sandbox.state is State.HIBERNATED
        self._is_leaving = False
        self._limit: asyncio.Timeout | None = None
        self._deadlines = Deadlines(sandbox, ports.clock, lambda: self._inbox.post(self._ring))

    def _own_box(self) -> Box:
        if self._box is None:
            raise ended_error(self.sandbox)
        return self._box

    def _driver(self) -> Driver:
        driver = self._ports.driver_of(self.sandbox)
        if driver is None:
            raise EngineFailure("this sandbox cannot be reached", internal=f"no driver {self.sandbox.driver}")
        return driver

    def _patience(self) -> float:
        return checkpoint_timeout_s(self.sandbox.limits)

    @asynccontextmanager
    async def _in_time(self) -> AsyncGenerator[None]:
        """Within, what takes long is given up, as if it had failed, once a server that stops has waited enough."""
        try:
            async with asyncio.timeout(None) as self._limit:
                if self._is_leaving:
                    self._hurry()
                yield
        except TimeoutError as error:
            raise EngineFailure("the server is stopping; the sandbox is as it was") from error
        finally:
            self._limit = None

    def _hurry(self) -> None:
        """The server is to stop."""
        self._is_leaving = True
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + STOP_GRACE_S)

    @contextmanager
    def _moving(self) -> Generator[None]:
        """Within, work that begins waits; work that has begun goes on."""
        self._is_moving = True
        try:
            yield
        finally:
            self._is_moving = False

    def _moved(self, state: State, **facts: object) -> Sandbox:
        """The record in another state, its time to live passing or not as that state has it."""
        record = moved(self.view(), state, **({"state_note": None} | facts))
        return timed(record, now=self._ports.clock.now(), left_s=self._deadlines.left_s())

    def _become_now(self, record: Sandbox) -> None:
        self.sandbox = record
        self._deadlines.set_expiry(record)
        self._deadlines.touch()

    def _take_on(self, box: Box) -> None:
        self._box, self._oom_kills, self._environment = box, box.oom_kills(), None
        self._watching = self._ports.tasks.create_task(self._watch(box))

    def _let_off(self) -> Box | None:
        """It has no box from here on; the box is the caller's."""
        box, self._box = self._box, None
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        return box

    async def _clear(self, *, must: bool = False) -> None:
        """Free the box that it had. Raises: EngineFailure, where it `must` be free for another of its id."""
        if self._remains is None:
            return
        try:
            await bounded(self._remains.destroy())
        except CoveError as error:
            if must:
                raise
            log.exception("sandbox %s left something, it is tried again: %s", self.sandbox.id, error.internal)
        else:
            self._remains = None

    async def _destroy(self, box: Box) -> None:
        try:
            over_network = await bounded(box.network_use())
            used = with_network(await bounded(box.destroy()), over_network)
            self.sandbox = replace(self.sandbox, usage=summed(self.sandbox.usage, used))
        except CoveError as error:
            log.exception("sandbox %s left something, the next start sweeps it: %s", self.sandbox.id, error.internal)

    async def _use(self, box: Box) -> Usage:
        used = with_network(await bounded(box.usage()), await bounded(box.network_use()))
        return summed(self.sandbox.usage, used)

    async def _watch(self, box: Box) -> None:
        """A task of its own, until the box dies or the supervisor stops."""
        try:
            await box.wait_dead()
        except Exception:  # this task's outermost frame: nothing is known, so nothing is ended
            log.exception("sandbox %s cannot be watched", self.sandbox.id)
        else:
            self._inbox.post(lambda: self._bury(box))

    async def _bury(self, box: Box) -> None:
        if box is self._box:  # it has no other by now
            is_memory = box.oom_kills() > self._oom_kills
            await self._end(EndReason.OUT_OF_MEMORY if is_memory else EndReason.DIED, box.obituary)

    async def _pause(self, note: str | None = None) -> None:
        if self.sandbox.state is State.PAUSED:
            return
        if self.sandbox.state is State.HIBERNATED:
            raise Conflict("the sandbox is hibernated", field="state")
        await self._shift(State.PAUSED, lambda box: box.pause(), note)

    async def _open_for_work(self) -> None:
        if self.sandbox.state in AT_REST and not self.sandbox.auto_resume:
            raise at_rest_error(self.sandbox)
        await self._open()

    async def _open(self, *, memory: bool | None = None) -> None:
        """Make it usable: awake, and its agent connected."""
        if self.sandbox.state is State.HIBERNATED:
            await self._wake(memory=memory)
        elif self.sandbox.state is State.PAUSED:
            self._ports.may_resume(self.sandbox)
            await self._shift(State.RUNNING, lambda box: box.resume())
        if self._box is not None and not is_connected(self._box):
            await bounded(self._box.reconnect())

    async def _shift(self, state: State, act: Callable[[Box], Awaitable[None]], note: str | None = None) -> None:
        """Between running and paused. Written first; taken back if the kernel refuses."""
        box = self._own_box()
        with self._moving():
            shifted = self._moved(state, state_note=note)
            await self._ports.journal.write(shifted)
            try:
                await bounded(act(box))
            except CoveError:
                await self._ports.journal.write_surely(self.sandbox)
                raise
            self._become_now(shifted)

    async def _hibernate(self, *, memory: bool | None) -> None:
        if self.sandbox.state is State.HIBERNATED:
            return
        with self._moving():
            await self._lie_down(memory=memory)
        self._ports.rests(self.sandbox)
        self._ports.moves(self.sandbox)

    async def _hibernate_idle(self) -> None:
        """With its memory or not at all: no timer ends processes."""
        try:
            await self._hibernate(memory=True)
        except CoveError as error:
            log.warning("sandbox %s is paused instead of hibernated: %s %s", self.sandbox.id, error, error.internal)
            self._deadlines.postpone(HIBERNATE_AGAIN_S)
            await self._pause(f"it was to be hibernated: {error.public}")

    async def _lie_down(self, *, memory: bool | None) -> None:
        """From the box into a checkpoint. If it fails, all is as it was."""
        box, was_running = self._own_box(), self.sandbox.state is State.RUNNING
        try:
            made = await self._keep(box, self.sandbox.id, memory=memory, stay_paused=True)
            self._is_kept = True
            try:
                facts = made.facts
                memory_bytes = facts.memory_bytes if facts.has_memory else 0
                used = replace(await self._use(box), memory_bytes=0, pids=0)
                asleep = self._moved(State.HIBERNATED, kept=kept_of(facts), kept_bytes=memory_bytes, usage=used)
                await self._ports.journal.write(asleep)
            except BaseException:
                await self._forget_checkpoint()
                raise
        except BaseException:
            if was_running:
                await asyncio.shield(bounded(box.resume()))
            raise
        self._become_now(asleep)
        self._let_off()
        with suppress(SandboxGone):  # it was adopted paused: nobody works in it
            box.agent.drop(Conflict(WENT_TO_REST, field="state"))
        self._remains = box
        await self._clear()

    async def _wake(self, *, memory: bool | None) -> None:
        """From its checkpoint into a box. If it fails, it stays hibernated."""
        before = self.sandbox
        has_memory = before.kept is not None and before.kept.memory
        if memory and not has_memory:
            raise Conflict("only its files were kept when it was hibernated", field="memory")
        with_memory = has_memory if memory is None else memory
        self._ports.may_resume(before)
        try:
            with self._moving():
                made = await bounded(self._ports.checkpoints.get(before.id, with_memory=with_memory), self._patience())
                there = kept_of(made.facts, with_memory=with_memory)
                await self._rise(made, self._ports.image_of(before), there)
        except BaseException:
            self._ports.rests(before)
            raise
        self._ports.moves(self.sandbox)

    async def _rise(self, origin: Checkpoint, image: BoxImage, kept: Kept, *, is_rollback: bool = False) -> None:
        """Into a new box that is as `origin` was. `is_rollback`: of an earlier time: nothing may be the same twice."""
        await self._clear(must=True)
        birth = Birth(
            image=image,
            driver=self._driver(),
            env={},
            hostname=None,
            box=None,
            run_entrypoint=False,
            asked_at=self._ports.clock.monotonic(),
            intent=self._ports.journal.write,
            origin=origin,
            with_memory=kept.memory,
            is_copy=is_rollback,
        )
        async with self._in_time():
            box, _ = await give_birth(self.sandbox, birth, self._ports)
        try:
            took_ms = (self._ports.clock.monotonic() - birth.asked_at) * 1000
            awake = self._moved(State.RUNNING, isolation=box.isolation, kept=kept, kept_bytes=0, resume_ms=took_ms)
            if is_rollback:
                awake = replace(awake, rolled_back_to=origin.id, rolled_back_at=self._ports.clock.now())
            await self._ports.journal.write(awake)
        except BaseException:
            self._remains = box
            await asyncio.shield(self._clear())
            raise
        self._become_now(awake)
        self._take_on(box)
        self._inbox.post(self._forget_checkpoint)

    async def _forget_checkpoint(self) -> None:
        """Its own, once it is not needed. After the answer of a resume: removing takes longer the bigger it is."""
        if self._is_kept and self.sandbox.state is not State.HIBERNATED:
            self._is_kept = False
            await self._ports.checkpoints.remove(self.sandbox.id)

    async def _snapshot(self, checkpoint_id: str, *, memory: bool | None, is_lasting: bool) -> Checkpoint:
        if self.sandbox.state is not State.HIBERNATED:
            with self._moving():
                return await self._keep(
                    self._own_box(), checkpoint_id, memory=memory, stay_paused=False, is_lasting=is_lasting
                )
        has_memory = self.sandbox.kept is not None and self.sandbox.kept.memory
        if memory and not has_memory:
            raise Unsupported("the sandbox is hibernated, and only its files were kept", field="memory")
        with_memory = has_memory and memory is not False
        copied = self._ports.checkpoints.copy(self.sandbox.id, checkpoint_id, with_memory=with_memory)
        return await bounded(copied, self._patience())

    async def _roll_back(self, checkpoint: Checkpoint, image: BoxImage, kept: Kept) -> None:
        """What is now is kept first, as for a hibernation, and resumed if the way back fails."""
        self._check_origin(checkpoint, memory=kept.memory)
        was, sandbox = self.sandbox.state, self.sandbox
        with self._moving():
            if was is State.HIBERNATED:
                self._ports.may_resume(sandbox)
            else:
                await self._lie_down(memory=None)
            try:
                await self._rise(checkpoint, image, kept, is_rollback=True)
            except Exception:
                await self._be_again(was)
                raise
            finally:
                if self.sandbox.state is State.HIBERNATED:
                    self._ports.rests(self.sandbox)
                self._ports.moves(self.sandbox)

    async def _be_again(self, state: State) -> None:
        """What it was before a rollback that failed. If that fails, too, it stays hibernated: nothing is lost."""
        if state is State.HIBERNATED:
            return
        sandbox = self.sandbox
        with_memory = sandbox.kept is not None and sandbox.kept.memory
        try:
            made = await bounded(self._ports.checkpoints.get(sandbox.id, with_memory=with_memory), self._patience())
            await self._rise(made, self._ports.image_of(sandbox), kept_of(made.facts))
            if state is State.PAUSED:
                await self._pause()
        except CoveError as error:
            log.warning("sandbox %s stays hibernated: %s %s", sandbox.id, error, error.internal)

    def _check_origin(self, origin: Checkpoint, *, memory: bool) -> None:
        """Raises: Unsupported, Conflict, before anything is stopped for it."""
        if not memory:
            return
        gaps = self._driver().origin_gaps(origin)
        if gaps:
            raise Unsupported(f"its memory cannot be restored here: {gaps[0]}", field="memory")
        if self.sandbox.limits.memory_bytes < origin.facts.memory_bytes:
            raise Conflict("its memory then was more than its limit is now", field="memory_mib")

    async def _keep(
        self, box: Box, checkpoint_id: str, *, memory: bool | None, stay_paused: bool, is_lasting: bool = True
    ) -> Checkpoint:
        environment = await self._environment_of(box)
        checkpoints = self._ports.checkpoints
        self._ports.stills(self.sandbox)
        async with self._in_time():
            return await keep(
                box,
                checkpoints,
                checkpoint_id,
                environment,
                memory=memory,
                stay_paused=stay_paused,
                is_lasting=is_lasting,
            )

    async def _environment_of(self, box: Box) -> Environment:
        """Asked once: it does not change. One that was adopted paused goes on for that moment."""
        if self._environment is None:
            is_paused = self.sandbox.state is State.PAUSED
            if is_paused:
                await bounded(box.resume())
            try:
                self._environment = await environment_of(box)
            finally:
                if is_paused:
                    await asyncio.shield(bounded(box.pause()))
        return self._environment

    async def _change(self, edit: Callable[[Sandbox], Sandbox], *, is_use: bool) -> None:
        box = None if self.sandbox.state is State.HIBERNATED else self._own_box()
        before, changed = self.sandbox, edit(self.view())
        if box is None and changed.limits.memory_bytes < before.kept_bytes:
            raise Conflict("its memory is more than that, on the disk", field="memory_mib")
        left_s = self._deadlines.left_s()
        if changed.expires_at is not None and changed.expires_at != before.expires_at:
            left_s = changed.expires_at - self._ports.clock.now()
        changed = timed(changed, now=self._ports.clock.now(), left_s=left_s)
        if box is not None and changed.limits != before.limits:
            await bounded(box.set_limits(changed.limits))
        try:
            await self._ports.journal.write(changed)
            if box is not None and changed.network != before.network:
                changed = await self._change_network(box, before, changed)
        except CoveError:
            if box is not None and changed.limits != before.limits:
                await bounded(box.set_limits(before.limits))
            raise
        self.sandbox = changed
        self._deadlines.set_expiry(changed)
        if is_use:
            self._deadlines.touch()

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
        await self._clear()
        await self._forget_checkpoint()
        self.sandbox = self._ended(reason, detail)
        await self._ports.journal.write_surely(self.sandbox)

    def _ended(self, reason: EndReason, detail: str | None) -> Sandbox:
        return ended(self.view(), reason, detail, at=self._ports.clock.now())

    async def _ring(self) -> None:
        if self._deadlines.has_expired():
            await self._end(EndReason.EXPIRED, None)
        elif self._deadlines.is_idle(self.sandbox):
            if self.sandbox.idle_action is IdleAction.TERMINATE:
                await self._end(EndReason.IDLE, None)
            elif self.sandbox.idle_action is IdleAction.HIBERNATE:
                await self._hibernate_idle()
            else:
                self._deadlines.touch()  # should the pause fail, it is tried again one idle time later
                await self._pause()

    def view(self) -> Sandbox:
        """The sandbox now, with its last activity."""
        if self.sandbox.state in FINAL:
            return self.sandbox
        return replace(self.sandbox, last_active_at=self._deadlines.last_active_at())
