"""The file `secrets.key`: the key that seals secrets in the database. Made at the first start, only for this user."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path
from typing import Final

from cove.core.secrets import KEY_BYTES, MasterKey, Secrets, new_master_key
from cove.model.errors import EngineFailure

NAME: Final = "secrets.key"
_MOST_BYTES: Final = 64 * 1024


def open_secrets(data_dir: Path) -> Secrets:
    """The server's secrets, their file made where there is none.

    Raises: EngineFailure for a file that others may read, that is not ours or is damaged: a start would either trust it
    or lose what it seals.
    """
    path = data_dir / NAME

    def save(ring: tuple[MasterKey, ...]) -> None:
        _write(path, ring)

    try:
        ring = _read(path)
    except FileNotFoundError:
        ring = (new_master_key(),)
        save(ring)
    return Secrets(ring, save)


def _read(path: Path) -> tuple[MasterKey, ...]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise EngineFailure(f"{path} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        _check(path, os.fstat(descriptor))
        text = file.read(_MOST_BYTES)
    try:
        ring = tuple(_key(line) for line in text.decode("ascii").splitlines())
    except (ValueError, binascii.Error):
        ring = ()
    if not ring:
        raise EngineFailure(f"{path} is damaged: put it back from where you keep a copy of it")
    return ring


def _check(path: Path, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise EngineFailure(f"{path} is no file")
    if facts.st_uid != os.geteuid():
        raise EngineFailure(f"{path} belongs to the user {facts.st_uid}: it must be the server's own (chown)")
    if stat.S_IMODE(facts.st_mode) & 0o077:
        mode = stat.S_IMODE(facts.st_mode)
        raise EngineFailure(
            f"{path} has the mode {mode:04o}, so others may have read it: chmod 600 it, start, and put a new key in "
            "its place with `cove credential rekey`"
        )


def _key(line: str) -> MasterKey:
    key_id, _, text = line.partition(" ")
    key = base64.b64decode(text, validate=True)
    if not key_id.isalnum() or len(key) != KEY_BYTES:
        raise ValueError("no key")
    return MasterKey(key_id, key)


def _write(path: Path, ring: tuple[MasterKey, ...]) -> None:
    text = "".join(f"{one.id} {base64.b64encode(one.key).decode()}\n" for one in ring)
    partial = path.with_suffix(".new")
    try:
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, 0o600)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        partial.rename(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise EngineFailure(f"{path} cannot be written: {error.strerror}") from error
