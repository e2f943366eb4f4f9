"""Network namespaces as threads that live in them: how code of one process works in several networks.

`NetNs.run` runs a short call there; a socket made there belongs to that namespace for good, so it may be used from
anywhere. A thread that entered a namespace does nothing else, ever: it is never given back to a shared pool.

A namespace is kept by a bind of it (`keep`): it outlives the server, with all interfaces and rules in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from msgspec import Struct

from cove.engine import kernel
from cove.model.errors import EngineFailure

T = TypeVar("T")

_OWN: Final = "/proc/thread-self/ns/net"
_CALL_LIMIT_S: Final = 30.0
"""For one call in a namespace: each takes less than a millisecond, so past this the kernel has failed."""


class NetNs:
    """A network namespace, entered by a thread of its own. Close it when all its users have ended.

    `path` None: the namespace that the caller's thread is in.
    """

    def __init__(self, path: Path | None, name: str) -> None:
        fd = os.open(path or _OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.inode = os.fstat(fd).st_ino
            self._executor = ThreadPoolExecutor(1, f"cove-net-{name}", initializer=kernel.setns, initargs=(fd, _KIND))
            # Entered now, so that a refusal is told here and not at the first use.
            self._executor.submit(_nothing).result(_CALL_LIMIT_S)
        except BrokenExecutor as error:
            raise EngineFailure(f"cannot enter the network namespace {name}", internal=str(path)) from error
        finally:
            os.close(fd)

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` there, one call at a time. Cancelling does not stop it. Raises: what it raises, EngineFailure."""
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        try:
            async with asyncio.timeout(_CALL_LIMIT_S):
                return await asyncio.shield(future)
        except TimeoutError as error:
            raise EngineFailure("the machine's network did not answer in time") from error

    def call(self, work: Callable[[], T]) -> T:
        """The same without a loop, blocking."""
        return self._executor.submit(work).result(_CALL_LIMIT_S)

    async def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A non-blocking socket of that namespace. Raises: OSError."""

        def make() -> socket.socket:
            made = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
            made.setblocking(False)
            return made

        return await self.run(make)

    def close(self) -> None:
        """End the thread. The namespace lives on where it is bound or has processes."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class Places(Struct, frozen=True, kw_only=True):
    """The two namespaces of a server's network: where sandboxes' packets pass, and where the world is."""

    router: NetNs
    outside: NetNs


_KIND: Final = kernel.CLONE_NEWNET


def _nothing() -> None:
    return


def keep(path: Path) -> bool:
    """Make a network namespace and bind it at `path`, unless one is bound there. Returns whether it is new.

    Blocks for some milliseconds. Raises: OSError without the right to.
    """
    if kernel.is_namespace_file(path):
        return False
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    problems: list[OSError] = []

    def make() -> None:
        try:
            kernel.unshare(_KIND)
            kernel.mount(_OWN, path, None, kernel.MS_BIND)
        except OSError as error:
            problems.append(error)

    # A thread of its own: it is in the new namespace from then on, and ends there.
    thread = threading.Thread(target=make, name="cove-net-make")
    thread.start()
    thread.join(_CALL_LIMIT_S)
    if problems:
        raise problems[0]
    if not kernel.is_namespace_file(path):
        raise OSError("a network namespace could not be made in time")
    return True


def forget(path: Path) -> None:
    """Unbind the namespace at `path`; with its last process and socket its interfaces and rules go. Idempotent."""
    with contextlib.suppress(OSError):
        kernel.umount(path, kernel.MNT_DETACH)
    with contextlib.suppress(OSError):
        path.unlink()
