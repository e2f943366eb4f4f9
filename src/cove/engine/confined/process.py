"""Starts a program in a world of its own (`enter.py`) and ends it. The server's side; nothing hostile runs here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cove.model.errors import EngineFailure

HERE: Final = Path(__file__).parent
PYTHON: Final = os.path.realpath(sys.executable)
"""The interpreter itself: a virtual environment's link lies where the world does not reach."""

_START_LIMIT_S: Final = 20.0
_END_LIMIT_S: Final = 10.0
_MAX_LISTENERS: Final = 8

_OURS: Final = "/app"

CAP_CHOWN: Final = 0
CAP_DAC_OVERRIDE: Final = 1
CAP_FOWNER: Final = 3
CAP_FSETID: Final = 4
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_SYS_CHROOT: Final = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What a program gets to see and may do.

    `binds` are (source, target, writable); the system's programs and libraries and the interpreter are there always,
    read-only. `files` are made in memory, readable by the program alone: the place for secrets. `limits` are names of
    the `resource` module. `listen` are sockets that are made inside, for the server to accept on.
    """

    argv: tuple[str, ...]
    binds: tuple[tuple[Path, str, bool], ...] = ()
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    capabilities: tuple[int, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict[str, int])
    listen: tuple[tuple[str, int], ...] = ()


def python_program(module: str) -> tuple[str, ...]:
    """The command that runs `main` of a module of this folder inside, where nothing else of Cove is."""
    start = (
        f"import sys; sys.path.insert(0, {_OURS!r}); from cove.engine.confined.{module} import main; sys.exit(main())"
    )
    return (PYTHON, "-I", "-S", "-c", start)


@asynccontextmanager
async def confined(spec: Confinement) -> AsyncGenerator[tuple[Process, list[socket.socket]]]:
    """The running program with pipes to it, and the sockets that listen inside. Leaving the context kills it.

    Raises: EngineFailure when the machine refuses namespaces.
    """
    ours, theirs = socket.socketpair()
    listeners: list[socket.socket] = []
    process: Process | None = None
    pidfd: int | None = None
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                PYTHON,
                "-I",
                "-S",
                str(HERE / "enter.py"),
                str(theirs.fileno()),
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                pass_fds=(theirs.fileno(),),
                env={"LC_ALL": "C.UTF-8"},
                cwd="/",
                limit=1024 * 1024,
            )
        with contextlib.suppress(ProcessLookupError):  # it has ended, and was waited for
            pidfd = os.pidfd_open(process.pid)
        listeners = await _introduce(ours, spec)
        yield process, listeners
    finally:
        ours.close()
        for listener in listeners:
            listener.close()
        if process is not None:
            await asyncio.shield(_end(process, pidfd))


async def _introduce(channel: socket.socket, spec: Confinement) -> list[socket.socket]:
    """Hand over the specification, get the sockets."""
    channel.setblocking(False)
    loop = asyncio.get_running_loop()
    message = json.dumps(_described(spec)).encode()
    try:
        async with asyncio.timeout(_START_LIMIT_S):
            await loop.sock_sendall(channel, struct.pack("<I", len(message)) + message)
            await _wait_readable(channel)
            answer, fds, _, _ = socket.recv_fds(channel, 1, _MAX_LISTENERS)
    except (TimeoutError, OSError) as error:
        raise EngineFailure("a confined program could not be started", internal=repr(error)) from error
    listeners = [socket.socket(fileno=fd) for fd in fds]
    if not answer or len(listeners) != len(spec.listen):
        for listener in listeners:
            listener.close()
        raise EngineFailure("a confined program could not be started", internal="enter.py gave up")
    for listener in listeners:
        listener.setblocking(False)
    return listeners


def _described(spec: Confinement) -> dict[str, object]:
    """The specification as `enter.py` reads it."""
    binds = [(str(source), target, writable) for source, target, writable in spec.binds]
    binds += [(path, path, False) for path in _system_directories()]
    binds.append((str(HERE), f"{_OURS}/cove/engine/confined", False))
    links = {path: str(Path(path).readlink()) for path in _SYSTEM if Path(path).is_symlink()}
    return {
        "parent": os.getpid(),
        "argv": spec.argv,
        "binds": binds,
        "links": links,
        "files": dict(spec.files),
        "env": {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/tmp", **spec.env},  # noqa: S108 - its own
        "capabilities": spec.capabilities,
        "limits": {"RLIMIT_CORE": 0, **spec.limits},
        "listen": spec.listen,
    }


_SYSTEM: Final = ("/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")


def _system_directories() -> list[str]:
    found = ["/usr", *(path for path in _SYSTEM if Path(path).is_dir() and not Path(path).is_symlink())]
    if not any(Path(sys.base_prefix).is_relative_to(top) for top in found):
        found.append(sys.base_prefix)
    return found


async def _wait_readable(channel: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def be_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(channel.fileno(), be_ready)
    try:
        await ready
    finally:
        loop.remove_reader(channel.fileno())


async def _end(process: Process, pidfd: int | None) -> None:
    """Kill it, and with it (parent-death signal, process 1 of a namespace) all that it started."""
    # Not `process.kill`: that may collect the exit status away under asyncio's own watcher.
    if pidfd is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_LIMIT_S):
            await process.wait()
