"""How webhooks leave and programs are fetched: as sandboxes' packets leave, never into closed ranges."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from cove.edge.servicelinks import tls_context
from cove.engine.network.netns import NetNs
from cove.engine.network.outside import Outside
from cove.engine.network.ownaddresses import own_addresses
from cove.engine.network.service import SandboxNetwork
from cove.engine.webget import Getter, WebGet
from cove.engine.webpost import OwnWorld, Poster, WebPost
from cove.model.closed import ClosedRanges, Opening
from cove.model.errors import EngineFailure

log = logging.getLogger(__name__)


async def open_poster(
    outside: Path | None,
    opened: tuple[Opening, ...],
    network: SandboxNetwork | None,
    extra_ca: bytes,
    stack: ExitStack,
) -> tuple[tuple[Poster | None, Callable[[], ClosedRanges]], Getter | None]:
    """What posts, what is closed to it, and what gets; None: nothing can leave by the namespace that was asked for."""

    def closed() -> ClosedRanges:
        return network.closed if network is not None else ClosedRanges(opened, own=own_addresses())

    tls = await asyncio.to_thread(tls_context, extra_ca)
    if outside is None:
        return (WebPost(OwnWorld(), closed, tls).post, closed), WebGet(OwnWorld(), closed, tls).get
    if network is None:
        return (None, closed), None
    try:
        space = NetNs(outside, "webhooks")
    except (OSError, EngineFailure) as error:
        log.warning("webhooks cannot leave: %s: %s", outside, error)
        return (None, closed), None
    stack.callback(space.close)
    world = Outside(space, network.resolve)
    return (WebPost(world, closed, tls).post, closed), WebGet(world, closed, tls).get
