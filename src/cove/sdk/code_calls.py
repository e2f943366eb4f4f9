"""The requests about code and its contexts, as data, and their answers. Pure; both surfaces use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cove.sdk.errors import BadRequest
from cove.sdk.executions import Execution, execution_of
from cove.sdk.models import time_of
from cove.sdk.transport import Call, Retry
from cove.sdk.units import Duration, parse_seconds
from cove.sdk.wire import box_path, checked, items_of, nothing, quoted


@dataclass(frozen=True, slots=True)
class ContextInfo:
    """A context as it was when the server answered.

    Attributes:
        id: for `box.contexts.get(id)`; the language, such as `python`, for the one that a sandbox has without asking.
        language: what it runs.
        kernel: by what: `ipython`, `python`, `node`, `bash`, `jupyter:NAME`.
        version: of the language.
        cwd: the directory that it began in.
        alive: whether its kernel runs; if not, the next run starts a fresh one.
        busy: whether code runs in it now.
        rich: whether it gives more than text.
        missing: what it lacks and why, in sentences.
        runs: how many there were since its kernel started.
        started_at: when that was.
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
    started_at: datetime | None
    raw: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Language:
    """A language that contexts of a sandbox can have. `usable` False: `missing` says what its image lacks."""

    name: str
    kernel: str
    usable: bool
    rich: bool
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """How a name can go on: each of `matches` can take the place of the characters from `start` to `end`."""

    matches: tuple[str, ...]
    start: int
    end: int


def _context(wire: Any) -> ContextInfo:
    wire = checked(wire)
    return ContextInfo(
        id=str(wire["id"]),
        language=str(wire.get("language") or ""),
        kernel=str(wire.get("kernel") or ""),
        version=str(wire.get("version") or ""),
        cwd=str(wire.get("cwd") or ""),
        alive=bool(wire.get("alive")),
        busy=bool(wire.get("busy")),
        rich=bool(wire.get("rich")),
        missing=tuple(wire.get("missing") or ()),
        runs=int(wire.get("runs") or 0),
        started_at=time_of(wire.get("started_at")),
        raw=wire,
    )


def _language(wire: Any) -> Language:
    wire = checked(wire)
    return Language(
        name=str(wire["name"]),
        kernel=str(wire.get("kernel") or ""),
        usable=bool(wire.get("usable")),
        rich=bool(wire.get("rich")),
        missing=tuple(wire.get("missing") or ()),
    )


def _completion(wire: Any) -> Completion:
    wire = checked(wire)
    start = int(wire.get("start") or 0)
    return Completion(tuple(str(each) for each in wire.get("matches") or ()), start, int(wire.get("end") or start))


def _path(ref: str, context: str, rest: str = "") -> str:
    if not context or context in {".", ".."}:
        raise BadRequest(f'"{context}" names no context', field="context")
    return box_path(ref, f"/contexts/{quoted(context)}{rest}")


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def body_of(
    code: str,
    *,
    language: str | None,
    context: str | None,
    env: Mapping[str, str] | None,
    timeout: Duration | None,
) -> dict[str, Any]:
    """Return the object of a run. Raises: BadRequest."""
    if not isinstance(code, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise BadRequest("code: give its text", field="code")
    seconds = parse_seconds(timeout, "timeout")
    return {"code": code} | _given(
        {"language": language, "context": context, "env": dict(env) if env else None, "timeout_s": seconds}
    )


def run(ref: str, body: dict[str, Any]) -> Call[Execution]:
    """POST …/code: buffered."""
    return Call("POST", box_path(ref, "/code"), execution_of, json=body)


def stream(ref: str, body: dict[str, Any]) -> Call[None]:
    """POST …/code/stream: server-sent events."""
    return Call("POST", box_path(ref, "/code/stream"), nothing, json=body, headers={"accept": "text/event-stream"})


def languages(ref: str) -> Call[list[Language]]:
    """GET …/languages."""
    return Call("GET", box_path(ref, "/languages"), items_of("languages", _language), retry=Retry.LOST)


def create(
    ref: str, language: str, *, cwd: str | None, user: str | None, idle_timeout: Duration | None
) -> Call[ContextInfo]:
    """POST …/contexts."""
    idle_s = parse_seconds(idle_timeout, "idle_timeout")
    body = {"language": language} | _given({"cwd": cwd, "user": user, "idle_timeout_s": idle_s})
    return Call("POST", box_path(ref, "/contexts"), _context, json=body)


def contexts(ref: str) -> Call[list[ContextInfo]]:
    """GET …/contexts."""
    return Call("GET", box_path(ref, "/contexts"), items_of("contexts", _context), retry=Retry.LOST)


def context(ref: str, context_id: str) -> Call[ContextInfo]:
    """GET …/contexts/{context}."""
    return Call("GET", _path(ref, context_id), _context, retry=Retry.LOST)


def remove(ref: str, context_id: str) -> Call[None]:
    """DELETE …/contexts/{context}: its kernel ends."""
    return Call("DELETE", _path(ref, context_id), nothing, retry=Retry.LOST)


def interrupt(ref: str, context_id: str) -> Call[None]:
    """POST …/interrupt: what runs."""
    return Call("POST", _path(ref, context_id, "/interrupt"), nothing)


def restart(ref: str, context_id: str) -> Call[ContextInfo]:
    """POST …/restart: a fresh kernel."""
    return Call("POST", _path(ref, context_id, "/restart"), _context)


def complete(ref: str, context_id: str, code: str, cursor: int | None) -> Call[Completion]:
    """POST …/complete."""
    body = {"code": code, "cursor": len(code) if cursor is None else cursor}
    return Call("POST", _path(ref, context_id, "/complete"), _completion, json=body, retry=Retry.LOST)
