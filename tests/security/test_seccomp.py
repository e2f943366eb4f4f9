"""The strict system-call profile, call by call, from inside: a table of call -> errno (0: it reaches the kernel)."""

from __future__ import annotations

import json
import platform

import httpx2
import pytest

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the table has x86_64 numbers"),
]

EPERM, EINVAL, ENOSYS = 1, 22, 38
CLONE_NEWUSER, CLONE_NEWNS, SIGCHLD = 0x10000000, 0x00020000, 17

# name: (number, arguments, expected errno). Arguments are harmless: were the call let through, it would fail otherwise.
DENIED = {
    "mount": (165, (0, 0, 0, 0, 0), EPERM),
    "umount2": (166, (0, 0), EPERM),
    "pivot_root": (155, (0, 0), EPERM),
    "unshare user": (272, (CLONE_NEWUSER,), EPERM),
    "unshare mount": (272, (CLONE_NEWNS,), EPERM),
    "setns": (308, (0, 0), EPERM),
    "clone new user namespace": (56, (CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0), EPERM),
    "clone new mount namespace": (56, (CLONE_NEWNS | SIGCHLD, 0, 0, 0, 0), EPERM),
    "clone3": (435, (0, 0), ENOSYS),
    "open_tree": (428, (-100, 0, 0), EPERM),
    "move_mount": (429, (-1, 0, -1, 0, 0), EPERM),
    "fsopen": (430, (0, 0), EPERM),
    "fsconfig": (431, (-1, 0, 0, 0, 0), EPERM),
    "fsmount": (432, (-1, 0, 0), EPERM),
    "fspick": (433, (-100, 0, 0), EPERM),
    "mount_setattr": (442, (-1, 0, 0, 0, 0), EPERM),
    "statmount": (457, (0, 0, 0, 0), EPERM),
    "listmount": (458, (0, 0, 0, 0), EPERM),
    "open_by_handle_at": (304, (-1, 0, 0), EPERM),
    "name_to_handle_at": (303, (-100, 0, 0, 0, 0), EPERM),
    "bpf": (321, (0, 0, 0), EPERM),
    "perf_event_open": (298, (0, 0, -1, -1, 0), EPERM),
    "userfaultfd": (323, (0,), EPERM),
    "io_uring_setup": (425, (1, 0), EPERM),
    "io_uring_enter": (426, (-1, 0, 0, 0, 0), EPERM),
    "io_uring_register": (427, (-1, 0, 0, 0), EPERM),
    "keyctl": (250, (0, 0, 0, 0, 0), EPERM),
    "add_key": (248, (0, 0, 0, 0, 0), EPERM),
    "request_key": (249, (0, 0, 0, 0), EPERM),
    "init_module": (175, (0, 0, 0), EPERM),
    "finit_module": (313, (-1, 0, 0), EPERM),
    "delete_module": (176, (0, 0), EPERM),
    "kexec_load": (246, (0, 0, 0, 0), EPERM),
    "kexec_file_load": (320, (-1, -1, 0, 0, 0), EPERM),
    "reboot": (169, (0, 0, 0, 0), EPERM),
    "swapon": (167, (0, 0), EPERM),
    "swapoff": (168, (0,), EPERM),
    "quotactl": (179, (0, 0, 0, 0), EPERM),
    "syslog": (103, (0, 0, 0), EPERM),
    "acct": (163, (0,), EPERM),
    "settimeofday": (164, (0, 0), EPERM),
    "clock_settime": (227, (0, 0), EPERM),
    "adjtimex": (159, (0,), EPERM),
    "iopl": (172, (0,), EPERM),
    "ioperm": (173, (0, 0, 0), EPERM),
    "sethostname": (170, (0, 0), EPERM),
    "setdomainname": (171, (0, 0), EPERM),
    "vhangup": (153, (), EPERM),
    "kcmp": (312, (0, 0, 0, 0, 0), EPERM),
    "fanotify_init": (300, (0, 0), EPERM),
    "lookup_dcookie": (212, (0, 0, 0), EPERM),
    "modify_ldt": (154, (0, 0, 0), EPERM),
    "uselib": (134, (0,), EPERM),
    "ustat": (136, (0, 0), EPERM),
    "personality addr-no-randomize": (135, (0x0040000,), EPERM),
    "socket AF_PACKET": (41, (17, 3, 0), EPERM),
    "socket AF_VSOCK": (41, (40, 1, 0), EPERM),
    "socket AF_ALG": (41, (38, 5, 0), EPERM),
    "socket AF_BLUETOOTH": (41, (31, 3, 0), EPERM),
    "socket AF_CAN": (41, (29, 3, 1), EPERM),
    "socket AF_XDP": (41, (44, 3, 0), EPERM),
    "socket netlink netfilter": (41, (16, 3, 12), EPERM),
    "socket netlink audit": (41, (16, 3, 9), EPERM),
    "socket raw": (41, (2, 3, 1), EPERM),
    "setrlimit of core dumps": (160, (4, "buffer"), EINVAL),
    "setrlimit of core dumps, high bits set": (160, (0x100000004, "buffer"), EINVAL),
    "prlimit64 of core dumps": (302, (0, 4, "buffer", 0), EINVAL),
    "prlimit64 of core dumps, high bits set": (302, (0, 0x100000004, "buffer", 0), EINVAL),
}
ALLOWED = {
    "getpid": (39, ()),
    "socket unix": (41, (1, 1, 0)),
    "socket tcp": (41, (2, 1, 0)),
    "socket udp6": (41, (10, 2, 0)),
    "socket netlink route": (41, (16, 3, 0)),
    "personality read": (135, (0xFFFFFFFF,)),
    "memfd_create": (319, ("name", 0)),
    "eventfd2": (290, (0, 0)),
    "inotify_init1": (294, (0,)),
    "getrandom": (318, ("buffer", 1, 0)),
    "prlimit64 read of core dumps": (302, (0, 4, 0, "buffer")),
    "prlimit64 read of open files": (302, (0, 7, 0, "buffer")),
}

PROBE = """
import ctypes, json, sys, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
buffer = ctypes.create_string_buffer(64)
out = {}
for name, (number, args) in json.loads(sys.argv[1]).items():
    ctypes.set_errno(0)
    words = [ctypes.c_long(number)] + [buffer if isinstance(a, str) else ctypes.c_long(a) for a in args]
    result = libc.syscall(*words)
    if name.startswith("clone ") and result == 0:
        os._exit(0)
    out[name] = 0 if result >= 0 else ctypes.get_errno()
print(json.dumps(out))
"""


def probe(client: httpx2.Client, sandbox: str, calls: dict[str, tuple[int, tuple[object, ...]]]) -> dict[str, int]:
    command = ["python3", "-c", PROBE, json.dumps(calls)]
    answer = client.post(f"/sandboxes/{sandbox}/exec", json={"command": command, "timeout_s": 20}).json()
    assert answer["exit_code"] == 0, answer
    return dict(json.loads(answer["stdout"]))


@pytest.fixture(scope="module")
def verdicts(server) -> dict[str, int]:  # type: ignore[no-untyped-def] # noqa: ANN001
    with server.client() as client:
        sandbox = client.post("/sandboxes", json={}).json()["id"]
        found = probe(client, sandbox, {name: call[:2] for name, call in DENIED.items()})
        found |= probe(client, sandbox, dict(ALLOWED))
        client.delete(f"/sandboxes/{sandbox}")
    return found


@pytest.mark.parametrize("name", sorted(DENIED))
def test_call_is_refused(name: str, verdicts: dict[str, int]) -> None:
    assert verdicts[name] == DENIED[name][2]


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_call_that_software_needs_is_allowed(name: str, verdicts: dict[str, int]) -> None:
    assert verdicts[name] == 0
