"""What an attack works with: boxes of one driver, ways to run code in them, and the words for what came of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from cove.engine.driver import Box, BoxImage, BoxSpec, Driver
from cove.engine.network.service import SandboxNetwork
from cove.engine.ports import Checkpoints
from cove.model.execs import ExecResult, ExecSpec
from cove.model.ids import new_core_id
from cove.model.network import NO_NETWORK, NetworkPolicy
from cove.model.sandbox import MIB, Limits

SMALL: Final = Limits(memory_bytes=256 * MIB, disk_bytes=128 * MIB, pids=256)

_ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}

PRELUDE: Final = '''
import ctypes, errno, os, platform, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"

def said(word, what, why=""):
    print(word, what, why, flush=True)

def code():
    return errno.errorcode.get(ctypes.get_errno(), str(ctypes.get_errno()))

def must_fail(what, call, *arguments):
    """`call` is a libc function or a system call's number: -1 is what must come back."""
    ctypes.set_errno(0)
    if isinstance(call, int):
        answer = libc.syscall(ctypes.c_long(call), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    else:
        answer = call(*arguments)
    said("held" if answer == -1 else "BROKEN", what, code() if answer == -1 else "answered %d" % answer)
    return answer

def must_not_open(path, flags, write=None):
    try:
        fd = os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        return said("held", path, errno.errorcode.get(error.errno, error.errno))
    try:
        if write is not None:
            os.write(fd, write)
        elif not os.read(fd, 16):
            return said("held", path, "empty")
        said("BROKEN", path, "read" if write is None else "open for writing")
    except OSError as error:
        said("held", path, errno.errorcode.get(error.errno, error.errno))
    finally:
        os.close(fd)
'''
"""In front of each script: every line it prints says `held` or `BROKEN`, what was tried, and what came back."""


class Broken(Exception):
    """A defence did not hold; the text says what was seen."""


class NotHere(Exception):
    """The attack has no ground on this driver or machine; the text says why."""


class Target(Struct, frozen=True):
    """One driver, the image that boxes start from, and the network that they can have.

    `checkpoints`: where to keep boxes; with it what is attacked is never a first box, but one restored of its memory.
    """

    driver: Driver
    image: BoxImage
    network: SandboxNetwork | None = None
    checkpoints: Checkpoints | None = None

    @asynccontextmanager
    async def box(self, limits: Limits = SMALL, network: NetworkPolicy = NO_NETWORK) -> AsyncGenerator[Box]:
        """A fresh claimed box, gone afterwards. Its policy holds before anything runs in it."""
        spec = BoxSpec(id=new_core_id(), image=self.image, limits=limits, hostname="target")
        box = await self.driver.create(spec)
        try:
            await box.set_network(network, {})
            await box.agent.claim(_ENVIRONMENT, None, None)
            if self.checkpoints is None:
                yield box
                return
            async with self._copy_of(box, spec, self.checkpoints) as copy:
                await copy.set_network(network, {})
                await copy.agent.revive(hostname=spec.hostname, env=_ENVIRONMENT, is_copy=True)
                yield copy
        finally:
            await box.destroy()

    @asynccontextmanager
    async def _copy_of(self, box: Box, spec: BoxSpec, checkpoints: Checkpoints) -> AsyncGenerator[Box]:
        """Another box, made of what this one is; this one ends."""
        draft = await checkpoints.begin(new_core_id())
        try:
            facts = await box.checkpoint(draft, with_memory=True, stay_paused=True)
            origin = await checkpoints.seal(draft, facts)
            await box.destroy()
            copy = await self.driver.create(replace(spec, id=new_core_id(), origin=origin, with_memory=True))
            try:
                yield copy
            finally:
                await copy.destroy()
        finally:
            await checkpoints.remove(draft.id)


async def shell(box: Box, script: str, timeout_s: float = 20.0) -> ExecResult:
    """Run a shell script inside."""
    return await box.agent.exec(ExecSpec(shell=script, timeout_s=timeout_s))


async def python(box: Box, script: str, timeout_s: float = 20.0) -> ExecResult:
    """Run a Python program inside, after `PRELUDE`."""
    source = (PRELUDE + script).encode()
    return await box.agent.exec(ExecSpec(argv=("python3", "-"), stdin=source, timeout_s=timeout_s))


async def attempt(box: Box, script: str, timeout_s: float = 20.0) -> str:
    """Run a program of `must_fail` lines inside. Returns what held. Raises: Broken for each line that says so."""
    result = await python(box, script, timeout_s)
    lines = result.stdout.decode(errors="replace").splitlines()
    broken = [line for line in lines if not line.startswith("held ")]
    if broken or not lines or result.exit.code != 0:
        tail = result.stderr.decode(errors="replace")[-300:]
        raise Broken("; ".join(broken)[:600] or f"the attack did not run: exit {result.exit.code} {tail}")
    return "; ".join(line.removeprefix("held ") for line in lines)


def require(condition: object, seen: object) -> None:
    """Raises: Broken unless `condition`."""
    if not condition:
        raise Broken(str(seen)[:600])


def text_of(result: ExecResult) -> str:
    """Both streams."""
    return (result.stdout + result.stderr).decode(errors="replace")
