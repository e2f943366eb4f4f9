"""Lines of an audit trail as isorun has them. Pure.

Events that it does not know are left out, and numbers start at 0. The chain over the lines, and how it is checked, is
`model/eventchain.py` (docs/protocols/isorun.md, section 9).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from cove.dialects.isorun.translate import number, run_id, snapshot_id, whole_ms
from cove.model.audit import AuditEntry, AuditValue
from cove.model.auditchain import moment
from cove.model.eventchain import chained

EVENTS: Final = MappingProxyType(
    {
        "sandbox.created": ("image", "vcpus", "mem_mib", "disk_mib"),
        "exec.start": ("command",),
        "exec.exit": ("command", "exit_code", "duration_ms"),
        "sandbox.forked": ("parent", "image"),
        "sandbox.hibernated": ("snapshot_size_bytes",),
        "sandbox.resumed": ("restore_ms",),
        "sandbox.destroyed": ("cpu_ms", "mem_peak_bytes", "uptime_ms"),
        "network.blocked": ("host", "ip", "port", "rule"),
        "file.uploaded": ("path", "size_bytes"),
        "file.downloaded": ("path", "size_bytes"),
        "credential.proxied": ("service", "method", "path", "status"),
        "sandbox.snapshotted": ("snapshot_id", "size_bytes"),
        "sandbox.restored": ("snapshot_id",),
    },
)
"""The events that it knows, with what each tells."""


class Teller:
    """Makes the lines of one run, in order. `sign`: HMAC-SHA256 of a text by the team's secret, in hex."""

    def __init__(self, sign: Callable[[str], str]) -> None:
        self._sign = sign
        self._commands: dict[AuditValue, AuditValue] = {}
        self._seq = 0
        self._last = ""

    def tell(self, entry: AuditEntry) -> bytes:
        """The line with its line break; nothing for an event that this API does not know."""
        if entry.sandbox is None or entry.event not in EVENTS:
            return b""
        data = self._data(entry.event, entry.data)
        self._last = chained(self._sign, self._last, self._seq, entry.event, data)
        fields = {
            "seq": self._seq,
            "ts": moment(entry.at),
            "sandbox_id": run_id(entry.sandbox),
            "event": entry.event,
            "data": data,
            "hmac": self._last,
        }
        self._seq += 1
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"

    def _data(self, event: str, said: Mapping[str, AuditValue]) -> dict[str, AuditValue]:
        known = {**said, **_renamed(said)}
        if "exec" in said:
            known.setdefault("command", self._commands.pop(said["exec"], ""))
            if event == "exec.start":
                self._commands[said["exec"]] = known["command"]
        return {name: _plain(known[name]) for name in EVENTS[event] if name in known}


def _renamed(said: Mapping[str, AuditValue]) -> dict[str, AuditValue]:
    """What has another name over there."""
    found: dict[str, AuditValue] = {}
    for name, value in said.items():
        match name, value:
            case "image_asked", str():
                found["image"] = value
            case "parent", str():
                found["parent"] = run_id(value)
            case "snapshot", str():
                found["snapshot_id"] = snapshot_id(value)
            case "size_bytes", int():
                found["snapshot_size_bytes"] = value
            case "took_ms", float() | int():
                found["restore_ms"] = whole_ms(value)
            case "duration_ms", float() | int():
                found["duration_ms"] = whole_ms(value)
            case _:
                pass
    return found


def _plain(value: AuditValue) -> AuditValue:
    """A whole number without a fraction, which not every program writes the same way."""
    return number(value) if isinstance(value, float) else value
