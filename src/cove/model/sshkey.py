"""A public key for SSH: reading a line of `authorized_keys`, nothing else. Pure, and without a crypto library.

What is read here is only stored and compared; whether a point lies on its curve is found out where a signature is
checked, and a key that fails there opens nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Final

from msgspec import Struct

from cove.model.errors import BadRequest, TooLarge

LINE_BYTES: Final = 8 * 1024
RSA_BITS: Final = (2048, 16384)

_CURVES: Final = {b"nistp256": 65, b"nistp384": 97, b"nistp521": 133}
"""Length of an uncompressed point."""

TYPES: Final = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_COMMENT: Final = re.compile(r"[^\x00-\x1f\x7f]*")


class SshKey(Struct, frozen=True, kw_only=True):
    """A key that may log in as its project. `public_key` is the base64 of its line, `type` the word before it."""

    id: str
    project: str
    name: str
    type: str
    public_key: str
    fingerprint: str
    created_at: float
    last_used_at: float | None = None


class PublicKey(Struct, frozen=True, kw_only=True):
    """What a line says."""

    type: str
    base64: str
    comment: str
    fingerprint: str


def fingerprint_of(blob: bytes) -> str:
    """The SHA-256 of a key's bytes, as `ssh-keygen -l` shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def parse(line: str) -> PublicKey:
    """A line of `authorized_keys` without options: `TYPE BASE64 [COMMENT]`. Raises: BadRequest, never with the text."""
    text = line.strip()
    if len(line.encode(errors="surrogatepass")) > LINE_BYTES:
        raise TooLarge(f"a public key has at most {LINE_BYTES} bytes", field="public_key")
    if "PRIVATE KEY" in text:
        raise _bad("this is a private key, which must stay with you: give the file that ends in .pub")
    if "\n" in text or "\r" in text or not _COMMENT.fullmatch(text):
        raise _bad("give one key, on one line")
    words = text.split(None, 2)
    if not words or words[0] not in TYPES:
        raise _bad(_why_not(text, words))
    if len(words) < 2 or not _BASE64.fullmatch(words[1]):  # noqa: PLR2004 - type and base64
        raise _bad("after its type, a public key is one word of base64")
    try:
        blob = base64.b64decode(words[1], validate=True)
    except binascii.Error as error:
        raise _bad("the key's base64 is damaged") from error
    _check_blob(words[0], blob)
    encoded = base64.b64encode(blob).decode()
    comment = words[2] if len(words) > 2 else ""  # noqa: PLR2004 - as above
    return PublicKey(type=words[0], base64=encoded, comment=comment, fingerprint=fingerprint_of(blob))


def _why_not(text: str, words: list[str]) -> str:
    if words and words[0] in {"ssh-dss", "ssh-dsa"}:
        return "DSA keys are broken; make a new one: ssh-keygen -t ed25519"
    if words and words[0].endswith(("-cert-v01@openssh.com", "-cert-v00@openssh.com")):
        return "this is a certificate; give the public key itself"
    if any(f" {known} " in f" {text} " for known in TYPES):
        return "options before a key are not taken; give the key alone"
    return f"not a public key: it begins with one of {', '.join(TYPES)}"


def _check_blob(kind: str, blob: bytes) -> None:
    """The parts that a key of its type has, and nothing after them. Raises: BadRequest."""
    parts = _parts(blob)
    if not parts or parts[0] != kind.encode():
        raise _bad("the key's type and its content differ")
    rest = parts[1:]
    has_application = kind.startswith("sk-")
    if has_application:
        if not rest or not 0 < len(rest[-1]) <= 255:  # noqa: PLR2004 - such as `ssh:`
            raise _bad("the key's content is damaged")
        rest = rest[:-1]
    if kind == "ssh-rsa":
        _check_rsa(rest)
    elif "ed25519" in kind:
        if [len(part) for part in rest] != [32]:
            raise _bad("the key's content is damaged")
    elif not (
        len(rest) == 2  # noqa: PLR2004 - curve and point
        and kind.partition("@")[0].endswith(rest[0].decode(errors="replace"))
        and len(rest[1]) == _CURVES.get(rest[0])
        and rest[1][0] == 4  # noqa: PLR2004 - uncompressed, SEC 1 section 2.3.3
    ):
        raise _bad("the key's content is damaged")


def _check_rsa(parts: list[bytes]) -> None:
    if len(parts) != 2:  # noqa: PLR2004 - exponent and modulus
        raise _bad("the key's content is damaged")
    exponent, modulus = (int.from_bytes(part, "big", signed=True) for part in parts)
    if exponent < 3 or exponent % 2 == 0 or modulus <= 0 or modulus % 2 == 0:  # noqa: PLR2004 - the smallest there is
        raise _bad("the key's content is damaged")
    if not RSA_BITS[0] <= modulus.bit_length() <= RSA_BITS[1]:
        raise _bad(f"an RSA key has {RSA_BITS[0]} to {RSA_BITS[1]} bits; better: ssh-keygen -t ed25519")


def _parts(blob: bytes) -> list[bytes]:
    """The length-prefixed strings of a key; none if they do not fill it exactly."""
    parts: list[bytes] = []
    while blob:
        size = int.from_bytes(blob[:4], "big")
        if len(blob) < 4 + size:
            return []
        parts.append(blob[4 : 4 + size])
        blob = blob[4 + size :]
    return parts


def _bad(text: str) -> BadRequest:
    return BadRequest(text, field="public_key")
