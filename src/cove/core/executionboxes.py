"""Sandboxes of executions: made, given a user and a place to work, filled, ended. No rule about who may run what.

The user of executions is `sandbox` (uid 100, gid 101) with the home /sandbox, in any image. What it writes lies in
memory, of the size that was asked for; a driver that cannot give that gets directories of its disk.
"""

from __future__ import annotations

import asyncio
import logging
import posixpath
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from cove.agentlink.client import AgentClient
from cove.core.directory import Directory
from cove.core.images import Images
from cove.core.runtimes import Runtime
from cove.core.sandboxes import Sandboxes
from cove.engine.clock import Clock, sleep
from cove.engine.driver import Box, Scratch
from cove.model.access import Principal
from cove.model.errors import CoveError, FileError, NotFound, Unsupported
from cove.model.execution import EXECUTION_GID, EXECUTION_UID, HOME, ExecutionSettings
from cove.model.files import Attributes
from cove.model.sandbox import IdleAction, Limits, Sandbox, SandboxSpec

log = logging.getLogger(__name__)

PURPOSE: Final = "execution"
"""Of the boxes that wait for them, furnished as most executions want theirs."""

HURRY_S: Final = 0.15
LINGER_S: Final = 1.0
LINGERING: Final = 32
"""How many sandboxes wait for their end, and how long, while executions begin."""

_LOOK_S: Final = 0.02

USUAL: Final = ExecutionSettings()

_PASSWD: Final = b"sandbox:x:%d:%d:sandbox:/sandbox:/bin/bash\n" % (EXECUTION_UID, EXECUTION_GID)
_GROUP: Final = b"sandbox:x:%d:\n" % EXECUTION_GID
_USER_FILE_BYTES: Final = 256 * 1024
_TMP: Final = "/tmp"  # noqa: S108 - inside the sandbox


class ExecutionBoxes:
    """Makes and ends them.

    `keep_ready` is told of each image that executions use, so that boxes of it wait, and `hold_back` for how long the
    making of these is not to be in anybody's way.
    """

    def __init__(  # noqa: PLR0913 - made once, by the facade
        self,
        sandboxes: Sandboxes,
        images: Images,
        directory: Directory,
        tasks: asyncio.TaskGroup,
        clock: Clock,
        *,
        keep_ready: Callable[[str], None],
        hold_back: Callable[[float], None],
    ) -> None:
        self._sandboxes = sandboxes
        self._images = images
        self._directory = directory
        self._tasks = tasks
        self._clock = clock
        self._keep_ready = keep_ready
        self._hold_back = hold_back
        self._ending: deque[tuple[Principal, str, float]] = deque()
        self._is_ending = False
        self._begun_at = float("-inf")

    async def make(  # noqa: PLR0913 - what a sandbox is like, by name
        self,
        who: Principal,
        runtime: Runtime,
        settings: ExecutionSettings,
        *,
        dialect: str,
        metadata: dict[str, str],
        timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
    ) -> Sandbox:
        """A sandbox in which the user of executions can work. Cancelling ends it. Raises: as `Sandboxes.create`."""
        spec = SandboxSpec(
            image=self._image(who, runtime, settings),
            limits=Limits(cpus=settings.cpus, memory_bytes=settings.memory_bytes, pids=settings.pids),
            metadata=metadata,
            timeout_s=timeout_s,
            idle_timeout_s=idle_timeout_s,
            idle_action=IdleAction.NONE if idle_timeout_s is None else IdleAction.TERMINATE,
            network=settings.network,
        )
        made = await self._sandboxes.create(who, spec, dialect=dialect, purpose=PURPOSE)
        try:
            async with self._directory.live(who, made.id).lease() as box:
                await furnish(box, settings)
        except BaseException:
            self.end_soon(who, made.id)
            raise
        return made

    def hurry(self) -> None:
        """An execution begins: for a moment what is not for anybody's answer stands back."""
        self._begun_at = self._clock.monotonic()
        self._hold_back(HURRY_S)

    def end_soon(self, who: Principal, sandbox_id: str) -> None:
        """End it, without anybody waiting for that: its end takes longer than most executions."""
        self._ending.append((who, sandbox_id, self._clock.monotonic() + LINGER_S))
        if not self._is_ending:
            self._is_ending = True
            self._tasks.create_task(self._end_all(), name="end of executions' sandboxes")

    async def _end_all(self) -> None:
        """A task of its own, while there is something to end."""
        try:
            while self._ending:
                who, sandbox_id, latest = self._ending[0]
                now = self._clock.monotonic()
                if now - self._begun_at < HURRY_S and now < latest and len(self._ending) < LINGERING:
                    await sleep(self._clock, _LOOK_S)
                    continue
                self._ending.popleft()
                await self._end(who, sandbox_id)
        finally:
            self._is_ending = False

    async def _end(self, who: Principal, sandbox_id: str) -> None:
        """A task of its own: what fails here the next start's sweep finds."""
        try:
            await self._sandboxes.destroy(who, sandbox_id)
        except CoveError as error:
            log.warning("an execution's sandbox could not be ended: %s %s", error, error.internal)
        except Exception:  # the task's outermost frame
            log.exception("an execution's sandbox could not be ended")

    def _image(self, who: Principal, runtime: Runtime, settings: ExecutionSettings) -> str:
        """Raises: Unsupported (no image of this runtime is here)."""
        if settings.image is not None:
            return settings.image
        for name in runtime.images:
            try:
                self._images.get(who, name)
            except NotFound:
                continue
            self._keep_ready(name)
            return name
        wanted = runtime.images[0]
        raise Unsupported(
            f"this server has no image for {runtime.name}: its operator puts {wanted} into COVE_IMAGES and runs cove "
            "setup",
            field="runtime",
        )


async def furnish(box: Box, settings: ExecutionSettings = USUAL) -> None:
    """Give a box the user of executions and where it may write. Raises: CoveError."""
    if not box.has_own_files:
        raise Unsupported(f"the driver {box.facts.driver} keeps no files apart: it runs no executions")
    agent = box.agent
    if not box.facts.scratch:
        await asyncio.gather(
            _add_line(agent, "/etc/passwd", _PASSWD), _add_line(agent, "/etc/group", _GROUP), _make_home(agent)
        )
    scratch = (
        Scratch(path=HOME, size_bytes=settings.scratch_bytes, uid=EXECUTION_UID, gid=EXECUTION_GID, programs=True),
        Scratch(path=_TMP, size_bytes=settings.tmp_bytes, mode=0o1777),
    )
    try:
        await box.add_scratch(scratch, read_only=settings.read_only)
    except Unsupported:
        await agent.set_attributes(HOME, Attributes(uid=EXECUTION_UID, gid=EXECUTION_GID))


async def _add_line(agent: AgentClient, path: str, line: bytes) -> None:
    """Before all others, for the first of an id counts."""
    try:
        content = await _whole(agent, path)
    except FileError:
        content = b""  # an image without users
    if line not in content:
        await agent.write(path, _pieces(line + content), mode=0o644, parents=True)


async def _whole(agent: AgentClient, path: str) -> bytes:
    async with agent.read(path, length=_USER_FILE_BYTES) as reader:
        return b"".join([piece async for piece in reader])


async def _make_home(agent: AgentClient) -> None:
    try:
        await agent.mkdir(HOME)
    except FileError as error:
        if error.reason != "exists":
            raise


async def write_file(box: Box, path: str, data: bytes) -> None:
    """Write a file that is the execution user's, as are the directories that are made for it. Raises: FileError."""
    missing = [path for path in _parents(path) if not await _is_there(box.agent, path)]
    for directory in missing:
        await box.agent.mkdir(directory)
        await box.agent.set_attributes(directory, Attributes(uid=EXECUTION_UID, gid=EXECUTION_GID))
    await box.agent.write(path, _pieces(data), mode=0o644, uid=EXECUTION_UID, gid=EXECUTION_GID)


def _parents(path: str) -> Sequence[str]:
    """The directories between HOME and the file, the outermost first."""
    found: list[str] = []
    directory = posixpath.dirname(path)
    while directory.startswith(f"{HOME}/"):
        found.insert(0, directory)
        directory = posixpath.dirname(directory)
    return found


async def _is_there(agent: AgentClient, path: str) -> bool:
    try:
        await agent.stat(path)
    except FileError as error:
        if error.reason != "not_found":
            raise
        return False
    return True


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data
