from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

from cove.server.listen import bind_tcp


def test_a_connection_whose_client_vanished_ends_within_two_minutes() -> None:
    settings: Any = SimpleNamespace(host="127.0.0.1", port=0)
    with bind_tcp(settings) as listening, socket.create_connection(listening.getsockname()):
        listening.setblocking(True)
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, pause, count = (
                accepted.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + pause * count <= 120
