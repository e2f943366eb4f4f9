"""What the doctor found, as values, and how it reads in a terminal. No I/O."""

from __future__ import annotations

import textwrap
from enum import StrEnum
from typing import Final

from msgspec import Struct

_WIDTH: Final = 100


class Status(StrEnum):
    """`ok`: as Cove wants it. `warn`: Cove works, with the loss named. `missing`: Cove cannot run sandboxes."""

    OK = "ok"
    WARN = "warn"
    MISSING = "missing"


class Line(Struct, frozen=True, kw_only=True):
    """One finding. `cost` and `cure` are empty for `ok`."""

    name: str
    status: Status
    fact: str
    cost: str = ""
    cure: str = ""


class Report(Struct, frozen=True, kw_only=True):
    """All findings, in the order of reading."""

    lines: tuple[Line, ...]

    @property
    def is_usable(self) -> bool:
        """Whether nothing that Cove cannot do without is missing."""
        return all(line.status is not Status.MISSING for line in self.lines)


def ok(name: str, fact: str) -> Line:
    """A finding without a loss."""
    return Line(name=name, status=Status.OK, fact=fact)


def warn(name: str, fact: str, *, cost: str, cure: str) -> Line:
    """A finding with a loss that Cove can live with."""
    return Line(name=name, status=Status.WARN, fact=fact, cost=cost, cure=cure)


def missing(name: str, fact: str, *, cost: str, cure: str) -> Line:
    """A finding that keeps sandboxes from running."""
    return Line(name=name, status=Status.MISSING, fact=fact, cost=cost, cure=cure)


def render(report: Report) -> str:
    """The report as text: a line per finding, its cost and cure below where there is one, and a closing sentence."""
    width = max((len(line.name) for line in report.lines), default=0)
    text: list[str] = []
    for line in report.lines:
        text.append(f"{line.status.value:<8}{line.name:<{width}}  {line.fact}".rstrip())
        for word, value in (("costs", line.cost), ("cure", line.cure)):
            if value:
                text += textwrap.wrap(
                    value,
                    _WIDTH,
                    initial_indent=f"{'':8}{word + ':':<7}",
                    subsequent_indent=" " * 15,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
    return "\n".join([*text, "", summary(report)])


def summary(report: Report) -> str:
    """One sentence that says whether this machine will do."""
    absent = [line.name for line in report.lines if line.status is Status.MISSING]
    limited = [line.name for line in report.lines if line.status is Status.WARN]
    if absent:
        return f"Cove cannot run sandboxes here yet: {', '.join(absent)}."
    if limited:
        return f"Cove runs here, with limits: {', '.join(limited)}."
    return f"All {len(report.lines)} checks passed."
