"""The file `quiesce` beside an agent's socket: as long as it is there, the agent holds no socket (agent/PROTOCOL.md).

The directory belongs to the sandbox, which may put anything there under any name: nothing is followed, nothing is read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import Final

from cove.model.errors import AgentViolation

NAME: Final = "quiesce"


def ask(directory: Path) -> None:
    """Put the file there. Raises: AgentViolation when the sandbox keeps us from it."""
    try:
        with _open(directory) as folder:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(NAME, dir_fd=folder)
            os.close(os.open(NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444, dir_fd=folder))
    except OSError as error:
        raise AgentViolation("the sandbox blocks its agent's socket", internal=repr(error)) from error


def withdraw(directory: Path) -> bool:
    """Remove the file; whether there was one. What cannot be removed is left: it harms its sandbox only."""
    try:
        with _open(directory) as folder:
            os.unlink(NAME, dir_fd=folder)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _open(directory: Path) -> Generator[int]:
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield folder
    finally:
        os.close(folder)
