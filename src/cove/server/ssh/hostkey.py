"""The server's own SSH key: made once, kept in the data directory, so that a client's known_hosts stays true."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

import asyncssh

from cove.model.errors import EngineFailure

NAME: Final = "ssh_host_ed25519_key"


def ensure_host_key(data_dir: Path) -> asyncssh.SSHKey:
    """The key in the data directory, made if it is not there. Raises: EngineFailure."""
    path = data_dir / NAME
    try:
        if not path.exists():
            _make(path)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return asyncssh.read_private_key(path)
    except (OSError, asyncssh.KeyImportError) as error:
        raise EngineFailure(f"the SSH host key {path} cannot be used", internal=str(error)) from error


def _make(path: Path) -> None:
    """Whole or not at all, and never readable by others."""
    key = asyncssh.generate_private_key("ssh-ed25519", comment="cove")  # pyright: ignore[reportUnknownMemberType]
    staged = path.with_name(f".{NAME}.{secrets.token_hex(4)}")
    fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(key.export_private_key())
            file.flush()
            os.fsync(file.fileno())
        os.link(staged, path)
    except FileExistsError:
        pass  # made meanwhile: that one counts
    finally:
        staged.unlink()


def public_line(key: asyncssh.SSHKey) -> str:
    """`TYPE BASE64`, for a line of known_hosts."""
    return " ".join(key.export_public_key().decode().split()[:2])
