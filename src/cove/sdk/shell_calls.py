"""The requests about shells, as data, and their answers. Pure; both surfaces use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cove.sdk import calls
from cove.sdk.errors import BadRequest
from cove.sdk.models import CommandInfo, time_of
from cove.sdk.results import Exit, Result
from cove.sdk.transport import Call, Retry
from cove.sdk.units import Duration, parse_seconds
from cove.sdk.wire import box_path, checked, items_of, nothing, quoted


@dataclass(frozen=True, slots=True)
class ShellInfo:
    """A shell as it was when the server answered. `exit`: how the shell itself ended, None while it lives.

    `running` is the id of the command whose turn it is, `queued` how many wait; `job_control` whether `fg` works in it.
    """

    id: str
    pid: int
    program: str
    cwd: str
    started_at: datetime | None
    running: str | None
    queued: int
    job_control: bool
    exit: Exit | None
    raw: dict[str, Any]


def _shell(wire: Any) -> ShellInfo:
    wire = checked(wire)
    return ShellInfo(
        id=str(wire["id"]),
        pid=int(wire.get("pid") or 0),
        program=str(wire.get("program") or ""),
        cwd=str(wire.get("cwd") or ""),
        started_at=time_of(wire.get("started_at")),
        running=wire.get("running"),
        queued=int(wire.get("queued") or 0),
        job_control=bool(wire.get("job_control")),
        exit=Exit.from_wire(wire["exit"]) if wire.get("exit") else None,
        raw=wire,
    )


def _path(ref: str, shell: str, rest: str = "") -> str:
    return box_path(ref, f"/shells/{quoted(shell)}{rest}")


def open_shell(
    ref: str, *, program: str | None, env: Mapping[str, str] | None, cwd: str | None, user: str | None
) -> Call[ShellInfo]:
    """POST …/shells."""
    body: dict[str, Any] = {"program": program, "env": dict(env) if env else None, "cwd": cwd, "user": user}
    return Call(
        "POST", box_path(ref, "/shells"), _shell, json={field: one for field, one in body.items() if one is not None}
    )


def shells(ref: str) -> Call[list[ShellInfo]]:
    """GET …/shells."""
    return Call("GET", box_path(ref, "/shells"), items_of("shells", _shell), retry=Retry.LOST)


def shell(ref: str, shell_id: str) -> Call[ShellInfo]:
    """GET …/shells/{sid}."""
    return Call("GET", _path(ref, shell_id), _shell, retry=Retry.LOST)


def close(ref: str, shell_id: str) -> Call[None]:
    """DELETE …/shells/{sid}: ended and forgotten."""
    return Call("DELETE", _path(ref, shell_id), nothing, retry=Retry.LOST)


def signal(ref: str, shell_id: str, number: str | int) -> Call[None]:
    """POST …/signal: to what runs."""
    return Call("POST", _path(ref, shell_id, "/signal"), nothing, json={"signal": number})


def _body(command: str, timeout: Duration | None) -> dict[str, Any]:
    if not isinstance(command, str) or not command.strip():  # pyright: ignore[reportUnnecessaryIsInstance]
        raise BadRequest("command: give the text for the shell", field="command")
    body: dict[str, Any] = {"command": command, "encoding": "base64"}
    seconds = parse_seconds(timeout, "timeout")
    return body if seconds is None else body | {"timeout_s": seconds}


def run(ref: str, shell_id: str, command: str, *, timeout: Duration | None) -> Call[Result]:
    """POST …/run: buffered."""
    return Call("POST", _path(ref, shell_id, "/run"), calls.result_of, json=_body(command, timeout))


def stream(ref: str, shell_id: str, command: str, *, timeout: Duration | None) -> Call[None]:
    """POST …/run/stream: server-sent events."""
    return Call(
        "POST",
        _path(ref, shell_id, "/run/stream"),
        nothing,
        json=_body(command, timeout),
        headers={"accept": "text/event-stream"},
    )


def start(
    ref: str, shell_id: str, command: str, *, timeout: Duration | None, keep_bytes: int | None
) -> Call[CommandInfo]:
    """POST …/commands: queued."""
    body = _body(command, timeout)
    if keep_bytes is not None:
        body["keep_bytes"] = keep_bytes
    return Call("POST", _path(ref, shell_id, "/commands"), calls.command_of, json=body)
