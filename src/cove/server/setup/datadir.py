"""The data directory: made closed, told apart from somebody else's directory. Knows nothing of its content."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cove.server.setup.settings import SetupFailed

# Closed to everyone but root: writable layers hold files with raw ids and setuid bits (docs/security.md).
MODE: Final = 0o700
LOCK: Final = ".setup.lock"
# Any of these says that a directory is Cove's. A server, or the operator's settings file, may come before setup.
_SIGNS: Final = (LOCK, "cove.toml", "cove.db", "admin.key", "runtimes", "images")


def is_ours(path: Path) -> bool:
    """Whether `path` is a data directory of Cove's, or empty."""
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError:
        return False
    return not names or any(sign in names for sign in _SIGNS)


def make_data_dir(path: Path) -> None:
    """Create `path` with mode 0700. Raises: SetupFailed when it cannot be made or holds what is not Cove's."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not is_ours(path):
            raise SetupFailed(
                f"{path} holds files that are not Cove's", cure="choose an empty or new directory by COVE_DATA_DIR"
            )
        if path.stat().st_uid != os.geteuid():
            raise SetupFailed(f"{path} belongs to another user", cure=f"chown root: {path}")
        path.chmod(MODE)
    except OSError as error:
        raise SetupFailed(
            f"the data directory {path} cannot be made: {error.strerror}", cure="choose another one by COVE_DATA_DIR"
        ) from error
