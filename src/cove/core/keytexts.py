"""The texts of keys: ours, and those in a dialect's own form. What is told apart here without asking the store.

What signs is in the database, beside the digests of the keys, and lasts as long as they do. It opens nothing: every
text has random bits of its own, which the database does not have.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Final

from cove.model.keyform import KeyForm, KeyGround
from cove.store.store import Store

_META: Final = "key_signing"
_SECRET_BYTES: Final = 32


class KeyTexts:
    """Makes texts, and knows some wrong ones at sight. `forms` by the name of a dialect."""

    def __init__(self, forms: Mapping[str, KeyForm], region: str) -> None:
        self._forms = forms
        self._ground = KeyGround(region, self._sign)
        self._secret = b""

    async def open(self, store: Store) -> None:
        """Before the first text: what signs, made where there is none."""
        known = store.meta(_META)
        if known is None:
            known = secrets.token_hex(_SECRET_BYTES)
            await store.set_meta(_META, known)
        self._secret = bytes.fromhex(known)

    def make(self, dialect: str | None, key_id: str) -> str:
        """A text for a new key, in the dialect's form if it has one."""
        form = None if dialect is None else self._forms.get(dialect)
        if form is None:
            return f"cove_{key_id}_{secrets.token_urlsafe(32)}"
        return form.make(key_id, self._ground)

    def is_forged(self, text: str) -> bool:
        """Whether it has a form of ours and was never made here."""
        return any(form.is_forged(text, self._ground) for form in self._forms.values())

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, b"cove key\0" + text.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()
