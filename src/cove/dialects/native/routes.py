"""The native API as a table of operations. The handlers translate, call the core once, translate back.

To add an operation: a handler in the module of its noun (`sandboxes.py`, `commands.py`, `tcp.py`, …), a row in its
table there, its structs in `wire*.py`, a row in docs/reference/native-api.md.
"""

from __future__ import annotations

from cove.dialects.native import (
    audit,
    code,
    commands,
    credentials,
    errors,
    files,
    images,
    networks,
    ports,
    quotas,
    sandboxes,
    server,
    shells,
    snapshots,
    sshkeys,
    tcp,
    templates,
    terminals,
    trees,
    watches,
    webhooks,
)
from cove.dialects.native.translate_ports import FORM
from cove.edge.dialect import Dialect

PREFIX = "/api/v1"


def dialect() -> Dialect:
    """The native dialect."""
    return Dialect(
        name="native",
        prefix=PREFIX,
        ops=(
            *sandboxes.OPS,
            *snapshots.OPS,
            *commands.OPS,
            *code.OPS,
            *shells.OPS,
            *files.OPS,
            *trees.OPS,
            *watches.OPS,
            *images.OPS,
            *ports.OPS,
            *tcp.OPS,
            *terminals.OPS,
            *server.OPS,
            *sshkeys.OPS,
            *quotas.OPS,
            *credentials.OPS,
            *audit.OPS,
            *templates.OPS,
            *webhooks.OPS,
            *networks.OPS,
        ),
        errors=errors.TABLE,
        key_prefixes=("cove_",),
        ports=FORM,
    )
