"""The OCI configuration of a box. Pure: values in, a JSON-able object out (runtime-spec 1.2, config-linux.md).

Everything a security reviewer asks about stands on this page: namespaces, capabilities, mounts, masked paths, devices,
limits. To change it: here, then `docs/security.md`, then the probes in `tests/security/`.
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any, Final

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
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/diskstats",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/key-users",
    "/proc/latency_stats",
    "/proc/modules",
    "/proc/pagetypeinfo",
    "/proc/partitions",
    "/proc/pressure",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/slabinfo",
    "/proc/swaps",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
    "/proc/zoneinfo",
    "/sys/block",
    "/sys/bus",
    "/sys/class/block",
    "/sys/dev",
    "/sys/devices/virtual/block",
    "/sys/devices/virtual/dmi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs",
    "/sys/kernel",
    "/sys/module",
    "/sys/power",
)
READONLY_PATHS: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

AGENT_TARGET: Final = "/.agent/agent"
SOCKET_DIR_TARGET: Final = "/run/agent"
SIZE_OF_IDS: Final = 65536
_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class BundleSpec(Struct, frozen=True, kw_only=True):
    """What differs from box to box. Paths are the host's; `uid_base` is the first id of its range, 0: the host's."""

    hostname: str
    rootfs: Path
    agent: Path
    socket_dir: Path
    uid_base: int
    cgroup_path: str
    limits: Limits
    io_device: str | None


def build(spec: BundleSpec) -> dict[str, Any]:
    """The `config.json` object."""
    ids = [{"containerID": 0, "hostID": spec.uid_base, "size": SIZE_OF_IDS}] if spec.uid_base else []
    kinds = ("pid", "ipc", "uts", "mount", "network", "cgroup", *(("user",) if ids else ()))
    return {
        "ociVersion": "1.1.0",
        "hostname": spec.hostname,
        "root": {"path": str(spec.rootfs), "readonly": False},
        "process": _process(),
        "mounts": _mounts(spec),
        "linux": {
            "uidMappings": ids,
            "gidMappings": ids,
            "namespaces": [{"type": kind} for kind in kinds],
            "cgroupsPath": spec.cgroup_path,
            "resources": _resources(spec),
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
            "seccomp": seccomp.profile(),
            "rootfsPropagation": "private",
        },
    }


def _process() -> dict[str, Any]:
    capabilities = list(CAPABILITIES)
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0, "umask": 0o022},
        "args": [AGENT_TARGET],
        "env": [_PATH],
        "cwd": "/",
        "noNewPrivileges": True,
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        "oomScoreAdj": 0,
        "rlimits": _rlimits(),
    }


def _rlimits() -> list[dict[str, Any]]:
    # Above our own hard limit the runtime's setrlimit fails without CAP_SYS_RESOURCE (measured), so never ask for more.
    # CORE 1: a limit of 0 does not stop a dump into a pipe, which would start the host's handler with a hostile core as
    # its input; exactly 1 does (core(5)). The seccomp profile keeps it there.
    wanted = {"NOFILE": (65536, resource.RLIMIT_NOFILE), "CORE": (1, resource.RLIMIT_CORE)}
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
        of("/sys", "sysfs", "sysfs", [*plain, "ro"]),
        of(AGENT_TARGET, "bind", str(spec.agent), ["bind", "ro", "nosuid", "nodev"]),
        of(SOCKET_DIR_TARGET, "bind", str(spec.socket_dir), ["bind", *plain]),
    ]


def _resources(spec: BundleSpec) -> dict[str, Any]:
    limits = spec.limits
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
