"""The images part of the core over a directory of its own, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from cove.core.access import LOCAL
from cove.core.images import Images, ImageUse
from cove.engine.clock import SystemClock
from cove.engine.images.builtin import BuiltinImages
from cove.engine.images.settings import ImageSettings
from cove.engine.images.store import ImageStore
from cove.model.access import Principal
from cove.model.image import Credentials, ImageEvent
from cove.model.sandbox import Sandbox
from tests_support import SETUP_DIR

OTHER = replace(LOCAL, project="other")


@dataclass
class Bench:
    """`images` with what runs on them, which a test may set."""

    images: Images
    store: ImageStore
    directory: Path
    used: set[str] = field(default_factory=set)
    sandboxes: list[Sandbox] = field(default_factory=list)

    async def pull(self, reference: str, who: Principal = LOCAL, credentials: Credentials | None = None) -> ImageEvent:
        """Pull to the last event."""
        return (await self.events(reference, who, credentials))[-1]

    async def events(
        self, reference: str, who: Principal = LOCAL, credentials: Credentials | None = None
    ) -> list[ImageEvent]:
        return [event async for event in self.images.pull(who, reference, credentials=credentials)]

    def rootfs(self, event: ImageEvent) -> Path:
        """The tree of what was pulled."""
        assert event.image is not None, event
        return self.store.tree(event.image.digest)

    def leftovers(self) -> list[str]:
        """What lies in the directory and is neither a tree, a record nor a blob."""
        found = [*(self.directory / "work").iterdir(), *(self.directory / "trash").iterdir()]
        found += self.directory.glob("downloads/*/job-*")
        return [str(path) for path in found]


@asynccontextmanager
async def open_bench(directory: Path, settings: ImageSettings) -> AsyncGenerator[Bench]:
    """A bench on `directory`, which may have been another's before."""
    store = ImageStore(directory)
    store.open()
    used: set[str] = set()
    sandboxes: list[Sandbox] = []
    async with asyncio.TaskGroup() as tasks:
        images = Images(
            BuiltinImages(SETUP_DIR / "images"),
            store=store,
            settings=settings,
            clock=SystemClock(),
            tasks=tasks,
            use=ImageUse(sandboxes=lambda: sandboxes, digests=lambda: used),
            note=lambda *_: None,
        )
        sweep = tasks.create_task(images.collect_forever())
        try:
            yield Bench(images, store, directory, used, sandboxes)
        finally:
            sweep.cancel()
