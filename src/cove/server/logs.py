"""Structured logs on stderr: a line per record, key=value or JSON, with the ids of its request and sandbox. No secrets.

What is logged is chosen where it happens; here only its form. Control characters are escaped, so that no text from a
sandbox or a caller can forge a line or drive a terminal.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Final

from cove.model.origin import current_origin

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_PLAIN: Final = re.compile(r"[\w./:@%+-]+")


class _Lines(logging.Formatter):
    """key=value, or JSON."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "from": record.name.removeprefix("cove."),
            "text": record.getMessage(),
        }
        origin = current_origin()
        fields |= {name: value for name in ("request_id", "sandbox") if (value := getattr(origin, name))}
        fields |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        if self._as_json:
            return json.dumps(fields, default=str)
        return " ".join(f"{name}={_value(value)}" for name, value in fields.items())


def _value(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def configure(*, level: str, as_json: bool) -> None:
    """Send all logs to stderr in our form. uvicorn's own complaints are about clients, so only its worst are kept."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(as_json=as_json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        logging.getLogger(name).handlers.clear()
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
