"""Executions: for a result, as a stream of events, over a WebSocket."""

from __future__ import annotations

from typing import Final

from cove.dialects.isol8 import wire
from cove.edge.ops import Call, Json, Nothing, Op

SERVER: Final = "Server"
EXECUTIONS: Final = "Executions"

VERSION: Final = "0.20.0"
"""Of the protocol, as its clients know it."""


async def health(call: Call[None, Nothing]) -> Json:
    """Say that the server answers."""
    del call
    return Json(wire.Health("ok", VERSION))


OPS: Final = (
    Op(
        method="GET",
        path="/health",
        handler=health,
        summary="Whether the server answers",
        tag=SERVER,
        answer=wire.Health,
        public=True,
    ),
    Op(
        method="HEAD",
        path="/health",
        handler=health,
        name="head_health",
        summary="Whether the server answers",
        tag=SERVER,
        public=True,
    ),
)
