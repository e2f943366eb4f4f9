"""Secrets at rest: sealed by a key that lies beside the database and in no backup of it. No file is touched here.

AES-256-GCM, a random nonce for each text, and what the text is for as associated data: a sealed text that is moved to
another row does not open. The ring's first key seals; the others, of a rotation that is under way, only open.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cove.model.credentials import Secret
from cove.model.errors import EngineFailure

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_ID_BYTES: Final = 4
_FORM: Final = "1"


class MasterKey(NamedTuple):
    """One key of the ring. `id` names it in what it sealed."""

    id: str
    key: bytes

    def __repr__(self) -> str:
        """Without the key."""
        return f"MasterKey(id={self.id!r})"


def new_master_key() -> MasterKey:
    """A random key."""
    return MasterKey(secrets.token_hex(_ID_BYTES), secrets.token_bytes(KEY_BYTES))


class Secrets:
    """Seals and opens. `save` makes a ring durable before anything is sealed by its first key. Blocks for 10 µs.

    Whoever keeps sealed texts adds to `holders` what seals all of them by the first key and returns how many; what no
    holder seals is lost with the next rotation. A text is queued for the store in the step that seals it.
    """

    def __init__(self, ring: tuple[MasterKey, ...], save: Callable[[tuple[MasterKey, ...]], None]) -> None:
        self._ring = ring
        self._save = save
        self._rotating = asyncio.Lock()
        self.holders: list[Callable[[], Awaitable[int]]] = []

    def seal(self, secret: Secret, *context: str) -> str:
        """`secret` as a text for the store, to be opened with the same `context`."""
        master = self._ring[0]
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = AESGCM(master.key).encrypt(nonce, secret.reveal().encode(), _associated(context))
        return f"{_FORM}.{master.id}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def open(self, sealed: str, *context: str) -> Secret:
        """What was sealed. Raises: EngineFailure (another server's key, a damaged or a moved text)."""
        form, _, rest = sealed.partition(".")
        key_id, _, text = rest.partition(".")
        master = next((one for one in self._ring if one.id == key_id), None)
        if form != _FORM or master is None:
            raise _unreadable(f"sealed by the key {key_id[:16]!r}, which secrets.key does not have")
        try:
            raw = base64.urlsafe_b64decode(text)
            found = AESGCM(master.key).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _associated(context))
        except (InvalidTag, ValueError, binascii.Error):
            raise _unreadable("damaged, or moved from another row") from None
        return Secret(found.decode())

    def is_current(self, sealed: str) -> bool:
        """Whether the ring's first key sealed it."""
        return sealed.startswith(f"{_FORM}.{self._ring[0].id}.")

    def can_open(self, sealed: str) -> bool:
        """Whether its key is in the ring."""
        return any(sealed.startswith(f"{_FORM}.{one.id}.") for one in self._ring)

    def blind(self, text: str) -> str:
        """A text from which nobody without the key can guess `text`: 64 hex digits."""
        key = hashlib.sha256(b"cove blind" + self._ring[0].key).digest()
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()

    def resealed(self, sealed: str, *context: str) -> str | None:
        """A sealed text by the first key; None: it is already, or cannot be opened. Any thread."""
        if self.is_current(sealed) or not self.can_open(sealed):
            return None
        return self.seal(self.open(sealed, *context), *context)

    async def rotate(self) -> int:
        """Seal everything by a new key and forget the old one; returns how many texts there were.

        Killed in the middle, both keys stay in the file until the next time. Raises: EngineFailure.
        """
        async with self._rotating:
            self.begin_rotation()
            count = 0
            for holder in self.holders:
                count += await holder()
            self.end_rotation()
        return count

    def begin_rotation(self) -> None:
        """Seal by a new key from now on; what the old ones sealed still opens. Raises: EngineFailure (not written)."""
        ring = (new_master_key(), *self._ring)
        self._save(ring)
        self._ring = ring

    def end_rotation(self) -> None:
        """Forget all keys but the first: nothing that they sealed is left. Raises: EngineFailure (not written)."""
        ring = self._ring[:1]
        self._save(ring)
        self._ring = ring


def _associated(context: tuple[str, ...]) -> bytes:
    return json.dumps(["cove", *context]).encode()


def _unreadable(why: str) -> EngineFailure:
    return EngineFailure("this secret cannot be read with the server's secrets.key: set it again", internal=why)
