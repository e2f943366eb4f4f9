"""What a sandbox's records say to the audit trail. Pure.

The words of events and the names in their data are part of the API: docs/guides/audit.md lists them, and a test
compares.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from cove.model.audit import AuditValue
from cove.model.network import NetworkPolicy
from cove.model.policy import rule_words
from cove.model.sandbox import MIB, Sandbox
from cove.model.state import FINAL, EndReason, State

LifecycleEvent = tuple[str, dict[str, AuditValue]]

_CHANGEABLE: Final = ("name", "metadata", "limits", "idle_timeout_s", "idle_action", "auto_resume", "expires_at")


def lifecycle_event(before: Sandbox | None, after: Sandbox) -> LifecycleEvent | None:
    """The line for a record that follows another; None: nothing happened that belongs in the trail."""
    was = None if before is None else before.state
    if after.state in FINAL:
        return None if was in FINAL else _ended(after)
    if after.state is State.RUNNING and was in {None, State.PENDING}:
        return _born(after)
    if before is not None and was is not after.state:
        return _moved(before, after)
    if before is not None and was is after.state:
        return _changed(before, after)
    return None


def _born(sandbox: Sandbox) -> LifecycleEvent:
    """How it came to be: one word of three."""
    origin = sandbox.came_from
    if origin is None:
        return "sandbox.created", _made(sandbox)
    data = _made(sandbox) | {
        "parent": origin.sandbox,
        "snapshot": origin.snapshot,
        "memory": origin.kept.memory,
        "reason": origin.kept.reason,
    }
    return ("sandbox.forked" if origin.snapshot is None else "sandbox.restored"), data


def _moved(before: Sandbox, after: Sandbox) -> LifecycleEvent | None:
    """Between running and at rest. What is not there any more is told with the reason."""
    kept: dict[str, AuditValue] = (
        {} if after.kept is None else {"memory": after.kept.memory, "reason": after.kept.reason}
    )
    if after.state is State.HIBERNATED:
        kept["size_bytes"] = after.kept_bytes
        return "sandbox.hibernated", kept if after.state_note is None else {**kept, "note": after.state_note}
    if after.state is State.PAUSED:
        return "sandbox.paused", {} if after.state_note is None else {"note": after.state_note}
    if after.state is not State.RUNNING:
        return None
    if after.rolled_back_at != before.rolled_back_at:
        return "sandbox.rolled_back", {"snapshot": after.rolled_back_to, **kept}
    if before.state is State.PAUSED:
        return "sandbox.resumed", {}
    took_ms = None if after.resume_ms is None else round(after.resume_ms, 1)
    return "sandbox.resumed", {"was": "hibernated", "took_ms": took_ms, **kept}


def _made(sandbox: Sandbox) -> dict[str, AuditValue]:
    return {
        "name": sandbox.name,
        "image": sandbox.image_used or sandbox.image,
        "image_asked": sandbox.image,
        "image_digest": sandbox.image_digest,
        "driver": sandbox.driver,
        "vcpus": sandbox.limits.cpus,
        "mem_mib": sandbox.limits.memory_bytes // MIB,
        "disk_mib": sandbox.limits.disk_bytes // MIB,
        "network": sandbox.network.mode.value,
        "source": None if sandbox.source is None else sandbox.source.value,
    }


def _ended(sandbox: Sandbox) -> LifecycleEvent:
    reason = None if sandbox.end_reason is None else sandbox.end_reason.value
    if sandbox.end_reason is EndReason.CREATE_FAILED:
        return "sandbox.create_failed", {"image": sandbox.image, "driver": sandbox.driver}
    ended_at = sandbox.created_at if sandbox.ended_at is None else sandbox.ended_at
    return "sandbox.destroyed", {
        "reason": reason,
        "cpu_ms": sandbox.usage.cpu_ms,
        "mem_peak_bytes": sandbox.usage.memory_peak_bytes,
        "uptime_ms": max(round((ended_at - sandbox.created_at) * 1000), 0),
    }


def _network(policy: NetworkPolicy) -> dict[str, AuditValue]:
    return {
        "mode": policy.mode.value,
        "profile": policy.profile,
        "rules": "; ".join(rule_words(rule) for rule in policy.rules),
        "default": policy.default.value,
        "dry_run": policy.dry_run,
        "links": " ".join(policy.links),
    }


def _changed(before: Sandbox, after: Sandbox) -> LifecycleEvent | None:
    """Which properties are others now. Values of metadata are the caller's own and not told."""
    if replace(before.network, broker=False) != replace(after.network, broker=False):
        return "network.changed", _network(after.network)
    fields = [name for name in _CHANGEABLE if getattr(before, name) != getattr(after, name)]
    if not fields:
        return None
    data: dict[str, AuditValue] = {"fields": " ".join(fields)}
    if "name" in fields:
        data["name"] = after.name
    if "limits" in fields:
        data |= {
            "vcpus": after.limits.cpus,
            "mem_mib": after.limits.memory_bytes // MIB,
            "pids": after.limits.pids,
        }
    return "sandbox.changed", data
