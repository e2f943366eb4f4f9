"""What the server says of itself."""

from __future__ import annotations

from typing import Final

from cove.dialects.isorun import wire
from cove.edge.ops import Call, Json, Op

TAG: Final = "Server"


async def health(call: Call[wire.Ignored, wire.Ignored]) -> Json:
    """Say that the server answers."""
    del call
    return Json(wire.Health("ok"))


OPS: Final = tuple(
    Op(
        method=method,
        path="/healthz",
        handler=health,
        name=name,
        summary="Whether the server answers",
        tag=TAG,
        query=wire.Ignored,
        answer=wire.Health,
        public=True,
    )
    for method, name in (("GET", "health"), ("HEAD", "head_health"))
)
