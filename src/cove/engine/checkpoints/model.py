"""A checkpoint: the engine's side of a snapshot or of a hibernated sandbox. Frozen values, paths of the host only."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct, field

from cove.model.sandbox import Limits


class CheckpointFacts(Struct, frozen=True, kw_only=True):
    """What a box was when it was taken, and what taking it needed; kept beside the images as JSON.

    `engine`: versions that must be able to read it, by name (`criu`, `runsc`, `kernel`, `machine`), without memory
    empty. `why_no_memory`: one sentence; None: the memory is there. `stopped_ms`: how long the box stood still.
    `inherited_bytes`: files of its own layer, which a quota of the new box must count though they are shared.
    `env`, `workdir`, `user`: what its commands start with, for a box that gets the files only; added by the supervisor.
    They may be secrets, as anything in the memory: they lie in root's files and nowhere else.
    """

    driver: str
    has_memory: bool
    why_no_memory: str | None = None
    image: str
    image_digest: str
    limits: Limits
    hostname: str
    agent_build: str
    engine: dict[str, str]
    processes: int = 0
    memory_bytes: int = 0
    inherited_bytes: int = 0
    stopped_ms: float = 0.0
    env: dict[str, str] = field(default_factory=dict[str, str])
    workdir: str | None = None
    user: str | None = None

    def __repr__(self) -> str:
        """Without the environment."""
        return f"CheckpointFacts(driver={self.driver!r}, has_memory={self.has_memory}, image={self.image!r})"


class Draft(Struct, frozen=True, kw_only=True):
    """Where a driver puts a checkpoint while it is taken. `memory`: an empty directory, root's alone.

    `layer`: the name that the copy of the box's writable layer gets among the layers.
    """

    id: str
    memory: Path
    layer: str


class Checkpoint(Struct, frozen=True, kw_only=True):
    """A complete one, sealed: everything is on the disk and its digests are written."""

    id: str
    memory: Path
    layer: str
    facts: CheckpointFacts
    memory_bytes: int = 0
    disk_bytes: int = 0
