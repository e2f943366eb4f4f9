"""The moment in a restore when the namespaces are made and no task of the box is: the runtime's hook waits for us.

The network namespace is new, its loopback interface is down and it has no route, but tasks that are restored want
their sockets back at once, with the addresses that these had. The hook is a shell that hands the runtime's state to
this process and waits for its word: a program of ours in that place would take longer to start than all the rest.
Should this process die, the runtime ends the hook, and with it the restore.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from cove.engine import kernel
from cove.engine.network.rtnetlink import RtNetlink, local_route, set_up

_LIMIT_S: Final = 10
_MOST_BYTES: Final = 1024 * 1024
_SCRIPT: Final = 'cat > "$1" && read -r word < "$2" && [ "$word" = ready ]'
_LOOPBACK: Final = 1
"""The number of that interface in any network namespace."""

_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_NO_SUCH_FAMILY: Final = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EACCES, errno.ENODEV)
"""IPv6 is switched off here."""


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
        prepare_network(_read_pid(asks))
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


def prepare_network(pid: int) -> None:
    """Let sockets be restored in the network namespace of `pid`: with loopback up, and every address there for now.

    A socket may be bound to the address that the box had, or connected (UDP) to one outside; without a route either
    would fail, and the restore with it. Nothing can leave: there is no other interface. Raises: OSError.
    """

    def work(link: RtNetlink) -> None:
        link.change(
            set_up(_LOOPBACK), *(local_route(_LOOPBACK, family) for family in _FAMILIES), ignore=_NO_SUCH_FAMILY
        )

    _within(pid, work)


def settle_network(pid: int) -> None:
    """Take the addresses away again, once the tasks are there. Raises: OSError."""

    def work(link: RtNetlink) -> None:
        routes = (local_route(_LOOPBACK, family, is_there=False) for family in _FAMILIES)
        link.change(*routes, ignore=(*_NO_SUCH_FAMILY, errno.ESRCH))

    _within(pid, work)


def _within(pid: int, work: Callable[[RtNetlink], None]) -> None:
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        theirs = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.setns(theirs, kernel.CLONE_NEWNET)
        finally:
            os.close(theirs)
        try:
            with RtNetlink() as link:
                work(link)
        finally:
            kernel.setns(own, kernel.CLONE_NEWNET)
    finally:
        os.close(own)
