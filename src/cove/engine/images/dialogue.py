"""One order to a confined program, its progress, and its last word: how all of them are talked to.

A line of JSON goes in. Lines come out: `{"done": N}` any number of times, and one more, a result or
`{"error": kind, "text": ...}`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final

from cove.engine.confined.process import Confinement, confined
from cove.model.errors import BadRequest, CapacityExceeded, CoveError, EngineFailure, TooLarge

_MOST_ERROR: Final = 4096


async def converse(
    spec: Confinement, order: dict[str, Any], progress: Callable[[int], None], *, what: str, timeout_s: float
) -> dict[str, Any]:
    """Run a confined program to its last word. `what` it works on, such as `image`, is named in errors, as the field.

    Raises: BadRequest (damaged or hostile), TooLarge (a limit, or `timeout_s`), CapacityExceeded (disk full),
    EngineFailure.
    """
    try:
        async with asyncio.timeout(timeout_s), confined(spec) as (process, _):
            assert process.stdin is not None  # noqa: S101 - pipes were asked for
            assert process.stdout is not None  # noqa: S101
            assert process.stderr is not None  # noqa: S101
            process.stdin.write(json.dumps(order).encode() + b"\n")
            await process.stdin.drain()
            message: dict[str, Any]
            message, said = await asyncio.gather(_last_word(process.stdout, progress), process.stderr.read(_MOST_ERROR))
    except TimeoutError as error:
        raise TooLarge(f"the {what} could not be processed within {timeout_s:.0f} s", field=what) from error
    if "error" in message:
        raise _failure(message, what)
    if not message:
        raise EngineFailure(f"the {what} could not be processed", internal=said.decode(errors="replace"))
    return message


async def _last_word(stream: asyncio.StreamReader, progress: Callable[[int], None]) -> dict[str, Any]:
    message: dict[str, Any] = {}
    while line := await stream.readline():
        found: dict[str, Any] = json.loads(line)
        if "done" in found:
            progress(int(found["done"]))
        else:
            message = found
    return message


def _failure(message: dict[str, Any], what: str) -> CoveError:
    text = str(message.get("text", ""))[:300]
    match message.get("error"):
        case "limit":
            return TooLarge(f"this {what} cannot be used: {text}", field=what)
        case "space":
            return CapacityExceeded(f"the disk is full: the {what} could not be processed", retry_after_s=60)
        case _:
            return BadRequest(f"this {what} cannot be used: {text}", field=what)
