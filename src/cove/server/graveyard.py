"""Settings that no longer exist: name -> what to use instead, and since when. An upgrade fails with that sentence."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

GRAVEYARD: Final[Mapping[str, str]] = MappingProxyType({})
"""Such as `"COVE_OLD": "use COVE_NEW (since 0.3)"`."""
