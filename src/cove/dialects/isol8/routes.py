"""The isol8 protocol as a table of operations, gathered from a file per noun."""

from __future__ import annotations

import re
from typing import Final

from cove.dialects.isol8 import authkeys, errors, execute, files, keyform, sessions
from cove.edge.dialect import Dialect
from cove.edge.exchange import Exchange

_BEARER: Final = re.compile(rb"^bearer\s+", re.IGNORECASE)


def key_of(exchange: Exchange) -> str | None:
    """The key in `Authorization: Bearer KEY`, or in `Authorization: KEY`."""
    value = exchange.header(b"authorization")
    return None if value is None else _BEARER.sub(b"", value.strip()).decode("latin-1") or None


def dialect() -> Dialect:
    """The isol8 dialect."""
    return Dialect(
        name="isol8",
        prefix="/isol8",
        roots=("",),
        ops=(*execute.OPS, *files.OPS, *sessions.OPS, *authkeys.OPS),
        errors=errors.TABLE,
        key_prefixes=("isol8_",),
        key_of=key_of,
        new_key=keyform.FORM,
        keys_first=True,
    )
