"""From criu's log to a sentence for the sandbox's owner: what in it cannot be kept. Pure.

The log holds names that the sandbox chose, so nothing of it is ever shown; only the sentences of this page are.
"""

from __future__ import annotations

import re
from typing import Final

from cove.model.errors import CapacityExceeded, CoveError, EngineFailure, Unsupported

_UNKEPT: Final = (
    (r"io_uring|\[io_uring\]", "it uses io_uring"),
    (r"inotify|fanotify|irmap|fsnotify", "a program watches files that cannot be found again (inotify)"),
    (r"packet socket|Unknown socket family 17|family 17|SOCK_PACKET", "a program has a packet socket open"),
    (r"xdp|bpf", "a program has BPF objects open"),
    (r"netlink.*(queue|pending)|Netlink socket has data", "a netlink socket has answers that were not read"),
    (r"Unseizable non-zombie|already traced", "a program is traced by another (a debugger, strace)"),
    (r"ctty inheritance", "a program in a terminal has opened /dev/tty"),
    (r"Can't dump ghost file|ghost file .* too big|ghost-limit", "a program has a removed file of over 512 MiB open"),
    (r"external (unix )?socket|unix.*(external|peer)", "a program is connected to something outside the sandbox"),
    (r"nested (pid|user|mount|net|ipc|uts|cgroup|time)|Nested", "a program has namespaces of its own"),
    (r"userfaultfd|uffd", "a program uses userfaultfd"),
    (r"uprobes", "a program is watched by uprobes"),
    (r"perf_event", "a program has performance counters open"),
    (r"mq_|mqueue|msgqueue", "a program has a POSIX message queue open"),
    (r"Unsupported socket|Unknown socket|proto .* unsupported", "a program has a socket of a kind that cannot be kept"),
    (r"Can't dump .*fd|unsupported file|Unknown fd|anon_inode", "a program has something open that cannot be kept"),
    (r"sysvipc|SysV", "a System V object cannot be kept"),
    (r"seccomp.*(mode|filter).*(dump|unsupported)|notifier", "a program has a system-call filter that cannot be kept"),
    (r"vma|VMA.*unsupported|Unsupported mapping|device mapping", "a program has memory mapped that cannot be kept"),
)  # fmt: skip

_FULL: Final = re.compile(r"No space left on device|Disk quota exceeded|ENOSPC|EDQUOT")
_GONE: Final = re.compile(r"no such process|Can't (seize|find) .*task|No such process", re.IGNORECASE)
_ERROR: Final = re.compile(r"^(?:\(\d+\.\d+\)\s+)?(?:pie: )?(?:\d+: )?Error (.*)$", re.MULTILINE)
_NOISE: Final = "Can't setup RLIMIT_NOFILE"
"""criu would like more descriptors for itself than this machine's root may have. It needs them for no box of ours."""

_REFUSED: Final = "Dumping FAILED"
"""criu itself gave up and put everything back, for a reason that this page does not know."""

_PASSING: Final = re.compile(r"Timeout reached")
_KEPT_FOR_US: Final = 4000


def unkept(clause: str, internal: str = "") -> Unsupported:
    """The error for something in the box that no checkpoint can hold."""
    return Unsupported(f"the memory of this sandbox cannot be kept now: {clause}", field="memory", internal=internal)


def is_passing(log: str) -> bool:
    """Whether another try may succeed: something in the box could not be stopped in time."""
    return _PASSING.search(log) is not None


def needs_places(log: str) -> bool:
    """Whether criu must be told where the things are that programs watch."""
    return "Can't dump that handle" in log


def why_not_kept(log: str) -> CoveError:
    """The error of a dump whose log this is."""
    internal = _errors(log)
    if _FULL.search(log):
        return CapacityExceeded("the machine's disk is full", internal=internal)
    for pattern, clause in _UNKEPT:
        if re.search(pattern, internal):
            return unkept(clause, internal)
    if _REFUSED in log:
        return unkept("a program has something open that cannot be kept", internal)
    return EngineFailure("the memory of this sandbox could not be kept", internal=internal)


def why_not_restored(log: str) -> CoveError:
    """The error of a restore whose log this is."""
    internal = _errors(log)
    if _FULL.search(log):
        return CapacityExceeded("the sandbox's disk limit, or the machine's disk, is full", internal=internal)
    if re.search(r"Cannot allocate memory|ENOMEM|killed by signal 9", internal):
        return CapacityExceeded("the kept memory is more than the sandbox's limit of memory", internal=internal)
    return EngineFailure("the sandbox's memory could not be restored", internal=internal)


def _errors(log: str) -> str:
    """The lines that are errors, the last ones."""
    lines = dict.fromkeys(found[1] for found in _ERROR.finditer(log) if _NOISE not in found[1])
    return "; ".join(lines)[-_KEPT_FOR_US:] or log[-_KEPT_FOR_US:]
