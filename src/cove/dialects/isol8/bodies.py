"""Bodies that are read when the caller's rights are known, or that need not be readable at all."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec import Struct

from cove.edge.decode import body_decoder
from cove.edge.errors import Malformed
from cove.edge.ops import Call, Nothing

T = TypeVar("T", bound=Struct)


async def strict(call: Call[None, Nothing], kind: type[T]) -> T:
    """The body of an operation that takes it as an upload. Raises: Malformed, BodyTooLarge."""
    return body_decoder(kind)(await call.exchange.read_body(call.exchange.limits.json_body_bytes))


async def lenient(call: Call[None, Nothing], kind: type[T]) -> T:
    """The same; what cannot be read counts as none. Raises: BodyTooLarge."""
    try:
        return await strict(call, kind)
    except Malformed:
        return msgspec.convert({}, kind)
