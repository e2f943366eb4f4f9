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
* The gofer listens for whoever binds a socket inside, so root inside can put itself in the agent's place. What it then
  answers is, as ever, believed of its own box only.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from cove.engine import kernel
from cove.engine.driver import BoxFacts, BoxSpec
from cove.engine.oci.driver import OciDriver
from cove.model.network import NO_NETWORK

MINIMUM: Final = 20240729
"""The release that was measured and attacked; runsc's versions are dates."""


_UNSEEN: Final = (
    "unshare", "--mount", "--propagation", "private",
    "sh", "-c", 'mount -t tmpfs -o ro cove /proc/sys/net && exec "$@"', "sh",
)  # fmt: skip
"""Starts a program that sees no settings of networks. Of a namespace that has `net.core.rmem_default` runsc thinks that
it is the machine's own, and refuses; newer kernels (6.18 for one) have that setting in every namespace."""


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

    async def _start(self, spec: BoxSpec, base: int, pid_file: Path) -> BoxFacts:
        """As any box; with its interface before it starts, closed: it reads what its namespace has once, then."""
        network, home = self._ground.network, pid_file.parent
        if network is None or network.missing:
            await self._runtime.run(spec.id, home, pid_file, ("--network=none",))
            return self._facts(spec, base, pid_file)
        flags = ("--network=sandbox",)
        await self._runtime.create(spec.id, home, pid_file, flags)
        facts = self._facts(spec, base, pid_file)
        facts = msgspec.structs.replace(facts, address=await network.join(spec.id, facts.init_pid))
        # Known to the rules, so that what tries the interface is refused at once and not left without an answer.
        await network.apply(spec.id, NO_NETWORK, {})
        await self._runtime.start(spec.id, home, flags, within=_UNSEEN)
        return facts

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
