"""The key that signs the audit trail: made once, kept in `audit.key` below the data directory, mode 0600.

Whoever has it can verify every project's trail, and forge it. It is not in the database, so that somebody who can
change rows, or has a copy of them, cannot sign what they write.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cove.core.facade import Core
from cove.model.audit import SERVER_PROJECT, AuditValue
from cove.model.auditchain import KEY_BYTES
from cove.model.errors import EngineFailure
from cove.server.app import cove_version
from cove.server.config import Settings

FILE: Final = "audit.key"


def ensure_audit_key(data_dir: Path) -> bytes:
    """The key in the file, or a new one if there is no file. Raises: EngineFailure (it is damaged), OSError."""
    path = data_dir / FILE
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return _made(path)
    except UnicodeDecodeError:
        text = ""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise EngineFailure(
            f"{FILE} in the data directory is damaged: put the right one back, or remove it to begin with a new key",
            internal=str(path),
        )
    return key


def _made(path: Path) -> bytes:
    key = secrets.token_bytes(KEY_BYTES)
    partial = path.with_suffix(".new")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)
        file.write(key.hex() + "\n")
        file.flush()
        os.fsync(descriptor)  # lines are signed with it from now on
    partial.rename(path)
    return key


@contextmanager
def noted_run(core: Core, settings: Settings) -> Generator[None]:
    """The server's start and stop as lines of the trail."""
    facts: dict[str, AuditValue] = {"version": cove_version(), "host": settings.host, "port": settings.port}
    core.audit.note("server.started", project=SERVER_PROJECT, sandbox=None, data=facts)
    try:
        yield
    finally:
        core.audit.note("server.stopped", project=SERVER_PROJECT, sandbox=None, data={})
