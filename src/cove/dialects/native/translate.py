"""Between the native wire format and the core's values. Pure functions, no decisions."""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from cove.core.info import ServerInfo
from cove.dialects.native import wire, wire_server
from cove.dialects.native.times import optional_timestamp, timestamp
from cove.dialects.native.translate_credentials import wishes_of
from cove.dialects.native.translate_images import image_view
from cove.dialects.native.translate_networks import request_from
from cove.dialects.signals import signal_number
from cove.edge.errors import Malformed, Where
from cove.edge.ops import Answer, Json, ServerFacts
from cove.edge.sse import event
from cove.edge.texts import PIECE_BYTES, TextsJson
from cove.model.access import Key, Project, Scope
from cove.model.errors import NotFound
from cove.model.execs import Chunk, Command, Ended, ExecEvent, ExecExit, ExecResult, ExecSpec, Gap, Paused, Started
from cove.model.files import FileInfo, FilePage
from cove.model.ids import is_core_id, is_name
from cove.model.request import SandboxChange, SandboxFilter, SandboxPage
from cove.model.sandbox import (
    MIB,
    IdleAction,
    Isolation,
    Kept,
    Limits,
    Lineage,
    Sandbox,
    SandboxSpec,
    TimeoutCounts,
    Usage,
)
from cove.model.state import State

PREFIX: Final = "sb_"
SNAPSHOT_PREFIX: Final = "sn_"
_ENCODE: Final = msgspec.json.Encoder().encode
_ID: Final = re.compile(PREFIX + "[0-9a-f]{16}")


def sandbox_ref(text: str) -> str:
    """The core's reference for `sb_…` or a name. Raises: NotFound: whatever else it is, no sandbox has it."""
    if _ID.fullmatch(text):
        return text.removeprefix(PREFIX)
    if is_name(text) and not is_core_id(text):
        return text
    raise NotFound(f"no sandbox {text[:80]!r}")


def sandbox_id(core_id: str) -> str:
    """How the native API spells a core id."""
    return PREFIX + core_id


def spec_of(body: wire.Create) -> SandboxSpec:
    """What the core is asked for."""
    return SandboxSpec(
        image=body.image,
        run_entrypoint=body.run_entrypoint,
        driver=body.driver,
        limits=Limits(
            cpus=body.cpus,
            memory_bytes=body.memory_mib * MIB,
            disk_bytes=body.disk_mib * MIB,
            pids=body.pids,
            io_read_bps=None if body.io_read_mbps is None else body.io_read_mbps * MIB,
            io_write_bps=None if body.io_write_mbps is None else body.io_write_mbps * MIB,
        ),
        env=body.env,
        hostname=body.hostname,
        name=body.name,
        metadata=body.metadata,
        timeout_s=body.timeout_s,
        timeout_counts=None if body.timeout_counts is None else TimeoutCounts(body.timeout_counts),
        idle_timeout_s=body.idle_timeout_s,
        idle_action=IdleAction(body.idle_action),
        auto_resume=body.auto_resume,
        network=request_from(body.network),
        credentials=wishes_of(body.credentials),
    )


def change_of(body: wire.Update) -> SandboxChange:
    """What to change."""
    return SandboxChange(
        timeout_s=body.timeout_s,
        idle_timeout_s=body.idle_timeout_s,
        idle_action=UNSET if isinstance(body.idle_action, UnsetType) else IdleAction(body.idle_action),
        auto_resume=body.auto_resume,
        name=body.name,
        metadata=body.metadata,
        cpus=body.cpus,
        memory_bytes=UNSET if isinstance(body.memory_mib, UnsetType) else body.memory_mib * MIB,
        pids=body.pids,
    )


def filter_of(query: wire.SandboxQuery) -> SandboxFilter:
    """Which sandboxes are asked for."""
    return SandboxFilter(
        states=frozenset(State(state) for state in query.state),
        image=query.image,
        driver=query.driver,
        name=query.name,
        metadata=query.metadata,
    )


def exec_of(body: wire.Exec) -> ExecSpec:
    """One command. Raises: Malformed (field `stdin`)."""
    shell, argv = (body.command, None) if isinstance(body.command, str) else (None, body.command)
    return ExecSpec(
        argv=argv,
        shell=shell,
        env=body.env,
        cwd=body.cwd,
        user=body.user,
        timeout_s=body.timeout_s,
        stdin=None if body.stdin is None else _decoded(body.stdin, body.encoding),
    )


def signal_of(body: wire.Signal) -> int:
    """A signal's number. Raises: Malformed."""
    if isinstance(body.signal, int):
        return body.signal
    number = signal_number(body.signal)
    if number is None:
        raise Malformed(f"no signal {body.signal[:40]!r}", where=Where.BODY, field="signal")
    return number


def mode_of(text: str | None, *, field: str = "mode", where: Where = Where.QUERY) -> int:
    """Permission bits; -1 for none given. Raises: Malformed beyond 07777."""
    mode = -1 if text is None else int(text, 8)
    if mode > 0o7777:  # noqa: PLR2004 - all permission bits there are
        raise Malformed(f"{field} is at most 07777", where=where, field=field)
    return mode


def _decoded(text: str, encoding: wire.Encoding) -> bytes:
    if encoding == "utf-8":
        return text.encode()
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Malformed("stdin is no valid base64", where=Where.BODY, field="stdin") from error


def encoded(data: bytes, encoding: wire.Encoding) -> str:
    """Output as text; what is no UTF-8 becomes U+FFFD."""
    return data.decode(errors="replace") if encoding == "utf-8" else base64.b64encode(data).decode()


def isolation_view(isolation: Isolation | None) -> wire.Isolation | None:
    """The isolation of a sandbox."""
    if isolation is None:
        return None
    return wire.Isolation(
        driver=isolation.driver,
        driver_version=isolation.driver_version,
        user_namespace=isolation.user_namespace,
        seccomp=isolation.seccomp,
        quota=isolation.quota,
        cgroup=isolation.cgroup,
        network=isolation.network,
        missing=isolation.missing,
    )


def _usage_view(usage: Usage) -> wire.Usage:
    return wire.Usage(
        cpu_ms=usage.cpu_ms,
        memory_bytes=usage.memory_bytes,
        memory_peak_bytes=usage.memory_peak_bytes,
        disk_bytes=usage.disk_bytes,
        oom_kills=usage.oom_kills,
        pids=usage.pids,
        sent_bytes=usage.sent_bytes,
        received_bytes=usage.received_bytes,
    )


def kept_view(kept: Kept | None) -> wire.Kept | None:
    """What was carried over."""
    return None if kept is None else wire.Kept(memory=kept.memory, reason=kept.reason)


def came_from_view(origin: Lineage | None) -> wire.CameFrom | None:
    """What a sandbox was made of."""
    if origin is None:
        return None
    return wire.CameFrom(
        snapshot=None if origin.snapshot is None else SNAPSHOT_PREFIX + origin.snapshot,
        sandbox=sandbox_id(origin.sandbox),
        memory=origin.kept.memory,
        reason=origin.kept.reason,
    )


def sandbox_view(sandbox: Sandbox) -> wire.Sandbox:
    """A sandbox."""
    limits = sandbox.limits
    return wire.Sandbox(
        id=sandbox_id(sandbox.id),
        name=sandbox.name,
        project=sandbox.project,
        state=sandbox.state.value,
        state_note=sandbox.state_note,
        image=sandbox.image,
        image_used=sandbox.image_used,
        image_digest=sandbox.image_digest,
        image_note=sandbox.image_note,
        driver=sandbox.driver,
        isolation=isolation_view(sandbox.isolation),
        cpus=limits.cpus,
        memory_mib=limits.memory_bytes // MIB,
        disk_mib=limits.disk_bytes // MIB,
        pids=limits.pids,
        io_read_mbps=None if limits.io_read_bps is None else limits.io_read_bps // MIB,
        io_write_mbps=None if limits.io_write_bps is None else limits.io_write_bps // MIB,
        metadata=sandbox.metadata,
        dialect=sandbox.dialect,
        created_by=sandbox.created_by,
        created_at=timestamp(sandbox.created_at),
        expires_at=optional_timestamp(sandbox.expires_at),
        timeout_counts=sandbox.timeout_counts.value,
        time_left_s=None if sandbox.time_left_s is None else round(sandbox.time_left_s, 3),
        idle_timeout_s=sandbox.idle_timeout_s,
        idle_action=sandbox.idle_action.value,
        auto_resume=sandbox.auto_resume,
        last_active_at=timestamp(sandbox.last_active_at),
        create_ms=None if sandbox.create_ms is None else round(sandbox.create_ms, 3),
        source=None if sandbox.source is None else sandbox.source.value,
        ended_at=optional_timestamp(sandbox.ended_at),
        end_reason=None if sandbox.end_reason is None else sandbox.end_reason.value,
        end_detail=sandbox.end_detail,
        came_from=came_from_view(sandbox.came_from),
        rolled_back_to=None if sandbox.rolled_back_to is None else SNAPSHOT_PREFIX + sandbox.rolled_back_to,
        rolled_back_at=optional_timestamp(sandbox.rolled_back_at),
        kept=kept_view(sandbox.kept),
        kept_bytes=sandbox.kept_bytes,
        usage=_usage_view(sandbox.usage),
    )


def page_view(page: SandboxPage) -> wire.SandboxList:
    """A page of sandboxes."""
    return wire.SandboxList(sandboxes=tuple(map(sandbox_view, page.sandboxes)), cursor=page.cursor)


def exit_view(exit_: ExecExit, cursor: int | None = None) -> wire.Exit:
    """How a command ended."""
    return wire.Exit(
        exit_code=exit_.code,
        signal=exit_.signal,
        why=exit_.why.value,
        duration_ms=round(exit_.duration_ms, 3),
        cpu_ms=round(exit_.cpu_ms, 3),
        memory_peak_bytes=exit_.max_rss_bytes,
        cursor=UNSET if cursor is None else cursor,
    )


def result_view(result: ExecResult, encoding: wire.Encoding) -> wire.ExecResult:
    """A finished command."""
    return wire.ExecResult(
        exit_code=result.exit.code,
        signal=result.exit.signal,
        why=result.exit.why.value,
        stdout=encoded(result.stdout, encoding),
        stderr=encoded(result.stderr, encoding),
        stdout_dropped_bytes=result.stdout_dropped_bytes,
        stderr_dropped_bytes=result.stderr_dropped_bytes,
        encoding=encoding,
        duration_ms=round(result.exit.duration_ms, 3),
        cpu_ms=round(result.exit.cpu_ms, 3),
        memory_peak_bytes=result.exit.max_rss_bytes,
    )


def result_answer(result: ExecResult, encoding: wire.Encoding) -> Answer:
    """A finished command as an answer: large output goes out in pieces."""
    texts = {"stdout": result.stdout, "stderr": result.stderr}
    if len(result.stdout) + len(result.stderr) <= PIECE_BYTES:
        return Json(result_view(result, encoding))
    return TextsJson(result_view(replace(result, stdout=b"", stderr=b""), encoding), texts, encoding)


def command_view(command: Command) -> wire.Command:
    """A background command."""
    return wire.Command(
        id=command.id,
        pid=command.pid,
        command=command.argv,
        started_at=timestamp(command.started_at),
        running=command.running,
        exit=None if command.exit is None else exit_view(command.exit),
        cursor=command.cursor,
        oldest_cursor=command.oldest_cursor,
        shell=command.shell,
        queued=command.queued,
    )


class OutputText:
    """Turns chunks into text. A character cut in two by a chunk's end waits, per stream, for its other half."""

    def __init__(self, encoding: wire.Encoding) -> None:
        self._encoding: wire.Encoding = encoding
        make = codecs.getincrementaldecoder("utf-8")
        self._decoders = {"stdout": make("replace"), "stderr": make("replace")}

    def text(self, stream: str, data: bytes) -> str:
        """The text of one chunk, perhaps empty."""
        return self._decoders[stream].decode(data) if self._encoding == "utf-8" else encoded(data, self._encoding)

    @property
    def held_bytes(self) -> dict[str, int]:
        """How many bytes of cut characters wait, by stream."""
        return {name: len(decoder.getstate()[0]) for name, decoder in self._decoders.items()}

    def rest(self, stream: str) -> str:
        """What is left of a cut character at the end."""
        return self._decoders[stream].decode(b"", final=True) if self._encoding == "utf-8" else ""


def output_view(events: list[ExecEvent], encoding: wire.Encoding, cursor: int) -> wire.Output:
    """A page of kept output from its events."""
    text = OutputText(encoding)
    chunks: list[wire.OutputChunk] = []
    lost, ended, exit_ = 0, False, None
    for one in events:
        match one:
            case Chunk(stream, data):
                chunks.append(wire.OutputChunk(stream.value, text.text(stream.value, data)))
            case Gap(lost_bytes):
                lost += lost_bytes
            case Ended(exit, at):
                ended, exit_, cursor = True, exit_view(exit), cursor if at is None else at
            case Paused(at):
                cursor = at
            case Started():
                pass
    chunks += [wire.OutputChunk(name, rest) for name in ("stdout", "stderr") if (rest := text.rest(name))]
    return wire.Output(chunks=tuple(chunks), lost_bytes=lost, cursor=cursor, ended=ended, exit=exit_, encoding=encoding)


def event_encoder(encoding: wire.Encoding, cursor: int | None = None) -> Callable[[ExecEvent], bytes]:
    """Server-sent events of one stream. `cursor`: where kept output begins, so that each event tells how far it is."""
    text = OutputText(encoding)
    at = cursor

    def id_(stream: str, size: int) -> int | None:
        # Who comes back must get a cut character whole: its bytes come again. If those are not the last ones, because
        # the streams take turns within characters, no number says what was seen of both, and this event has none.
        held = text.held_bytes
        mine = held.pop(stream)
        return None if at is None or any(held.values()) or mine > size else at - mine

    def rest() -> bytes:
        pieces = [(name, text.rest(name)) for name in ("stdout", "stderr")]
        return b"".join(event(name.encode(), _ENCODE(wire.DataEvent(rest))) for name, rest in pieces if rest)

    def encode(one: ExecEvent) -> bytes:
        nonlocal at
        match one:
            case Started(id, pid):
                return event(b"started", _ENCODE(wire.StartedEvent(id, pid)))
            case Chunk(stream, data):
                at = None if at is None else at + len(data)
                piece = text.text(stream.value, data)
                if not piece:
                    return b""
                return event(stream.value.encode(), _ENCODE(wire.DataEvent(piece)), id_=id_(stream.value, len(data)))
            case Gap(lost_bytes):
                at = None if at is None else at + lost_bytes
                return rest() + event(b"gap", _ENCODE(wire.GapEvent(lost_bytes)), id_=at)
            case Ended(exit, end):
                return rest() + event(b"exit", _ENCODE(exit_view(exit, end)), id_=end)
            case Paused(end):
                return rest() + event(b"paused", _ENCODE(wire.PausedEvent(end)), id_=end)

    return encode


def file_view(info: FileInfo) -> wire.FileInfo:
    """A directory entry."""
    return wire.FileInfo(
        path=info.path,
        name=info.name,
        kind=info.kind.value,
        size=info.size,
        mode=f"{info.mode:04o}",
        uid=info.uid,
        gid=info.gid,
        mtime=timestamp(_year_9999_at_most(info.mtime)),
        target=info.target,
    )


def _year_9999_at_most(seconds: float) -> float:
    """A file's time is the sandbox's to set, to any 64-bit value (utimensat(2)); RFC 3339 has years of four digits."""
    return min(max(seconds, 0.0), 253402300799.0)


def file_page_view(page: FilePage) -> wire.FileList:
    """A page of a directory."""
    return wire.FileList(entries=tuple(map(file_view, page.entries)), cursor=page.cursor)


def key_view(key: Key) -> wire_server.Key:
    """A key, without its text."""
    return wire_server.Key(
        id=key.id,
        name=key.name,
        project=key.project,
        dialect=key.dialect,
        scopes=tuple(scope.value for scope in Scope if scope in key.scopes),
        created_at=timestamp(key.created_at),
        expires_at=optional_timestamp(key.expires_at),
        revoked_at=optional_timestamp(key.revoked_at),
        last_used_at=optional_timestamp(key.last_used_at),
    )


def new_key_view(key: Key, text: str) -> wire_server.NewKey:
    """A key with its text."""
    return wire_server.NewKey(key=text, **msgspec.structs.asdict(key_view(key)))


def project_view(project: Project) -> wire_server.Project:
    """A project."""
    return wire_server.Project(project.id, timestamp(project.created_at), project.default_driver, project.drivers)


def server_view(info: ServerInfo, facts: ServerFacts) -> wire_server.Server:
    """What this server is."""
    return wire_server.Server(
        version=info.version,
        drivers=tuple(wire_server.Driver(one.name, one.usable, one.missing) for one in info.drivers),
        default_driver=info.default_driver,
        images=tuple(map(image_view, info.images)),
        capacity=wire_server.Capacity(
            sandboxes=info.max_sandboxes,
            sandboxes_now=info.sandboxes,
            memory_free_mib=info.memory_free_bytes // MIB,
            pool=info.pool,
        ),
        isolation=isolation_view(info.isolation),
        public_domain=facts.public_domain,
        ssh=wire_server.Ssh(**msgspec.structs.asdict(facts.ssh)),
    )
