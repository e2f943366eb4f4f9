"""Makes a closed world and runs one program in it. A script; standard library only, nothing of Cove.

`enter.py FD`: FD is a stream socket on which the specification comes (4 bytes length, JSON; see `process.Confinement`).
It answers one byte with the listening sockets as SCM_RIGHTS, or closes. The world: network, mount, process, IPC and
host-name namespaces of its own; a root that is a small tmpfs with the given directories bound in, all without devices
and setuid, read-only unless said; no capabilities but those given, none to gain; limits on resources. It ends with the
process that started it.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import stat
import struct
import sys
from typing import Any

CLONE_FLAGS = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000  # mount, UTS, IPC, pid, network
MS_PRIVATE, MS_REC, MS_NOSUID, MS_NODEV, MNT_DETACH = 1 << 18, 16384, 2, 4, 2
NR_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
NR_OPEN_TREE, NR_MOVE_MOUNT, NR_MOUNT_SETATTR = 428, 429, 442
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
CAPABILITIES = 64
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def die_with(parent: int) -> None:
    """Be killed when the parent ends; at once if it has."""
    check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        sys.exit(1)


def read_specification(channel: socket.socket) -> dict[str, Any]:
    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = channel.recv(size - len(data))
            if not more:
                sys.exit(1)
            data += more
        return data

    found: dict[str, Any] = json.loads(exactly(struct.unpack("<I", exactly(4))[0]))
    return found


def open_network(addresses: list[tuple[str, int]]) -> list[socket.socket]:
    """Listening sockets on the loopback of this namespace, which has nothing else."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
    found: list[socket.socket] = []
    for host, port in addresses:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.bind((host, port))
        listener.listen(64)
        found.append(listener)
    return found


def open_tree(path: str, *, writable: bool) -> int:
    """A detached copy of the mount at `path`, without setuid and devices."""
    fd = check(libc.syscall(NR_OPEN_TREE, -100, os.fsencode(path), 1 | os.O_CLOEXEC), f"open_tree {path}")
    attributes = 0x2 | 0x4 | (0 if writable else 0x1)
    value = ctypes.create_string_buffer(struct.pack("=QQQQ", attributes, 0, 0, 0), 32)
    check(libc.syscall(NR_MOUNT_SETATTR, fd, b"", 0x1000, value, 32), "mount_setattr")
    return fd


def make_root(spec: dict[str, Any]) -> None:
    """The new root, with what is bound into it. The old one is gone afterwards."""
    check(libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None), "mount private")
    binds = [(target, open_tree(source, writable=writable)) for source, target, writable in spec["binds"]]
    flags = MS_NOSUID | MS_NODEV
    check(libc.mount(b"cove", b"/tmp", b"tmpfs", ctypes.c_ulong(flags), b"size=64m,mode=0755"), "mount tmpfs")
    os.chdir("/tmp")  # noqa: S108 - in a mount namespace of its own
    for target, fd in binds:
        inside = "." + target
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.makedirs(inside, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(inside), exist_ok=True)
            os.close(os.open(inside, os.O_CREAT | os.O_WRONLY, 0o644))
        check(libc.syscall(NR_MOVE_MOUNT, fd, b"", -100, os.fsencode(inside), 4), "move_mount")
    for path, target in spec["links"].items():
        os.symlink(target, "." + path)
    for path, text in spec["files"].items():
        os.makedirs(os.path.dirname("." + path), exist_ok=True)
        with os.fdopen(os.open("." + path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(text)
    for path in ("tmp", "var/tmp"):
        os.makedirs(path, mode=0o755, exist_ok=True)
    check(libc.syscall(NR_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")


def drop_privileges(kept: list[int]) -> None:
    """No capability but `kept`, in every set, and none to gain."""
    for number in range(CAPABILITIES):
        if number not in kept:
            libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    mask = sum(1 << number for number in kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0), 8)
    data = ctypes.create_string_buffer(struct.pack("=IIIIII", low, low, 0, high, high, 0), 24)
    os.setgroups([])
    check(libc.capset(header, data), "capset")
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def run(spec: dict[str, Any], hold: int) -> None:
    """In the child: process 1 of its namespace."""
    # The parent's number is 0 in here; that it lives shows the pipe it holds.
    check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    os.set_blocking(hold, False)
    try:
        if os.read(hold, 1) == b"":
            os._exit(1)
    except BlockingIOError:
        pass
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")  # before any sandbox, and before the server that may be protected
    make_root(spec)
    for name, value in spec["limits"].items():
        number = getattr(resource, name)
        most = resource.getrlimit(number)[1]
        limit = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(number, (limit, limit))
    os.umask(0o022)
    drop_privileges(spec["capabilities"])
    os.execve(spec["argv"][0], spec["argv"], spec["env"])  # noqa: S606 - no shell is wanted


def main() -> int:
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    spec = read_specification(channel)
    die_with(spec["parent"])
    check(libc.unshare(CLONE_FLAGS), "unshare")
    listeners = open_network(spec["listen"])
    hold_r, hold_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(hold_w)
        try:
            for listener in listeners:
                listener.close()
            run(spec, hold_r)
        except BaseException as error:  # noqa: BLE001 - the outermost frame of this process
            os.write(2, f"confinement failed: {error!r}\n".encode())
        os._exit(126)
    os.close(hold_r)
    socket.send_fds(channel, [b"\x00"], [listener.fileno() for listener in listeners])
    channel.close()
    for listener in listeners:
        listener.close()
    for fd in (0, 1):
        os.close(fd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
