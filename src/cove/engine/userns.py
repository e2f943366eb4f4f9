"""User namespaces as descriptors for idmapped mounts, one per uid range, made by a helper process and kept.

Not thread-safe: called from the mount thread only (`engine/rootfs.py`).
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cove.model.errors import EngineFailure

_ANSWER_LIMIT_S: Final = 10.0


class UserNamespaces:
    """Hands out a user-namespace descriptor for a uid range. Closing ends the helper and all descriptors."""

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
        self._fds: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def fd(self, base: int) -> int:
        """The descriptor of the namespace that maps 0..65535 to `base`.. Kept for the next sandbox of that range.

        Raises: EngineFailure when the machine refuses user namespaces (`user.max_user_namespaces`, AppArmor).
        """
        if (known := self._fds.get(base)) is not None:
            return known
        self._channel.send(struct.pack("<I", base))
        _, fds, _, _ = socket.recv_fds(self._channel, 1, 1)
        if not fds:
            raise EngineFailure("this machine refuses user namespaces", internal="userns helper: unshare or map failed")
        self._fds[base] = fds[0]
        return fds[0]

    def close(self) -> None:
        """End the helper and close every descriptor."""
        self._channel.close()
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        try:
            self._helper.wait(timeout=_ANSWER_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._helper.kill()
            self._helper.wait()
