"""Names of signals, as more than one protocol writes them. Pure."""

from __future__ import annotations

import signal


def signal_number(text: str) -> int | None:
    """The number of `INT`, `SIGINT` or `sigint`; None: no signal has this name."""
    name = text.upper().removeprefix("SIG")
    number = getattr(signal, f"SIG{name}", None) if name.isalnum() else None
    return int(number) if isinstance(number, signal.Signals) else None
