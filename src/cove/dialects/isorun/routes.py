"""The isorun protocol as a table of operations, gathered from a file per noun."""

from __future__ import annotations

from cove.dialects.isorun import callers, commands, errors, keyform, runs, server
from cove.dialects.isorun.translate import NAME
from cove.edge.dialect import Dialect


def dialect() -> Dialect:
    """The isorun dialect. Paths with a word where others have an id come first."""
    return Dialect(
        name=NAME,
        prefix="/isorun",
        roots=("",),
        ops=(*server.OPS, *runs.OPS, *commands.OPS),
        errors=errors.TABLE,
        key_prefixes=("isorun_",),
        key_of=callers.key_of,
        new_key=keyform.FORM,
    )
