"""The isorun protocol as a table of operations, gathered from a file per noun."""

from __future__ import annotations

from cove.dialects.isorun import (
    accounts,
    audit,
    callers,
    commands,
    errors,
    files,
    images,
    keyform,
    networks,
    ports,
    runs,
    server,
    shells,
    snapshots,
    terminals,
)
from cove.dialects.isorun.translate import NAME
from cove.edge.dialect import Dialect


def dialect() -> Dialect:
    """The isorun dialect. Paths with a word where others have an id come first."""
    return Dialect(
        name=NAME,
        prefix="/isorun",
        roots=("",),
        ops=(
            *server.OPS,
            *accounts.OPS,
            *snapshots.OPS,
            *runs.OPS,
            *commands.OPS,
            *files.OPS,
            *audit.OPS,
            *networks.OPS,
            *images.OPS,
            *terminals.OPS,
            *shells.OPS,
        ),
        errors=errors.TABLE,
        key_prefixes=("isorun_",),
        ports=ports.FORM,
        key_of=callers.key_of,
        new_key=keyform.FORM,
    )
