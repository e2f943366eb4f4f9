"""How webhooks leave: by the namespace that sandboxes' packets leave by, never into closed ranges."""

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
) -> tuple[Poster | None, Callable[[], ClosedRanges]]:
    """What posts, and what is closed to it; None: nothing can leave by the namespace that was asked for."""

    def closed() -> ClosedRanges:
        return network.closed if network is not None else ClosedRanges(opened, own=own_addresses())

    tls = await asyncio.to_thread(tls_context, extra_ca)
    if outside is None:
        return WebPost(OwnWorld(), closed, tls).post, closed
    if network is None:
        return None, closed
    try:
        space = NetNs(outside, "webhooks")
    except (OSError, EngineFailure) as error:
        log.warning("webhooks cannot leave: %s: %s", outside, error)
        return None, closed
    stack.callback(space.close)
    return WebPost(Outside(space, network.resolve), closed, tls).post, closed
