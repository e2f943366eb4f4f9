"""How isorun's keys look: `isorun_live_<region>_<id>_<hmac>`. Pure.

The id is the key's own 8 hex digits and 128 random bits; the HMAC covers the region and the id, so that a text that was
made up is told without asking the store.
"""

from __future__ import annotations

import hmac
import re
import secrets
from typing import Final

from cove.model.keyform import KeyForm, KeyGround

_FORM: Final = re.compile(r"isorun_live_([a-z0-9-]{1,32})_([0-9a-f]{40})_([0-9a-f]{32})")
_RANDOM_BYTES: Final = 16
_SIGNED: Final = 32
"""Hex digits of the HMAC that stand in a key."""


def _make(key_id: str, ground: KeyGround) -> str:
    part = key_id + secrets.token_hex(_RANDOM_BYTES)
    return f"isorun_live_{ground.region}_{part}_{_signed(ground, ground.region, part)}"


def _is_forged(text: str, ground: KeyGround) -> bool:
    found = _FORM.fullmatch(text)
    return found is not None and not hmac.compare_digest(found[3], _signed(ground, found[1], found[2]))


def _signed(ground: KeyGround, region: str, part: str) -> str:
    return ground.sign(f"isorun {region} {part}")[:_SIGNED]


FORM: Final = KeyForm(_make, _is_forged)
