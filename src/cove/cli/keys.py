"""What of the keys goes to the program and what is ours: `~` after a line break, as ssh has it. Pure.

`~.` detaches, `~?` shows help, `~~` is one `~`. Nothing of that holds in text that is pasted: where the terminal says
so (bracketed paste), or where more comes at once than fingers type.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

DETACH: Final = "detach"
HELP: Final = "help"
TYPED_BYTES: Final = 64
"""More than this in one read was not typed."""

_OURS: Final = {b".": DETACH, b"?": HELP}
_PASTE_BEGIN: Final = b"\x1b[200~"
_PASTE_END: Final = b"\x1b[201~"
_PARTS: Final = re.compile(rb"\x1b\[20[01]~|~|[^~\x1b]+|\x1b")


@dataclass(frozen=True, slots=True)
class Keys:
    """What the program gets, and what we are told to do after it (None: nothing)."""

    data: bytes
    order: str | None = None


class Escapes:
    """Separates the two, over as many reads as it takes."""

    def __init__(self) -> None:
        self._is_line_start = True
        self._is_held = False
        self._is_paste = False

    def feed(self, typed: bytes) -> list[Keys]:
        """Take what was typed."""
        found: list[Keys] = []
        data = bytearray()
        is_typed = len(typed) <= TYPED_BYTES
        for match in _PARTS.finditer(typed):
            part = match.group()
            if self._is_held:
                self._is_held = False
                order = _OURS.get(part[:1])
                if order:
                    found.append(Keys(bytes(data), order))
                    data.clear()
                    self._is_line_start, part = True, part[1:]
                elif part != b"~":
                    data += b"~"
            elif part == b"~" and self._is_line_start and is_typed and not self._is_paste:
                self._is_held = True
                continue
            if part in {_PASTE_BEGIN, _PASTE_END}:
                self._is_paste = part == _PASTE_BEGIN
            if part:
                data += part
                self._is_line_start = part[-1:] in {b"\r", b"\n"}
        return [*found, Keys(bytes(data))] if data else found
