"""The OCI configuration of a box. Pure: values in, a JSON-able object out (runtime-spec 1.2, config-linux.md).

Everything a security reviewer asks about stands on this page: namespaces, capabilities, mounts, masked paths, devices,
limits. To change it: here, then `docs/security.md`, then the probes in `tests/security/`.
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from cove.engine import seccomp
from cove.engine.cgroup import CPU_PERIOD_US, OWN_PIDS
from cove.model.sandbox import MIB, Limits

CAPABILITIES: Final = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
)
"""Held in the sandbox's own user namespace only: over its own files, processes and ports, nothing of the host."""

MASKED_PATHS: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/buddyinfo",
    "/proc/bus",
    "/proc/bootconfig",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/consoles",
    "/proc/crypto",
    "/proc/diskstats",
    "/proc/dma",
    "/proc/driver",
    "/proc/dynamic_debug",
    "/proc/fs",
    "/proc/fb",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/irq",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/locks",
    "/proc/mdstat",
    "/proc/misc",
    "/proc/modules",
    "/proc/mtrr",
    "/proc/pagetypeinfo",
    "/proc/partitions",
    "/proc/pressure",
    "/proc/sched_debug",
    "/proc/schedstat",
    "/proc/scsi",
    "/proc/slabinfo",
    "/proc/softirqs",
    "/proc/swaps",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
    "/proc/vmstat",
    "/proc/zoneinfo",
)
"""The host's hardware, its drivers' state and its counters. Of /sys: `_SHOWN`."""

READONLY_PATHS: Final = ("/proc/sys", "/proc/sysrq-trigger")

AGENT_TARGET: Final = "/.agent/agent"
SOCKET_DIR_TARGET: Final = "/run/agent"
SIZE_OF_IDS: Final = 65536
_RLIMIT_SIGPENDING: Final = getattr(resource, "RLIMIT_SIGPENDING", 11)  # not in every build of Python
_RLIMIT_MSGQUEUE: Final = resource.RLIMIT_MSGQUEUE
_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


TASKS_PER_PROCESS: Final = 4
"""What gVisor needs of the host for one process inside: 2 threads (measured), and as many again when all are busy."""


class BundleSpec(Struct, frozen=True, kw_only=True):
    """What differs from box to box. Paths are the host's; `uid_base` is the first id of its range, 0: the host's.

    `own_kernel`: the box gets one (gVisor), which counts its processes, while the host's cgroup sees only its threads.
    `shown`: what the box sees of the host's /sys.
    """

    hostname: str
    rootfs: Path
    agent: Path
    socket_dir: Path
    uid_base: int
    cgroup_path: str
    limits: Limits
    io_device: str | None
    own_kernel: bool = False
    shown: tuple[str, ...] = ()


_SHOWN: Final = ("/sys/devices/system/cpu", "/sys/devices/system/node")
"""All that a container sees of /sys: the processors, which lscpu, Java and PyTorch read."""


def shown_of_sys() -> tuple[str, ...]:
    """What of `_SHOWN` this machine has."""
    return tuple(path for path in _SHOWN if Path(path).is_dir())


def host_limits(limits: Limits, *, own_kernel: bool) -> Limits:
    """What the host's cgroup is to enforce of a box's limits."""
    if not own_kernel:
        return limits
    return msgspec.structs.replace(limits, pids=TASKS_PER_PROCESS * (limits.pids + OWN_PIDS))


def build(spec: BundleSpec) -> dict[str, Any]:
    """The `config.json` object."""
    ids = [{"containerID": 0, "hostID": spec.uid_base, "size": SIZE_OF_IDS}] if spec.uid_base else []
    kinds = ("pid", "ipc", "uts", "mount", "network", "cgroup", *(("user",) if ids else ()))
    return {
        "ociVersion": "1.1.0",
        "hostname": spec.hostname,
        "root": {"path": str(spec.rootfs), "readonly": False},
        "process": _process(spec),
        "mounts": _mounts(spec),
        "linux": {
            "uidMappings": ids,
            "gidMappings": ids,
            "namespaces": [{"type": kind} for kind in kinds],
            "cgroupsPath": spec.cgroup_path,
            "resources": _resources(spec),
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
            "seccomp": seccomp.profile(own_kernel=spec.own_kernel),
            "rootfsPropagation": "private",
        },
    }


def _process(spec: BundleSpec) -> dict[str, Any]:
    capabilities = list(CAPABILITIES)
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0, "umask": 0o022},
        # gVisor's kill of a process group misses what is forked meanwhile; Linux's does not.
        "args": [AGENT_TARGET, *(("-extra-kills", "20") if spec.own_kernel else ())],
        "env": [_PATH],
        "cwd": "/",
        "noNewPrivileges": True,
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        "oomScoreAdj": 0,
        "rlimits": _rlimits(spec),
    }


def _rlimits(spec: BundleSpec) -> list[dict[str, Any]]:
    # Above our own hard limit the runtime's setrlimit fails without CAP_SYS_RESOURCE (measured), so never ask for more.
    # CORE 1: a limit of 0 does not stop a dump into a pipe, which would start the host's handler with a hostile core as
    # its input; exactly 1 does (core(5)). The seccomp profile keeps it there.
    # SIGPENDING and MSGQUEUE are counted for the owner of the user namespace as well, who is the machine's root.
    # NICE and RTPRIO 0: what the server's own service may have of them, no sandbox shall inherit.
    wanted = {
        "NOFILE": (65536, resource.RLIMIT_NOFILE),
        "CORE": (1, resource.RLIMIT_CORE),
        "NICE": (0, resource.RLIMIT_NICE),
        "RTPRIO": (0, resource.RLIMIT_RTPRIO),
        "SIGPENDING": (1024, _RLIMIT_SIGPENDING),
        "MSGQUEUE": (65536, _RLIMIT_MSGQUEUE),
    }
    if spec.own_kernel:
        # Of each user inside. On a shared kernel it is the cgroup that counts: for one user it would count all boxes.
        wanted["NPROC"] = (spec.limits.pids + OWN_PIDS, resource.RLIMIT_NPROC)
    limits: list[dict[str, Any]] = []
    for name, (value, number) in wanted.items():
        hard = resource.getrlimit(number)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        limits.append({"type": f"RLIMIT_{name}", "hard": allowed, "soft": allowed})
    return limits


def _mounts(spec: BundleSpec) -> list[dict[str, Any]]:
    plain = ["nosuid", "noexec", "nodev"]
    # What lies there is charged to the box and freed by no kill: never enough to leave the agent no memory.
    shm = min(64 * MIB, spec.limits.memory_bytes // 2)

    def of(target: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
        return {"destination": target, "type": kind, "source": source, "options": options}

    return [
        of("/proc", "proc", "proc", plain),
        of("/dev", "tmpfs", "tmpfs", ["nosuid", "noexec", "strictatime", "mode=755", "size=64k", "nr_inodes=256"]),
        of(
            "/dev/pts",
            "devpts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5", "max=256"],
        ),
        of("/dev/shm", "tmpfs", "shm", [*plain, "mode=1777", f"size={shm}"]),  # noqa: S108 (inside the sandbox)
        of("/dev/mqueue", "mqueue", "mqueue", plain),
        *_sys(spec, plain),
        of(AGENT_TARGET, "bind", str(spec.agent), ["bind", "ro", "nosuid", "nodev"]),
        of(SOCKET_DIR_TARGET, "bind", str(spec.socket_dir), ["bind", *plain]),
    ]


def _sys(spec: BundleSpec, plain: list[str]) -> list[dict[str, Any]]:
    if spec.own_kernel:
        return [{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*plain, "ro"]}]
    # Not a sysfs: it shows every device of the host, under names that differ by machine, so that no list of paths to
    # mask can be complete. An empty /sys with binds is also quicker to make than a dozen masks.
    empty = {"destination": "/sys", "type": "tmpfs", "source": "sys", "options": [*plain, "ro", "mode=755", "size=4k"]}
    binds = [
        {"destination": path, "type": "bind", "source": path, "options": ["bind", "ro", *plain]} for path in spec.shown
    ]
    return [empty, *binds]


def _resources(spec: BundleSpec) -> dict[str, Any]:
    limits = host_limits(spec.limits, own_kernel=spec.own_kernel)
    resources: dict[str, Any] = {
        "devices": [{"allow": False, "access": "rwm"}],
        "memory": {"limit": limits.memory_bytes, "swap": limits.memory_bytes},
        "cpu": {"quota": int(limits.cpus * CPU_PERIOD_US), "period": CPU_PERIOD_US},
        "pids": {"limit": limits.pids + OWN_PIDS},
    }
    if spec.io_device is not None and (limits.io_read_bps or limits.io_write_bps):
        major, minor = (int(n) for n in spec.io_device.split(":"))
        for name, rate in (("Read", limits.io_read_bps), ("Write", limits.io_write_bps)):
            if rate:
                throttle = [{"major": major, "minor": minor, "rate": rate}]
                resources.setdefault("blockIO", {})[f"throttle{name}BpsDevice"] = throttle
    return resources
