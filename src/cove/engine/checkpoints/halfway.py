"""The moment in a restore when the namespaces are made and no task of the box is: the runtime's hook waits for us.

The network namespace is new and its loopback interface is down, but tasks that are restored want their connected
sockets back at once. The hook is a shell that hands the runtime's state to this process and waits for its word: a
program of ours in that place would take longer to start than all the rest. Should this process die, the runtime ends
the hook, and with it the restore.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import socket
import struct
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from cove.engine import kernel

_LIMIT_S: Final = 10
_MOST_BYTES: Final = 1024 * 1024
_SCRIPT: Final = 'cat > "$1" && read -r word < "$2" && [ "$word" = ready ]'
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_IFREQ: Final = struct.Struct("16sh22x")


class _State(Struct):
    pid: int


@contextmanager
def hook(directory: Path) -> Generator[dict[str, object]]:
    """The `hooks` of a bundle's configuration, answered during the body. `directory` is root's alone."""
    asks, answers = directory / "asks", directory / "answers"
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as opened:
        fds: list[int] = []
        for path in (asks, answers):
            os.mkfifo(path, 0o600)
            # For both directions: so neither end ever waits for the other to open, nor reads an end while it waits.
            fds.append(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            opened.callback(os.close, fds[-1])

        def asked() -> None:
            loop.remove_reader(fds[0])
            # Its own descriptors: should the body end first, the numbers may be others' by the time that it runs.
            loop.run_in_executor(None, _answer, os.dup(fds[0]), os.dup(fds[1]))

        loop.add_reader(fds[0], asked)
        opened.callback(loop.remove_reader, fds[0])
        words = ["sh", "-c", _SCRIPT, "sh", str(asks), str(answers)]
        yield {
            "createRuntime": [{"path": "/bin/sh", "args": words, "timeout": _LIMIT_S, "env": [f"PATH={os.defpath}"]}]
        }


def _answer(asks: int, answers: int) -> None:
    """Read the runtime's state, do what has to be done, say so; if that fails the shell gets no word, and fails too."""
    try:
        loopback_up(_read_pid(asks))
        os.write(answers, b"ready\n")
    except (OSError, ValueError) as error:
        os.write(answers, f"failed {error!r}\n".encode()[:512])
    finally:
        os.close(asks)
        os.close(answers)


def _read_pid(fd: int) -> int:
    data = b""
    while len(data) < _MOST_BYTES and select.select([fd], [], [], _LIMIT_S)[0]:
        data += os.read(fd, 65536)
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(data, type=_State).pid
    raise ValueError("the runtime tells no state")


def loopback_up(pid: int) -> None:
    """Set up the loopback interface in the network namespace of `pid`. Raises: OSError."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        theirs = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.setns(theirs, kernel.CLONE_NEWNET)
        finally:
            os.close(theirs)
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
                asked = _IFREQ.pack(b"lo", 0)
                flags = _IFREQ.unpack(fcntl.ioctl(link, _SIOCGIFFLAGS, asked))[1]
                fcntl.ioctl(link, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))
        finally:
            kernel.setns(own, kernel.CLONE_NEWNET)
    finally:
        os.close(own)
