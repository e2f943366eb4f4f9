"""The answer to whatever made a sandbox: a create, a restore, a template."""

from __future__ import annotations

from cove.dialects.native.translate import sandbox_view
from cove.edge.exchange import Exchange
from cove.edge.ops import Json
from cove.model.sandbox import Sandbox


def created(exchange: Exchange, sandbox: Sandbox) -> Json:
    """It, where it is found from now on, and what of the time was spent on making it."""
    if sandbox.create_ms is not None:
        exchange.mark("sandbox", sandbox.create_ms)
    view = sandbox_view(sandbox)
    return Json(view, status=201, headers=[(b"location", f"/api/v1/sandboxes/{view.id}".encode())])
