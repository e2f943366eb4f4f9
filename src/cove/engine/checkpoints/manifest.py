"""What a sealed checkpoint says of itself: its facts and the digest of every file, signed. Pure.

A memory image tells the restorer which files to open and which kernel objects to make, as root of the host: one that
somebody else made, or changed, must never reach it. So nothing is restored whose manifest the server's own key did not
sign. The key lies in the data directory (`checkpoints.key`), not in a checkpoint.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from cove.engine.checkpoints.model import CheckpointFacts
from cove.model.errors import EngineFailure

VERSION: Final = 1
MOST_FILES: Final = 20_000
MOST_BYTES: Final = 8 * 1024**2
"""Largest manifest: one file is a hundred bytes of it, and a process four or five files."""

KEY_FILE: Final = "checkpoints.key"
KEY_BYTES: Final = 32
_PURPOSE: Final = b"cove checkpoint\0"


class FileFacts(Struct, frozen=True, array_like=True):
    """One file of the memory: its size and SHA-256."""

    size: int
    digest: str


class Manifest(Struct, frozen=True, kw_only=True):
    """`files` by name; a memory image is one directory without others in it."""

    version: int = VERSION
    id: str
    layer: str
    facts: CheckpointFacts
    files: dict[str, FileFacts]


class _Signed(Struct, frozen=True):
    mac: str
    manifest: msgspec.Raw


class Damaged(Exception):
    """It is not what was sealed here. The text says in what, as a clause for a sentence."""


def sign(manifest: Manifest, key: bytes) -> bytes:
    """The manifest as it lies on the disk."""
    return sign_body(msgspec.json.encode(manifest), key, _PURPOSE)


def verify(data: bytes, key: bytes) -> Manifest:
    """What was signed. Raises: Damaged."""
    try:
        manifest = msgspec.json.decode(verify_body(data, key, _PURPOSE), type=Manifest)
    except msgspec.DecodeError as error:
        raise Damaged("another version of Cove made it") from error
    if manifest.version != VERSION:
        raise Damaged(f"its format is {manifest.version}, this server reads {VERSION}")
    return manifest


def sign_body(body: bytes, key: bytes, purpose: bytes) -> bytes:
    """JSON with its HMAC, for one purpose."""
    return msgspec.json.encode(_Signed(_mac(body, key, purpose), msgspec.Raw(body)))


def verify_body(data: bytes, key: bytes, purpose: bytes) -> bytes:
    """The JSON that was signed for that purpose. Raises: Damaged."""
    try:
        signed = msgspec.json.decode(data, type=_Signed)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged("its manifest cannot be read") from error
    body = bytes(signed.manifest)
    if not hmac.compare_digest(signed.mac.encode(), _mac(body, key, purpose).encode()):
        raise Damaged("its manifest was changed, or another server made it")
    return body


def _mac(body: bytes, key: bytes, purpose: bytes) -> str:
    return hmac.new(key, purpose + body, hashlib.sha256).hexdigest()


def ensure_key(data_dir: Path) -> bytes:
    """The key in the file, or a new one if there is no file. Raises: EngineFailure (it is damaged), OSError."""
    path = data_dir / KEY_FILE
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        return _made(path)
    if len(key) != KEY_BYTES:
        raise EngineFailure(
            f"{KEY_FILE} in the data directory is damaged: put the right one back; without it no snapshot can be used",
            internal=str(path),
        )
    return key


def _made(path: Path) -> bytes:
    key = secrets.token_bytes(KEY_BYTES)
    partial = path.with_suffix(".new")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return key
