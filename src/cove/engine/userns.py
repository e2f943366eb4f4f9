"""User namespaces as descriptors for idmapped mounts, made by a helper process.

Not thread-safe: called from the mount thread only (`engine/rootfs.py`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cove.model.errors import EngineFailure

_ANSWER_LIMIT_S: Final = 10.0


class UserNamespaces:
    """Hands out a user-namespace descriptor for a uid range. Closing ends the helper."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_ANSWER_LIMIT_S)
        script = Path(__file__).with_name("userns_helper.py")
        with theirs:
            self._helper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(script), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._channel = ours

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @contextlib.contextmanager
    def fd(self, base: int) -> Generator[int]:
        """A namespace that maps 0..65535 to `base`.., for the body's time; a mount made with it keeps it.

        Raises: EngineFailure when the machine refuses user namespaces (`user.max_user_namespaces`, AppArmor).
        """
        self._channel.send(struct.pack("<I", base))
        _, fds, _, _ = socket.recv_fds(self._channel, 1, 1)
        if not fds:
            raise EngineFailure("this machine refuses user namespaces", internal="userns helper: unshare or map failed")
        try:
            yield fds[0]
        finally:
            os.close(fds[0])

    def close(self) -> None:
        """End the helper."""
        self._channel.close()
        try:
            self._helper.wait(timeout=_ANSWER_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._helper.kill()
            self._helper.wait()
