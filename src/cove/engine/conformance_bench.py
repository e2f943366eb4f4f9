"""What the checks of the conformance suite work with. The checks: `conformance.py`, `conformance_state.py`."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from cove.engine.checkpoints.model import Checkpoint
from cove.engine.driver import Box, BoxImage, BoxSpec, Driver
from cove.engine.ports import Checkpoints
from cove.model.errors import CoveError
from cove.model.execs import ExecSpec
from cove.model.ids import new_core_id
from cove.model.sandbox import Limits

HOSTNAME = "conformance"
PATH = "/usr/bin:/bin:/usr/sbin:/sbin"


class Bench(Struct, frozen=True):
    """What a check works with. `slow`: how many times slower than a machine of today this one may be."""

    driver: Driver
    image: BoxImage
    checkpoints: Checkpoints
    slow: float = 1.0

    async def box(self, limits: Limits | None = None) -> Box:
        """A fresh claimed box."""
        spec = BoxSpec(id=new_core_id(), image=self.image, limits=limits or Limits(), hostname=HOSTNAME)
        box = await self.driver.create(spec)
        await box.agent.claim({"PATH": PATH}, None, None)
        return box

    async def keep(self, box: Box, *, with_memory: bool, stay_paused: bool = False) -> Checkpoint:
        """A sealed checkpoint of it."""
        draft = await self.checkpoints.begin(new_core_id())
        try:
            facts = await box.checkpoint(draft, with_memory=with_memory, stay_paused=stay_paused)
            await self.checkpoints.seal(draft, facts)
        except BaseException:
            await self.checkpoints.discard(draft)
            raise
        return await self.checkpoints.get(draft.id)

    async def copy(
        self, origin: Checkpoint, *, with_memory: bool, limits: Limits | None = None, hostname: str = "copy"
    ) -> Box:
        """Another box made of it, claimed or revived as another sandbox."""
        spec = BoxSpec(
            id=new_core_id(),
            image=self.image,
            limits=limits or origin.facts.limits,
            hostname=hostname,
            origin=origin,
            with_memory=with_memory,
        )
        box = await self.driver.create(spec)
        try:
            if with_memory:
                await box.agent.revive(hostname=hostname, env={"COPY": "yes"}, is_copy=True)
            else:
                await box.agent.claim({"PATH": PATH}, None, hostname)
        except CoveError:
            await box.destroy()
            raise
        return box


class CheckFailed(Exception):
    """A check saw something else than it must."""


def require(condition: object, detail: object) -> None:
    """Raises: CheckFailed."""
    if not condition:
        raise CheckFailed(str(detail))


async def sh(box: Box, script: str, timeout_s: float | None = None) -> tuple[int, str]:
    """The exit code and all output of a command inside."""
    result = await box.agent.exec(ExecSpec(shell=script, timeout_s=timeout_s))
    return result.exit.code, (result.stdout + result.stderr).decode(errors="replace")


def host_file(path: str) -> str:
    """The text of a file of the machine."""
    return Path(path).read_text(encoding="utf-8")
