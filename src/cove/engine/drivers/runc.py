"""The default driver: runc. Its boxes can be checkpointed (criu), so every sandbox may be forked or hibernated."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cove.engine.checkpoints.criu import CriuMemory
from cove.engine.checkpoints.model import Checkpoint, Draft
from cove.engine.driver import BoxFacts, BoxSpec
from cove.engine.oci.box import OciBox
from cove.engine.oci.driver import OciDriver
from cove.engine.oci.ground import Ground
from cove.engine.oci.saving import CopyLayer, Saved
from cove.engine.versions import at_least

MINIMUM: Final = "1.3.6"
_FIXES: Final = "CVE-2025-31133, -52565, -52881"


class RuncDriver(OciDriver):
    """Boxes by runc."""

    name = "runc"

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self._memory = CriuMemory(self.name, ground, self._runtime)

    async def _probe_memory(self) -> None:
        await self._memory.probe()

    @property
    def memory_gaps(self) -> tuple[str, ...]:
        return self._memory.gaps

    def origin_gaps(self, origin: Checkpoint) -> tuple[str, ...]:
        return self._memory.origin_gaps(origin)

    async def keep_memory(self, box: OciBox, draft: Draft, copy_layer: CopyLayer, *, stay_paused: bool) -> Saved:
        return await self._memory.keep(box, draft, copy_layer, stay_paused=stay_paused)

    async def _restore(self, spec: BoxSpec, base: int, pid_file: Path) -> BoxFacts:
        await self._memory.restore(spec, base, pid_file)
        return self._facts(spec, base, pid_file)

    def _version_gaps(self, version: str) -> tuple[str, ...]:
        if at_least(version, MINIMUM):
            return ()
        return (f"runc {version} lacks the fixes of {_FIXES}: {MINIMUM} is needed; run `cove setup`",)


driver_factory = RuncDriver
