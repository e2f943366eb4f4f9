"""How isol8's keys look: `isol8_` and 64 hex digits, the first 8 of them the key's own id. Pure."""

from __future__ import annotations

import secrets
from typing import Final

from cove.model.keyform import KeyForm, KeyGround

_RANDOM_BYTES: Final = 28


def _make(key_id: str, ground: KeyGround) -> str:
    del ground
    return f"isol8_{key_id}{secrets.token_hex(_RANDOM_BYTES)}"


FORM: Final = KeyForm(_make)
