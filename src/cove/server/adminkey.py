"""The first key: minted once, printed once, kept for the local CLI in `admin.key` below the data directory."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct

from cove.core.access import LOCAL
from cove.core.facade import Core
from cove.model.errors import Unauthorized


class AdminKey(Struct, frozen=True):
    """The key, its file, and whether it was made just now."""

    text: str
    path: Path
    is_new: bool

    def __repr__(self) -> str:
        """Without the key."""
        return f"AdminKey(path={self.path}, is_new={self.is_new})"


async def ensure_admin_key(core: Core, data_dir: Path) -> AdminKey:
    """The key in the file, or a new one if there is none that this store knows. Raises: CoveError, OSError."""
    path = data_dir / "admin.key"
    try:
        text = path.read_text(encoding="ascii").strip()
        core.keys.authenticate(text)
        return AdminKey(text, path, is_new=False)
    except (FileNotFoundError, UnicodeDecodeError, Unauthorized):
        pass
    _, text = await core.keys.mint(LOCAL, "admin")
    partial = path.with_suffix(".new")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)
        file.write(text + "\n")
    partial.rename(path)
    return AdminKey(text, path, is_new=True)
