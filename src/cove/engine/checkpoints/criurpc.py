"""Speaks with criu: one worker process (`criu swrk`) per request, protocol buffers over a socket. No policy.

A dump is asked of criu directly and not through the runtime, which would start criu three times and could not say when
nothing runs any more. criu tells each step (`notify`) and waits for the answer: so what belongs to the instant is done
by this process. Should this process die, criu reads the end of the socket, takes the dump for failed, and puts the
tasks back as they were. That is why a worker is never killed before it had the time to do so: a task that criu was
working in goes on by itself when criu is gone, but some memory of criu's stays mapped in it.

The numbers are those of `rpc.proto`; what it has no field for stands in a configuration file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

from cove.engine.checkpoints import protobuf
from cove.engine.checkpoints.protobuf import field

MARK: Final = "COVE_CRIU"
"""In the environment of every worker: the run directory of its server, by which the next start finds it."""

_DUMP: Final = 1
_NOTIFY: Final = 6
_VERSION: Final = 10
_CLONE_NEWNET: Final = 0x40000000
_CGROUPS_SOFT: Final = 3
_ERRORS: Final = 1
_GHOST_LIMIT: Final = 512 * 1024**2
_SEIZE_LIMIT_S: Final = 5
"""For all tasks to stand still; until then the box waits, so not longer."""

_MESSAGE_LIMIT: Final = 64 * 1024
_READABLE: Final = 'umask 022 && exec "$@"'
"""What criu writes is read again in a user namespace of a box; uvloop has no `umask` for a subprocess."""
_END_LIMIT_S: Final = 20.0
_SHORT_LIMIT_S: Final = 30.0
_TAIL: Final = 64 * 1024

Hook = Callable[[str], Awaitable[None]]


class CriuFailed(Exception):
    """criu could not do it. The text is criu's own log, for `criulog`."""


class Dump(Struct, frozen=True, kw_only=True):
    """What to dump, and how. `external`: mounts that come from outside, as pairs of the path inside and their name.

    `config`: lines of criu's configuration file. `watched`: where to look for what programs watch.
    """

    pid: int
    rootfs: Path
    images: Path
    work: Path
    external: tuple[tuple[str, str], ...]
    config: tuple[str, ...]
    watched: tuple[str, ...] = ()


class Criu:
    """One installed criu. `run_dir` names the server whose workers these are."""

    def __init__(self, program: Path, run_dir: Path) -> None:
        self.program = program
        self.path = "/usr/sbin:/usr/bin:/sbin:/bin"
        self._run_dir = run_dir

    @property
    def environment(self) -> dict[str, str]:
        """Of every worker, which starts `tar`, which starts `gzip`, for what lies in a tmpfs (/dev/shm)."""
        return {"PATH": self.path, MARK: str(self._run_dir)}

    async def version(self) -> str:
        """Such as `4.2.1`. Raises: CriuFailed, OSError (not installed)."""
        async with self._worker() as worker:
            answer = await worker.ask(field(1, _VERSION))
        version = protobuf.bytes_of(answer, 10)
        return ".".join(str(protobuf.number_of(version, number)) for number in (1, 2, 4))

    async def check(self) -> str:
        """What this kernel lacks, in criu's words; empty: nothing. Raises: OSError, TimeoutError."""
        process = await asyncio.create_subprocess_exec(
            str(self.program), "check",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env=self.environment,
        )  # fmt: skip
        try:
            async with asyncio.timeout(_SHORT_LIMIT_S):
                _, errors = await process.communicate()
        finally:
            await _end(process, grace_s=0)
        return "" if process.returncode == 0 else errors.decode(errors="replace")[-_TAIL:] or "criu check failed"

    async def dump(self, wanted: Dump, on_step: Hook, limit_s: float) -> None:
        """Write the images of a process tree, which goes on afterwards.

        `on_step` is awaited with criu's word of each step, among them `pre-dump` (nothing is stopped yet) and
        `post-dump` (all is written, nothing runs). If it raises, the dump fails with that. Cancelling waits for criu.

        Raises: CriuFailed, OSError.
        """
        config = wanted.work / "criu.conf"
        config.write_text("".join(f"{line}\n" for line in wanted.config))
        try:
            with contextlib.ExitStack() as opened:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                images, work = os.open(wanted.images, flags), os.open(wanted.work, flags)
                opened.callback(os.close, images)
                opened.callback(os.close, work)
                options = _dump_options(wanted, images, work, config)
                async with self._worker() as worker, asyncio.timeout(limit_s):
                    await worker.ask(field(1, _DUMP) + field(2, options), on_step)
        except CriuFailed as error:
            raise CriuFailed(_log_of(wanted.work / "dump.log") or str(error)) from error
        except TimeoutError as error:
            raise CriuFailed(f"no end within {limit_s:.0f} s") from error

    @asynccontextmanager
    async def _worker(self) -> AsyncGenerator[_Worker]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.setblocking(False)
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    "/bin/sh", "-c", _READABLE, "sh", str(self.program), "swrk", str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL, pass_fds=(theirs.fileno(),), env=self.environment,
                )  # fmt: skip
            try:
                yield _Worker(ours)
            finally:
                # The end of the socket is what tells criu to give up, where it has not ended by itself.
                ours.close()
                await asyncio.shield(_end(process, grace_s=_END_LIMIT_S))

    def left_behind(self) -> list[int]:
        """The workers of a former process of this server that have not ended."""
        mark = f"{MARK}={self._run_dir}".encode()
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and (entry / "comm").read_text().strip() == self.program.name:
                    found += [int(entry.name)] if mark in (entry / "environ").read_bytes().split(b"\0") else []
        return found

    async def await_left_behind(self) -> None:
        """Wait until what a killed server asked of criu has ended, as it does by itself; kill what does not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_LIMIT_S):
                while self.left_behind():
                    await asyncio.sleep(0.02)
        for pid in self.left_behind():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class _Worker:
    def __init__(self, link: socket.socket) -> None:
        self._link = link

    async def ask(self, request: bytes, on_step: Hook | None = None) -> bytes:
        """The answer to one request. Raises: CriuFailed, what `on_step` raises."""
        loop = asyncio.get_running_loop()
        failure: Exception | None = None
        await self._send(request)
        while True:
            try:
                answer = await loop.sock_recv(self._link, _MESSAGE_LIMIT)
            except ConnectionError:
                answer = b""
            if not answer:
                raise failure or CriuFailed("criu ended without an answer")
            try:
                kind, is_fine = protobuf.number_of(answer, 1), protobuf.number_of(answer, 2)
                step = protobuf.bytes_of(protobuf.bytes_of(answer, 5), 1)
            except protobuf.Malformed as error:
                raise CriuFailed(f"criu's answer cannot be read: {error}") from error
            if kind != _NOTIFY:
                if failure is not None:
                    raise failure
                if not is_fine:
                    raise CriuFailed(f"criu's answer: {answer!r}")
                return answer
            if on_step is not None and failure is None:
                try:
                    await on_step(step.decode(errors="replace"))
                except Exception as error:  # noqa: BLE001 (raised again, once criu has put everything back)
                    failure = error
            await self._send(field(1, _NOTIFY) + field(3, failure is None))

    async def _send(self, message: bytes) -> None:
        # That it has ended meanwhile is seen where its answer is read.
        with contextlib.suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(self._link, message)


def _dump_options(wanted: Dump, images: int, work: int, config: Path) -> bytes:
    options: dict[int, int | str] = {
        1: images,
        2: wanted.pid,
        3: True,  # leave running
        8: True,  # file locks
        9: _ERRORS,
        10: "dump.log",
        12: True,  # notify
        13: str(wanted.rootfs),
        17: work,
        18: True,  # link remap: files without a name that are open still
        24: True,
        34: _CGROUPS_SOFT,
        35: _GHOST_LIMIT,
        38: _CLONE_NEWNET,  # the network namespace is made anew
        45: _SEIZE_LIMIT_S,
        50: True,  # masters of terminals whose other end is elsewhere
        51: str(config),
    }
    encoded = b"".join(field(number, value) for number, value in options.items())
    if wanted.watched:
        encoded += field(21, True) + b"".join(field(36, path) for path in wanted.watched)
    return encoded + b"".join(field(23, field(1, inside) + field(2, name)) for inside, name in wanted.external)


def _log_of(path: Path) -> str:
    """The end of criu's log, which criu wrote on the host: names of things in the box are in it."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            return file.read(_TAIL).decode(errors="replace")
    except OSError:
        return ""


async def _end(process: asyncio.subprocess.Process, grace_s: float) -> None:
    """Wait until it has ended, and kill it after `grace_s`."""
    if process.returncode is not None:
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            await process.wait()
            return
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
