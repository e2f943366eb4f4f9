"""What the pool and the supervisors need from others, as protocols. Implemented above or beside; nothing here acts."""

from __future__ import annotations

from typing import Protocol

from cove.engine.driver import BoxImage
from cove.model.image import ImageInfo
from cove.model.sandbox import Sandbox


class ImageSource(Protocol):
    """Where prepared images come from."""

    def get(self, name: str) -> BoxImage:
        """A prepared image. Raises: NotFound (field `image`)."""
        ...

    def list(self) -> list[ImageInfo]:
        """All images this machine has or is making."""
        ...


class Journal(Protocol):
    """Where a sandbox's intents and facts are written. Implemented in `core/journal.py`."""

    async def write(self, sandbox: Sandbox) -> None:
        """Write it now or not at all. Raises: CoveError."""
        ...

    async def write_surely(self, sandbox: Sandbox) -> None:
        """Write it now, or as soon as the store takes it again. Never raises: what it tells has happened."""
        ...
