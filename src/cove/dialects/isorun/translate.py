"""Between isorun's wire format and the core's values. Pure functions, no decisions."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final

import msgspec

from cove.dialects.isorun import wire
from cove.dialects.isorun.translate_credentials import PLACEHOLDER, wishes_of
from cove.dialects.networkforms import from_isorun
from cove.edge.errors import Malformed, Where
from cove.edge.ops import Answer, Json
from cove.edge.sse import event
from cove.edge.texts import PIECE_BYTES, TextsJson
from cove.model.errors import NotFound
from cove.model.execs import Chunk, Ended, ExecEvent, ExecExit, ExecResult, ExecSpec, Why
from cove.model.network import NetworkRequest
from cove.model.request import SandboxChange, SandboxFilter
from cove.model.sandbox import MIB, IdleAction, Limits, Sandbox, SandboxSpec
from cove.model.state import FINAL, State
from cove.model.usage import DECIMALS, SandboxUsage

NAME: Final = "isorun"
PREFIX: Final = "run"
TIMEOUT_S: Final = 300
"""Until a run ends by itself, if the request says nothing."""

EXEC_TIMEOUT_S: Final = 600.0
"""The same of a command, as the client's own default of 1.0.2."""

TIMED_OUT: Final = 124
MEMORY_MIB: Final = 1024
DISK_MIB: Final = 4096

SNAPSHOT_PREFIX: Final = "snap"
_ID: Final = re.compile(PREFIX + "[0-9a-f]{16}")
_SNAPSHOT_ID: Final = re.compile(SNAPSHOT_PREFIX + "[0-9a-f]{16}")
_CENT: Final = float(10 ** (DECIMALS - 2))
_ENCODE: Final = msgspec.json.Encoder().encode
_STATUS: Final = MappingProxyType(
    {
        State.PENDING: "creating",
        State.RUNNING: "running",
        State.PAUSED: "paused",
        State.HIBERNATED: "hibernated",
        State.STOPPING: "destroyed",
        State.TERMINATED: "destroyed",
        State.FAILED: "destroyed",
    },
)

ACTIVE: Final = SandboxFilter(states=frozenset({State.RUNNING, State.PAUSED, State.HIBERNATED}))
ENDED: Final = SandboxFilter(states=FINAL)


def run_ref(text: str) -> str:
    """The core's reference for `run…`. Raises: NotFound: whatever else it is, no run has it."""
    if _ID.fullmatch(text):
        return text.removeprefix(PREFIX)
    raise NotFound(f"no run {text[:80]!r}")


def run_id(core_id: str) -> str:
    """How isorun spells a core id."""
    return PREFIX + core_id


def snapshot_ref(text: str) -> str:
    """The core's reference for `snap…`. Raises: NotFound."""
    if _SNAPSHOT_ID.fullmatch(text):
        return text.removeprefix(SNAPSHOT_PREFIX)
    raise NotFound(f"no snapshot {text[:80]!r}")


def snapshot_id(core_id: str) -> str:
    """How isorun spells a snapshot's core id."""
    return SNAPSHOT_PREFIX + core_id


def active(sandbox: Sandbox) -> Sandbox:
    """The same. Raises: NotFound: it has ended, and an ended one is in the history alone."""
    if sandbox.state in FINAL:
        raise NotFound(f"no run {run_id(sandbox.id)!r}: it was destroyed")
    return sandbox


def spec_of(body: wire.Create) -> SandboxSpec:
    """What the core is asked for. Raises: BadRequest, Malformed."""
    timeout = TIMEOUT_S if body.timeout is None else body.timeout
    network = network_of(body)
    return SandboxSpec(
        image=body.image,
        limits=Limits(
            cpus=1.0 if body.vcpus is None else body.vcpus,
            memory_bytes=(body.mem_mib or MEMORY_MIB) * MIB,
            disk_bytes=(body.disk_mib or DISK_MIB) * MIB,
        ),
        env=body.env or {},
        idle_timeout_s=timeout or None,
        idle_action=IdleAction.TERMINATE,
        auto_resume=False,
        network=network,
        open_network=network is None,
        credentials=wishes_of(body),
        placeholder=PLACEHOLDER,
    )


def network_of(body: wire.Create) -> NetworkRequest | None:
    """What is asked of the network; None: nothing. Raises: BadRequest, Malformed."""
    lists = body.network
    allow, deny = (() if lists is None else one or () for one in (lists and lists.allow, lists and lists.deny))
    if body.network_profile is None:
        return from_isorun(allow, deny) if allow or deny else None
    if lists is not None:
        raise Malformed("network and network_profile exclude each other", where=Where.BODY, field="network_profile")
    return NetworkRequest(profile=body.network_profile)


def change_of(body: wire.Patch) -> SandboxChange:
    """The timer, which begins anew."""
    return SandboxChange(idle_timeout_s=body.timeout or None, idle_action=IdleAction.TERMINATE)


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def number(value: float) -> float:
    """Without a fraction where there is none."""
    return int(value) if value == int(value) else value


def whole_ms(value: float | None) -> int:
    """Milliseconds, rounded up: a measured time is never 0."""
    return 0 if value is None else math.ceil(value)


def status_of(sandbox: Sandbox) -> str:
    """The state in a word of the protocol."""
    return _STATUS[sandbox.state]


def run_view(sandbox: Sandbox, region: str) -> wire.Run:
    """A run."""
    return wire.Run(
        id=run_id(sandbox.id),
        status=status_of(sandbox),
        image=sandbox.image,
        region=region,
        vcpus=number(sandbox.limits.cpus),
        mem_mib=sandbox.limits.memory_bytes // MIB,
        disk_mib=sandbox.limits.disk_bytes // MIB,
        create_ms=whole_ms(sandbox.create_ms),
        created_at=timestamp(sandbox.created_at),
    )


def state_view(sandbox: Sandbox) -> wire.State:
    """What it is now."""
    return wire.State(run_id(sandbox.id), status_of(sandbox))


def uptime_ms(sandbox: Sandbox) -> int:
    """How long it lived."""
    ended_at = sandbox.created_at if sandbox.ended_at is None else sandbox.ended_at
    return max(round((ended_at - sandbox.created_at) * 1000), 0)


def cents(nano: int) -> float:
    """Hundredths of the currency of nano-units."""
    return nano / _CENT


def destroyed_view(sandbox: Sandbox, bill: SandboxUsage) -> wire.Destroyed:
    """What a run used, at its end."""
    return wire.Destroyed(
        cpu_ms=sandbox.usage.cpu_ms,
        mem_peak_bytes=sandbox.usage.memory_peak_bytes,
        uptime_ms=uptime_ms(sandbox),
        cost_cents=cents(bill.amounts.cost_nano),
    )


def timeout_of(body: wire.Exec) -> float:
    """How long a command may run."""
    return EXEC_TIMEOUT_S if body.timeout is None else body.timeout


def exec_of(body: wire.Exec) -> ExecSpec:
    """One command: `sh -c`, as root, with the environment and the directory of the image."""
    return ExecSpec(shell=body.command, user="0", timeout_s=timeout_of(body))


def exit_code(exit_: ExecExit) -> int:
    """The number that a client gets."""
    return TIMED_OUT if exit_.why is Why.TIMEOUT else exit_.code


def remark(exit_: ExecExit, timeout_s: float, *, after: bytes) -> bytes:
    """What is said behind the standard error output of a command that did not end by itself; `after`: its end."""
    if exit_.why is Why.TIMEOUT:
        text = f"command timed out after {timeout_s:g}s"
    elif exit_.why is Why.SANDBOX_GONE:
        text = "the run ended before the command did"
    else:
        return b""
    return (b"\n" if after and not after.endswith(b"\n") else b"") + text.encode()


def result_answer(result: ExecResult, timeout_s: float) -> Answer:
    """A finished command: large output goes out in pieces."""
    stderr = result.stderr + remark(result.exit, timeout_s, after=result.stderr)
    code = exit_code(result.exit)
    if len(result.stdout) + len(stderr) <= PIECE_BYTES:
        texts = {"stdout": result.stdout.decode(errors="replace"), "stderr": stderr.decode(errors="replace")}
        return Json(wire.ExecResult(exit_code=code, **texts))
    empty = wire.ExecResult(exit_code=code, stdout="", stderr="")
    return TextsJson(empty, {"stdout": result.stdout, "stderr": stderr}, "utf-8")


def event_encoder(timeout_s: float) -> Callable[[ExecEvent], bytes]:
    """Server-sent events of one command. A character that a chunk cuts in two waits for its other half."""
    make = codecs.getincrementaldecoder("utf-8")
    decoders = {"stdout": make("replace"), "stderr": make("replace")}
    last = {"stdout": b"", "stderr": b""}

    def output(stream: str, data: bytes, *, final: bool = False) -> bytes:
        text = decoders[stream].decode(data, final)
        return event(stream.encode(), _ENCODE(wire.OutputEvent(stream, text))) if text else b""

    def encode(one: ExecEvent) -> bytes:
        match one:
            case Chunk(stream, data):
                last[stream.value] = data[-1:]
                return output(stream.value, data)
            case Ended(exit_, _):
                rest = remark(exit_, timeout_s, after=last["stderr"])
                tail = output("stdout", b"", final=True) + output("stderr", rest, final=True)
                end = wire.ExitEvent(exit_code(exit_), whole_ms(exit_.duration_ms))
                return tail + event(b"exit", _ENCODE(end))
            case _:
                return b""

    return encode
