"""Wire protocols over the core, one folder each.

All have the same files: `wire.py` (structs), `translate.py` (pure), `errors.py` (one table), `routes.py` (operations
and their handlers, 15 lines each; where there are many, `routes.py` gathers them from a file per noun).

To add a dialect: its folder, and its module's name here. Nothing else on this side of the seam knows it by name.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

from cove.edge.dialect import Dialect

DIALECTS: Final = ("cove.dialects.native.routes", "cove.dialects.isorun.routes", "cove.dialects.isol8.routes")
"""Each module has `dialect() -> Dialect`. The first one answers for paths that belong to none."""


def load() -> tuple[Dialect, ...]:
    """All dialects of this server."""
    return tuple(import_module(name).dialect() for name in DIALECTS)
