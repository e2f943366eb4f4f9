from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import uvicorn
import uvloop

from cove.server.listen import ACCEPTED_AT_ONCE, Listener, bind_tcp

CLIENTS = 640


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


class Counting(asyncio.Protocol):
    """Says of each connection in which turn of the loop it was taken."""

    turn = 0
    taken: list[int]

    def __init__(self, **_: Any) -> None:
        """As uvicorn makes one."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.taken.append(Counting.turn)
        transport.close()


async def turns_of(sock: socket.socket) -> list[int]:
    Counting.taken = []
    listener = Listener(uvicorn.Config(lambda: None, http=Counting, lifespan="off", log_config=None))  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(listener.serve(sockets=[sock]))
        for Counting.turn in range(10_000):
            await asyncio.sleep(0)
            if len(Counting.taken) == CLIENTS:
                break
        listener.should_exit = True
    return Counting.taken


def test_a_turn_of_the_loop_takes_more_than_one_connection() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as sock:
        sock.setblocking(False)
        clients = [socket.create_connection(sock.getsockname()) for _ in range(CLIENTS)]
        taken = uvloop.run(turns_of(sock))
        for client in clients:
            client.close()
    assert len(taken) == CLIENTS
    assert len(set(taken)) <= 2 * CLIENTS / ACCEPTED_AT_ONCE, len(set(taken))
