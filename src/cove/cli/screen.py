"""What a program leaves behind on the user's terminal, and how that is put right. Pure; knows bytes only.

Output is passed on as it is: it is the user's terminal. But a program that dies, or that one detaches from, may leave
the alternate screen, mouse reports or a hidden cursor behind, and an old output that is shown again may hold questions
that the terminal would answer once more, into the program's input.

Sources: ECMA-48; XTerm Control Sequences (ctlseqs); the kitty keyboard protocol.
"""

from __future__ import annotations

import re
from typing import Final

_RESETS: Final = {
    b"1": b"l",  # cursor keys as applications like them
    b"7": b"h",  # lines wrap
    b"9": b"l",
    b"25": b"h",  # the cursor is seen
    b"1000": b"l",  # mouse
    b"1001": b"l",
    b"1002": b"l",
    b"1003": b"l",
    b"1004": b"l",  # focus reports
    b"1005": b"l",
    b"1006": b"l",
    b"1015": b"l",
    b"1016": b"l",
    b"2004": b"l",  # bracketed paste
    b"2026": b"l",  # synchronized output
    b"47": b"l",  # alternate screen
    b"1047": b"l",
    b"1049": b"l",
}
"""Private mode -> its state in a terminal that nobody has changed."""
_LAST: Final = (b"47", b"1047", b"1049")
"""Undone after all others: those may be kept for each screen apart."""

_CHANGE: Final = re.compile(
    rb"\x1b\[\?([\d;]+)([hl])"  # private modes
    rb"|\x1b([=>])"  # keypad
    rb"|\x1b\[([<>])(\d*)u"  # kitty keyboard: pop, push
    rb"|\x1b\[>4;?(\d*)m"  # modifyOtherKeys
    rb"|\x1b\[[\d;:]*m"  # colours
    rb"|\x1bc"  # all reset
)
_QUESTION: Final = re.compile(
    rb"\x1b\[[>=?]?[\d;]*c"  # which terminal are you
    rb"|\x1b\[\??[\d;]*n"  # status, place of the cursor
    rb"|\x1b\[[?]?[\d;]*\$p"  # is this mode set
    rb"|\x1b\[>[\d;]*q"  # name and version
    rb"|\x1b\[\?u"  # keyboard
    rb"|\x1b\[(?:1[1345689]|2[01])(?:;\d+)*t"  # window
    rb"|\x1b\][\d;]*\?(?:\x07|\x1b\\)"  # colours
    rb"|\x1b\]52;[^;\x07\x1b]*;\?(?:\x07|\x1b\\)"  # clipboard
    rb"|\x1bP[$+]q[^\x1b]*\x1b\\"  # settings, termcap
    rb"|\x05"  # answerback
)
_OPEN: Final = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|[\]P][^\x07\x1b]{0,64}\x1b?)?$")
"""An escape sequence that is not complete yet."""
_LONGEST: Final = 80


class Modes:
    """Follows the modes that a program sets, as its output passes by."""

    def __init__(self) -> None:
        self._rest = b""
        self._forget()

    def _forget(self) -> None:
        self._changed: dict[bytes, None] = {}
        self._is_coloured = False
        self._keypad = b">"
        self._keyboards = 0
        self._other_keys = False

    def see(self, output: bytes) -> None:
        """Look at the next piece of output."""
        data = self._rest + output
        open_end = _OPEN.search(data, max(0, len(data) - _LONGEST))
        self._rest = data[open_end.start() :] if open_end else b""
        if b"\x1b" not in data:
            return
        for found in _CHANGE.finditer(data):
            self._note(found)

    def _note(self, found: re.Match[bytes]) -> None:
        modes, state, keypad, keyboard, count, keys = found.groups()
        if modes is not None:
            for mode in modes.split(b";"):
                if _RESETS.get(mode, state) != state:
                    self._changed[mode] = None
                else:
                    self._changed.pop(mode, None)
        elif keypad is not None:
            self._keypad = keypad
        elif keyboard is not None:
            self._keyboards += 1 if keyboard == b">" else -int(count or 1)
            self._keyboards = min(max(self._keyboards, 0), 100)
        elif keys is not None:
            self._other_keys = keys not in {b"", b"0"}
        elif found.group() == b"\x1bc":
            self._forget()
        else:
            self._is_coloured = found.group() not in {b"\x1b[m", b"\x1b[0m"}

    def reset(self) -> bytes:
        """Return what puts the terminal right again; nothing where nothing was left behind."""
        out = b"\x18" if self._rest else b""  # an escape sequence in the middle: cancel it
        if self._other_keys:
            out += b"\x1b[>4m"
        if self._keyboards:
            out += b"\x1b[<%du" % self._keyboards
        if self._keypad == b"=":
            out += b"\x1b>"
        for mode in sorted(self._changed, key=lambda mode: mode in _LAST):
            out += b"\x1b[?" + mode + _RESETS[mode]
        return out + b"\x1b[0m" if self._is_coloured or out else out


class Replay:
    """Takes the questions to the terminal out of output that is shown again: they were answered when it was new."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._rest = b""

    def clean(self, output: bytes) -> bytes:
        """Return the next piece of output without questions, as far as it is old."""
        if self._left <= 0 and not self._rest:
            return output
        old, new = output[: max(self._left, 0)], output[max(self._left, 0) :]
        self._left -= len(old)
        data = self._rest + old
        open_end = _OPEN.search(data, max(0, len(data) - _LONGEST)) if self._left > 0 else None
        self._rest = data[open_end.start() :] if open_end else b""
        whole = data[: open_end.start()] if open_end else data
        return _QUESTION.sub(b"", whole) + new
