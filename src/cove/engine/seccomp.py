"""The strict seccomp profile: which system calls a sandbox may make. Pure; the list is ours, in our words.

Allow-list, EPERM for the rest. Everything that makes or enters namespaces, mounts, loads code into the kernel, reaches
other tenants' keys or widens the attack surface of recent escapes is absent: see `docs/security.md`, "System calls".
`clone` is allowed without namespace flags; `clone3` answers ENOSYS so that libc falls back to `clone` (its flags are in
memory, where seccomp cannot look). `socket` is allowed for unix, inet, inet6 and netlink-route families only.
`ioctl` is allowed but for two requests that put characters into a terminal: a shell with fewer rights (`su nobody`)
would type with them into that of its caller.

To change the list: edit the groups, then `attacks/expected.py`, which says the same from the other side; they are
compared, and each call is tried inside.
"""

from __future__ import annotations

import platform
from typing import Any, Final

NAME: Final = "cove-strict-1"
NAME_OWN_KERNEL: Final = "cove-strict-1-gvisor"

_FILES: Final = """
access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr
fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch lchown lgetxattr link linkat listxattr llistxattr lremovexattr lseek lsetxattr
lstat mkdir mkdirat mknod mknodat newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev
pwritev2 read readahead readlink readlinkat readv removexattr rename renameat renameat2 rmdir sendfile setxattr splice
stat statfs statx symlink symlinkat sync sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat
utimes vmsplice write writev getxattrat listxattrat removexattrat setxattrat chroot
"""
_MEMORY: Final = """
brk madvise mbind membarrier memfd_create mincore mlock mlock2 mlockall mmap mprotect mremap mseal msync munlock
munlockall munmap pkey_alloc pkey_free pkey_mprotect process_madvise process_mrelease remap_file_pages get_mempolicy
set_mempolicy set_mempolicy_home_node
"""
_PROCESSES: Final = """
arch_prctl capget capset execve execveat exit exit_group fork futex futex_requeue futex_wait futex_waitv futex_wake
get_robust_list get_thread_area getcpu getegid geteuid getgid getgroups getpgid getpgrp getpid getppid getpriority
getresgid getresuid getrlimit getrusage getsid gettid getuid ioprio_get ioprio_set kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self pause pidfd_open pidfd_send_signal prctl process_vm_readv
process_vm_writev ptrace restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity
sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
sched_setscheduler sched_yield seccomp set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid
setgroups setpgid setpriority setregid setresgid setresuid setreuid setsid setuid sigaltstack signalfd
signalfd4 sysinfo tgkill time times tkill uname vfork wait4 waitid
"""
_EVENTS: Final = """
alarm clock_getres clock_gettime clock_nanosleep epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait
epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 getitimer gettimeofday io_cancel io_destroy io_getevents
io_pgetevents io_submit nanosleep poll ppoll pselect6 select setitimer timer_create timer_delete
timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime getrandom
"""
_IPC: Final = """
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop
semtimedop shmat shmctl shmdt shmget
"""
_SOCKETS: Final = """
accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg
sendto setsockopt shutdown
"""

ALLOWED: Final = tuple(sorted({w for g in (_FILES, _MEMORY, _PROCESSES, _EVENTS, _IPC, _SOCKETS) for w in g.split()}))

_NAMESPACE_FLAGS: Final = 0x7E020000
"""CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET (linux/sched.h)."""

_AF_UNIX: Final = 1
_INET: Final = (2, 10)  # AF_INET, AF_INET6
_INET_PROTOCOLS: Final = (0, 1, 6, 17, 58)  # the type's own, ICMP, TCP, UDP, ICMPv6
"""No other: SCTP, DCCP and their like would be loaded into the kernel by the mere asking."""
_AF_NETLINK: Final = 16
_NETLINK_ROUTE: Final = 0
_NETLINK_AUDIT: Final = 9
_ENOSYS: Final = 38
_EPERM: Final = 1
_ARCHITECTURES: Final = {"x86_64": ["SCMP_ARCH_X86_64"], "aarch64": ["SCMP_ARCH_AARCH64"]}


_RLIMIT_CORE: Final = 4
_RLIMITS: Final = 16  # RLIM_NLIMITS (asm-generic/resource.h)
_LOW_32: Final = 0xFFFFFFFF
_EINVAL: Final = 22
_EPROTONOSUPPORT: Final = 93
_TYPING: Final = frozenset((0x5412, 0x541C))
"""TIOCSTI and TIOCLINUX (asm-generic/ioctls.h): characters into a terminal as if its user had typed them."""


def _resource_is(index: int, number: int) -> dict[str, Any]:
    """The kernel takes the resource as 32 bits: only the low half of the register counts."""
    return _masked(index, _LOW_32, number)


def _core_limit_stays() -> list[dict[str, Any]]:
    """Every resource limit may be set but that of core dumps, which may only be read.

    Exactly 1 stops dumps into a pipe of the host (oci/bundle.py). The refusal is EINVAL, because gpg and others end
    themselves when switching dumps off is refused by anything else.
    """
    reads = {"index": 2, "value": 0, "op": "SCMP_CMP_EQ"}
    writes = {"index": 2, "value": 0, "op": "SCMP_CMP_NE"}
    allow, refuse = {"action": "SCMP_ACT_ALLOW"}, {"action": "SCMP_ACT_ERRNO", "errnoRet": _EINVAL}
    rules: list[dict[str, Any]] = [
        {"names": ["prlimit64"], **allow, "args": [_resource_is(1, _RLIMIT_CORE), reads]},
        {"names": ["prlimit64"], **refuse, "args": [_resource_is(1, _RLIMIT_CORE), writes]},
        {"names": ["setrlimit"], **refuse, "args": [_resource_is(0, _RLIMIT_CORE)]},
    ]
    for number in range(_RLIMITS):
        if number != _RLIMIT_CORE:
            rules.append({"names": ["prlimit64"], **allow, "args": [_resource_is(1, number)]})
            rules.append({"names": ["setrlimit"], **allow, "args": [_resource_is(0, number)]})
    return rules


def _requests_but_typing() -> list[dict[str, Any]]:
    """Every ioctl but `_TYPING`, compared as the kernel reads the request: the low 32 bits of the register."""
    return [
        {"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": [_masked(1, mask, value)]}
        for mask, value in _all_but(_TYPING)
    ]


def _masked(index: int, mask: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def _all_but(numbers: frozenset[int]) -> list[tuple[int, int]]:
    """Masks and values that together match every 32-bit number but `numbers`.

    seccomp can compare for "equal under a mask" and not for "unequal under a mask". So the rest is told by its leading
    bits: for each bit, those of `numbers` up to there and then the other bit, where none of them goes that way.
    """
    found: set[tuple[int, int]] = set()
    for bit in range(32):
        taken = {number >> bit for number in numbers}
        found |= {(_LOW_32 >> bit << bit, (side ^ 1) << bit) for side in taken if side ^ 1 not in taken}
    return sorted(found)


def _init_is_safe() -> dict[str, Any]:
    """No signal to process 1: gVisor, unlike Linux, lets root end its init. First in the list, where it wins there."""
    calls = ["kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"]
    return {"names": calls, "action": "SCMP_ACT_ERRNO", "args": [_masked(0, _LOW_32, 1)]}


def profile(*, own_kernel: bool = False) -> dict[str, Any]:
    """The `linux.seccomp` object of an OCI config (runtime-spec, config-linux, "Seccomp") for this machine.

    Only the native architecture is listed: 32-bit and x32 calls kill with the filter's default for foreign
    architectures (measured: ENOSYS for x32).

    `own_kernel`: for the inside of gVisor (`NAME_OWN_KERNEL`), which knows no errno but EPERM. There `clone3` is left
    to a tracer, and without one that is ENOSYS; the limit of core dumps, which it never writes, may be set.
    """
    netlink = [
        {"index": 0, "value": _AF_NETLINK, "op": "SCMP_CMP_EQ"},
        {"index": 2, "value": _NETLINK_ROUTE, "op": "SCMP_CMP_EQ"},
    ]
    no_namespaces = [{"index": 0, "value": _NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]
    # Contexts are counted for the whole machine (fs.aio-max-nr): one sandbox could take them all. gVisor has its own.
    no_aio = {"action": "SCMP_ACT_ALLOW"} if own_kernel else {"action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS}
    no_clone3 = {"action": "SCMP_ACT_TRACE"} if own_kernel else {"action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS}
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "architectures": _ARCHITECTURES[platform.machine()],
        "syscalls": [
            *([_init_is_safe()] if own_kernel else []),
            {"names": list(ALLOWED), "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": no_namespaces},
            # personality(2): reading it (0xffffffff) and the default (0), which debuggers and shells ask for.
            *_any_of("personality", (0, 0xFFFFFFFF)),
            *_requests_but_typing(),
            *([] if own_kernel else _core_limit_stays()),
            *([{"names": ["prlimit64", "setrlimit"], "action": "SCMP_ACT_ALLOW"}] if own_kernel else []),
            {"names": ["clone3"], **no_clone3},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": netlink},
            _no_audit(own_kernel=own_kernel),
            *_any_of("socket", (_AF_UNIX,)),
            *_inet_sockets(),
            # A pair is made of two sockets before the kernel asks whether the family has pairs.
            *_any_of("socketpair", (_AF_UNIX,)),
            {"names": ["io_setup"], **no_aio},
        ],
    }


def _no_audit(*, own_kernel: bool) -> dict[str, Any]:
    """Refuse the audit system with EPROTONOSUPPORT, as a kernel without it does.

    useradd and groupadd, and with them half of all packages' scripts, go on without it then; at EPERM they give up.
    gVisor answers so by itself.
    """
    refusal = {"action": "SCMP_ACT_ERRNO", "errnoRet": _EPROTONOSUPPORT}
    return {
        "names": ["socket"],
        **({"action": "SCMP_ACT_ALLOW"} if own_kernel else refusal),
        "args": [
            {"index": 0, "value": _AF_NETLINK, "op": "SCMP_CMP_EQ"},
            {"index": 2, "value": _NETLINK_AUDIT, "op": "SCMP_CMP_EQ"},
        ],
    }


def _inet_sockets() -> list[dict[str, Any]]:
    return [
        {
            "names": ["socket"],
            "action": "SCMP_ACT_ALLOW",
            "args": [
                {"index": 0, "value": family, "op": "SCMP_CMP_EQ"},
                {"index": 2, "value": protocol, "op": "SCMP_CMP_EQ"},
            ],
        }
        for family in _INET
        for protocol in _INET_PROTOCOLS
    ]


def _any_of(name: str, values: tuple[int, ...]) -> list[dict[str, Any]]:
    """Allow `name` where its first argument is one of `values`."""
    return [
        {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]}
        for value in values
    ]
