"""What reaches the terminal: cleaning, colours, tables, JSON lines. Knows nothing of Cove, and imports nothing heavy.

stdout is what was asked for, stderr is talk. Text that came from a server or sandbox goes through `clean` before it is
printed, because a name or message may hold escape sequences; a command's own output is passed on as it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TextIO, cast

_DROPPED: Final[dict[int, str]] = {
    **dict.fromkeys((*range(32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A)), ""),
    9: " ",
    10: " ",
}
"""C0, DEL and C1, line separators, and the marks that reorder text; a tab or line feed becomes a blank."""
_ESCAPED: Final = {code: f"\\u{code:04x}" for code in _DROPPED if code >= 127}  # noqa: PLR2004 - JSON escapes C0 itself
COLOURS: Final = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


def clean(value: object) -> str:
    """Return `value` as one line of text without control characters."""
    return str(value).translate(_DROPPED)


def say(text: str) -> None:
    """Write a line of talk to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def put(text: str) -> None:
    """Write a line that was asked for to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def has_colour(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that wants colours (no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def paint(text: str, colour: str, stream: TextIO) -> str:
    """Return `text` in one of the 16 colours where `stream` wants them."""
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if has_colour(stream) else text


def as_json(value: Any) -> str:
    """Return `value` as one line of JSON that a terminal shows as it is; times and paths as text."""
    import json

    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str).translate(_ESCAPED)


def pick(value: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """Return the chosen fields of an object, in the order asked for; all of them for none."""
    if not fields:
        return dict(value)
    return {field: value[field] for field in fields if field in value}


def table(head: Sequence[str], rows: Iterable[Sequence[object]], colour: Callable[[int, str], str | None]) -> str:
    """Return aligned columns. `colour` names the colour of a cell by its column and text; alignment ignores it."""
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(head, *cells, strict=True)]
    lines = ["  ".join(name.ljust(width) for name, width in zip(head, widths, strict=True)).rstrip()]
    for row in cells:
        shown: list[str] = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padded = cell.ljust(width) if index < len(row) - 1 else cell
            name = colour(index, cell)
            shown.append(paint(padded, name, sys.stdout) if name else padded)
        lines.append("  ".join(shown).rstrip())
    return "\n".join(lines)


def facts(value: Mapping[str, Any]) -> str:
    """Return an object as lines of a name and a value: `usage.pids  3` for one in it. Empty values are left out."""
    rows = list(_flat(value, ""))
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{clean(name).ljust(width)}  {clean(text)}" for name, text in rows)


def _flat(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, one in value.items():
        if isinstance(one, Mapping):
            yield from _flat(one, f"{prefix}{name}.")  # pyright: ignore[reportUnknownArgumentType]
        elif isinstance(one, list | tuple):
            several = cast("Sequence[object]", one)
            yield from ((f"{prefix}{name}", str(each)) for each in several)
        elif one not in (None, ""):
            text = str(one).lower() if isinstance(one, bool) else str(one)
            yield f"{prefix}{name}", f"{text} ({size(one)})" if name.endswith("_bytes") else text


def duration(seconds: float) -> str:
    """Return a length of time with one unit: `4 ms`, `2s`, `28m`, `3h`, `5d`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    for limit, size, unit in ((60, 1, "s"), (3600, 60, "m"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"


def size(count: float) -> str:
    """Return a number of bytes with one unit, powers of 1024."""
    for unit in ("B", "K", "M", "G"):
        if count < 1024:  # noqa: PLR2004 - the factor
            return f"{count:.0f}{unit}" if count >= 10 or unit == "B" else f"{count:.1f}{unit}"  # noqa: PLR2004
        count /= 1024
    return f"{count:.1f}T"
