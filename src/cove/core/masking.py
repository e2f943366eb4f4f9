"""Secrets out of output: bytes of a stream to text in which each secret is `***`, wherever the pieces were cut.

The longest secret wins where several begin at one place. What may be the beginning of a secret is held back until it is
clear whether it is one; characters are never cut in two.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from typing import Final

MASK: Final = "***"
SECRET_BYTES: Final = 16 * 1024
"""The longest secret: what is held back, and searched again with each piece, is as long."""


class Masker:
    """One stream."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = sorted({one for one in secrets if one}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._secrets)))
        self._starts = re.compile("|".join({re.escape(one[0]) for one in self._secrets}))
        self._longest = len(self._secrets[0]) if self._secrets else 0
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held = ""

    def feed(self, data: bytes) -> str:
        """What may be told by now."""
        return self._advance(self._decode(data), is_end=False)

    def finish(self) -> str:
        """The rest, at the end of the stream."""
        return self._advance(self._decode(b"", final=True), is_end=True)

    def _advance(self, text: str, *, is_end: bool) -> str:
        if not self._secrets:
            return text
        text = self._held + text
        told: list[str] = []
        at = 0
        while True:
            held = len(text) if is_end else self._undecided(text, at)
            found = self._pattern.search(text, at)
            if found is None or (found.start() >= held and not is_end):
                break
            told += (text[at : found.start()], MASK)
            at = found.end()
        held = len(text) if is_end else self._undecided(text, at)
        told.append(text[at:held])
        self._held = text[held:]
        return "".join(told)

    def _undecided(self, text: str, at: int) -> int:
        """Where the first possible beginning of a secret that the text does not show whole stands, else its end."""
        at = max(at, len(text) - self._longest + 1)
        while (found := self._starts.search(text, at)) is not None:
            at = found.start()
            rest = text[at:]
            if any(len(one) > len(rest) and one.startswith(rest) for one in self._secrets):
                return at
            at += 1
        return len(text)


def mask(text: str, secrets: Iterable[str]) -> str:
    """A whole text."""
    masker = Masker(secrets)
    return masker.feed(text.encode(errors="replace")) + masker.finish()


class Clipped:
    """The head of a masked stream, as far as a limit of bytes goes, and how much there was in all."""

    def __init__(self, secrets: Iterable[str], limit: int) -> None:
        self._masker = Masker(secrets)
        self._limit = limit
        self._kept = bytearray()
        self.total = 0

    def feed(self, data: bytes) -> None:
        """One more piece."""
        self._take(self._masker.feed(data))

    def finish(self) -> str:
        """The head: no character is cut in two."""
        self._take(self._masker.finish())
        return self._kept.decode(errors="ignore")

    @property
    def is_cut(self) -> bool:
        """Whether there was more than the limit."""
        return self.total > self._limit

    def _take(self, text: str) -> None:
        data = text.encode(errors="replace")
        self.total += len(data)
        room = self._limit - len(self._kept)
        if room > 0:
            self._kept += data[:room]
