"""The strict seccomp profile: which system calls a sandbox may make. Pure; the list is ours, in our words.

Allow-list, EPERM for the rest. Everything that makes or enters namespaces, mounts, loads code into the kernel, reaches
other tenants' keys or widens the attack surface of recent escapes is absent: see `docs/security.md`, "System calls".
`clone` is allowed without namespace flags; `clone3` answers ENOSYS so that libc falls back to `clone` (its flags are in
memory, where seccomp cannot look). `socket` is allowed for unix, inet, inet6 and netlink-route families only.

To change the list: edit the groups, run `tests/security/test_seccomp.py` (a table of call -> errno, run inside).
"""

from __future__ import annotations

import platform
from typing import Any, Final

NAME: Final = "cove-strict-1"

_FILES: Final = """
access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr
fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch ioctl lchown lgetxattr link linkat listxattr llistxattr lremovexattr lseek lsetxattr
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
io_pgetevents io_setup io_submit nanosleep poll ppoll pselect6 select setitimer timer_create timer_delete
timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime getrandom
"""
_IPC: Final = """
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop
semtimedop shmat shmctl shmdt shmget
"""
_SOCKETS: Final = """
accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg
sendto setsockopt shutdown socketpair
"""

ALLOWED: Final = tuple(sorted({w for g in (_FILES, _MEMORY, _PROCESSES, _EVENTS, _IPC, _SOCKETS) for w in g.split()}))

_NAMESPACE_FLAGS: Final = 0x7E020000
"""CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET (linux/sched.h)."""

_FAMILIES: Final = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
_AF_NETLINK: Final = 16
_NETLINK_ROUTE: Final = 0
_ENOSYS: Final = 38
_EPERM: Final = 1
_ARCHITECTURES: Final = {"x86_64": ["SCMP_ARCH_X86_64"], "aarch64": ["SCMP_ARCH_AARCH64"]}


_RLIMIT_CORE: Final = 4
_RLIMITS: Final = 16  # RLIM_NLIMITS (asm-generic/resource.h)
_LOW_32: Final = 0xFFFFFFFF
_EINVAL: Final = 22


def _resource_is(index: int, number: int) -> dict[str, Any]:
    """The kernel takes the resource as 32 bits: only the low half of the register counts."""
    return {"index": index, "value": _LOW_32, "valueTwo": number, "op": "SCMP_CMP_MASKED_EQ"}


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


def profile() -> dict[str, Any]:
    """The `linux.seccomp` object of an OCI config (runtime-spec, config-linux, "Seccomp") for this machine.

    Only the native architecture is listed: 32-bit and x32 calls kill with the filter's default for foreign
    architectures (measured: ENOSYS for x32).
    """
    netlink = [
        {"index": 0, "value": _AF_NETLINK, "op": "SCMP_CMP_EQ"},
        {"index": 2, "value": _NETLINK_ROUTE, "op": "SCMP_CMP_EQ"},
    ]
    no_namespaces = [{"index": 0, "value": _NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "architectures": _ARCHITECTURES[platform.machine()],
        "syscalls": [
            {"names": list(ALLOWED), "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": no_namespaces},
            # personality(2): reading it (0xffffffff) and the default (0), which debuggers and shells ask for.
            *_any_of("personality", (0, 0xFFFFFFFF)),
            *_core_limit_stays(),
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": netlink},
            *_any_of("socket", _FAMILIES),
        ],
    }


def _any_of(name: str, values: tuple[int, ...]) -> list[dict[str, Any]]:
    """Allow `name` where its first argument is one of `values`."""
    return [
        {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]}
        for value in values
    ]
