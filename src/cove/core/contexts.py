"""Code in contexts: interpreters in sandboxes that keep their state from one run to the next.

A context is a kernel (`codekernels.py`) or a shell (`codeshells.py`) that the sandbox's agent keeps; which there are,
the agent says, so they outlive this server, hibernation, and go along into forks. Runs of a context queue. A run holds
its sandbox awake; a context in which nothing runs does not.
"""

from __future__ import annotations

import asyncio
import builtins
import logging
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from msgspec.structs import replace

from cove.agentlink.room import OutputRoom, Share
from cove.core.access import require
from cove.core.codekernels import KernelContext
from cove.core.codelanguages import NAMES, language_of, probed
from cove.core.coderuns import Run
from cove.core.codeshells import BASH, ShellContext
from cove.core.codeturns import Turn
from cove.core.codewhole import whole
from cove.core.commandnotes import CommandNotes
from cove.core.directory import Directory
from cove.core.validation import check_code, check_context, check_context_id, check_count
from cove.engine.driver import Box
from cove.engine.kernels import PREFIX, record_of
from cove.model.access import Principal, Scope
from cove.model.code import (
    CodeSpec,
    Completion,
    Context,
    ContextSpec,
    Execution,
    LanguageInfo,
    RunEnded,
    RunEvent,
    RunStarted,
    RunStatus,
)
from cove.model.errors import BadRequest, Conflict, CoveError, NotFound
from cove.model.ids import new_core_id
from cove.model.sandbox import Sandbox

log = logging.getLogger(__name__)

CONTEXTS: Final = 32
"""Of one sandbox, those that were asked for and those of a language together."""

REST_S: Final = 30.0
"""How long the connection to a kernel rests after a run."""

OUTPUT_ROOM_BYTES: Final = 256 * 1024 * 1024
"""Output and results of runs that the server holds at once; past it they are cut, and say so."""

LANGUAGES_S: Final = 5.0
"""How long an answer of `languages` serves: to find out starts an interpreter."""

CODE_CHARACTERS: Final = 1024 * 1024
_NOT_IN_IDS: Final = re.compile(r"[^a-z0-9_]+")

AnyContext = KernelContext | ShellContext


class Contexts:
    """Every operation on contexts. All raise Forbidden, NotFound, Gone and SandboxError beside what they name."""

    def __init__(self, directory: Directory, notes: CommandNotes, tasks: asyncio.TaskGroup) -> None:
        self._directory = directory
        self._notes = notes
        self._tasks = tasks
        self._room = OutputRoom(OUTPUT_ROOM_BYTES)
        self.ended: Counter[RunStatus] = Counter()
        """Runs since the start, by how they ended."""
        self.started = 0
        """Interpreters that a run had to wait for."""
        self._known: dict[str, dict[str, AnyContext]] = {}
        self._languages: dict[str, tuple[float, builtins.list[LanguageInfo]]] = {}

    def output_share(self) -> Share:
        """Room for what one `execute` gives, for a caller who holds it longer than the call; who asks, releases."""
        return self._room.share()

    async def languages(self, who: Principal, ref: str) -> builtins.list[LanguageInfo]:
        """What contexts of the sandbox can be of, and what is missing for the others."""
        require(who, Scope.READ)
        supervisor = self._directory.readable(who, ref)
        sandbox_id = supervisor.sandbox.id
        known = self._languages.get(sandbox_id)
        if known is not None and _now() - known[0] < LANGUAGES_S:
            return known[1]
        async with supervisor.lease() as box:
            found = await probed(box)
        self._languages[sandbox_id] = (_now(), found)
        asyncio.get_running_loop().call_later(LANGUAGES_S, self._languages.pop, sandbox_id, None)
        return found

    async def create(self, who: Principal, ref: str, spec: ContextSpec) -> Context:
        """A context beside the sandbox's own; its interpreter runs when this returns.

        Raises: BadRequest, Unsupported (the image lacks what the language needs), Conflict (32 contexts).
        """
        require(who, Scope.EXEC)
        check_context(spec)
        self._notes.audit.check()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            if len(await self._ids(box)) >= CONTEXTS:
                raise Conflict(f"this sandbox has {CONTEXTS} contexts: remove one")
            spec = replace(spec, language=language_of(spec.language))
            id_ = f"{_slug(spec.language)[:20]}-{new_core_id()[:6]}"
            context = _new_context(id_, spec, may_make=False)
            turn = context.turns.join()
            self._remember(supervisor.sandbox.id, context)
            try:
                await context.make(box)
            except BaseException:
                self._known[supervisor.sandbox.id].pop(id_, None)
                raise
            finally:
                self._left(supervisor.sandbox.id, context, turn)
            await self._note("context.created", who, supervisor.sandbox, context)
            return await self._described(box, context)

    async def list(self, who: Principal, ref: str) -> builtins.list[Context]:
        """The contexts of the sandbox, oldest first; one whose interpreter ended is known until it is removed."""
        require(who, Scope.READ)
        supervisor = self._directory.readable(who, ref)
        async with supervisor.lease() as box:
            return [
                await self._described(box, await self._find(supervisor.sandbox.id, box, id_, None))
                for id_ in await self._ids(box)
            ]

    async def get(self, who: Principal, ref: str, context_id: str) -> Context:
        """One context. Raises: NotFound."""
        require(who, Scope.READ)
        check_context_id(context_id)
        supervisor = self._directory.readable(who, ref)
        async with supervisor.lease() as box:
            return await self._described(box, await self._find(supervisor.sandbox.id, box, context_id, None))

    async def remove(self, who: Principal, ref: str, context_id: str) -> None:
        """End its interpreter, and forget it. What runs in it ends with `kernel-died`. Raises: NotFound."""
        require(who, Scope.EXEC)
        check_context_id(context_id)
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            context = await self._find(supervisor.sandbox.id, box, context_id, None)
            await context.remove(box)
            self._known.get(supervisor.sandbox.id, {}).pop(context_id, None)
            await self._note("context.removed", who, supervisor.sandbox, context)

    async def interrupt(self, who: Principal, ref: str, context_id: str) -> None:
        """Interrupt what runs, as Ctrl-C does; its run ends with `interrupted`. Raises: Conflict (nothing runs)."""
        require(who, Scope.EXEC)
        check_context_id(context_id)
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            context = await self._find(supervisor.sandbox.id, box, context_id, None)
            if context.current is None:
                raise Conflict("nothing runs in this context")
            await context.current.interrupt()

    async def restart(self, who: Principal, ref: str, context_id: str) -> Context:
        """Kill its interpreter and start another; its state is gone. What runs in it ends with `kernel-died`."""
        require(who, Scope.EXEC)
        check_context_id(context_id)
        self._notes.audit.check()
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            context = await self._find(supervisor.sandbox.id, box, context_id, None)
            await context.restart(box)
            self._remember(supervisor.sandbox.id, context)
            await self._note("context.restarted", who, supervisor.sandbox, context)
            return await self._described(box, context)

    async def complete(  # noqa: PLR0913 - where, of what, at which character
        self,
        who: Principal,
        ref: str,
        code: str,
        cursor: int | None = None,
        *,
        context: str | None = None,
        language: str | None = None,
    ) -> Completion:
        """What may stand at `cursor` (None: at the end). Raises: BadRequest, TooLarge, Conflict (code runs)."""
        require(who, Scope.EXEC)
        spec = _settled(CodeSpec(code=code, context=context, language=language))
        cursor = len(code) if cursor is None else cursor
        check_count(cursor, (0, min(len(code), CODE_CHARACTERS)), "cursor")
        supervisor = self._directory.live(who, ref)
        async with supervisor.lease() as box:
            found = await self._find(supervisor.sandbox.id, box, spec.context or "", spec.language)
            if not found.turns.is_free:
                raise Conflict("code runs in this context")
            turn = found.turns.join()
            try:
                self._remember(supervisor.sandbox.id, found)
                return await found.complete(box, code, cursor)
            finally:
                self._left(supervisor.sandbox.id, found, turn)

    async def execute(self, who: Principal, ref: str, spec: CodeSpec, *, share: Share | None = None) -> Execution:
        """Run code to its end. `share`: what its output counts against, released by the caller. Raises: as `run`.

        An error of the code, a time-out, an interpreter or a sandbox that dies under it are results. Cancelling
        interrupts it.
        """
        own = self._room.share()
        try:
            async with self.run(who, ref, spec) as events:
                return await whole(events, _settled(spec).context or "", share or own)
        finally:
            own.release()

    @asynccontextmanager
    async def run(self, who: Principal, ref: str, spec: CodeSpec) -> AsyncGenerator[AsyncIterator[RunEvent]]:
        """Run code and iterate over what comes of it, from its turn on; the last is RunEnded. Leaving interrupts it.

        Code that does not stop within 5 s of being interrupted, or of its `timeout_s`, loses its interpreter.
        Raises, also while iterating: BadRequest, TooLarge, NotFound (context), Unsupported (the image lacks what the
        language needs), CapacityExceeded (64 runs wait), SandboxError.
        """
        require(who, Scope.EXEC)
        spec = _settled(spec)
        self._notes.audit.check()
        supervisor = self._directory.live(who, ref)
        sandbox_id = supervisor.sandbox.id
        async with AsyncExitStack() as stack:
            box = await stack.enter_async_context(supervisor.lease())
            context = await self._find(sandbox_id, box, spec.context or "", spec.language)
            run = (
                context.run(box, spec, self._room.share())
                if isinstance(context, KernelContext)
                else context.run(box, spec)
            )
            turn = context.turns.join()
            stack.callback(self._left, sandbox_id, context, turn)
            self._remember(sandbox_id, context)
            note = stack.enter_context(
                self._notes.command(who, supervisor.sandbox, spec.code, exec_id=run.id, context=context.id)
            )
            try:
                if turn.has_come:  # what keeps it from beginning is then told before the answer begins
                    await _begin(context, run)
                yield note.told_run(self._counted(_events(context, run, turn)))
            finally:
                if context.current is run and not run.is_over:
                    await self._stop_soon(stack.pop_all(), run)

    def let_go(self, sandbox_id: str) -> None:
        """Close what rests: a checkpoint is about to be taken, and connections of ours have no place in it."""
        for context in self._known.get(sandbox_id, {}).values():
            if context.turns.is_free:
                context.let_go()

    def forget(self, sandbox_id: str) -> None:
        """It has ended."""
        self._known.pop(sandbox_id, None)

    async def _counted(self, events: AsyncIterator[RunEvent]) -> AsyncIterator[RunEvent]:
        async for event in events:
            if isinstance(event, RunEnded):
                self.ended[event.status] += 1
            elif isinstance(event, RunStarted) and event.fresh:
                self.started += 1
            yield event

    async def _find(self, sandbox_id: str, box: Box, id_: str, language: str | None) -> AnyContext:
        """The context. `language` None: whatever it has. Raises: NotFound, BadRequest."""
        context = self._known.get(sandbox_id, {}).get(id_)
        if context is None:
            context = await self._looked_up(box, id_, language)
            # Another may have found it meanwhile: there is one queue.
            context = self._known.get(sandbox_id, {}).get(id_, context)
        if language is not None and context.spec.language != language:
            raise BadRequest(f"the context {id_} is one of {context.spec.language}", field="language")
        return context

    async def _looked_up(self, box: Box, id_: str, language: str | None) -> AnyContext:
        own = language if language is not None and _slug(language) == id_ else None
        if own is None and id_ in NAMES:
            own = id_
        if own is not None:
            return _new_context(id_, ContextSpec(language=own), may_make=True)
        try:
            command = await box.agent.command(PREFIX + id_)
        except NotFound:
            if id_ in await self._shell_ids(box):
                return _new_context(id_, ContextSpec(language=BASH), may_make=False)
            raise NotFound("no such context") from None
        record = record_of(command)
        if record is None:
            raise NotFound("no such context")
        own_id = _slug(record.spec.language) == id_
        return _new_context(id_, record.spec, may_make=own_id)

    async def _ids(self, box: Box) -> builtins.list[str]:
        commands = [record_of(one) for one in await box.agent.commands() if one.id.startswith(PREFIX)]
        return [one.context for one in commands if one is not None] + await self._shell_ids(box)

    async def _shell_ids(self, box: Box) -> builtins.list[str]:
        if "shell" not in box.agent.hello.features:
            return []
        return [one.id.removeprefix(PREFIX) for one in await box.agent.shells() if one.id.startswith(PREFIX)]

    async def _described(self, box: Box, context: AnyContext) -> Context:
        try:
            if isinstance(context, KernelContext):
                return await context.describe(box, await box.agent.command(PREFIX + context.id))
            return await context.describe(box, await box.agent.shell(context.shell_id))
        except NotFound:
            raise NotFound("no such context") from None

    async def _stop_soon(self, stack: AsyncExitStack, run: Run) -> None:
        """Interrupt a run whose caller has left, without keeping the caller; the turn and the lease last until then."""
        stopping = _stopped(stack, run)
        try:
            self._tasks.create_task(stopping, name="stopping a run of code")
        except RuntimeError:  # the server ends
            stopping.close()
            await stack.aclose()

    def _remember(self, sandbox_id: str, context: AnyContext) -> None:
        known = self._known.get(sandbox_id)
        if known is None:
            known = self._known[sandbox_id] = {}
            asyncio.get_running_loop().call_later(REST_S / 2, self._expire, sandbox_id)
        known.setdefault(context.id, context)

    def _left(self, sandbox_id: str, context: AnyContext, turn: Turn) -> None:
        context.current = None
        context.used_at = _now()
        turn.leave()
        if sandbox_id not in self._known:  # it has ended, or rests in a checkpoint
            context.let_go()

    def _expire(self, sandbox_id: str) -> None:
        """Close what has rested for so long. One timer per sandbox, not one per run."""
        known = self._known.get(sandbox_id)
        if known is None:
            return
        for id_, context in tuple(known.items()):
            if not context.turns.is_free:
                continue
            if _now() - context.used_at > REST_S:
                context.let_go()
            if context.is_worthless():
                del known[id_]
        if known:
            asyncio.get_running_loop().call_later(REST_S / 2, self._expire, sandbox_id)
        else:
            del self._known[sandbox_id]

    async def _note(self, event: str, who: Principal, sandbox: Sandbox, context: AnyContext) -> None:
        audit = self._notes.audit
        data = {"context": context.id, "language": context.spec.language}
        await audit.kept(audit.note(event, project=sandbox.project, sandbox=sandbox.id, data=data, who=who))


async def _begin(context: AnyContext, run: Run) -> None:
    await run.begin()
    context.current = run  # type: ignore[assignment]  # a context's own kind of run


async def _events(context: AnyContext, run: Run, turn: Turn) -> AsyncIterator[RunEvent]:
    if context.current is not run:
        await turn.wait()
        await _begin(context, run)
    async for event in run.events():
        yield event


async def _stopped(stack: AsyncExitStack, run: Run) -> None:
    """A task of its own."""
    try:
        async with stack:
            await run.stop()
    except CoveError as error:
        log.debug("a run of code was left: %s", error)
    except Exception:  # the task's outermost frame
        log.exception("a run of code could not be stopped")


def _settled(spec: CodeSpec) -> CodeSpec:
    """With its context's id, and the language by its own name where one is given. Raises: BadRequest, TooLarge."""
    check_code(spec)
    language = None if spec.language is None else language_of(spec.language)
    if spec.context is not None:
        return replace(spec, language=language)
    language = language or "python"
    return replace(spec, language=language, context=_slug(language)[:30])


def _new_context(id_: str, spec: ContextSpec, *, may_make: bool) -> AnyContext:
    kind = ShellContext if spec.language == BASH else KernelContext
    return kind(id_, spec, may_make=may_make)


def _slug(language: str) -> str:
    """The id of the sandbox's own context of a language."""
    return _NOT_IN_IDS.sub("-", language.lower())[:30]


def _now() -> float:
    return asyncio.get_running_loop().time()
