"""The requests about sandboxes and their commands, as data: no I/O, no state.

With `file_calls.py` and `server_calls.py` this is the one place that knows paths and bodies; the synchronous and the
awaited surface both send what is made here. To add a request: follow `docs/reference/native-api.md`, say with `retry`
what may be done when the connection breaks, and let `parse` make the public value.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cove.sdk.errors import BadRequest
from cove.sdk.results import Exit, Result
from cove.sdk.transport import Call, Retry
from cove.sdk.units import UNSET, Duration, Size, Unset, parse_bytes, parse_mib, parse_seconds
from cove.sdk.wire import API, Page, box_path, checked, items_of, nothing, page_of, quoted

if TYPE_CHECKING:
    from cove.sdk.credential_calls import Wishes
    from cove.sdk.models import CommandInfo, SandboxInfo
    from cove.sdk.network_calls import Policy

Command = str | Sequence[str]
"""A str goes through the shell, a list is an argv."""


def sandbox_of(wire: Any) -> SandboxInfo:
    """Read a sandbox."""
    from cove.sdk import models

    return models.sandbox(checked(wire))


def command_of(wire: Any) -> CommandInfo:
    """Read a background command."""
    from cove.sdk import models

    return models.command(checked(wire))


def result_of(wire: Any) -> Result:
    """Read the answer of a buffered command."""
    return Result.from_wire(checked(wire))


def _written(wire: Any) -> int:
    return int(checked(wire).get("written") or 0)


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not UNSET}


# ---- sandboxes


def create(  # noqa: PLR0913 - one keyword for each property of a sandbox
    image: str,
    *,
    name: str | None = None,
    cpus: float | None = None,
    memory: Size | None = None,
    disk: Size | None = None,
    pids: int | None = None,
    env: Mapping[str, str] | None = None,
    hostname: str | None = None,
    metadata: Mapping[str, str] | None = None,
    timeout: Duration | None = None,
    timeout_counts: str | None = None,
    idle_timeout: Duration | Unset | None = UNSET,
    idle_action: str | None = None,
    auto_resume: bool = True,
    driver: str | None = None,
    run_entrypoint: bool = False,
    credentials: Wishes | None = None,
    io_read: Size | None = None,
    io_write: Size | None = None,
    network: Policy | None = None,
    idempotency_key: str | None = None,
) -> Call[SandboxInfo]:
    """POST /sandboxes. What is None is left to the server's default."""
    body: dict[str, Any] = {
        "image": image,
        "name": name,
        "cpus": cpus,
        "memory_mib": None if memory is None else parse_mib(memory, "memory"),
        "disk_mib": None if disk is None else parse_mib(disk, "disk"),
        "pids": pids,
        "env": dict(env) if env else None,
        "hostname": hostname,
        "metadata": dict(metadata) if metadata else None,
        "timeout_s": parse_seconds(timeout, "timeout"),
        "timeout_counts": timeout_counts,
        "idle_action": idle_action,
        "auto_resume": None if auto_resume else False,
        "driver": driver,
        "run_entrypoint": run_entrypoint or None,
        "credentials": _wishes(credentials),
        "io_read_mbps": _mbps(io_read, "io_read"),
        "io_write_mbps": _mbps(io_write, "io_write"),
        "network": None if network is None else _policy(network),
    }
    body = {field: value for field, value in body.items() if value is not None}
    if not isinstance(idle_timeout, Unset):
        body["idle_timeout_s"] = parse_seconds(idle_timeout, "idle_timeout")
    key = idempotency_key or new_key()
    return Call("POST", f"{API}/sandboxes", sandbox_of, json=body, headers={"idempotency-key": key}, retry=Retry.CREATE)


def _wishes(credentials: Wishes | None) -> dict[str, Any] | None:
    if credentials is None:
        return None
    from cove.sdk import credential_calls

    return credential_calls.wishes(credentials)


def new_key() -> str:
    """Return a fresh idempotency key: 128 random bits."""
    import os

    return os.urandom(16).hex()


def _mbps(size: Size | None, field: str) -> int | None:
    """Bytes per second to the wire's megabytes (10^6) per second, rounded up to a whole one."""
    return None if size is None else -(-parse_bytes(size, field) // 1_000_000)


def _policy(network: Policy) -> dict[str, Any]:
    from cove.sdk.network_calls import policy_of

    return policy_of(network)


def get(ref: str) -> Call[SandboxInfo]:
    """GET /sandboxes/{id}."""
    return Call("GET", box_path(ref), sandbox_of, retry=Retry.LOST)


def list_page(  # noqa: PLR0913 - one keyword for each filter
    *,
    state: str | Sequence[str] | None = None,
    image: str | None = None,
    driver: str | None = None,
    name: str | None = None,
    metadata: Mapping[str, str] | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> Call[Page]:
    """GET /sandboxes, one page of it."""
    states = [state] if isinstance(state, str) else list(state or ())
    query: dict[str, str | list[str] | None] = {
        "state": states,
        "image": image,
        "driver": driver,
        "name": name,
        "limit": str(limit),
        "cursor": cursor,
    }
    query |= {f"metadata.{key}": value for key, value in (metadata or {}).items()}
    return Call("GET", f"{API}/sandboxes", page_of("sandboxes"), query=query, retry=Retry.LOST)


def update(  # noqa: PLR0913 - one keyword for each property that can change
    ref: str,
    *,
    timeout: Duration | Unset | None = UNSET,
    idle_timeout: Duration | Unset | None = UNSET,
    idle_action: str | Unset = UNSET,
    auto_resume: bool | Unset = UNSET,
    name: str | Unset = UNSET,
    metadata: Mapping[str, str | None] | Unset = UNSET,
    cpus: float | Unset = UNSET,
    memory: Size | Unset = UNSET,
    pids: int | Unset = UNSET,
) -> Call[SandboxInfo]:
    """PATCH /sandboxes/{id}. Only what is given changes."""
    body = _given(
        {
            "timeout_s": timeout if isinstance(timeout, Unset) else parse_seconds(timeout, "timeout"),
            "idle_timeout_s": (
                idle_timeout if isinstance(idle_timeout, Unset) else parse_seconds(idle_timeout, "idle_timeout")
            ),
            "idle_action": idle_action,
            "auto_resume": auto_resume,
            "name": name,
            "metadata": metadata if isinstance(metadata, Unset) else dict(metadata),
            "cpus": cpus,
            "memory_mib": memory if isinstance(memory, Unset) else parse_mib(memory, "memory"),
            "pids": pids,
        }
    )
    return Call("PATCH", box_path(ref), sandbox_of, json=body, retry=Retry.LOST)


def destroy(ref: str) -> Call[SandboxInfo]:
    """DELETE /sandboxes/{id}. Repeating it gives the same answer."""
    return Call("DELETE", box_path(ref), sandbox_of, retry=Retry.LOST)


def pause(ref: str) -> Call[SandboxInfo]:
    """POST …/pause. Idempotent."""
    return Call("POST", box_path(ref, "/pause"), sandbox_of, retry=Retry.LOST)


def resume(ref: str, *, memory: bool | None = None) -> Call[SandboxInfo]:
    """POST …/resume. Idempotent."""
    body = None if memory is None else {"memory": memory}
    return Call("POST", box_path(ref, "/resume"), sandbox_of, json=body, retry=Retry.LOST)


# ---- commands


def exec_body(  # noqa: PLR0913 - one keyword for each property of a command
    command: Command,
    *,
    env: Mapping[str, str] | None,
    cwd: str | None,
    user: str | None,
    timeout: Duration | None,
    stdin: str | bytes | None = None,
) -> dict[str, Any]:
    """Return the Exec object. A str goes through the shell, a list is an argv."""
    if isinstance(command, bytes) or not command:
        raise BadRequest("command: give a str for the shell, or a list of str", field="command")
    body: dict[str, Any] = {
        "command": command if isinstance(command, str) else [str(word) for word in command],
        "encoding": "base64",  # output is bytes: the text form would lose those that are not UTF-8
    }
    if env:
        body["env"] = dict(env)
    if cwd is not None:
        body["cwd"] = cwd
    if user is not None:
        body["user"] = user
    seconds = parse_seconds(timeout, "timeout")
    if seconds is not None:
        body["timeout_s"] = seconds
    if stdin is not None:
        body["stdin"] = b64encode(stdin.encode() if isinstance(stdin, str) else stdin).decode()
    return body


def run(ref: str, body: dict[str, Any]) -> Call[Result]:
    """POST …/exec: buffered."""
    return Call("POST", box_path(ref, "/exec"), result_of, json=body)


def stream(ref: str, body: dict[str, Any]) -> Call[None]:
    """POST …/exec/stream: server-sent events."""
    return Call("POST", box_path(ref, "/exec/stream"), nothing, json=body, headers={"accept": "text/event-stream"})


def start(ref: str, body: dict[str, Any]) -> Call[CommandInfo]:
    """POST …/commands."""
    return Call("POST", box_path(ref, "/commands"), command_of, json=body)


def jobs(ref: str) -> Call[list[CommandInfo]]:
    """GET …/commands."""
    return Call(
        "GET",
        box_path(ref, "/commands"),
        items_of("commands", command_of),
        retry=Retry.LOST,
    )


def job_path(ref: str, job: str, rest: str = "") -> str:
    """Return the path of a background command."""
    if not job or job in {".", ".."}:
        raise BadRequest(f'"{job}" names no command', field="id")
    return box_path(ref, f"/commands/{quoted(job)}{rest}")


def job(ref: str, job_id: str) -> Call[CommandInfo]:
    """GET …/commands/{cid}."""
    return Call("GET", job_path(ref, job_id), command_of, retry=Retry.LOST)


def forget(ref: str, job_id: str) -> Call[None]:
    """DELETE …/commands/{cid}: killed and forgotten."""
    return Call("DELETE", job_path(ref, job_id), nothing, retry=Retry.LOST)


def output(ref: str, job_id: str, *, cursor: int, limit: int, wait_s: float | None = None) -> Call[dict[str, Any]]:
    """GET …/output: what is there now, from `cursor`."""
    query = {"cursor": str(cursor), "limit": str(limit), "encoding": "base64"}
    if wait_s:
        query["wait_s"] = str(wait_s)
    return Call("GET", job_path(ref, job_id, "/output"), checked, query=query, retry=Retry.LOST)


def follow(ref: str, job_id: str, *, cursor: int) -> Call[None]:
    """GET …/output?follow=true: server-sent events, to the command's end."""
    return Call(
        "GET",
        job_path(ref, job_id, "/output"),
        nothing,
        query={"cursor": str(cursor), "follow": "true", "encoding": "base64"},
        headers={"accept": "text/event-stream"},
    )


def write_stdin(ref: str, job_id: str, data: Any, *, close: bool) -> Call[int]:
    """POST …/stdin: raw bytes. Never repeated: a part may have arrived."""
    return Call(
        "POST",
        job_path(ref, job_id, "/stdin"),
        _written,
        query={"close": "true"} if close else {},
        body=data,
    )


def signal(ref: str, job_id: str, number: str | int) -> Call[None]:
    """POST …/signal."""
    return Call("POST", job_path(ref, job_id, "/signal"), nothing, json={"signal": number})


def wait(ref: str, job_id: str, timeout_s: float | None) -> Call[CommandInfo]:
    """POST …/wait."""
    body = {"timeout_s": timeout_s}
    return Call("POST", job_path(ref, job_id, "/wait"), command_of, json=body, retry=Retry.LOST)


def exit_of(info: CommandInfo) -> Exit | None:
    """Return how a background command ended, None while it runs."""
    return Exit.from_wire(info.exit) if info.exit is not None and not info.running else None
