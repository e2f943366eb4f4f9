"""How much command output the server holds in memory at once, over all sandboxes. Pure counting, no I/O.

A sandbox decides how much it prints, so without a common bound a few of them could fill the server's memory. Each
buffered command has a `Share`; a stream of it grows in steps while there is room, and keeps only its tail beyond.
"""

from __future__ import annotations

from typing import Final

STEP_BYTES: Final = 64 * 1024
"""What a stream may hold without asking, and how much it asks for at a time."""


class OutputRoom:
    """`total_bytes` for all shares together."""

    def __init__(self, total_bytes: int) -> None:
        self._free = total_bytes

    @property
    def free_bytes(self) -> int:
        """What is left."""
        return self._free

    def share(self) -> Share:
        """A share that holds nothing yet. Whoever asks for it releases it."""
        return Share(self)

    def move(self, count: int) -> bool:
        """Take `count` bytes (negative: give back). False: there are not so many."""
        if count > self._free:
            return False
        self._free -= count
        return True


class Share:
    """What one command's output holds. Made by `OutputRoom.share`."""

    def __init__(self, room: OutputRoom) -> None:
        self._room = room
        self._held = 0

    def grow(self) -> bool:
        """Take one step more. False: the server holds as much as it may."""
        if not self._room.move(STEP_BYTES):
            return False
        self._held += STEP_BYTES
        return True

    def release(self) -> None:
        """Give all of it back. Idempotent; after it the bytes must not be kept."""
        self._room.move(-self._held)
        self._held = 0
