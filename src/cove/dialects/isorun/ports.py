"""Where isorun has the ports of sandboxes: `R/proxy/{port}/`, below its prefix and at the root."""

from __future__ import annotations

import re
from typing import Final

from cove.dialects.isorun.translate import run_ref
from cove.edge.portforms import PathForm

_PATTERN: Final = re.compile(
    rb"(?P<prefix>(?:/isorun)?/v1/runs/(?P<ref>[A-Za-z0-9_-]{1,80})/proxy/(?P<port>[0-9]{1,5}))(?P<rest>/.*)?",
    re.DOTALL,
)

FORM: Final = PathForm(_PATTERN, b"/proxy/", run_ref, run_ref)
