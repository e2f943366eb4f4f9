"""One server per data directory: an flock that dies with its process, so a crash leaves nothing to clean up."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from cove.model.errors import Conflict


@contextmanager
def single_server(data_dir: Path) -> Generator[None]:
    """Hold the data directory. Raises: Conflict naming the process that holds it; OSError."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
    descriptor = os.open(data_dir / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise Conflict(
                f"a Cove server already runs on {data_dir} (pid {pid}): use it, stop it with `cove down`, or give "
                "this one another COVE_DATA_DIR and COVE_PORT"
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)
