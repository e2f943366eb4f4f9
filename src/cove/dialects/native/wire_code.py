"""What goes over the wire about code in contexts: frozen structs, nothing else. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from cove.dialects.native.wire import TEN_YEARS_S, Path, Request

Language = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=63,
        description="`python`, `javascript`, `typescript`, `bash`, or that of a Jupyter kernel in the image.",
    ),
]
Status = Literal["ok", "error", "interrupted", "timeout", "kernel-died", "sandbox-gone"]


class RunCode(Request, frozen=True):
    """Code to run. `context` null: the sandbox's own one of `language`; `language` null: the context's, else Python.

    `env` holds during this run; `timeout_s` counts from its turn.
    """

    code: str
    language: Language | None = None
    context: Annotated[str, Meta(max_length=30)] | None = None
    env: dict[str, str] = field(default_factory=dict[str, str])
    timeout_s: Annotated[float, Meta(ge=0.01, le=TEN_YEARS_S)] | None = None


class NewContext(Request, frozen=True):
    """A context to be. `idle_timeout_s`: its interpreter ends when nothing ran in it for so long; null: never."""

    language: Language = "python"
    cwd: Path | None = None
    user: (
        Annotated[
            str, Meta(max_length=64, description="A name or uid[:gid] inside; null: the image's user, else root.")
        ]
        | None
    ) = None
    idle_timeout_s: Annotated[float, Meta(ge=1, le=TEN_YEARS_S)] | None = None


class Complete(Request, frozen=True):
    """Where completions are wanted. `cursor` counts characters; null: the end of the code."""

    code: str
    cursor: Annotated[int, Meta(ge=0)] | None = None


class CodeContext(Struct, frozen=True, kw_only=True):
    """A context. `rich`: it gives more than text; `missing` says what it lacks and why.

    `alive` false: its interpreter has ended, and the next run starts a fresh one. `runs`: since it started.
    """

    id: str
    language: str
    kernel: str
    version: str
    cwd: str
    alive: bool
    busy: bool
    rich: bool
    missing: tuple[str, ...]
    runs: int
    started_at: str


class ContextList(Struct, frozen=True):
    """The contexts that the sandbox knows."""

    contexts: tuple[CodeContext, ...]


class CodeLanguage(Struct, frozen=True, kw_only=True):
    """A language that contexts can be of. `usable` false: `missing` says what the image lacks."""

    name: str
    kernel: str
    usable: bool
    rich: bool
    missing: tuple[str, ...]


class LanguageList(Struct, frozen=True):
    """The languages of a sandbox."""

    languages: tuple[CodeLanguage, ...]


class CodeError(Struct, frozen=True, kw_only=True):
    """What the code raised; the lines of `traceback` have no colours."""

    name: str
    value: str
    traceback: tuple[str, ...]


class CodeResult(Struct, frozen=True, kw_only=True):
    """Something to look at, by media type: binary ones in base64, JSON ones as text.

    `main`: the value of the last expression. `dropped`: media types whose values were too large.
    """

    data: dict[str, str]
    metadata: dict[str, Any]
    main: bool
    display_id: str | None
    dropped: tuple[str, ...]


class ShownResult(CodeResult, frozen=True, kw_only=True):
    """A result as it comes. `update`: it takes the place of those with its `display_id`."""

    update: bool


class Execution(Struct, frozen=True, kw_only=True):
    """A run that has ended. Of each stream the last 10 MiB are kept, of all results 64 MiB.

    `fresh`: the interpreter was started for this run. `detail` says in a sentence what `status` alone does not.
    """

    context: str
    status: Status
    count: int
    duration_ms: float
    fresh: bool
    detail: str | None
    stdout: str
    stderr: str
    stdout_dropped_bytes: int
    stderr_dropped_bytes: int
    results: tuple[CodeResult, ...]
    results_dropped: int
    error: CodeError | None


class CodeStarted(Struct, frozen=True, kw_only=True):
    """The event `started`: the turn has come."""

    context: str
    count: int
    fresh: bool


class CodeText(Struct, frozen=True):
    """The events `stdout` and `stderr`."""

    text: str


class CodeClear(Struct, frozen=True):
    """The event `clear`: what was shown is to be removed; `wait`: when something new comes."""

    wait: bool


class CodeDone(Struct, frozen=True, kw_only=True):
    """The event `done`, always the last."""

    status: Status
    count: int
    duration_ms: float
    detail: str | None


class Completed(Struct, frozen=True, kw_only=True):
    """What may stand in place of the characters from `start` to `end`."""

    matches: tuple[str, ...]
    start: int
    end: int
