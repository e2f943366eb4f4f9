"""What every system call must answer under the profile `cove-strict-1`: written apart from it, and compared with it.

Three kinds, together every name of `numbers.py`: `REFUSED` (EPERM before the kernel looks), `ALLOWED` (reaches
the kernel) and the calls whose arguments decide, each with its own (`cases`). A call that is added to the profile alone
fails `tests/unit/engine/test_seccomp.py`, and so does one that is added here alone.
"""

# ruff: noqa: SIM905 - names read as words
from __future__ import annotations

from typing import Final

from msgspec import Struct

REFUSED: Final = {
    "namespaces": """
unshare setns
""".split(),
    "mounts": """
mount umount2 pivot_root fsopen fsconfig fsmount fspick open_tree open_tree_attr move_mount mount_setattr
statmount listmount listns
""".split(),
    "kernel code": """
init_module finit_module delete_module create_module query_module get_kernel_syms kexec_load kexec_file_load
bpf perf_event_open
""".split(),
    "keys": """
add_key request_key keyctl
""".split(),
    "machine": """
reboot swapon swapoff quotactl quotactl_fd syslog acct settimeofday clock_settime clock_adjtime adjtimex
sethostname setdomainname iopl ioperm vhangup
""".split(),
    "recent escapes": """
io_uring_setup io_uring_enter io_uring_register userfaultfd open_by_handle_at name_to_handle_at fanotify_init
fanotify_mark pidfd_getfd kcmp memfd_secret
""".split(),
    "side channels and rarities": """
cachestat file_getattr file_setattr lsm_get_self_attr lsm_set_self_attr lsm_list_modules map_shadow_stack
migrate_pages move_pages modify_ldt lookup_dcookie uselib ustat sysfs
""".split(),
    "never implemented": """
_sysctl afs_syscall getpmsg putpmsg nfsservctl security tuxcall vserver
""".split(),
}
"""By what the calls would touch."""

ALLOWED: Final = """
accept accept4 access alarm arch_prctl bind brk capget capset chdir chmod chown chroot clock_getres clock_gettime
clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl
epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group
faccessat faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr
flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv
futex_wake futimesat get_mempolicy get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid geteuid
getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid
getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch
inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_submit
ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link
linkat listen listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise mbind membarrier
memfd_create mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open
mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap
nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free
pkey_mprotect poll ppoll prctl pread64 preadv preadv2 process_madvise process_mrelease process_vm_readv
process_vm_writev pselect6 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg
recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction
rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select
semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto set_mempolicy set_mempolicy_home_node set_robust_list
set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid
setresuid setreuid setsid setsockopt setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack
signalfd signalfd4 splice stat statfs statx symlink symlinkat sync sync_file_range syncfs sysinfo tee
tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime
timerfd_settime times tkill truncate umask uname unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid
write writev
""".split()
"""They reach the kernel, whatever it then answers."""

UNFILTERED: Final = ("uretprobe", "uprobe")
"""The kernel hides them from filters (since 6.14) and takes them from the trampolines of its own probes alone."""

NEWER: Final = 466
"""Above the newest call of the profile runc answers ENOSYS where the profile says EPERM, as an old kernel would."""

UNKNOWN_TO_GVISOR: Final = frozenset(
    """
sched_setparam sched_rr_get_interval ioprio_set ioprio_get openat2 process_madvise landlock_create_ruleset
landlock_add_rule landlock_restrict_self process_mrelease futex_waitv futex_wake futex_wait futex_requeue
set_mempolicy_home_node fchmodat2 mseal setxattrat getxattrat listxattrat removexattrat pidfd_open pidfd_send_signal
""".split()
)
"""Allowed by the profile, and refused where runsc knows no such name (measured 2026-11-21)."""


class ByArgument(Struct, frozen=True):
    """One call whose arguments decide. A text in `arguments` stands for a buffer of 64 zero bytes.

    `answer`: the errno that must come back, 0: the call must not be refused (EPERM) and need not succeed.
    """

    call: str
    arguments: tuple[int | str, ...]
    answer: int
    what: str


_EPERM: Final = 1
_EINVAL: Final = 22
_ENOSYS: Final = 38
_EPROTONOSUPPORT: Final = 93
_HIGH: Final = 1 << 32
"""Set in a register of which the kernel reads 32 bits: a filter that compares 64 would be passed by."""
_SIGCHLD: Final = 17
_NAMESPACES: Final = {
    "mount": 0x20000,
    "cgroup": 0x2000000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "network": 0x40000000,
}
_NETLINK: Final = 16
_FAMILIES: Final = {"unix": 1, "inet": 2, "inet6": 10}
_OPEN_PROTOCOLS: Final = {"route": 0}
_AUDIT: Final = 9
"""Refused as by a kernel that lacks it, because useradd gives up at EPERM."""
_ALL_FAMILIES: Final = 46  # AF_MAX
_ALL_PROTOCOLS: Final = 24  # of netlink: include/uapi/linux/netlink.h goes to 22
_TIOCSTI: Final = 0x5412
_TIOCLINUX: Final = 0x541C
_CORE: Final = 4
_RESOURCES: Final = 16


def cases(*, own_kernel: bool = False) -> list[ByArgument]:
    """Every case by argument; `own_kernel`: as inside gVisor (`seccomp.profile`)."""
    found = [
        ByArgument("clone3", ("buffer", 64), _ENOSYS, "clone3, whose flags lie in memory"),
        ByArgument("personality", (0xFFFFFFFF,), 0, "personality, reading"),
        ByArgument("personality", (0,), 0, "personality, the default"),
        ByArgument("personality", (0x40000,), _EPERM, "personality without randomised addresses"),
        ByArgument("personality", (0x8,), _EPERM, "personality of 32 bits"),
        ByArgument("personality", (_HIGH | 0x40000,), _EPERM, "personality, high bits set"),
        ByArgument("ioctl", (-1, _TIOCSTI, "buffer"), _EPERM, "ioctl TIOCSTI"),
        ByArgument("ioctl", (-1, _TIOCLINUX, "buffer"), _EPERM, "ioctl TIOCLINUX"),
        ByArgument("ioctl", (-1, _HIGH | _TIOCSTI, "buffer"), _EPERM, "ioctl TIOCSTI, high bits set"),
        ByArgument("ioctl", (-1, _HIGH | _TIOCLINUX, "buffer"), _EPERM, "ioctl TIOCLINUX, high bits set"),
    ]
    found += [
        ByArgument("clone", (flag | _SIGCHLD, 0, 0, 0, 0), _EPERM, f"clone into a new {name} namespace")
        for name, flag in _NAMESPACES.items()
    ]
    # Every neighbour of the two refused requests by one bit, and what terminals, sockets and files ask for.
    near = {request ^ (1 << bit) for request in (_TIOCSTI, _TIOCLINUX) for bit in range(32)} - {_TIOCSTI, _TIOCLINUX}
    for request in sorted(near | {0x5401, 0x5413, 0x5414, 0x540E, 0x541B, 0x5421, 0x8912, 0x40049409}):
        found.append(ByArgument("ioctl", (-1, request, "buffer"), 0, f"ioctl {request:#x}"))
    for number in range(_ALL_FAMILIES):
        if number != _NETLINK:
            answer = 0 if number in _FAMILIES.values() else _EPERM
            found.append(ByArgument("socket", (number, 1, 0), answer, f"socket of family {number}"))
            found.append(ByArgument("socket", (number | _HIGH, 1, 0), _EPERM, f"family {number}, high bits set"))
            pair = 0 if number == _FAMILIES["unix"] else _EPERM
            found.append(ByArgument("socketpair", (number, 1, 0, "buffer"), pair, f"socket pair of family {number}"))
    found.append(ByArgument("socketpair", (_NETLINK, 3, 16, "buffer"), _EPERM, "socket pair of netlink"))
    for family in ("inet", "inet6"):
        for protocol in (0, 1, 6, 17, 33, 41, 47, 58, 132, 136, 255, 256, 262):
            answer = 0 if protocol in {0, 1, 6, 17, 58} else _EPERM
            given = (_FAMILIES[family], 1, protocol)
            found.append(ByArgument("socket", given, answer, f"{family} socket of protocol {protocol}"))
    found.append(ByArgument("io_setup", (1, "buffer"), 0 if own_kernel else _ENOSYS, "an AIO context"))
    for number in range(_ALL_PROTOCOLS):
        refusal = _EPROTONOSUPPORT if number == _AUDIT else _EPERM
        answer = 0 if number in _OPEN_PROTOCOLS.values() else refusal
        found.append(ByArgument("socket", (_NETLINK, 3, number), answer, f"netlink protocol {number}"))
    for number in range(_RESOURCES):
        what = f"limit of resource {number}"
        found.append(ByArgument("prlimit64", (0, number, 0, "buffer"), 0, f"reading the {what}"))
        refused = _EINVAL if number == _CORE and not own_kernel else 0
        # A pointer into nowhere: what is let through answers EFAULT and changes nothing.
        found.append(ByArgument("prlimit64", (0, number, 8, 0), refused, f"prlimit64, {what}"))
        found.append(ByArgument("setrlimit", (number, 8), refused, f"setrlimit, {what}"))
    if own_kernel:
        return [*found, *(ByArgument(call, (1, 0), _EPERM, f"{call} of process 1") for call in ("kill", "tkill"))]
    high = _CORE | _HIGH
    found.append(ByArgument("prlimit64", (0, high, 8, 0), _EINVAL, "prlimit64 of core dumps, high bits set"))
    found.append(ByArgument("setrlimit", (high, 8), _EINVAL, "setrlimit of core dumps, high bits set"))
    return found
