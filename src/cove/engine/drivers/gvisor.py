"""The strong driver: gVisor (runsc on the systrap platform), a kernel in user space between the box and the host's.

Two processes make a box: the sentry, which is that kernel, and the gofer, which opens files for it. Both run in the
box's own user namespace, as its ids and in its cgroup, each under a system-call filter of its own; our profile holds
inside as well (`--oci-seccomp`). The agent's socket is made by the gofer, so the gofer is who listens as the host sees
it. An idle box still uses some per cent of a core, so the pool keeps its members frozen.

What is different from a container, and stays so:

* What programs keep in the sentry (pipes, files in memory) is the sentry's own memory to the host: a box that passes
  its memory limit with that ends as a whole, and its record says out of memory. A program that passes it with memory of
  its own ends alone, with code 1.
* The sentry counts the processes of each user inside. Many users together can pass the limit of threads that the host
  gives, and then the box ends.
* A checkpoint is what the sentry writes down of itself, pipes, sockets and /tmp included. What it cannot write down it
  names, and the box goes on (`checkpoints/runsc.py`).
* The gofer listens for whoever binds a socket inside, so root inside can put itself in the agent's place. What it then
  answers is, as ever, believed of its own box only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import sys
import time
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from cove.engine import agentsocket, kernel
from cove.engine.checkpoints import processor
from cove.engine.checkpoints.model import Checkpoint, Draft
from cove.engine.checkpoints.runsc import Runsc
from cove.engine.driver import Box, BoxFacts, BoxSpec
from cove.engine.oci import quiet
from cove.engine.oci.box import OciBox
from cove.engine.oci.driver import OciDriver
from cove.engine.oci.ground import Ground, processes_of
from cove.engine.oci.saving import CopyLayer, Saved, StopClock, surely
from cove.model.errors import Conflict, EngineFailure, Unsupported
from cove.model.network import NO_NETWORK

log = logging.getLogger(__name__)

MINIMUM: Final = 20240729
"""The release that was measured and attacked; runsc's versions are dates."""


_UNSEEN: Final = (
    "unshare", "--mount", "--propagation", "private",
    "sh", "-c", 'mount -t tmpfs -o ro cove /proc/sys/net && exec "$@"', "sh",
)  # fmt: skip
"""Starts a program that sees no settings of networks. Of a namespace that has `net.core.rmem_default` runsc thinks that
it is the machine's own, and refuses; newer kernels (6.18 for one) have that setting in every namespace."""


_MARK: Final = "held"
_HELD: Final = "yes"
_PERHAPS: Final = "perhaps"
"""In the box's directory: whether its kernel was told to stand still. The word changes before each call that may or may
not happen (the server can die any time), since gVisor cannot be asked, and ends if it is told to go on once too often.
"""

_BIND_LIMIT_S: Final = 5.0


class _DisplacedError(EngineFailure):
    """The kernel of a box ended while it took up its memory, perhaps because a socket in it missed its address."""


class _State(Struct, rename="camel"):
    """What we need of the state file that runsc writes on the host."""

    gofer_pid: int = 0


class GvisorDriver(OciDriver):
    """Boxes by runsc."""

    name = "gvisor"
    program = "runsc"
    flags = ("--platform=systrap", "--host-uds=all", "--overlay2=none", "--oci-seccomp")
    can_rename = False
    can_change_pids = False
    own_kernel = True

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self._runsc = Runsc(self._runtime.program, self._runtime.state_dir, self.flags)
        self._displaced: set[str] = set()

    async def _start(self, spec: BoxSpec, base: int, pid_file: Path) -> BoxFacts:
        """As any box; with its interface before it starts, closed: it reads what its namespace has once, then."""
        home = pid_file.parent
        if self._network_mode == "none":
            await self._runtime.run(spec.id, home, pid_file, ("--network=none",))
            return self._facts(spec, base, pid_file)
        facts = await self._joined(spec, base, pid_file)
        await self._runtime.start(spec.id, home, ("--network=sandbox",), within=_UNSEEN)
        return facts

    @property
    def _network_mode(self) -> str:
        network = self._ground.network
        return "none" if network is None or network.missing else "sandbox"

    async def _joined(self, spec: BoxSpec, base: int, pid_file: Path) -> BoxFacts:
        """A box that waits for its start, with its interface: known to the rules, so that what tries it is refused."""
        network = self._ground.network
        if network is None:
            raise Unsupported("sandboxes are not connected here", field="network")
        await self._runtime.create(spec.id, pid_file.parent, pid_file, ("--network=sandbox",))
        facts = self._facts(spec, base, pid_file)
        facts = msgspec.structs.replace(facts, address=await network.join(spec.id, facts.init_pid))
        # At once and not left without an answer.
        await network.apply(spec.id, NO_NETWORK, {})
        return facts

    @property
    def memory_gaps(self) -> tuple[str, ...]:
        """None: what cannot be kept is in a box, and is named when it is met."""
        return ()

    def origin_gaps(self, origin: Checkpoint) -> tuple[str, ...]:
        """Another runsc, another kind of processor, an interface that is missing or too much."""
        facts = origin.facts
        if facts.driver != self.name:
            return (f"the memory was kept by the driver {facts.driver}",)
        kept = facts.engine
        gaps: list[str] = []
        if kept.get("runsc") != self._version:
            gaps.append(f"the memory was kept by runsc {kept.get('runsc')}, and this is {self._version}")
        if kept.get("machine") != platform.machine():
            gaps.append(
                f"the memory is of a machine of the kind {kept.get('machine')}, and this is {platform.machine()}"
            )
        elif missing := processor.lacking(kept.get("processor", "")):
            gaps.append(f"this machine's processor lacks {', '.join(missing)}")
        if kept.get("network") != self._network_mode:
            gaps.append("the sandbox had a network interface or had none, and here it is the other way round")
        return tuple(gaps)

    async def create(self, spec: BoxSpec) -> Box:
        """As any; a box whose sockets miss their old address is made again, with that address for them."""
        try:
            return await super().create(spec)
        except _DisplacedError:
            if spec.origin is None or not spec.origin.facts.engine.get("address"):
                raise
            self._displaced.add(spec.id)
            try:
                return await super().create(spec)
            finally:
                self._displaced.discard(spec.id)

    async def _restore(self, spec: BoxSpec, base: int, pid_file: Path) -> BoxFacts:
        """Its addresses are new: listening sockets follow, connected ones end or lead nowhere."""
        origin, home = spec.origin, pid_file.parent
        if origin is None:
            raise EngineFailure("the sandbox could not be made", internal="no origin")
        if spec.limits.pids != origin.facts.limits.pids:
            raise Unsupported("gVisor cannot change the limit of processes of what runs", field="pids")
        if gaps := self.origin_gaps(origin):
            raise Unsupported(gaps[0], field="memory", internal="; ".join(gaps))
        flags = (f"--network={self._network_mode}",)
        if self._network_mode == "none":
            await self._runtime.create(spec.id, home, pid_file, flags)
            facts = self._facts(spec, base, pid_file)
        else:
            facts = await self._joined(spec, base, pid_file)
        if spec.id in self._displaced and self._ground.network is not None:
            await self._ground.network.lend(spec.id, origin.facts.engine["address"])
        try:
            await self._runsc.go_on(spec.id, home, origin.memory, flags=flags, within=_UNSEEN)
        except EngineFailure as error:
            if self._ground.cgroups.of(spec.id).oom_kills():
                raise Conflict("the sandbox's memory does not fit into that limit", field="memory_mib") from error
            if "EOF" in error.internal and spec.id not in self._displaced:
                raise _DisplacedError(error.public, internal=error.internal) from error
            raise
        if spec.hostname != origin.facts.hostname:
            await self._rename(spec.id, home, spec.hostname)
        return facts

    async def _rename(self, box: str, home: Path, hostname: str) -> None:
        """By the agent's own file, which nobody inside can change: only there it gets that capability."""
        await self._runsc.execute(box, home, "CAP_SYS_ADMIN", "/.agent/agent", "hostname", hostname)

    async def keep_memory(self, box: OciBox, draft: Draft, copy_layer: CopyLayer, *, stay_paused: bool) -> Saved:
        """Its kernel stands still from within while it writes itself down, and while the files are copied."""
        home = self._ground.dirs(box.facts.id).home
        goes_on = not (stay_paused or box.group.is_frozen())
        processes = len(processes_of(box.group))
        async with box.quiet(stay_quiet=stay_paused):
            clock = StopClock()
            await self._hold(box)
            await self._runsc.checkpoint(box.facts.id, home, draft.memory)
            await copy_layer()
            if goes_on:
                await self.let_go_on(box)
            clock.stop()
        return Saved(
            processes=processes,
            stopped_ms=clock.stopped_ms,
            memory_bytes=sum(file.stat().st_size for file in draft.memory.iterdir()),
            engine={
                "runsc": self._version,
                "machine": platform.machine(),
                "processor": processor.features(),
                "network": "sandbox" if box.facts.address else "none",
                "address": box.facts.address,
            },
        )

    def _mark(self, box: OciBox) -> Path:
        return self._ground.dirs(box.facts.id).home / _MARK

    async def _hold(self, box: OciBox) -> None:
        """Let its kernel stand still, if it does not. Cancelling waits until that is certain."""
        mark = self._mark(box)
        if mark.exists():
            return

        async def hold() -> None:
            mark.write_text(_PERHAPS)
            await self._runsc.pause(box.facts.id)
            mark.write_text(_HELD)

        await surely(hold())

    async def let_go_on(self, box: OciBox) -> None:
        """Its kernel, where that stands still."""
        mark = self._mark(box)
        try:
            word = mark.read_text()
        except FileNotFoundError:
            return
        if word == _HELD or not await self._binds(box):
            mark.write_text(_PERHAPS)
            await self._runsc.resume(box.facts.id)
        mark.unlink(missing_ok=True)

    async def _binds(self, box: OciBox) -> bool:
        """Whether its agent takes its socket back, as it does at once where it is not held."""
        quiet.withdraw(box.socket_dir)
        box.was_quiet = True
        deadline = time.monotonic() + _BIND_LIMIT_S
        while time.monotonic() < deadline:
            if agentsocket.is_bound(box.socket_dir):
                return True
            await asyncio.sleep(0.01)
        return False

    def _version_gaps(self, version: str) -> tuple[str, ...]:
        if release_of(version) >= MINIMUM:
            return ()
        return (f"runsc {version} is older than release {MINIMUM}: run `cove setup`",)

    def _completed(self, facts: BoxFacts) -> BoxFacts:
        _prefer_programs_for_oom(facts.init_pid)
        for path in self._ground.runtime_state(self.name).glob(f"{facts.id}_*.state"):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                gofer = msgspec.json.decode(path.read_bytes(), type=_State).gofer_pid
                return msgspec.structs.replace(facts, listener_pid=gofer)
        return facts


def _prefer_programs_for_oom(sentry: int) -> None:
    """Let the kernel take a program before the sentry, whose death is the box's.

    Each address space inside is a process of the host, forked from the sentry's first child, which is nobody's: what
    that one has, all later ones have. A failure only loses the preference.
    """
    with contextlib.suppress(OSError, ValueError):
        tasks = Path(f"/proc/{sentry}/task").iterdir()
        children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        first = min(children, key=lambda pid: kernel.process_start(pid) or sys.maxsize)
        Path(f"/proc/{first}/oom_score_adj").write_text("1000")


def release_of(version: str) -> int:
    """The date in a version of runsc (`release-20240729.0`, Debian's `0.0~20240729.0`); 0: none."""
    digits = "".join(c if c.isdigit() else " " for c in version).split()
    return max((int(word) for word in digits if len(word) == 8), default=0)  # noqa: PLR2004 - yyyymmdd


driver_factory = GvisorDriver
