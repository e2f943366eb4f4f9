"""A context of bash: a long-lived shell of the agent (`core/shells.py` has those that callers open themselves)."""

from __future__ import annotations

import codecs
import re
import shlex
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Final

from cove.agentlink.shells import STOP_S
from cove.core.coderuns import GONE, Run
from cove.core.codeturns import Turns
from cove.core.validation import SHELL_TEXT_BYTES, check_shell_command
from cove.core.verdict import judged_events, judged_exit
from cove.engine.driver import Box
from cove.engine.kernels import PREFIX, end_of
from cove.model.code import (
    CodeSpec,
    Completion,
    Context,
    ContextSpec,
    RunEnded,
    RunError,
    RunEvent,
    RunOutput,
    RunStarted,
    RunStatus,
)
from cove.model.errors import BadRequest, Conflict, CoveError, NotFound, TooLarge, Unsupported
from cove.model.execs import Chunk, Ended, ExecExit, ExecSpec, Gap, Started, Stream, Why
from cove.model.ids import new_core_id
from cove.model.shells import Shell, ShellCommand, ShellProgram, ShellSpec

BASH: Final = "bash"
NO_BASH: Final = "this image has no bash"
SIGINT: Final = 2
INTERRUPTED: Final = 130
"""What bash says of a command that SIGINT ended."""

_WORD: Final = re.compile(r"[^\s;|&<>()=`\"']*$")
_COMPLETE_TIMEOUT_S: Final = 5.0
MATCHES: Final = 1000


class ShellContext:
    """One context of bash of one sandbox. `may_make`: it is the sandbox's own, made when it is first used."""

    def __init__(self, id_: str, spec: ContextSpec, *, may_make: bool) -> None:
        self.id = id_
        self.spec = spec
        self.turns = Turns()
        self._may_make = may_make
        self._version = ""
        self._started_at: float = 0.0
        self.runs = 0
        self.current: ShellRun | None = None
        self.used_at = 0.0

    @property
    def shell_id(self) -> str:
        """Of its shell, for the agent."""
        return PREFIX + self.id

    @property
    def is_linked(self) -> bool:
        """Nothing rests between two runs."""
        return False

    def let_go(self) -> None:
        """Nothing rests between two runs."""

    def is_worthless(self) -> bool:
        """Whether nothing is lost when it is forgotten: it has counted no run."""
        return self.runs == 0

    async def make(self, box: Box) -> None:
        """Open its shell. Raises: Unsupported, BadRequest, Conflict, SandboxError."""
        spec = self.spec
        if "shell" not in box.agent.hello.features:
            raise Unsupported("this sandbox was made by an older Cove, which had no shells: make it anew")
        # As bash reads it: an interactive shell that gets no command for so long ends.
        env = {} if spec.idle_timeout_s is None else {"TMOUT": str(max(1, round(spec.idle_timeout_s)))}
        shell = ShellSpec(program=ShellProgram.BASH, env=env, cwd=spec.cwd, user=spec.user)
        try:
            made = await box.agent.open_shell(self.shell_id, shell)
        except BadRequest as error:
            found = await box.agent.exec(ExecSpec(argv=(BASH, "-c", ":"), cwd="/", user="0"))
            if found.exit.code in {126, 127}:
                raise Unsupported(NO_BASH, field="language") from error
            raise BadRequest(error.public, field="cwd" if spec.cwd is not None else "user") from error
        self.runs, self._started_at = 0, made.started_at

    async def open(self, box: Box) -> bool:
        """See that its shell runs; whether it is a fresh one. Raises: NotFound, and as `make`."""
        shell = await self._shell(box)
        if shell is not None and shell.exit is None:
            if shell.started_at != self._started_at:
                self.runs, self._started_at = 0, shell.started_at
            return False
        if shell is None and not self._may_make:
            raise NotFound("no such context")
        if shell is not None:
            await box.agent.close_shell(shell.id)
        try:
            await self.make(box)
        except Conflict:
            if await self._shell(box) is None:
                raise  # it is not that somebody was first
            return False
        return True

    def run(self, box: Box, spec: CodeSpec) -> ShellRun:
        """A run to be. Raises: TooLarge, BadRequest."""
        text = spec.code
        if spec.env:
            # Before `eval` they hold for it alone, and are exported to what it starts.
            given = " ".join(f"{name}={shlex.quote(value)}" for name, value in spec.env.items())
            text = f"{given} eval {shlex.quote(spec.code)}"
        if len(text.encode(errors="replace")) > SHELL_TEXT_BYTES:
            raise TooLarge(f"bash takes {SHELL_TEXT_BYTES} bytes of code and environment", field="code")
        command = ShellCommand(text=text if text.strip() else ":", timeout_s=spec.timeout_s)
        check_shell_command(command)
        return ShellRun(self, box, command)

    async def complete(self, box: Box, code: str, cursor: int) -> Completion:
        """Commands, variables and files, as bash knows them now. Raises: SandboxError."""
        await self.open(box)
        before = code[:cursor]
        word = _WORD.search(before)
        start = cursor if word is None else word.start()
        stem = before[start:]
        if stem.startswith("$"):
            ask = f"compgen -v -P '$' -- {shlex.quote(stem[1:])}"
        elif before[:start].strip() in {"", "sudo"} or before[:start].rstrip()[-1:] in {"|", ";", "&", "("}:
            ask = f"compgen -c -- {shlex.quote(stem)}; compgen -d -- {shlex.quote(stem)}"
        else:
            ask = f"compgen -f -- {shlex.quote(stem)}"
        command = ShellCommand(text=ask, timeout_s=_COMPLETE_TIMEOUT_S, output_limit_bytes=256 * 1024)
        found = await box.agent.shell_exec(self.shell_id, _new_command_id(), command)
        matches = sorted(set(found.stdout.decode(errors="replace").split("\n")) - {""})
        return Completion(matches=tuple(matches[:MATCHES]), start=start, end=cursor)

    async def restart(self, box: Box) -> None:
        """End its shell and open another. Raises: NotFound, and as `make`."""
        await self.remove(box, must_exist=not self._may_make)
        try:
            await self.make(box)
        except Conflict:
            return  # a run that waited was first

    async def remove(self, box: Box, *, must_exist: bool = True) -> None:
        """End its shell and forget it. Raises: NotFound."""
        try:
            await box.agent.close_shell(self.shell_id)
        except NotFound:
            if must_exist:
                raise NotFound("no such context") from None

    async def describe(self, box: Box, shell: Shell) -> Context:
        """What it is now."""
        alive = shell.exit is None
        if alive and not self._version and shell.running is None:
            asked = ShellCommand(text='printf %s "$BASH_VERSION"', timeout_s=_COMPLETE_TIMEOUT_S, output_limit_bytes=64)
            answer = await box.agent.shell_exec(self.shell_id, _new_command_id(), asked)
            self._version = answer.stdout.decode(errors="replace")
        return Context(
            id=self.id,
            language=BASH,
            kernel=BASH,
            version=self._version,
            cwd=shell.cwd,
            alive=alive,
            busy=alive and (shell.running is not None or not self.turns.is_free),
            rich=False,
            missing=("bash has text only",),
            runs=self.runs,
            started_at=shell.started_at,
        )

    async def _shell(self, box: Box) -> Shell | None:
        try:
            return await box.agent.shell(self.shell_id)
        except NotFound:
            return None


class ShellRun(Run):
    """A run in bash. The agent keeps its time limit, and stops it when nobody reads any more."""

    def __init__(self, context: ShellContext, box: Box, command: ShellCommand) -> None:
        self.id = _new_command_id()
        self._context = context
        self._box = box
        self._command = command
        self._stack = AsyncExitStack()
        self._stream: AsyncIterator[object] | None = None
        self._fresh = False
        self._ooms = 0
        self._is_interrupted = False
        self._decoders = {
            stream: codecs.getincrementaldecoder("utf-8")(errors="replace") for stream in (Stream.STDOUT, Stream.STDERR)
        }

    async def begin(self) -> None:
        """See that there is a shell, and give it the code."""
        self._fresh = await self._context.open(self._box)
        self._context.runs += 1
        self._ooms = self._box.oom_kills()
        agent = self._box.agent
        events = await self._stack.enter_async_context(
            agent.shell_stream(self._context.shell_id, self.id, self._command)
        )
        self._stream = judged_events(events, self._box, self._ooms)

    async def events(self) -> AsyncIterator[RunEvent]:
        """What comes of it."""
        assert self._stream is not None  # noqa: S101 - it has begun
        async for event in self._stream:
            match event:
                case Started():
                    yield RunStarted(context=self._context.id, count=self._context.runs, fresh=self._fresh)
                case Chunk(stream, data):
                    if text := self._decoders[stream].decode(data):
                        yield RunOutput(stream=stream, text=text)
                case Ended(exit):
                    for stream, decoder in self._decoders.items():
                        if text := decoder.decode(b"", final=True):
                            yield RunOutput(stream=stream, text=text)
                    async for last in self._told_end(exit):
                        yield last
                case Gap() | _:
                    pass

    async def interrupt(self) -> None:
        """As Ctrl-C does."""
        if self._stream is None or self.is_over:
            return
        self._is_interrupted = True
        try:
            await self._box.agent.signal(self.id, SIGINT)
        except (NotFound, Conflict):
            return  # it has ended

    async def stop(self) -> None:
        """Nobody reads any more: the agent ends it, and the shell too if that is what it takes."""
        self.is_over = True
        await self._stack.aclose()
        if self._stream is None:
            return
        try:
            await self._box.agent.wait(self.id, STOP_S)
        except CoveError:
            return  # it has ended, and is forgotten

    async def _told_end(self, exit_: ExecExit) -> AsyncIterator[RunEvent]:
        detail = None
        match exit_.why:
            case Why.SANDBOX_GONE:
                status, detail = RunStatus.SANDBOX_GONE, GONE
            case Why.TIMEOUT:
                status = RunStatus.TIMEOUT
            case _:
                status, detail = await self._how(exit_)
        if status is RunStatus.ERROR:
            why = "the sandbox ran out of memory" if exit_.why is Why.OUT_OF_MEMORY else f"exit status {exit_.code}"
            yield RunError(name="ExitStatus", value=why)
        self.is_over = True
        yield RunEnded(status=status, duration_ms=exit_.duration_ms, count=self._context.runs, detail=detail)

    async def _how(self, exit_: ExecExit) -> tuple[RunStatus, str | None]:
        """Whether the shell lives, for what is not clear from the end of the command alone."""
        try:
            shell = await self._box.agent.shell(self._context.shell_id)
        except NotFound:
            return RunStatus.KERNEL_DIED, "the context was restarted or removed"
        if shell.exit is not None:
            return RunStatus.KERNEL_DIED, end_of(judged_exit(shell.exit, self._box, self._ooms))
        if self._is_interrupted and exit_.code == INTERRUPTED:
            return RunStatus.INTERRUPTED, None
        return (RunStatus.OK if exit_.code == 0 else RunStatus.ERROR), None


def _new_command_id() -> str:
    return f"c{new_core_id()[:12]}"
