"""How long tests wait, on a machine that may be slow and busy with other things.

What must happen has LIMIT_S; what must not happen is looked for as briefly as a test can afford. A bound of time that a
test asserts is a promise of ours, not a guess at how fast the machine is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

LIMIT_S: Final = 60.0


def until(look: Callable[[], Any], what: str = "it did not come true", limit_s: float = LIMIT_S) -> Any:
    """Ask until there is an answer that is true, and return it."""
    deadline = time.monotonic() + limit_s
    while not (answer := look()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return answer


async def comes_true(look: Callable[[], Any], what: str = "it did not come true", limit_s: float = LIMIT_S) -> Any:
    """The same, letting the loop turn meanwhile."""
    deadline = time.monotonic() + limit_s
    while not (answer := look()):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.002)
    return answer
