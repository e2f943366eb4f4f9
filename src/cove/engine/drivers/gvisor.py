"""The strong driver: gVisor (runsc on the systrap platform), a kernel in user space between the box and the host's.

Two processes make a box: the sentry, which is that kernel, and the gofer, which opens files for it. Both run in the
box's own user namespace, as its ids and in its cgroup, each under a system-call filter of its own; our profile holds
inside as well (`--oci-seccomp`). The agent's socket is made by the gofer, so the gofer is who listens as the host sees
it. An idle box still uses some per cent of a core, so the pool keeps its members frozen.

What is different from a container, and stays so: the sentry is one process to the host, so a box that passes its memory
limit ends as a whole (reason `oom`), and so does one whose processes pass the limit of threads that the host gives.
"""

from __future__ import annotations

import contextlib
from typing import Final

import msgspec
from msgspec import Struct

from cove.engine.driver import BoxFacts
from cove.engine.oci.driver import OciDriver

MINIMUM: Final = 20240729
"""The release that was measured and attacked; runsc's versions are dates."""


class _State(Struct, rename="camel"):
    """What we need of the state file that runsc writes on the host."""

    gofer_pid: int = 0


class GvisorDriver(OciDriver):
    """Boxes by runsc."""

    name = "gvisor"
    program = "runsc"
    flags = ("--platform=systrap", "--network=none", "--host-uds=all", "--overlay2=none", "--oci-seccomp")
    can_rename = False
    rests_frozen = True

    def _version_gaps(self, version: str) -> tuple[str, ...]:
        if release_of(version) >= MINIMUM:
            return ()
        return (f"runsc {version} is older than release {MINIMUM}: run `cove setup`",)

    def _listener_pid(self, facts: BoxFacts) -> int:
        for path in self._ground.runtime_state(self.name).glob(f"{facts.id}_*.state"):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                return msgspec.json.decode(path.read_bytes(), type=_State).gofer_pid
        return 0


def release_of(version: str) -> int:
    """The date in a version of runsc (`release-20240729.0`, Debian's `0.0~20240729.0`); 0: none."""
    digits = "".join(c if c.isdigit() else " " for c in version).split()
    return max((int(word) for word in digits if len(word) == 8), default=0)  # noqa: PLR2004 - yyyymmdd


driver_factory = GvisorDriver
