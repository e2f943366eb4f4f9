"""Network namespaces of a test: made without a name, kept by a descriptor of this process, gone with it.

Nothing is left on the machine when a test process is killed, and no mount appears that a leak test could count.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_NEW_NETWORK = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


def in_own_thread(work: Callable[[], T]) -> T:
    """Do `work` in a thread that nothing else uses: it may enter a namespace and never come back."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - it is raised again where it belongs
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _call(name: str, *arguments: int) -> None:
    if getattr(_LIBC, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


class Namespace:
    """An empty network namespace with its loopback up. `path` can be given to another process while this one lives."""

    def __init__(self) -> None:
        self.fd = in_own_thread(self._make)
        self.ip("link set lo up")
        self.sysctl("ipv4/ip_forward", "0")  # it begins as the machine is, where another test's server may forward now

    @staticmethod
    def _make() -> int:
        _call("unshare", _NEW_NETWORK)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)

    def run(self, work: Callable[[], T]) -> T:
        """Do `work` inside, sockets that it opens stay there."""

        def inside() -> T:
            _call("setns", self.fd, _NEW_NETWORK)
            return work()

        return in_own_thread(inside)

    def command(self, *argv: str, stdin: str = "", timeout_s: float = 20.0) -> str:
        """Run a program inside; its output. Raises: AssertionError where it fails."""
        done = self.run(
            lambda: subprocess.run(
                argv, input=stdin, capture_output=True, text=True, check=False, timeout=timeout_s, close_fds=True
            )
        )
        assert done.returncode == 0, f"{argv}: {done.stderr.strip()}"
        return done.stdout

    def ip(self, *lines: str) -> None:
        """Lines of `ip -batch`, one program for all."""
        self.command("ip", "-batch", "-", stdin="\n".join(lines) + "\n")

    def sysctl(self, name: str, value: str) -> None:
        """Set a switch of this namespace, named as its path below /proc/sys/net."""
        self.run(lambda: Path("/proc/sys/net", name).write_text(value))

    def socket(self, family: int, kind: int, proto: int = 0) -> socket.socket:
        """A socket that lives inside."""
        return self.run(lambda: socket.socket(family, kind, proto))

    def listener(self, address: str, port: int, backlog: int = 512) -> socket.socket:
        """A TCP listener inside."""
        made = self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen(backlog)
        made.setblocking(False)
        return made

    def datagrams(self, address: str, port: int) -> socket.socket:
        """A bound UDP socket inside."""
        made = self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.setblocking(False)
        return made


def wire(near: Namespace, near_name: str, far: Namespace, far_name: str) -> None:
    """A veth pair between two namespaces, both ends up."""
    near.ip(f"link add {near_name} type veth peer name {far_name} netns {far.path}", f"link set {near_name} up")
    far.ip(f"link set {far_name} up")
