"""Executions: a program run for its result, in a sandbox of its own that is ended afterwards, or in a session's.

The steps, in this order: the program is fetched (where it is a URL) and everything is checked; the sandbox is made, or
the session's is taken; program and files are written; packages are installed; the set-up script runs; the program runs;
files are collected. The answer does not wait for the sandbox's end.

What an execution may ask for is `executionpolicy.py`, its sandbox `executionboxes.py`, sessions `executionsessions.py`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from cove.core.access import require
from cove.core.directory import Directory
from cove.core.execs import Execs
from cove.core.executionboxes import ExecutionBoxes, write_file
from cove.core.executionnotes import ExecutionNotes
from cove.core.executionpolicy import ExecutionPolicy, Turns, bounded
from cove.core.executionsessions import KEPT, ExecutionSessions
from cove.core.masking import Clipped, Masker
from cove.core.packageindexes import PackageIndexes
from cove.core.runtimes import (
    AGENT,
    AGENT_PROGRAM,
    ENVIRONMENT,
    INSTALL_ENVIRONMENT,
    Runtime,
    command_of,
    installs_of,
    runtime_of,
    work_directory,
)
from cove.core.sandboxes import Sandboxes
from cove.core.validation import EXEC_TIMEOUT_S
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, FileError, SandboxGone, TooLarge, Unsupported
from cove.model.execs import Chunk, Ended, ExecExit, ExecSpec, Stream, Why
from cove.model.execution import (
    EXECUTION_USER,
    HOME,
    ExecutionEvent,
    ExecutionOutput,
    ExecutionResult,
    ExecutionSettings,
    ExecutionSpec,
    RemoteSource,
    Stage,
    StageEnded,
    StageFailure,
)
from cove.model.network import Visit
from cove.model.sandbox import Sandbox, Usage

COLLECT_BYTES: Final = 64 * 1024 * 1024
"""Of all collected files together."""

COLLECT_FILES: Final = 1024
_INLINE_CHARS: Final = 30_000
"""A longer program is a file: the kernel takes no argument of more than 128 KiB."""

_FAILURE_BYTES: Final = 64 * 1024
_SPARE_S: Final = 600.0
"""How long a sandbox outlives all time limits of its execution, if nobody is there to end it."""

_ROOT: Final = "0"
_KILLED: Final = 137

Fetch = Callable[[RemoteSource], Awaitable[str]]
Raw = Chunk | StageEnded | ExecutionResult


@dataclass(slots=True, kw_only=True)
class _Work:
    """One execution under way. `place` gives its sandbox, which is made when it is first asked for."""

    who: Principal
    spec: ExecutionSpec
    runtime: Runtime
    settings: ExecutionSettings
    place: Callable[[], Awaitable[str]]
    is_buffered: bool
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    sandbox: str = ""
    stage: Stage = Stage.CODE
    code: str = ""
    result: ExecutionResult | None = None

    @property
    def timeout_s(self) -> float:
        """Of each stage."""
        wanted = self.settings.timeout_s if self.spec.timeout_s is None else self.spec.timeout_s
        return max(wanted, EXEC_TIMEOUT_S[0])

    @property
    def secrets(self) -> Mapping[str, str]:
        """What is masked."""
        return self.settings.secrets


class Executions:
    """Every operation on executions. All raise Forbidden, BadRequest, CapacityExceeded, QuotaExceeded, Unsupported."""

    def __init__(  # noqa: PLR0913 - made once, by the facade
        self,
        *,
        boxes: ExecutionBoxes,
        sessions: ExecutionSessions,
        execs: Execs,
        sandboxes: Sandboxes,
        directory: Directory,
        policy: ExecutionPolicy,
        fetch: Fetch,
        notes: ExecutionNotes,
        indexes: PackageIndexes,
        visits: Callable[[str], list[Visit]],
    ) -> None:
        self._sessions = sessions
        self._boxes = boxes
        self._execs = execs
        self._sandboxes = sandboxes
        self._directory = directory
        self._policy = policy
        self._fetch = fetch
        self._notes = notes
        self._indexes = indexes
        self._visits = visits
        self._turns = Turns(policy.at_once)
        self._running: set[str] = set()

    def is_running(self, sandbox_id: str) -> bool:
        """Whether an execution without session is under way in this sandbox."""
        return sandbox_id in self._running

    async def run(self, who: Principal, spec: ExecutionSpec, *, dialect: str = "native") -> ExecutionResult:
        """Run a program to its end. One that fails, a time-out and a failed set-up are results. Cancelling ends it."""
        async with self._opened(who, spec, dialect, is_buffered=True) as work:
            limit = work.settings.output_limit_bytes
            kept = {stream: Clipped(work.secrets.values(), limit) for stream in Stream}
            async with aclosing(self._steps(work)) as events:
                async for event in events:
                    if isinstance(event, Chunk) and work.stage is Stage.CODE:
                        kept[event.stream].feed(event.data)
                    elif isinstance(event, ExecutionResult):
                        return _with_output(event, kept[Stream.STDOUT], kept[Stream.STDERR], limit)
        raise AssertionError("an execution has a result")

    @asynccontextmanager
    async def stream(
        self, who: Principal, spec: ExecutionSpec, *, dialect: str = "native"
    ) -> AsyncGenerator[AsyncIterator[ExecutionEvent]]:
        """Run a program and iterate over its events; the last is an ExecutionResult. Leaving the context ends it."""
        async with (
            self._opened(who, spec, dialect, is_buffered=False) as work,
            aclosing(self._steps(work)) as events,
        ):
            yield _masked(events, work)

    # The place where it runs.

    @asynccontextmanager
    async def _opened(
        self, who: Principal, spec: ExecutionSpec, dialect: str, *, is_buffered: bool
    ) -> AsyncGenerator[_Work]:
        """An execution that has its turn: of its project, and of its session."""
        for scope in (Scope.CREATE, Scope.EXEC, Scope.FILES, Scope.DESTROY):
            require(who, scope)
        runtime = runtime_of(spec.runtime)
        settings = bounded(spec.settings, self._policy)
        if spec.timeout_s is not None:
            spec = replace(spec, timeout_s=min(spec.timeout_s, self._policy.most_timeout_s))
        if spec.packages:
            settings = replace(settings, network=await self._indexes.opened(settings.network))
        self._boxes.hurry()
        with self._turns.turn(who.project):
            if spec.session is None:
                place = self._alone(who, runtime, spec, settings, dialect)
            else:
                place = self._in_session(who, runtime, spec.session, settings, dialect)
            async with place as (settings, get):
                work = _Work(who=who, spec=spec, runtime=runtime, settings=settings, place=get, is_buffered=is_buffered)
                try:
                    yield work
                finally:
                    if work.sandbox:
                        self._notes.ended(
                            who, spec, execution=work.id, sandbox=work.sandbox, code=work.code, result=work.result
                        )

    @asynccontextmanager
    async def _alone(
        self, who: Principal, runtime: Runtime, spec: ExecutionSpec, settings: ExecutionSettings, dialect: str
    ) -> AsyncGenerator[tuple[ExecutionSettings, Callable[[], Awaitable[str]]]]:
        made: list[str] = []
        limit = settings.timeout_s if spec.timeout_s is None else spec.timeout_s

        async def make() -> str:
            sandbox = await self._boxes.make(
                who,
                runtime,
                settings,
                dialect=dialect,
                metadata=dict(KEPT) if settings.keep else {"execution": runtime.name},
                timeout_s=None if settings.keep else 3 * limit + _SPARE_S,
                idle_timeout_s=self._policy.session_idle_s if settings.keep else None,
            )
            made.append(sandbox.id)
            self._running.add(sandbox.id)
            return sandbox.id

        try:
            yield settings, make
        finally:
            for sandbox_id in made:
                self._running.discard(sandbox_id)
                if not settings.keep:
                    self._boxes.end_soon(who, sandbox_id)

    @asynccontextmanager
    async def _in_session(
        self, who: Principal, runtime: Runtime, session: str, settings: ExecutionSettings, dialect: str
    ) -> AsyncGenerator[tuple[ExecutionSettings, Callable[[], Awaitable[str]]]]:
        async def make(kept: ExecutionSettings, idle_timeout_s: float | None, metadata: dict[str, str]) -> Sandbox:
            return await self._boxes.make(
                who, runtime, kept, dialect=dialect, metadata=metadata, idle_timeout_s=idle_timeout_s
            )

        async with self._sessions.take(who, session, runtime.name, settings, make) as taken:
            # What the operator lowered since the session's first execution holds for this one too.
            yield bounded(taken.settings, self._policy), taken.sandbox

    # The steps.

    async def _steps(self, work: _Work) -> AsyncGenerator[Raw]:
        """What happens, raw; the last is the result."""
        _check(work)
        spec = work.spec
        code = spec.code or ""
        if spec.remote is not None:
            code = await self._fetch(spec.remote)
        work.code = code
        work.sandbox = await work.place()
        path = None if _is_inline(work, code) else _program_path(work)
        try:
            failure = await self._write_files(work, code, path)
            if failure is None:
                async with aclosing(self._prepare(work)) as events:
                    async for step in events:
                        if isinstance(step, StageFailure):
                            failure = step
                        else:
                            yield step
            if failure is not None:
                yield self._result(work, failure=failure)
                return
            await self._check_program(work)
            exit_ = ExecExit(code=_KILLED, why=Why.SANDBOX_GONE)
            command = command_of(work.runtime, spec, code, path)
            env = {**ENVIRONMENT, **work.secrets, **spec.env}
            cwd = work_directory(spec.workdir)
            async with self._stage(work, Stage.CODE, command, env=env, cwd=cwd, stdin=spec.stdin) as output:
                async for event in output:
                    if isinstance(event, Ended):
                        exit_ = event.exit
                    else:
                        yield event
            yield StageEnded(stage=Stage.CODE, code=exit_.code, why=exit_.why)
            yield await self._ended(work, exit_)
        except SandboxGone:
            gone = ExecExit(code=_KILLED, why=Why.SANDBOX_GONE)
            yield StageEnded(stage=work.stage, code=gone.code, why=gone.why)
            yield await self._ended(work, gone)

    async def _prepare(self, work: _Work) -> AsyncGenerator[Chunk | StageEnded | StageFailure]:
        """Packages, then the set-up script; a failure is the last."""
        spec, env = work.spec, {**ENVIRONMENT, **work.secrets}
        indexes = await self._indexes.env() if spec.packages else {}
        install = {**INSTALL_ENVIRONMENT, **indexes, **env}
        user = _ROOT if work.runtime.as_root else EXECUTION_USER
        steps = [(Stage.INSTALL, one, install, user) for one in installs_of(work.runtime, spec.packages)]
        if spec.setup is not None:
            steps.append((Stage.SETUP, ("bash", spec.setup_path), env, EXECUTION_USER))
        for stage, command, variables, user in steps:
            said = Clipped(work.secrets.values(), _FAILURE_BYTES)
            exit_ = ExecExit(code=_KILLED, why=Why.SANDBOX_GONE)
            async with self._stage(work, stage, command, env=variables, user=user) as output:
                async for event in output:
                    if isinstance(event, Ended):
                        exit_ = event.exit
                        continue
                    if event.stream is Stream.STDERR:
                        said.feed(event.data)
                    yield event
            if exit_.code or exit_.why is not Why.EXITED:
                timed_out = exit_.why is Why.TIMEOUT
                code = _KILLED if timed_out else exit_.code
                yield StageEnded(stage=stage, code=code, why=exit_.why)
                yield StageFailure(stage=stage, code=code, stderr=said.finish(), timed_out=timed_out)
                return
            if stage is Stage.SETUP:
                yield StageEnded(stage=stage, code=0, why=exit_.why)

    @asynccontextmanager
    async def _stage(  # noqa: PLR0913 - what a command is, by name
        self,
        work: _Work,
        stage: Stage,
        command: tuple[str, ...],
        *,
        env: dict[str, str],
        cwd: str = HOME,
        stdin: bytes | None = None,
        user: str = EXECUTION_USER,
    ) -> AsyncGenerator[AsyncIterator[Chunk | Ended]]:
        work.stage = stage
        wanted = ExecSpec(argv=command, env=env, cwd=cwd, user=user, timeout_s=work.timeout_s, stdin=stdin)
        async with self._execs.stream(work.who, work.sandbox, wanted) as events:
            yield (event async for event in events if isinstance(event, Chunk | Ended))

    async def _write_files(self, work: _Work, code: str, path: str | None) -> StageFailure | None:
        """The program, what goes with it, and the set-up script."""
        spec = work.spec
        files = {absolute(name): data for name, data in spec.files.items()}
        if path is not None and spec.command is None:
            files = {path: code.encode(errors="replace"), **files}
        if spec.setup is not None:
            files[spec.setup_path] = spec.setup.encode(errors="replace")
        if not files:
            return None
        async with self._directory.live(work.who, work.sandbox).lease() as box:
            for name, data in files.items():
                try:
                    await write_file(box, name, data)
                except FileError as error:
                    return StageFailure(stage=None, code=1, stderr=error.public, path=name)
        return None

    async def _check_program(self, work: _Work) -> None:
        """Say what is missing before a prompt is lost. Raises: Unsupported."""
        if work.runtime.name != AGENT or work.spec.command is not None:
            return
        argv = ("sh", "-c", f"command -v {AGENT_PROGRAM}")
        look = ExecSpec(argv=argv, env=dict(ENVIRONMENT), user=EXECUTION_USER, timeout_s=work.timeout_s)
        if (await self._execs.run(work.who, work.sandbox, look)).exit.code:
            raise Unsupported(
                f"the agent runtime needs the program {AGENT_PROGRAM}, which the sandbox's image lacks: name an image "
                "that has it, or install its npm package",
                field="runtime",
            )

    # The end.

    async def _ended(self, work: _Work, exit_: ExecExit) -> ExecutionResult:
        result = self._result(work, exit_=exit_)
        if exit_.why is Why.SANDBOX_GONE:
            return replace(result, sandbox=None, files=None if work.spec.collect is None else {})
        files = None if work.spec.collect is None else await self._collect(work, work.spec.collect)
        usage = (await self._sandboxes.measure(work.who, work.sandbox)).usage if work.is_buffered else Usage()
        visits = tuple(self._visits(work.sandbox)) if work.settings.log_network else ()
        return replace(result, files=files, usage=usage, visits=visits)

    def _result(
        self, work: _Work, *, exit_: ExecExit | None = None, failure: StageFailure | None = None
    ) -> ExecutionResult:
        exit_ = exit_ or ExecExit(code=0, why=Why.EXITED)
        work.result = ExecutionResult(
            id=work.id,
            runtime=work.runtime.name,
            ended_at=time.time(),
            failure=failure,
            code=_KILLED if exit_.why is Why.TIMEOUT else exit_.code,
            why=exit_.why,
            duration_ms=exit_.duration_ms,
            cpu_ms=exit_.cpu_ms,
            sandbox=work.sandbox,
        )
        return work.result

    async def _collect(self, work: _Work, paths: tuple[str, ...]) -> dict[str, bytes]:
        """What lies at these paths; what cannot be read is left out. Raises: TooLarge."""
        found: dict[str, bytes] = {}
        room = COLLECT_BYTES
        async with self._directory.live(work.who, work.sandbox).lease() as box:
            for path in paths:
                try:
                    async with box.agent.read(absolute(path), length=room + 1) as reader:
                        data = b"".join([piece async for piece in reader])
                except FileError:
                    continue
                room -= len(data)
                if room < 0:
                    raise TooLarge(f"the output files have more than {COLLECT_BYTES} bytes", field="outputPaths")
                found[path] = data
        return found


def absolute(path: str) -> str:
    """A path of an execution: what is relative is below HOME. Raises: BadRequest."""
    if "\0" in path or ".." in path.split("/"):
        raise BadRequest("a path has neither NUL nor `..`", field="path")
    return path if path.startswith("/") else f"{HOME}/{path}"


def _check(work: _Work) -> None:
    """Raises: BadRequest, TooLarge."""
    spec = work.spec
    if sum(one is not None for one in (spec.code, spec.remote, spec.command)) != 1:
        raise BadRequest("an execution has exactly one program", field="code")
    work_directory(spec.workdir)
    for path in (*spec.files, *(spec.collect or ())):
        absolute(path)
    if len(spec.collect or ()) > COLLECT_FILES:
        raise TooLarge(f"at most {COLLECT_FILES} files are collected", field="outputPaths")


def _is_inline(work: _Work, code: str) -> bool:
    """Whether the program needs no file: nothing stands beside it, and nobody comes after it."""
    spec = work.spec
    alone = work.is_buffered and spec.session is None and spec.stdin is None and not spec.files
    is_short = len(code) <= _INLINE_CHARS and spec.extension is None
    return alone and is_short and spec.collect is None and not spec.packages and work.runtime.inline is not None


def _program_path(work: _Work) -> str:
    suffix = work.spec.extension or work.runtime.extension
    suffix = suffix if suffix.startswith(".") else f".{suffix}"
    name = "main" if work.spec.session is None else f"exec_{time.time_ns() // 1_000_000}"
    return absolute(f"{name}{suffix.replace('/', '_')}")


def _with_output(result: ExecutionResult, stdout: Clipped, stderr: Clipped, limit: int) -> ExecutionResult:
    return replace(
        result,
        output_limit_bytes=limit,
        stdout=stdout.finish(),
        stderr=stderr.finish(),
        stdout_bytes=stdout.total,
        stderr_bytes=stderr.total,
        stdout_cut=stdout.is_cut,
        stderr_cut=stderr.is_cut,
    )


async def _masked(events: AsyncIterator[Raw], work: _Work) -> AsyncGenerator[ExecutionEvent]:
    """The events as they may be told: text in place of bytes, without secrets. Installs are not told of."""
    maskers = {stream: Masker(work.secrets.values()) for stream in Stream}
    async for event in events:
        if isinstance(event, Chunk):
            if work.stage is not Stage.INSTALL and (text := maskers[event.stream].feed(event.data)):
                yield ExecutionOutput(work.stage, event.stream, text)
            continue
        if isinstance(event, StageEnded):
            for stream in Stream:
                if text := maskers[stream].finish():
                    yield ExecutionOutput(event.stage, stream, text)
            maskers = {stream: Masker(work.secrets.values()) for stream in Stream}
        yield event
