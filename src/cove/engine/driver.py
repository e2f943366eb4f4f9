"""The one port between Cove and whatever runs a sandbox. Abstract only.

A *box* is the engine's side of a sandbox: processes, mounts, cgroup, uid range. The driver makes and ends boxes;
everything done *in* one goes through its agent, so this port stays small.

To add a driver: one file in `drivers/` ending in `driver_factory = ...`, one row in `registry.py`, one line in
`tests/conformance/test_drivers.py`, one entry in `docs/reference/drivers.md`. Nothing else may have to change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct, field

from cove.agentlink.client import AgentClient
from cove.engine.checkpoints.model import Checkpoint, CheckpointFacts, Draft
from cove.model.errors import Unsupported
from cove.model.image import ImageOrigin
from cove.model.network import NetworkPolicy, NetworkUse
from cove.model.sandbox import Isolation, Limits, Usage


class BoxImage(Struct, frozen=True, kw_only=True):
    """A prepared image: a read-only directory tree owned by root, and its configuration.

    `digest` names the content; two images with one digest are the same bytes. Commands run as `user`, None: root.
    `kernels`: the languages whose kernels its boxes have running while they wait in the pool.
    """

    name: str
    digest: str
    rootfs: Path
    env: dict[str, str] = field(default_factory=dict[str, str])
    workdir: str = "/"
    user: str | None = None
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    origin: ImageOrigin = ImageOrigin.BUILTIN
    kernels: tuple[str, ...] = ()


class BoxSpec(Struct, frozen=True, kw_only=True):
    """What a driver needs to make a box. `id` is the core id of the sandbox that will own it.

    `origin`: the box starts as that checkpoint was; with `with_memory` its processes go on, else its files are there.
    The driver verifies what it reads of it.
    """

    id: str
    image: BoxImage
    limits: Limits
    hostname: str
    origin: Checkpoint | None = None
    with_memory: bool = False


class Scratch(Struct, frozen=True, kw_only=True):
    """A file system in memory: `size_bytes` count as the box's memory. `programs`: they may be started from it."""

    path: str
    size_bytes: int
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    programs: bool = False


class BoxFacts(Struct, frozen=True, kw_only=True):
    """What must be known to adopt or reap a box after a restart; kept in the box's own directory as JSON.

    `init_pid` and `init_start` (clock ticks, field 22 of /proc/PID/stat) together name the process for good:
    a pid alone can be reused. `listener_pid`: the process that the agent's socket belongs to, 0: its init.
    `address`: its IPv4 address on the sandboxes' network, empty: it never had one. `origin`: the checkpoint that it
    was made of, empty: none. Somebody's files are in such a box: it is never anybody else's. `agent_file`: the name of
    its agent's file where that is not the build: a box made of memory goes on with the agent that it had. `scratch`:
    it has files in memory, which a copy of its layer lacks.
    """

    id: str
    driver: str
    image: str
    image_digest: str
    uid_base: int
    init_pid: int
    init_start: int
    limits: Limits
    isolation: Isolation
    agent_build: str
    created_at: float
    listener_pid: int = 0
    address: str = ""
    origin: str = ""
    agent_file: str = ""
    scratch: bool = False


class Box(ABC):
    """A running box. Made only by a driver. `has_own_files`: what is written in it is not the machine's."""

    facts: BoxFacts
    has_own_files = True

    @property
    @abstractmethod
    def agent(self) -> AgentClient:
        """The connection to its agent. Raises: SandboxGone while there is none."""

    @property
    @abstractmethod
    def isolation(self) -> Isolation:
        """The isolation this box really has."""

    @property
    def code_dir(self) -> str:
        """Where the programs that run code lie inside."""
        return "/run/cove/code"

    @abstractmethod
    async def set_limits(self, limits: Limits) -> None:
        """Apply new limits to the running box. Raises: EngineFailure; Unsupported for a limit it cannot change."""

    @abstractmethod
    async def set_hostname(self, hostname: str) -> None:
        """Set the UTS name. Raises: EngineFailure; Unsupported where `Driver.can_rename` is false."""

    async def add_scratch(self, scratch: Sequence[Scratch], *, read_only: bool) -> None:
        """Give it file systems in memory, over directories that are there; `read_only`: nothing else can be written.

        Before anything of a caller runs in it; repeated with the same paths, their sizes change. What it holds can
        then not be kept on the disk.
        Raises: EngineFailure, Unsupported.
        """
        del scratch, read_only
        raise Unsupported(f"the driver {self.facts.driver} gives its sandboxes no file systems in memory")

    async def set_network(self, policy: NetworkPolicy, links: Mapping[str, str]) -> None:
        """Make `policy` hold, giving it an interface first where it needs one; `links`: addresses by sandbox name.

        Before it returns, nothing that the policy refuses can pass. Raises: EngineFailure, Unsupported.
        """
        del links
        if policy.is_connected:
            raise Unsupported(f"the driver {self.facts.driver} has no network", field="network")

    @property
    def is_joined(self) -> bool:
        """Whether it has an interface already, so that a policy needs no more than its rules."""
        return False

    async def prepare_network(self) -> None:
        """While it waits in the pool: have the interface that a connected sandbox will need, with everything closed.

        Whoever takes it for one without network has it taken away by `set_network`. Raises: EngineFailure, SandboxGone.
        """
        return

    async def network_use(self) -> NetworkUse:
        """Bytes over its interface so far. Never raises."""
        return NetworkUse()

    async def checkpoint(self, draft: Draft, *, with_memory: bool, stay_paused: bool = False) -> CheckpointFacts:
        """Take what the box is at one instant, memory and files, into `draft`; then it goes on as it was before.

        Calls that run in it go on, too. Cancelling or failing leaves the box as it was and the draft to its maker.

        Args:
            draft: where it goes.
            with_memory: False: files only.
            stay_paused: do not let it go on; from the instant that was taken on nothing runs in it.

        Raises: Unsupported (`memory_gaps`, or something in this box that cannot be kept, named), EngineFailure,
        CapacityExceeded (the disk is full), SandboxGone.
        """
        del draft, with_memory, stay_paused
        raise Unsupported(f"the driver {self.facts.driver} cannot keep sandboxes on the disk")

    @abstractmethod
    async def pause(self) -> None:
        """Stop all its processes, memory kept. Idempotent. Raises: EngineFailure."""

    @abstractmethod
    async def resume(self) -> None:
        """Let them go on. Idempotent. Raises: EngineFailure."""

    async def rest(self) -> None:
        """Cost nothing while it waits in the pool. Undone by `wake`; by default there is nothing to do."""
        return

    async def wake(self) -> None:
        """Be ready for calls again. Idempotent."""
        return

    def let_go(self) -> None:
        """Drop the connection to its agent, at the server's end: the box goes on, for the next start to adopt."""
        return

    @property
    def oom_codes(self) -> frozenset[int]:
        """Exit codes that mean a kill for memory where one was counted meanwhile: 128 + SIGKILL, and a driver's own."""
        return frozenset((137,))

    @property
    def obituary(self) -> str:
        """Once it is dead: what is known of why, as one clause for the sandbox's record."""
        return "its first process ended"

    @abstractmethod
    async def usage(self) -> Usage:
        """CPU, memory and disk used so far; zeros where the kernel does not tell. Never raises for a dead box."""

    @abstractmethod
    def oom_kills(self) -> int:
        """How often the kernel killed for memory in this box. On the loop: one read of a cgroup file, ~10 µs."""

    @abstractmethod
    async def wait_dead(self) -> None:
        """Return when its init has ended. Cancelling leaves nothing behind."""

    @abstractmethod
    async def reconnect(self) -> None:
        """Make `agent` a fresh connection if there is none or it is closed.

        Raises: SandboxGone, AgentViolation, AgentTimeout.
        """

    @abstractmethod
    async def destroy(self) -> Usage:
        """Kill everything in it and free all it holds (processes, mounts, cgroups, disk, uid range).

        Idempotent, also after half a create or a crash. Returns the last usage. Cancelling leaves the rest to the next
        start's sweep. Raises: EngineFailure when something could not be freed (it is named in `internal`).
        """


class Driver(ABC):
    """Makes boxes of one isolation tier.

    `can_rename`, `can_change_pids`: whether a running box can get another host name, another limit of processes.
    """

    name: str
    can_rename = True
    can_change_pids = True

    @property
    def isolation(self) -> Isolation | None:
        """What a box that is made now gets; None: not known before."""
        return None

    @property
    def network_gaps(self) -> tuple[str, ...]:
        """Why its boxes cannot be connected here, one sentence each; empty: they can."""
        return (f"the driver {self.name} has no network",)

    @property
    def memory_gaps(self) -> tuple[str, ...]:
        """Why the memory of its boxes cannot be kept on the disk here, one sentence each; empty: it can."""
        return (f"the driver {self.name} cannot keep memory on the disk",)

    def origin_gaps(self, origin: Checkpoint) -> tuple[str, ...]:
        """Why no box can be made here of this checkpoint with its memory, one sentence each (versions, kernel, CPU)."""
        del origin
        return self.memory_gaps

    @abstractmethod
    async def requirements(self) -> tuple[str, ...]:
        """What this machine lacks for this driver, one sentence each; empty: usable."""

    @abstractmethod
    async def create(self, spec: BoxSpec) -> Box:
        """A box whose agent answers. On failure or cancellation nothing is left.

        One made with memory has no network until `Box.set_network`, and its agent wants `revive` in place of `claim`.
        Raises: EngineFailure (a damaged checkpoint, too: named), Unsupported.
        """

    @abstractmethod
    async def adopt(self, facts: BoxFacts) -> Box:
        """Take over a box that outlived the server, perhaps without its agent until `Box.reconnect`.

        Raises: SandboxGone if it is dead, AgentViolation, AgentTimeout.
        """

    @abstractmethod
    async def remains(self) -> list[BoxFacts]:
        """The boxes of this driver and instance that exist, dead or alive (read from their directories)."""

    @abstractmethod
    async def reap(self, facts: BoxFacts | None = None) -> None:
        """Free what a dead or unwanted box left; None: everything of ours that belongs to no known box."""
