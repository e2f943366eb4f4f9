"""From isol8's words to the core's and back. Pure. What the original refuses has its very sentence here."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from cove.dialects.isol8 import wire
from cove.dialects.networkforms import from_isol8
from cove.model.errors import BadRequest
from cove.model.execs import Why
from cove.model.execution import (
    HOME,
    ExecutionEvent,
    ExecutionOutput,
    ExecutionResult,
    ExecutionSettings,
    ExecutionSpec,
    RemoteSource,
    Seccomp,
    Stage,
    StageEnded,
    StageFailure,
)
from cove.model.network import NetworkMode, NetworkRequest, Visit
from cove.model.sandbox import MIB

SETUP_PATH: Final = f"{HOME}/.isol8-setup.sh"
AGENT: Final = "agent"
FILTERED: Final = "filtered"

NO_SOURCE: Final = "ExecutionRequest must include exactly one of: code, codeUrl, or cmd."
SEVERAL_SOURCES: Final = (
    "ExecutionRequest.code, ExecutionRequest.codeUrl, and ExecutionRequest.cmd are mutually exclusive — provide "
    "exactly one."
)
NO_NETWORK: Final = (
    "Agent runtime requires network access. The AI coding agent needs to reach its LLM provider API. Use --net host, "
    'or --net filtered --allow "api.anthropic.com" (or your provider\'s domain).'
)
NO_WHITELIST: Final = (
    "Agent runtime requires at least one network whitelist entry. The AI coding agent needs to reach its LLM provider "
    'API. Use --allow "api.anthropic.com" (or your provider\'s domain).'
)
TIMED_OUT: Final = "EXECUTION TIMED OUT"
SETUP_TIMED_OUT: Final = "SETUP SCRIPT TIMED OUT"

_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", re.IGNORECASE | re.ASCII)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_MOST_BYTES: Final = 2**50
_ENCODE: Final = msgspec.json.Encoder().encode


def spec_of(request: wire.Request, options: wire.Options | None, session: str | None) -> ExecutionSpec:
    """The execution that is asked for. Raises: BadRequest."""
    options = options or wire.Options()
    sources = [one for one in (request.code, request.code_url, request.cmd) if one is not None and one.strip()]
    if not sources:
        raise BadRequest(NO_SOURCE, field="code")
    if len(sources) > 1:
        raise BadRequest(SEVERAL_SOURCES, field="code")
    _check_agent(request, options)
    env = dict(request.env or {})
    if options.network == FILTERED:
        wanted = options.network_filter or wire.NetworkFilter()
        env |= {
            "ISOL8_WHITELIST": _ENCODE(wanted.whitelist).decode(),
            "ISOL8_BLACKLIST": _ENCODE(wanted.blacklist).decode(),
        }
    return ExecutionSpec(
        runtime=request.runtime,
        code=_text(request.code),
        remote=_remote(request),
        command=_text(request.cmd),
        timeout_s=_seconds(request.timeout_ms),
        env=env,
        stdin=request.stdin.encode(errors="replace") if request.stdin else None,
        files={path: _content(one) for path, one in (request.files or {}).items()},
        collect=None if request.output_paths is None else tuple(request.output_paths),
        packages=tuple(request.install_packages or ()),
        setup=_text(request.setup_script),
        setup_path=SETUP_PATH,
        workdir=request.workdir or HOME,
        extension=request.file_extension or None,
        flags=request.agent_flags or "",
        metadata={name: _plain(value) for name, value in (request.metadata or {}).items()},
        session=session or None,
        settings=settings_of(options),
    )


def settings_of(options: wire.Options) -> ExecutionSettings:
    """What its sandbox is to be like. Raises: BadRequest."""
    usual = ExecutionSettings()
    security = options.security or wire.Security()
    timeout_s, cpus, pids, output = (
        _seconds(options.timeout_ms),
        options.cpu_limit,
        options.pids_limit,
        options.max_output_size,
    )
    return ExecutionSettings(
        network=_network(options),
        cpus=usual.cpus if cpus is None else cpus,
        memory_bytes=_bytes(options.memory_limit, usual.memory_bytes),
        pids=usual.pids if pids is None else pids,
        scratch_bytes=_bytes(options.sandbox_size, usual.scratch_bytes),
        tmp_bytes=_bytes(options.tmp_size, usual.tmp_bytes),
        read_only=options.readonly_root_fs is not False,
        image=options.image or None,
        secrets={name: value for name, value in (options.secrets or {}).items() if value},
        timeout_s=usual.timeout_s if timeout_s is None else timeout_s,
        output_limit_bytes=usual.output_limit_bytes if output is None else max(output, 0),
        seccomp=Seccomp(security.seccomp),
        seccomp_profile=security.custom_profile_path,
        log_network=bool(options.log_network) and options.network == FILTERED,
        keep=bool(options.persist),
    )


def bytes_of(text: str) -> int:
    """A size such as `512m`, in powers of 1024. Raises: BadRequest."""
    found = _SIZE.fullmatch(text)
    size = float(found.group(1)) * 1024 ** _POWERS[found.group(2).lower()] if found else 0.0
    if not 0 < size <= _MOST_BYTES:
        raise BadRequest(f'Invalid memory limit format: "{text[:100]}". Use e.g. "512m", "1g".', field="memoryLimit")
    return int(size)


def result_of(result: ExecutionResult) -> wire.Result:
    """The answer to a buffered execution."""
    limit = result.output_limit_bytes
    stderr = _limited(result.stderr, result.stderr_bytes, limit, is_cut=result.stderr_cut)
    if result.why is Why.TIMEOUT:
        stderr += f"\n--- {TIMED_OUT} ---"
    stdout = _limited(result.stdout, result.stdout_bytes, limit, is_cut=result.stdout_cut)
    return wire.Result(
        stdout=stdout.rstrip(),
        stderr=stderr.rstrip(),
        exit_code=result.code,
        duration_ms=math.ceil(result.duration_ms),
        truncated=result.stdout_cut or result.stderr_cut,
        execution_id=result.id,
        runtime=result.runtime,
        timestamp=_instant(result.ended_at),
        container_id=None if result.sandbox is None else container_of(result.sandbox),
        resource_usage=_usage(result),
        network_logs=[_network_log(visit) for visit in result.visits] or None,
        files=None
        if result.files is None
        else {path: base64.b64encode(data).decode() for path, data in result.files.items()},
    )


def events_of(event: ExecutionEvent) -> list[wire.Event | wire.Refusal]:
    """One event of ours as theirs."""
    if isinstance(event, ExecutionOutput):
        return [wire.Event(type=event.stream.value, data=event.text, phase=_phase(event.stage))]
    if isinstance(event, StageEnded):
        return _ends(event)
    if event.failure is not None and event.failure.stage is not Stage.SETUP:
        return [wire.Refusal(failure_text(event.failure))]
    return []


def failure_text(failure: StageFailure) -> str:
    """Why a program was not started."""
    if failure.stage is None:
        return f"Failed to write file {failure.path} in container (exit code {failure.code})"
    what = "Package install" if failure.stage is Stage.INSTALL else "Setup script"
    return f"{what} failed (exit code {failure.code}): {failure.stderr}"


def container_of(sandbox: str) -> str:
    """What stands for a sandbox where the original names its container."""
    return hashlib.sha256(f"sandbox {sandbox}".encode()).hexdigest()


def _ends(event: StageEnded) -> list[wire.Event | wire.Refusal]:
    if event.stage is Stage.INSTALL:
        return []
    phase = _phase(event.stage)
    timed_out = event.why is Why.TIMEOUT
    code = "137" if timed_out else str(event.code)
    told: list[wire.Event | wire.Refusal] = []
    if timed_out:
        told.append(wire.Event("error", TIMED_OUT if event.stage is Stage.CODE else SETUP_TIMED_OUT, phase))
    elif event.stage is Stage.SETUP and event.code:
        told.append(wire.Event("error", f"Setup script failed (exit code {code})", phase))
    return [*told, wire.Event("exit", code, phase)]


def _phase(stage: Stage) -> Any:
    return "code" if stage is Stage.CODE else "setup"


def _check_agent(request: wire.Request, options: wire.Options) -> None:
    if request.runtime != AGENT:
        return
    if options.network in {None, "none"}:
        raise BadRequest(NO_NETWORK, field="network")
    if options.network == FILTERED and not (options.network_filter and options.network_filter.whitelist):
        raise BadRequest(NO_WHITELIST, field="networkFilter")


def _network(options: wire.Options) -> NetworkRequest | None:
    if options.network == FILTERED:
        wanted = options.network_filter or wire.NetworkFilter()
        return from_isol8(wanted.whitelist, wanted.blacklist, record=bool(options.log_network))
    return NetworkRequest(mode=NetworkMode.OPEN if options.network == "host" else NetworkMode.NONE)


def _remote(request: wire.Request) -> RemoteSource | None:
    url = _text(request.code_url)
    if url is None:
        return None
    return RemoteSource(url=url.strip(), sha256=request.code_hash or None, plain=bool(request.allow_insecure_code_url))


def _text(text: str | None) -> str | None:
    return text if text is not None and text.strip() else None


def _content(one: str | wire.Buffer) -> bytes:
    return one.encode(errors="replace") if isinstance(one, str) else bytes(one.data)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else _ENCODE(value).decode()


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else max(milliseconds, 0.0) / 1000


def _bytes(text: str | None, usual: int) -> int:
    return usual if text is None else bytes_of(text)


def _limited(text: str, total: int, limit: int, *, is_cut: bool) -> str:
    return f"{text}\n\n--- OUTPUT TRUNCATED ({total} bytes, limit: {limit}) ---" if is_cut else text


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _network_log(visit: Visit) -> dict[str, Any]:
    return {
        "timestamp": datetime.fromtimestamp(visit.at, UTC).isoformat(timespec="seconds"),
        "method": visit.method,
        "host": visit.host,
        "path": visit.path,
        "action": "ALLOW" if visit.is_allowed else "BLOCK",
        "durationMs": round(visit.duration_ms),
    }


def _usage(result: ExecutionResult) -> wire.ResourceUsage:
    return wire.ResourceUsage(
        cpu_percent=round(100 * result.cpu_ms / result.duration_ms, 2) if result.duration_ms else 0.0,
        memory_mb=round(result.usage.memory_peak_bytes / MIB, 2),
        network_bytes_in=result.usage.received_bytes,
        network_bytes_out=result.usage.sent_bytes,
    )
