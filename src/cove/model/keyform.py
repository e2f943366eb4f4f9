"""How the text of a key looks, in the form that one dialect's clients expect. Pure.

The core makes and checks keys and knows no dialect: it is handed a form by name. A form lives with its dialect
(`Dialect.new_key`). Whatever the form, a text has at least 128 random bits of its own: what the server can compute of
it only lets a wrong one be told cheaply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import Struct

REGION: Final = "local"
"""Where a server is that was not told."""


class KeyGround(Struct, frozen=True):
    """What a text is made with: the server's `region`, and `sign`, which makes 64 hex digits only this server can."""

    region: str
    sign: Callable[[str], str]


def _never(text: str, ground: KeyGround) -> bool:
    del text, ground
    return False


class KeyForm(Struct, frozen=True):
    """One form.

    Args:
        make: a new text for the key of that id (8 hex digits), different each time.
        is_forged: whether a text has this form and this server never made it, told without asking the store.
    """

    make: Callable[[str, KeyGround], str]
    is_forged: Callable[[str, KeyGround], bool] = _never
