"""A context whose code a kernel runs: its kernel made, found again, connected to; its runs, and what it says of itself.

The list of contexts is the agent's list of kept commands (`engine/kernels.py`); here is only what makes the next run
quick, so nothing is lost when it is forgotten: a connection that rests, and whose turn it is.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from cove.agentlink.kernels import LINE_BYTES, KernelLine, KernelLink, line_bytes
from cove.agentlink.room import Share
from cove.core.coderuns import KernelRun
from cove.core.codeturns import Turns
from cove.core.verdict import judged_exit
from cove.engine.driver import Box
from cove.engine.kernels import (
    ANSWER_TIMEOUT_S,
    PREFIX,
    KernelRecord,
    end_of,
    link_kernel,
    record_of,
    start_kernel,
)
from cove.model.code import CodeSpec, Completion, Context, ContextSpec
from cove.model.errors import Conflict, NotFound, SandboxError, TooLarge
from cove.model.execs import Command
from cove.model.ids import new_core_id

COMPLETE_TIMEOUT_S: Final = 5.0
MATCHES: Final = 1000
ENDED_WAIT_S: Final = 2.0
"""A kernel that closed its connection has ended; the agent knows it a little later."""

SIGKILL: Final = 9
RESTARTED: Final = "the context was restarted or removed"


class KernelContext:
    """One context of one sandbox. `may_make`: it is the sandbox's own of its language, made when it is first used."""

    def __init__(self, id_: str, spec: ContextSpec, *, may_make: bool) -> None:
        self.id = id_
        self.spec = spec
        self.turns = Turns()
        self._may_make = may_make
        self._box: Box | None = None
        self._record: KernelRecord | None = None
        self._link: KernelLink | None = None
        self._ready = KernelLine(t="ready")
        self._ooms = 0
        self.current: KernelRun | None = None
        self.used_at = 0.0

    @property
    def is_linked(self) -> bool:
        """Whether a connection rests."""
        return self._link is not None

    def let_go(self) -> None:
        """Close the connection that rests; whatever runs over it is interrupted."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def is_worthless(self) -> bool:
        """Whether it rests on nothing: no connection that is open."""
        if self._link is not None and not self._link.is_quiet:
            self.let_go()
        return self._link is None

    async def make(self, box: Box) -> None:
        """Start its kernel. Raises: what its start raises."""
        self.let_go()
        self._box = box
        self._record, self._link, self._ready = await start_kernel(box, self.id, self.spec)
        self._ooms = box.oom_kills()

    async def link(self, box: Box) -> tuple[KernelLink, bool]:
        """A connection to its kernel, and whether that is a fresh one. Only for whose turn it is.

        Raises: NotFound (no such context), Unsupported, SandboxError.
        """
        if self._link is not None and self._box is box and self._link.is_quiet:
            return self._link, False
        self.let_go()
        self._box = box
        command = await self._command(box)
        record = None if command is None else record_of(command)
        fresh = False
        if command is None or record is None or not command.running or not await self._connect(box, record):
            fresh = await self._begin_anew(box, command, record)
        assert self._link is not None  # noqa: S101 - one of the two has made it
        return self._link, fresh

    async def _begin_anew(self, box: Box, command: Command | None, record: KernelRecord | None) -> bool:
        """A fresh kernel in place of one that has ended, or of none; False: another was first, whose kernel serves."""
        if command is None and not self._may_make:
            raise NotFound("no such context")
        if command is not None:
            with suppress(NotFound):
                await box.agent.forget(command.id)
        self.spec = self.spec if record is None else record.spec
        try:
            await self.make(box)
        except Conflict:
            now = await self._command(box)
            record = None if now is None else record_of(now)
            if record is None or not await self._connect(box, record):
                raise
            return False
        return True

    def run(self, box: Box, spec: CodeSpec, share: Share) -> KernelRun:
        """A run to be. Raises: TooLarge."""
        id_ = new_core_id()[:12]
        message: dict[str, object] = {"op": "run", "run": id_, "code": spec.code, "env": spec.env}
        if line_bytes(message) > LINE_BYTES:
            raise TooLarge(f"the code and its environment have more than {LINE_BYTES} bytes as JSON", field="code")
        return KernelRun(
            id_,
            message,
            spec.timeout_s,
            context=self.id,
            link=lambda: self.link(box),
            death=lambda link: self._death(box, link),
            kill=lambda link: self._kill(box, link),
            share=share,
        )

    async def complete(self, box: Box, code: str, cursor: int) -> Completion:
        """What may stand at `cursor`. Only for whose turn it is. Raises: SandboxError."""
        message = {"op": "complete", "id": new_core_id()[:8], "code": code, "cursor": cursor}
        if line_bytes(message) > LINE_BYTES:
            raise TooLarge(f"the code has more than {LINE_BYTES} bytes as JSON", field="code")
        link, _ = await self.link(box)
        try:
            await link.send(message)
            line = await link.answer("completed", COMPLETE_TIMEOUT_S, str(message["id"]))
        except TimeoutError:
            line = None
            self.let_go()
        if line is None:
            return Completion(matches=(), start=cursor, end=cursor)
        start = min(line.start, cursor)
        return Completion(matches=line.matches[:MATCHES], start=start, end=max(start, min(line.end, len(code))))

    async def restart(self, box: Box) -> None:
        """Kill its kernel and start another. What runs ends with `kernel-died`. Raises: as `link`."""
        command = await self._command(box)
        if command is None and not self._may_make:
            raise NotFound("no such context")
        record = None if command is None else record_of(command)
        self.spec = self.spec if record is None else record.spec
        await self.remove(box, must_exist=False)
        try:
            record, link, self._ready = await start_kernel(box, self.id, self.spec)
        except Conflict:
            return  # a run that waited was first
        if self.turns.is_free:
            self._box, self._record, self._link, self._ooms = box, record, link, box.oom_kills()
        else:
            link.close()

    async def remove(self, box: Box, *, must_exist: bool = True) -> None:
        """End its kernel and forget it. Raises: NotFound."""
        if self.turns.is_free:
            self.let_go()
        try:
            await box.agent.forget(PREFIX + self.id)
        except NotFound:
            if must_exist:
                raise NotFound("no such context") from None

    async def describe(self, box: Box, command: Command) -> Context:
        """What it is now. It asks the kernel only if nobody has its turn."""
        record = record_of(command)
        alive = command.running and record is not None
        busy = not self.turns.is_free
        if alive and not busy:
            turn = self.turns.join()
            try:
                link, _ = await self.link(box)
                self._ready = await link.greet(ANSWER_TIMEOUT_S) or self._ready
            except (SandboxError, TimeoutError):
                self.let_go()
            finally:
                turn.leave()
            busy = self._ready.busy
        ready = self._ready
        return Context(
            id=self.id,
            language=(self.spec if record is None else record.spec).language,
            kernel=ready.kernel,
            version=ready.version,
            cwd=ready.cwd,
            alive=alive,
            busy=alive and busy,
            rich=ready.rich,
            missing=tuple(one[:500] for one in ready.missing[:16]),
            runs=ready.runs,
            started_at=command.started_at,
        )

    async def _connect(self, box: Box, record: KernelRecord) -> bool:
        """To a kernel that runs; False: it has ended meanwhile.

        One that was started before the sandbox was anybody's learns now whose it is.
        """
        try:
            self._link, self._ready = await link_kernel(box, record)
        except SandboxError:
            if (await self._ended(box)).running:
                raise
            return False
        self._record, self.spec, self._ooms = record, record.spec, box.oom_kills()
        if record.ahead and self._ready.runs == 0:
            await self._set_up(box, self._link)
        return True

    async def _set_up(self, box: Box, link: KernelLink) -> None:
        own = await box.agent.environment()
        try:
            await link.send({"op": "setup", "env": own.env, "cwd": own.workdir})
            ready = await link.answer("ready", ANSWER_TIMEOUT_S)
        except TimeoutError:
            ready = None
        if ready is None:
            self.let_go()
            raise SandboxError("the kernel of this context does not answer: restart the context")
        self._ready = ready

    async def _ended(self, box: Box) -> Command:
        """Its command, after a moment in which its end may become known. Raises: NotFound."""
        return await box.agent.wait(PREFIX + self.id, ENDED_WAIT_S)

    async def _command(self, box: Box) -> Command | None:
        try:
            return await box.agent.command(PREFIX + self.id)
        except NotFound:
            return None

    async def _death(self, box: Box, link: KernelLink) -> str:
        """Why a connection ended under a run. Raises: SandboxError (the kernel lives), SandboxGone."""
        record = self._record
        if link is self._link:
            self.let_go()
        try:
            if not self._is_of(await box.agent.command(PREFIX + self.id), record):
                return RESTARTED
            command = await self._ended(box)
        except NotFound:
            return RESTARTED
        if not self._is_of(command, record):
            return RESTARTED
        if command.running or command.exit is None:
            await box.agent.signal(command.id, SIGKILL)
            raise SandboxError("the kernel of this context broke its protocol: it closed its connection under a run")
        return end_of(judged_exit(command.exit, box, self._ooms))

    @staticmethod
    def _is_of(command: Command, record: KernelRecord | None) -> bool:
        now = record_of(command)
        return now is not None and record is not None and now.name == record.name

    async def _kill(self, box: Box, link: KernelLink) -> None:
        if link is self._link:
            self.let_go()
        else:
            link.close()
        try:
            await box.agent.signal(PREFIX + self.id, SIGKILL)
            await self._ended(box)
        except (NotFound, Conflict):
            return  # it has ended by itself
