"""What the kernel gives: version, rights, cgroups, namespaces, idmapped mounts, seccomp, KVM. Changes nothing."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import resource
import signal
import tempfile
from pathlib import Path
from typing import Final

from cove.engine import kernel
from cove.server.doctor.report import Line, missing, ok, warn
from cove.server.doctor.trial import attempt
from cove.server.setup.settings import SetupSettings

_CGROUPS: Final = Path("/sys/fs/cgroup")
_NEEDED: Final = ("cpu", "memory", "pids")
_CAPABILITIES: Final = {"SYS_ADMIN": 21, "NET_ADMIN": 12, "SYS_CHROOT": 18, "MKNOD": 27, "SETUID": 7, "CHOWN": 0}
_SYS_RESOURCE: Final = 24
_UID_BASE: Final = 0x7FFD0000  # the last range of engine.claims, which it gives out last
_KVM_GET_API_VERSION: Final = 0xAE00
_KVM_API_VERSION: Final = 12  # the only one there ever was since 2007 (api.rst of KVM)
_NR_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_SECCOMP_SET_MODE_FILTER: Final = 1
_OPEN_FILES: Final = 65536
_IDMAP_SINCE: Final = (5, 19)
_SQUOTA_SINCE: Final = (6, 7)


def probe_kernel(_settings: SetupSettings) -> Line:
    """The kernel's version against what its features need."""
    release = platform.release()
    version = kernel_version(release)
    if version < _IDMAP_SINCE:
        return missing(
            "kernel",
            f"Linux {release}",
            cost="no idmapped overlay mounts, on which every sandbox's root stands (needs 5.19)",
            cure="boot a newer kernel (Debian 12 has one); or COVE_DEGRADE=shared (docs/reference/settings.md)",
        )
    if version < _SQUOTA_SINCE:
        return warn(
            "kernel",
            f"Linux {release}",
            cost="no simple quotas of btrfs (needs 6.7): disk limits cost more on deletion",
            cure="apt-get install -t bookworm-backports linux-image-amd64, or Debian 13",
        )
    return ok("kernel", f"Linux {release} {platform.machine()}")


def kernel_version(release: str) -> tuple[int, int]:
    """Major and minor of `uname -r`; (0, 0) when it does not start with two numbers."""
    parts = release.split(".")
    digits = ["".join(c for c in part if c.isdigit()) for part in parts[:2]]
    return (int(digits[0]), int(digits[1])) if len(digits) > 1 and all(digits) else (0, 0)


def probe_rights(_settings: SetupSettings) -> Line:
    """Root, and the capabilities that making sandboxes needs."""
    if os.geteuid() != 0:
        return missing("rights", f"uid {os.geteuid()}", cost="sandboxes are made by root", cure="sudo cove doctor")
    effective = effective_capabilities(Path("/proc/self/status").read_text(encoding="utf-8"))
    lacking = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    if lacking:
        return missing(
            "rights",
            f"root without CAP_{', CAP_'.join(lacking)}",
            cost="no mounts, namespaces or networks for sandboxes",
            cure="start Cove outside the container, or in a privileged one",
        )
    if not effective >> _SYS_RESOURCE & 1:
        return warn(
            "rights",
            "root without CAP_SYS_RESOURCE",
            cost="sandboxes cannot have more open files or other rlimits than Cove itself has",
            cure="give the machine or container CAP_SYS_RESOURCE",
        )
    return ok("rights", "root with all capabilities that Cove uses")


def effective_capabilities(status: str) -> int:
    """The bits of CapEff in the text of /proc/PID/status."""
    lines = (line.split() for line in status.splitlines() if line.startswith("CapEff:"))
    return next((int(words[1], 16) for words in lines), 0)


def probe_open_files(_settings: SetupSettings) -> Line:
    """The limit of open files, of which a sandbox costs the server about four."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    if hard != resource.RLIM_INFINITY and hard < _OPEN_FILES:
        return warn(
            "open files",
            f"at most {shown}",
            cost=f"about {hard // 8} sandboxes at once",
            cure="raise the hard limit: LimitNOFILE= in the unit, or limits.conf",
        )
    return ok("open files", f"at most {shown}")


def probe_cgroups(_settings: SetupSettings) -> Line:
    """Which hierarchy, which controllers, and whether a cgroup can really be made."""
    kind, controllers = cgroup_mode()
    lacking = [name for name in _NEEDED if name not in controllers]
    if lacking:
        return missing(
            "cgroups",
            f"{kind}, without {', '.join(lacking)}",
            cost="no limit on what a sandbox uses",
            cure="boot with cgroup_enable=memory, or let the container's host delegate the controllers",
        )
    tried = attempt(lambda: _make_cgroup(kind))
    if not tried.worked:
        return missing(
            "cgroups",
            f"{kind}, closed: {tried.text}",
            cost="no limit on what a sandbox uses",
            cure="run Cove as root on the host, or with Delegate=yes: cove service install",
        )
    if "io" not in controllers and "blkio" not in controllers:
        return warn("cgroups", f"{kind}, without io", cost="no limit on disk speed", cure="enable the io controller")
    return ok("cgroups", f"{kind} ({', '.join(sorted(controllers))})")


def cgroup_mode() -> tuple[str, set[str]]:
    """`v2`, `v1` or `v1 hybrid` (systemd's word: v1 with an unused v2 beside it), and the controllers it has."""
    controllers_file = _CGROUPS / "cgroup.controllers"
    if controllers_file.exists():
        return "v2", set(controllers_file.read_text(encoding="utf-8").split())
    found = {path.name for path in _CGROUPS.iterdir()} if _CGROUPS.is_dir() else set[str]()
    parts = {part for name in found for part in name.split(",")} - {"unified", "systemd"}
    return ("v1 hybrid" if "unified" in found else "v1"), parts


def _make_cgroup(kind: str) -> str:
    parent = _CGROUPS if kind == "v2" else _CGROUPS / "memory"
    directory = parent / f"cove-doctor-{os.getpid()}"
    directory.mkdir()
    directory.rmdir()
    return ""


def probe_user_namespaces(_settings: SetupSettings) -> Line:
    """A user namespace with a range of ids, as every sandbox has one."""
    tried = attempt(_map_user_namespace)
    if not tried.worked:
        limits = _sysctls("user/max_user_namespaces", "kernel/apparmor_restrict_unprivileged_userns")
        return missing(
            "user namespaces",
            f"{tried.text} ({limits})" if limits else tried.text,
            cost="root in a sandbox would be root of the machine, so Cove starts none",
            cure="sysctl user.max_user_namespaces=15000; or COVE_DEGRADE=host (docs/reference/settings.md)",
        )
    return ok("user namespaces", f"a range of 65536 ids was mapped ({_sysctls('user/max_user_namespaces')})")


def _map_user_namespace() -> str:
    os.close(_userns_fd())
    return ""


def _userns_fd() -> int:
    """A user namespace with ids 0-65535 mapped to our last range, kept by a descriptor."""
    ready_r, ready_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kernel.unshare(kernel.CLONE_NEWUSER)
            os.write(ready_w, b"y")
        except OSError as error:
            os.write(ready_w, bytes([error.errno or errno.EIO]))
        finally:
            _wait_for_the_end()
    answer = os.read(ready_r, 1)
    if answer != b"y":
        raise OSError(answer[0], os.strerror(answer[0]))
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{name}").write_text(f"0 {_UID_BASE} 65536", encoding="ascii")
    fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return fd


def _wait_for_the_end() -> None:
    """Sleep until killed; the end of a child that only holds a namespace."""
    while True:
        signal.pause()


def probe_idmapped_mounts(settings: SetupSettings) -> Line:
    """An idmapped mount of the data directory's file system, and an overlay over it."""
    place = next(path for path in (settings.data_dir, *settings.data_dir.parents) if path.is_dir())
    tried = attempt(lambda: _mount_idmapped(place))
    if not tried.worked:
        return missing(
            "idmapped mounts",
            f"{tried.text} (tried in {place})",
            cost="a sandbox's root cannot be made without copying its whole image",
            cure="a kernel from 5.19 on, and COVE_DATA_DIR on ext4, xfs or btrfs",
        )
    return ok("idmapped mounts", f"an overlay over an idmapped layer was mounted in {place}")


def _mount_idmapped(place: Path) -> str:
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as name:
        top = Path(name)
        for part in ("lower", "mapped", "other", "merged"):
            (top / part).mkdir()
        (top / "lower" / "file").touch()
        users = _userns_fd()
        tree = kernel.open_tree(top / "lower")
        kernel.mount_setattr(tree, attributes=kernel.MOUNT_ATTR_IDMAP | kernel.MOUNT_ATTR_RDONLY, userns_fd=users)
        kernel.move_mount(tree, top / "mapped")
        layers = f"lowerdir={top}/mapped:{top}/other"
        try:
            kernel.mount("overlay", top / "merged", "overlay", kernel.MS_RDONLY, layers)
            owner = (top / "merged" / "file").stat().st_uid
            kernel.umount(top / "merged")
        finally:
            kernel.umount(top / "mapped", kernel.MNT_DETACH)
    if owner != _UID_BASE:
        raise OSError(errno.EINVAL, f"ids are not shifted (owner is {owner})")
    return ""


def probe_seccomp(_settings: SetupSettings) -> Line:
    """Whether the kernel takes seccomp filters."""
    tried = attempt(_try_seccomp)
    if not tried.worked:
        return missing(
            "seccomp",
            tried.text,
            cost="sandboxed code could use every system call, so Cove starts none",
            cure="a kernel with CONFIG_SECCOMP_FILTER, which every distribution's has",
        )
    return ok("seccomp", "filters are accepted")


def _try_seccomp() -> str:
    """Ask for a filter at address 0: EFAULT says that filters are known (seccomp(2)), EINVAL or ENOSYS that not."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    number = _NR_SECCOMP[platform.machine()]
    libc.syscall(ctypes.c_long(number), ctypes.c_long(_SECCOMP_SET_MODE_FILTER), ctypes.c_long(0), None)
    code = ctypes.get_errno()
    if code != errno.EFAULT:
        raise OSError(code, os.strerror(code))
    return ""


def probe_kvm(_settings: SetupSettings) -> Line:
    """Hardware virtualisation, for the isolation tier that is a machine of its own."""
    tried = attempt(_ask_kvm)
    if not tried.worked:
        return warn(
            "KVM",
            f"/dev/kvm: {tried.text}",
            cost="no microVM tier at full speed; containers and gVisor work without it",
            cure="a machine or cloud type with nested virtualisation",
        )
    return ok("KVM", "usable")


def _ask_kvm() -> str:
    fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    version = fcntl.ioctl(fd, _KVM_GET_API_VERSION, 0)
    if version != _KVM_API_VERSION:
        raise OSError(errno.ENOTSUP, f"speaks version {version} of its interface")
    return ""


def _sysctls(*names: str) -> str:
    found = {name.replace("/", "."): Path("/proc/sys", name) for name in names}
    return ", ".join(f"{name}={path.read_text().strip()}" for name, path in found.items() if path.exists())
