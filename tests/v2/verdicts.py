"""Judges what the guest said: every check by name, and what was not said at all. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct


class Verdict(Struct, frozen=True):
    """One check of one suite. `gap`: why the driver cannot pass it, known and documented."""

    suite: str
    name: str
    ok: bool
    detail: str = ""
    gap: str | None = None
    ms: float = 0.0

    @property
    def passes(self) -> bool:
        """Whether it is as it must be."""
        return self.ok or self.gap is not None

    def line(self) -> str:
        """As a person reads it."""
        word = "ok" if self.ok else "gap" if self.gap is not None else "FAILED"
        end = "" if self.ok else f"\n       {self.detail.strip()}"
        return f"{word:6} {self.suite}: {self.name} ({self.ms / 1000:.1f} s){end}"


def read_line(line: str) -> Verdict | None:
    """The verdict in a line of the serial port, or None: the line is something else (the kernel writes there too)."""
    try:
        return msgspec.json.decode(line, type=Verdict)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None


def complaints(verdicts: Sequence[Verdict], expected: Iterable[tuple[str, str]]) -> list[str]:
    """What is wrong with a run, a sentence each; empty: it passed.

    Args:
        verdicts: all that the guest said.
        expected: suite and name of what it must have said at least. A check that is missing failed.
    """
    said = {(verdict.suite, verdict.name) for verdict in verdicts}
    failed = [f"{v.suite}: {v.name} failed" for v in verdicts if not v.passes]
    missing: dict[str, list[str]] = {}
    for suite, name in expected:
        if (suite, name) not in said:
            missing.setdefault(suite, []).append(name)
    return failed + [f"{suite}: no verdict on {', '.join(names)}" for suite, names in missing.items()]
