"""Code in contexts: what is asked, what comes back. Frozen values, no I/O.

A context is a language's interpreter (a kernel) in a sandbox that keeps its state from one run to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct, field

from cove.model.execs import Stream


class RunStatus(StrEnum):
    """How a run ended. Only `ok` and `error` leave the context's state as the code left it."""

    OK = "ok"
    ERROR = "error"
    """The code raised; the error was told before."""
    INTERRUPTED = "interrupted"
    TIMEOUT = "timeout"
    KERNEL_DIED = "kernel-died"
    """The interpreter ended under the code; the next run gets a fresh one."""
    SANDBOX_GONE = "sandbox-gone"


class CodeSpec(Struct, frozen=True, kw_only=True):
    """One run. `context` None: the sandbox's own context of `language`, made when it is first used.

    `language` None: that of the context, else Python. `env` holds during this run only; `timeout_s` None: no limit.
    """

    code: str
    language: str | None = None
    context: str | None = None
    env: dict[str, str] = field(default_factory=dict[str, str])
    timeout_s: float | None = None


class ContextSpec(Struct, frozen=True, kw_only=True):
    """A context to be made. `cwd` None: the image's working directory; `user` None: the image's, else root.

    `idle_timeout_s`: its kernel ends when nothing ran in it for so long, and its state with it; None: never.
    """

    language: str = "python"
    cwd: str | None = None
    user: str | None = None
    idle_timeout_s: float | None = None


class Context(Struct, frozen=True, kw_only=True):
    """A context as it is now.

    `rich`: whether it gives more than text (IPython's machinery, a Jupyter kernel); `missing` says what it lacks and
    why, in sentences. `alive`: its kernel runs; if not, the next run starts a fresh one. `runs`: since it started.
    """

    id: str
    language: str
    kernel: str
    version: str
    cwd: str
    alive: bool
    busy: bool
    rich: bool
    missing: tuple[str, ...] = ()
    runs: int = 0
    started_at: float = 0.0


class LanguageInfo(Struct, frozen=True, kw_only=True):
    """A language that contexts of a sandbox can have. `usable` False: `missing` says what its image lacks."""

    name: str
    kernel: str
    usable: bool
    rich: bool
    missing: tuple[str, ...] = ()


class RunStarted(Struct, frozen=True, tag="started"):
    """The code runs. `count` is the number that the context gives it; `fresh`: the kernel was started for it."""

    context: str
    count: int
    fresh: bool = False


class RunOutput(Struct, frozen=True, tag="output"):
    """A piece of what the code, or a program that it started, wrote."""

    stream: Stream
    text: str


class RunResult(Struct, frozen=True, tag="result"):
    """Something to look at, by media type; binary ones in base64, JSON ones as text.

    `main`: the value of the last expression. `display_id`: it may be updated later; `update`: this is such an update.
    `dropped`: media types whose values were too large to be passed on.
    """

    data: Mapping[str, str]
    metadata: Mapping[str, object] = field(default_factory=dict[str, object])
    main: bool = False
    display_id: str | None = None
    update: bool = False
    dropped: tuple[str, ...] = ()


class RunCleared(Struct, frozen=True, tag="clear"):
    """What was shown so far is to be removed; `wait`: only when something new comes."""

    wait: bool = False


class RunError(Struct, frozen=True, tag="error"):
    """The code raised. `traceback` has its lines without colours."""

    name: str
    value: str
    traceback: tuple[str, ...] = ()


class RunEnded(Struct, frozen=True, tag="ended"):
    """Always the last event of a run. `detail` says in a sentence what `status` alone does not."""

    status: RunStatus
    duration_ms: float
    count: int = 0
    detail: str | None = None


RunEvent = RunStarted | RunOutput | RunResult | RunCleared | RunError | RunEnded


class Execution(Struct, frozen=True, kw_only=True):
    """A finished run, whole. Of each stream the tail is kept; `*_dropped_bytes` counts what was cut from its head.

    `results` are what there is to look at in the end: updates and `clear` are worked in. `results_dropped` counts those
    that were too many or too large to be kept.
    """

    context: str
    status: RunStatus
    stdout: str
    stderr: str
    results: tuple[RunResult, ...]
    error: RunError | None
    count: int
    duration_ms: float
    fresh: bool
    detail: str | None = None
    stdout_dropped_bytes: int = 0
    stderr_dropped_bytes: int = 0
    results_dropped: int = 0


class Completion(Struct, frozen=True, kw_only=True):
    """What may stand in place of the characters from `start` to `end` of the code."""

    matches: tuple[str, ...]
    start: int
    end: int
