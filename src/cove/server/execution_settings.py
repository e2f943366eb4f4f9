"""Settings of executions: their fields, how their texts are read, and the core's policy made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from cove.core.executionpolicy import NETWORKS, ExecutionPolicy, RemotePolicy
from cove.model.sandbox import MIB
from cove.server.parsing import flag, number, separated, some_of

_MOST_SIZE: Final = number(int, 0, 1024 * 1024)


class ExecutionFields(Struct, frozen=True, kw_only=True):
    """What `Settings` has of them. 0: not limited."""

    execution_networks: tuple[str, ...]
    execution_images: tuple[str, ...]
    execution_cpus: float
    execution_memory_mib: int
    execution_pids: int
    execution_disk_mib: int
    execution_timeout_s: float
    execution_output_mib: int
    execution_at_once: int
    execution_idle_s: float
    execution_ready: int
    remote_code_hosts: tuple[str, ...]
    remote_code_plain: bool
    remote_code_hash: bool
    remote_code_mib: int


EXECUTION_PARSERS: Final[Mapping[str, Callable[[str], object]]] = {
    "execution_networks": some_of(*NETWORKS),
    "execution_images": separated,
    "execution_cpus": number(float, 0, 1024),
    "execution_memory_mib": _MOST_SIZE,
    "execution_pids": number(int, 0, 4_000_000),
    "execution_disk_mib": _MOST_SIZE,
    "execution_timeout_s": number(float, 0.001, 86400),
    "execution_output_mib": number(int, 1, 10),
    "execution_at_once": number(int, 1, 100_000),
    "execution_idle_s": number(float, 0, 30 * 86400),
    "execution_ready": number(int, 0, 4096),
    "remote_code_hosts": separated,
    "remote_code_plain": flag,
    "remote_code_hash": flag,
    "remote_code_mib": number(int, 1, 1024),
}


def execution_policy(settings: ExecutionFields) -> ExecutionPolicy:
    """What executions may ask for."""
    return ExecutionPolicy(
        networks=settings.execution_networks,
        images=settings.execution_images,
        most_cpus=settings.execution_cpus or None,
        most_memory_bytes=settings.execution_memory_mib * MIB or None,
        most_pids=settings.execution_pids or None,
        most_disk_bytes=settings.execution_disk_mib * MIB or None,
        most_timeout_s=settings.execution_timeout_s,
        most_output_bytes=settings.execution_output_mib * MIB,
        at_once=settings.execution_at_once,
        session_idle_s=settings.execution_idle_s or None,
        ready=settings.execution_ready,
        remote=RemotePolicy(
            hosts=settings.remote_code_hosts,
            plain=settings.remote_code_plain,
            hash_required=settings.remote_code_hash,
            most_bytes=settings.remote_code_mib * MIB,
        ),
    )
