"""Sockets made ahead: there when they are asked for, made again, closed at the end."""

from __future__ import annotations

import asyncio
import socket

from cove.engine.network.netns import NetNs
from cove.engine.network.spares import KEPT, open_spares


async def test_sockets_are_at_hand_and_made_again() -> None:
    space = NetNs(None, "here")
    try:
        async with open_spares(space) as spares:
            for _ in range(3):
                while any(len(kept) < KEPT for kept in spares._kept.values()):
                    await asyncio.sleep(0.001)
                taken = [await spares.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(KEPT + 3)]
                for sock in taken:
                    with sock:
                        assert sock.type == socket.SOCK_DGRAM
                        assert not sock.getblocking()
            with await spares.socket(socket.AF_INET6, socket.SOCK_STREAM) as other:
                assert other.family == socket.AF_INET6
            kept = [sock for some in spares._kept.values() for sock in some]
        assert all(sock.fileno() == -1 for sock in kept)
    finally:
        space.close()
