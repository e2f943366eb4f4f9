"""What the operator lets executions ask for: a caller's wishes are lowered to it, or refused. Pure, but for `Turns`.

Sizes and times are lowered: the program runs with what it may have, and the answer says what became of it. What cannot
be had in part (a network, an image) is refused. Quotas and the machine's room are asked later, as for any sandbox.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from cove.model.errors import CapacityExceeded, Forbidden, Unsupported
from cove.model.execution import ExecutionSettings, Seccomp
from cove.model.network import NetworkMode, NetworkRequest
from cove.model.sandbox import MIB

NONE: Final = "none"
FILTERED: Final = "filtered"
OPEN: Final = "open"
NETWORKS: Final = (NONE, FILTERED, OPEN)
"""What an execution's network may be: none, what its patterns let pass, or the internet."""


class RemotePolicy(Struct, frozen=True, kw_only=True):
    """Whether programs may be fetched, and from where. `hosts` are patterns (`*.example.com`); empty: from nowhere.

    `plain`: over http too, where the caller agrees. `hash_required`: only with a hash that says what it must be.
    """

    hosts: tuple[str, ...] = ()
    plain: bool = False
    hash_required: bool = False
    most_bytes: int = 10 * MIB
    timeout_s: float = 30.0


class ExecutionPolicy(Struct, frozen=True, kw_only=True):
    """The operator's limits. `most_*` None: only what holds for every sandbox. `images` are patterns; empty: any.

    `at_once`: executions of a project that run at a time; one more is refused. `ready`: sandboxes that wait for them,
    of each image that they use.
    """

    networks: tuple[str, ...] = NETWORKS
    images: tuple[str, ...] = ()
    most_cpus: float | None = None
    most_memory_bytes: int | None = None
    most_pids: int | None = None
    most_disk_bytes: int | None = None
    most_timeout_s: float = 3600.0
    most_output_bytes: int = 10 * MIB
    at_once: int = 64
    session_idle_s: float | None = 3600.0
    ready: int = 24
    remote: RemotePolicy = RemotePolicy()


def bounded(settings: ExecutionSettings, policy: ExecutionPolicy) -> ExecutionSettings:
    """What an execution gets of what it asked for. Raises: Forbidden, Unsupported (fields as the settings')."""
    word = network_word(settings.network)
    if word not in policy.networks:
        allowed = ", ".join(policy.networks)
        raise Forbidden(f"executions on this server may have the networks {allowed}, not {word}", field="network")
    if settings.image is not None and not _is_allowed(settings.image, policy.images):
        raise Forbidden("executions on this server may not name this image", field="image")
    if settings.seccomp is Seccomp.CUSTOM:
        # A path on the server is not the caller's to name, and a sandbox has the server's own filter in any case.
        name = (settings.seccomp_profile or "")[:200]
        said = f"Failed to load custom seccomp profile at {name}: this server takes none from its callers"
        raise Unsupported(said, field="seccomp")
    return replace(
        settings,
        cpus=_least(settings.cpus, policy.most_cpus),
        memory_bytes=int(_least(settings.memory_bytes, policy.most_memory_bytes)),
        pids=int(_least(settings.pids, policy.most_pids)),
        scratch_bytes=int(_least(settings.scratch_bytes, policy.most_disk_bytes)),
        tmp_bytes=int(_least(settings.tmp_bytes, policy.most_disk_bytes)),
        timeout_s=min(settings.timeout_s, policy.most_timeout_s),
        output_limit_bytes=min(settings.output_limit_bytes, policy.most_output_bytes),
    )


def network_word(network: NetworkRequest | None) -> str:
    """Which of `NETWORKS` a request is."""
    if network is None or network.mode is NetworkMode.NONE:
        return NONE
    return OPEN if network.mode is NetworkMode.OPEN else FILTERED


class Turns:
    """Who runs: so many executions of a project at a time."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._running: Counter[str] = Counter()

    @contextmanager
    def turn(self, project: str) -> Generator[None]:
        """Within, one more runs. Raises: CapacityExceeded at once, where all places are taken: nothing waits here."""
        if self._running[project] >= self._at_once:
            raise CapacityExceeded(f"{self._at_once} executions of this project run already", retry_after_s=1)
        self._running[project] += 1
        try:
            yield
        finally:
            self._running[project] -= 1
            if not self._running[project]:
                del self._running[project]


def _least(wanted: float, most: float | None) -> float:
    return wanted if most is None else min(wanted, most)


def _is_allowed(image: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(image, pattern) for pattern in patterns)
