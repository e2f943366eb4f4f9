"""Runs a program on a machine that lacks something: `lacking.py WHAT[,WHAT] PROGRAM ARGUMENT...`.

What is taken away is really gone for the program and all its children: `userns` and `idmap` by a seccomp filter that
answers as an older or closed kernel does, `sys_admin` by dropping the capability from the bounding set.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

_NR = {
    "x86_64": {"clone": 56, "unshare": 272, "clone3": 435, "mount_setattr": 442},
    "aarch64": {"clone": 220, "unshare": 97, "clone3": 435, "mount_setattr": 442},
}[platform.machine()]
_CLONE_NEWUSER = 0x10000000
_LD_NR, _LD_ARG0, _JEQ, _JSET, _RET = 0x20, 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_PR_SET_SECCOMP, _FILTER, _PR_CAPBSET_DROP, _CAP_SYS_ADMIN = 22, 2, 24, 21

Row = tuple[int, int, int, int]


def flag_refused(call: str) -> list[Row]:
    """`call` with CLONE_NEWUSER in its first argument: EPERM."""
    return [
        (_LD_NR, 0, 0, 0),
        (_JEQ, 0, 3, _NR[call]),
        (_LD_ARG0, 0, 0, 16),
        (_JSET, 0, 1, _CLONE_NEWUSER),
        (_RET, 0, 0, _ERRNO | errno.EPERM),
    ]


def unknown(call: str) -> list[Row]:
    """`call`: ENOSYS, as on a kernel that does not know it."""
    return [(_LD_NR, 0, 0, 0), (_JEQ, 0, 1, _NR[call]), (_RET, 0, 0, _ERRNO | errno.ENOSYS)]


FILTERS = {
    "userns": [*flag_refused("unshare"), *flag_refused("clone"), *unknown("clone3")],
    "idmap": unknown("mount_setattr"),
}


def install(rows: list[Row]) -> None:
    rows = [*rows, (_RET, 0, 0, _ALLOW)]
    code = b"".join(struct.pack("HBBI", *row) for row in rows)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxQ", len(rows), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "the filter was refused")


def main() -> None:
    for what in sys.argv[1].split(","):
        if what == "sys_admin":
            ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_SYS_ADMIN, 0, 0, 0)
        else:
            install(FILTERS[what])
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - to become the program is the point


if __name__ == "__main__":
    main()
