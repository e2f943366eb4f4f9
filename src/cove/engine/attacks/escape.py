"""Group A: out of the sandbox, onto the host's surface."""

from __future__ import annotations

import hashlib
import os
import socket

from cove.engine.agentbin import agent_path
from cove.engine.attacks.target import Target, attempt, require, shell, text_of
from cove.model.execs import ExecSpec


async def attack_a01_mount_and_pivot(target: Target) -> str:
    """Mounts of every kind, old and new calls; pivot_root; a chroot inside a chroot."""
    async with target.box() as box:
        return await attempt(
            box,
            """
must_fail("mount tmpfs", libc.mount, b"none", b"/mnt", b"tmpfs", 0, None)
must_fail("mount proc", libc.mount, b"proc", b"/mnt", b"proc", 0, None)
must_fail("bind /", libc.mount, b"/", b"/mnt", None, 4096, None)
must_fail("remount / rw", libc.mount, None, b"/", None, 32, None)
must_fail("remount the agent rw", libc.mount, None, b"/.agent/agent", None, 4096 | 32, None)
must_fail("umount /proc", libc.umount2, b"/proc", 2)
must_fail("pivot_root", 155 if X86 else 41, b"/", b"/mnt")
for name, number in (("open_tree", 428), ("move_mount", 429), ("fsopen", 430), ("fsconfig", 431), ("fsmount", 432),
                     ("fspick", 433), ("mount_setattr", 442)):
    must_fail(name, number, -100, b"/", 1, 0, 0)
os.makedirs("/tmp/jail/in", exist_ok=True)
top = os.stat("/").st_ino, os.stat("/").st_dev
fd = os.open("/", os.O_RDONLY)
os.chroot("/tmp/jail/in")
os.fchdir(fd)
for _ in range(64):
    os.chdir("..")
os.chroot(".")
here = os.stat("/").st_ino, os.stat("/").st_dev
# gVisor: the empty root of the sentry's own mount tree.
said("held" if here == top or os.listdir("/") == [] else "BROKEN", "chroot in a chroot", "leads to nothing new")
""",
        )


async def attack_a02_new_namespaces(target: Target) -> str:
    """Unshare and clone with each namespace flag, alone and in chains through a user namespace; clone3."""
    async with target.box() as box:
        return await attempt(
            box,
            """
flags = {"NEWUSER": 0x10000000, "NEWNS": 0x20000, "NEWPID": 0x20000000, "NEWNET": 0x40000000, "NEWIPC": 0x8000000,
         "NEWUTS": 0x4000000, "NEWCGROUP": 0x2000000, "USER|NS": 0x10020000, "USER|NET": 0x50000000}
for name, flag in flags.items():
    must_fail("unshare " + name, libc.unshare, flag)
    ctypes.set_errno(0)
    number = 56 if X86 else 220
    pid = libc.syscall(ctypes.c_long(number), ctypes.c_long(flag | 17), None, None, None, None)
    if pid == 0:
        os._exit(0)
    said("held" if pid == -1 else "BROKEN", "clone " + name, code())
must_fail("clone3", 435, ctypes.create_string_buffer(struct.pack("<11Q", 0x10000000, *[0] * 10)), 88)
""",
        )


async def attack_a03_enter_namespaces_of_others(target: Target) -> str:
    """Setns through /proc/1/ns, /proc/*/ns and a pidfd; joining the host's by any file that leads there."""
    async with target.box() as box:
        return await attempt(
            box,
            """
must_fail("setns pidfd of 1", libc.setns, libc.syscall(ctypes.c_long(434), ctypes.c_long(1), ctypes.c_long(0)), 0x20000)
for kind in ("mnt", "pid", "net", "user", "uts", "ipc", "cgroup"):
    for path in ("/proc/1/ns/" + kind, "/proc/self/ns/" + kind):
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            said("held", path, errno.errorcode.get(error.errno))
            continue
        must_fail("setns " + path, libc.setns, fd, 0)
""",
        )


async def attack_a04_rewrite_the_runtime(target: Target) -> str:
    """/proc/self/exe and /proc/1/exe, the agent's file: write, replace, truncate, rename (CVE-2019-5736)."""
    before = hashlib.sha256(agent_path().read_bytes()).hexdigest()
    async with target.box() as box:
        held = await attempt(
            box,
            """
for path in ("/proc/1/exe", "/.agent/agent"):
    must_not_open(path, os.O_WRONLY, b"x")
    must_not_open(path, os.O_RDWR | os.O_TRUNC, b"x")
must_fail("truncate the agent", libc.truncate, b"/.agent/agent", 0)
must_fail("unlink the agent", libc.unlink, b"/.agent/agent")
must_fail("rename over the agent", libc.rename, b"/etc/passwd", b"/.agent/agent")
must_fail("chmod the agent", libc.chmod, b"/.agent/agent", 0o777)
must_fail("a link to the agent", libc.link, b"/.agent/agent", b"/tmp/agent")
""",
        )
    require(hashlib.sha256(agent_path().read_bytes()).hexdigest() == before, "the agent's file on the host has changed")
    return held + "; the host's copy is unchanged"


async def attack_a05_leaked_descriptors(target: Target) -> str:
    """A walk over /proc/self/fd and every number up to 4096 for something of the host (CVE-2024-21626)."""
    async with target.box() as box:
        return await attempt(
            box,
            """
good = ("pipe:", "socket:", "anon_inode:", "/dev/null", "host:")
for fd in range(4096):
    try:
        info = os.fstat(fd)
    except OSError:
        continue
    try:
        where = os.readlink("/proc/self/fd/%d" % fd)
    except OSError:
        where = "?"
    is_own = fd <= 2 and where.startswith(good)
    said("held" if is_own else "BROKEN", "descriptor %d" % fd, where)
""",
        )


async def attack_a06_a_working_directory_outside(target: Target) -> str:
    """`..` above the root, the working directory of init, openat from every descriptor, chdir through /proc."""
    async with target.box() as box:
        return await attempt(
            box,
            """
top = os.stat("/")
up = os.stat("/" + "../" * 200)
said("held" if (up.st_ino, up.st_dev) == (top.st_ino, top.st_dev) else "BROKEN", "200 times ..", "is the root")
for path in ("/proc/1/cwd", "/proc/1/root"):
    try:
        os.chdir(path)
        here = os.stat(".")
        same = (here.st_ino, here.st_dev) == (top.st_ino, top.st_dev)
        said("held" if same else "BROKEN", "chdir " + path, "is the sandbox's own root" if same else "led elsewhere")
    except OSError as error:
        said("held", "chdir " + path, errno.errorcode.get(error.errno))
""",
        )


async def attack_a07_trace_the_agent(target: Target) -> str:
    """Ptrace attach and seize of pid 1."""
    async with target.box() as box:
        return await attempt(
            box,
            """
must_fail("attach to 1", libc.ptrace, 16, 1, 0, 0)
must_fail("seize 1", libc.ptrace, 0x4206, 1, 0, 0)
""",
        )


async def attack_a08_read_the_agents_memory(target: Target) -> str:
    """process_vm_readv and writev of pid 1, /proc/1/mem, maps, environ; kcmp, process_madvise."""
    async with target.box() as box:
        return await attempt(
            box,
            """
place = ctypes.create_string_buffer(64)
here = ctypes.create_string_buffer(struct.pack("<QQ", ctypes.addressof(place), 64))
there = ctypes.create_string_buffer(struct.pack("<QQ", 0x400000, 64))
must_fail("process_vm_readv", 310 if X86 else 270, 1, here, 1, there, 1, 0)
must_fail("process_vm_writev", 311 if X86 else 271, 1, here, 1, there, 1, 0)
must_fail("kcmp", 312 if X86 else 272, 1, os.getpid(), 0, 0, 0)
for name in ("mem", "stack", "syscall"):
    must_not_open("/proc/1/" + name, os.O_RDONLY)
try:
    names = {line.split("=")[0] for line in open("/proc/1/environ").read().split(chr(0)) if line}
except OSError:
    names = set()
said("held" if names <= {"PATH", "HOME"} else "BROKEN", "the agent's own environment", ",".join(names) or "closed")
""",
        )


async def attack_a09_cgroup_release_agent(target: Target) -> str:
    """Mounting a cgroup hierarchy, and every release_agent or notify_on_release that can be found (CVE-2022-0492)."""
    async with target.box() as box:
        held = await attempt(
            box,
            """
must_fail("mount cgroup", libc.mount, b"cgroup", b"/mnt", b"cgroup", 0, b"memory")
must_fail("mount cgroup2", libc.mount, b"none", b"/mnt", b"cgroup2", 0, None)
found = []
for top in ("/sys", "/proc/1", "/dev", "/run"):
    for folder, folders, files in os.walk(top, onerror=lambda e: None):
        wanted = ("release_agent", "notify_on_release", "cgroup.procs")
        found += [folder + "/" + name for name in files if name in wanted]
        if folder.count("/") > 6:
            folders[:] = []
said("BROKEN" if found else "held", "files of a cgroup", ",".join(found[:3]) or "none")
""",
            40,
        )
        mounts = text_of(await shell(box, "grep -c ' cgroup' /proc/self/mounts || true"))
        require(mounts.strip() == "0", f"cgroup mounts inside: {mounts}")
        return held


SWITCHES = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hotplug",
    "/proc/sys/kernel/poweroff_cmd",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/drop_caches",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sys/fs/suid_dumpable",
    "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/ksm/run",
    "/sys/fs/cgroup/release_agent",
    "/sys/module/kernel/parameters/panic",
    "/sys/power/state",
    "/sys/class/block/vda/uevent",
)


async def attack_a10_kernel_switches(target: Target) -> str:
    """core_pattern, binfmt_misc, modprobe, sysrq, uevent_helper and their like, opened to be written: nothing is."""
    async with target.box() as box:
        return await attempt(box, f"for path in {SWITCHES!r}:\n    must_not_open(path, os.O_WRONLY, b'')\n")


async def attack_a11_make_devices(target: Target) -> str:
    """Mknod of block and character devices, then opening what came of it."""
    async with target.box() as box:
        return await attempt(
            box,
            """
import stat
nodes = {"sda": (stat.S_IFBLK, 8, 0), "vda": (stat.S_IFBLK, 254, 0), "loop0": (stat.S_IFBLK, 7, 0),
         "mem": (stat.S_IFCHR, 1, 1), "kmsg": (stat.S_IFCHR, 1, 11), "kvm": (stat.S_IFCHR, 10, 232),
         "fuse": (stat.S_IFCHR, 10, 229), "tun": (stat.S_IFCHR, 10, 200), "loop-control": (stat.S_IFCHR, 10, 237)}
for name, (kind, major, minor) in nodes.items():
    for place in ("/tmp/", "/dev/", "/dev/shm/"):
        path = place + "node-" + name
        try:
            os.mknod(path, kind | 0o666, os.makedev(major, minor))
        except OSError as error:
            said("held", "mknod " + path, errno.errorcode.get(error.errno))
            continue
        must_not_open(path, os.O_RDONLY)
""",
        )


async def attack_a12_devices_of_the_host(target: Target) -> str:
    """/dev/kmsg, mem, kvm, fuse, tun, disks: whatever is in /dev beyond the harmless ones, opened."""
    async with target.box() as box:
        return await attempt(
            box,
            """
for name in ("kmsg", "mem", "port", "kvm", "fuse", "net/tun", "loop-control", "btrfs-control", "vda", "sda",
             "vhost-net", "vhost-vsock", "userfaultfd", "uinput", "snapshot", "hpet", "autofs", "mapper/control",
             "console"):
    must_not_open("/dev/" + name, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
known = {"full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "fd", "core", "tty",
         "urandom", "zero", "console", "fuse", "net"}  # the last two are gVisor's own, and were tried above
more = sorted(set(os.listdir("/dev")) - known)
said("BROKEN" if more else "held", "other names in /dev", ",".join(more) or "none")
""",
        )


async def attack_a14_sockets_beside_the_network(target: Target) -> str:
    """AF_PACKET, AF_VSOCK, AF_ALG, AF_XDP, Bluetooth, raw sockets, netlink but for routes."""
    async with target.box() as box:
        return await attempt(
            box,
            """
for name, arguments in {"packet": (17, 3, 0), "vsock": (40, 1, 0), "alg": (38, 5, 0), "xdp": (44, 3, 0),
                        "bluetooth": (31, 3, 0), "key": (15, 3, 2), "rds": (21, 5, 0), "can": (29, 3, 1),
                        "tipc": (30, 1, 0),
                        "kcm": (41, 5, 0), "raw icmp": (2, 3, 1), "raw ip": (2, 3, 255), "raw icmp6": (10, 3, 58),
                        "netlink netfilter": (16, 3, 12), "netlink audit": (16, 3, 9), "netlink uevent": (16, 3, 15),
                        "netlink generic": (16, 3, 16), "netlink crypto": (16, 3, 21)}.items():
    must_fail(name, libc.socket, *arguments)
""",
        )


async def attack_a15_more_capabilities(target: Target) -> str:
    """open_by_handle_at, capset above what is held, ambient capabilities, setuid and file capabilities of a program."""
    async with target.box() as box:
        held = await attempt(
            box,
            """
handle = ctypes.create_string_buffer(struct.pack("<Ii", 128, 1) + b"\\x02" + b"\\0" * 127)
must_fail("open_by_handle_at", 304 if X86 else 265, -100, handle, 0)
must_fail("name_to_handle_at", 303 if X86 else 264, -100, b"/", handle, ctypes.byref(ctypes.c_int()), 0)
header = ctypes.create_string_buffer(struct.pack("<Ii", 0x20080522, 0))
everything = ctypes.create_string_buffer(struct.pack("<6I", 0xFFFFFFFF, 0xFFFFFFFF, 0, 0x1FF, 0x1FF, 0))
must_fail("capset all", libc.capset, header, everything)
must_fail("ambient SYS_ADMIN", libc.prctl, 47, 2, 21, 0, 0)
must_fail("no_new_privs off", libc.prctl, 38, 0, 0, 0, 0)
said("held" if libc.prctl(39, 0, 0, 0, 0) == 1 else "BROKEN", "no_new_privs", "is set")
try:
    os.setxattr("/usr/bin/env", "security.capability", struct.pack("<5I", 0x02000001, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0))
    said("held", "setcap", "was written, and must give nothing")
except OSError as error:
    said("held", "setcap", errno.errorcode.get(error.errno))
""",
        )
        await shell(box, "cp /usr/bin/env /tmp/env; chmod 4755 /tmp/env")
        inside = "grep -E 'CapEff|CapPrm|CapBnd' /proc/self/status"
        spec = ExecSpec(argv=("/tmp/env", "sh", "-c", f"id -u; {inside}"), user="65534:65534", timeout_s=20)  # noqa: S108
        text = text_of(await box.agent.exec(spec))
        require(text.startswith("65534\n"), text)
        capabilities = {
            line.split()[1].lstrip("0") for line in text.splitlines() if line.startswith(("CapEff", "CapPrm"))
        }
        require(capabilities == {""}, text)
        bounding = text_of(await shell(box, inside))
        require(bounding.count("00000000000405fb") == 3, bounding)  # noqa: PLR2004 - effective, permitted, bounding
        return held + "; a setuid program gave nothing"


async def attack_a16_terminal_injection(target: Target) -> str:
    """TIOCSTI and TIOCLINUX into the terminal that the command has, and into /dev/tty and /dev/console."""
    async with target.box() as box:
        return await attempt(
            box,
            """
import fcntl
for fd in (0, 1, 2):
    said("BROKEN" if os.isatty(fd) else "held", "descriptor %d is a terminal" % fd, "no")
for path in ("/dev/tty", "/dev/console", "/dev/tty0", "/dev/tty1"):
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        said("held", path, errno.errorcode.get(error.errno))
        continue
    for name, request, argument in (("TIOCSTI", 0x5412, b"x"), ("TIOCLINUX", 0x541C, b"\\x02\\0")):
        try:
            fcntl.ioctl(fd, request, argument)
            said("BROKEN", name + " " + path)
        except OSError as error:
            said("held", name + " " + path, errno.errorcode.get(error.errno))
""",
        )


async def attack_a17_abstract_sockets_of_the_host(target: Target) -> str:
    """A listener of the host on an abstract address, called from inside (CVE-2020-15257)."""
    name = f"cove-attack-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + name)
        listener.listen()
        async with target.box() as box:
            return await attempt(
                box,
                f"""
import socket
link = socket.socket(socket.AF_UNIX)
try:
    link.connect("\\0{name}")
    said("BROKEN", "connected to the host")
except OSError as error:
    said("held", "connect", errno.errorcode.get(error.errno))
names = [line.split()[-1] for line in open("/proc/net/unix") if "@" in line] if os.path.exists("/proc/net/unix") else []
said("BROKEN" if any("{name}" in n for n in names) else "held", "the host's sockets listed", "no")
""",
            )


async def attack_a19_a_core_dump_on_the_host(target: Target) -> str:
    """Raising the limit of core dumps, and a crash: nothing is written and no handler of the host is started."""
    async with target.box() as box:
        return await attempt(
            box,
            """
import resource, signal
for wanted in ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), (1 << 20, 1 << 20)):
    try:
        resource.setrlimit(resource.RLIMIT_CORE, wanted)
        raised = resource.getrlimit(resource.RLIMIT_CORE)[0] not in (0, 1)
        said("BROKEN" if raised else "held", "setrlimit core", "ignored")
    except (OSError, ValueError) as error:
        said("held", "setrlimit core", str(error))
said("held" if resource.getrlimit(resource.RLIMIT_CORE)[0] in (0, 1) else "BROKEN", "the limit of core dumps",
     str(resource.getrlimit(resource.RLIMIT_CORE)))
os.chdir("/tmp")
pid = os.fork()
if pid == 0:
    os.kill(os.getpid(), signal.SIGSEGV)
    os._exit(0)
_, status = os.waitpid(pid, 0)
said("BROKEN" if os.WCOREDUMP(status) else "held", "a crash dumps core", "no")
said("BROKEN" if [n for n in os.listdir("/tmp") if n.startswith("core")] else "held", "a core file", "none")
""",
        )
