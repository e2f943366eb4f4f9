"""A tunnel between two ends that stop reading, close one half, or vanish."""

# ruff: noqa: ANN201 - stand-ins are typed where they are used
from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from cove.edge import tunnel as module
from cove.edge.tunnel import HIGH_BYTES, Tunnel, join
from cove.model.errors import SandboxGone
from waiting_support import comes_true


class Client:
    """A transport that notes what is done with it."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.is_reading = True
        self.has_eof = self.is_closed = self.is_aborted = False
        self.protocol: Tunnel | None = None

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def write_eof(self) -> None:
        self.has_eof = True

    def can_write_eof(self) -> bool:
        return True

    def get_extra_info(self, _name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True
        if self.protocol is not None:
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)


class Program:
    """The far end: `says` is what it sends, `heard` what it got."""

    def __init__(self) -> None:
        self.says: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.heard: list[bytes] = []
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.has_eof = False

    async def __anext__(self) -> bytes:
        said = await self.says.get()
        if isinstance(said, Exception):
            raise said
        if not said:
            raise StopAsyncIteration
        return said

    async def write(self, data: bytes) -> None:
        await self.may_read.wait()
        self.heard.append(data)

    async def write_eof(self) -> None:
        self.has_eof = True


def ends(stall_s: float = 5.0):
    client, tunnel = Client(), Tunnel(stall_s)
    tunnel.connection_made(cast("Any", client))
    client.protocol = tunnel
    return client, tunnel, Program()


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_bytes_go_both_ways_until_both_have_ended() -> None:
    client, tunnel, program = ends()
    joined = asyncio.ensure_future(join(tunnel, program))
    tunnel.data_received(b"to the program")
    program.says.put_nowait(b"to the client")
    await turns()
    assert program.heard == [b"to the program"]
    assert client.sent == [b"to the client"]
    assert tunnel.eof_received() is True
    await turns()
    assert program.has_eof
    assert not joined.done()
    program.says.put_nowait(b"after that")
    program.says.put_nowait(b"")
    await joined
    assert client.sent[-1] == b"after that"
    assert client.has_eof
    assert client.is_closed


async def test_a_program_that_does_not_read_stops_the_client() -> None:
    client, tunnel, program = ends()
    program.may_read.clear()
    joined = asyncio.ensure_future(join(tunnel, program))
    await turns()
    for _ in range(4):
        tunnel.data_received(bytes(HIGH_BYTES // 2))
        await turns()
    assert not client.is_reading
    program.may_read.set()
    await turns(50)
    assert client.is_reading
    assert sum(map(len, program.heard)) == 2 * HIGH_BYTES
    tunnel.connection_lost(None)
    await joined


async def test_a_client_that_does_not_read_stops_the_program_and_is_given_up() -> None:
    client, tunnel, program = ends(stall_s=0.05)
    tunnel.pause_writing()
    for _ in range(3):
        program.says.put_nowait(b"x")
    await asyncio.wait_for(join(tunnel, program), 60)
    assert client.sent == [b"x"]
    assert client.is_aborted


async def test_a_client_that_does_not_take_the_rest_is_cut_off_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0.02)
    client, tunnel, program = ends(stall_s=0.05)
    program.says.put_nowait(b"much")
    program.says.put_nowait(b"")
    await join(tunnel, program)
    assert client.is_closed
    assert not client.is_aborted, "it may still read"
    await comes_true(lambda: tunnel.is_lost)
    assert client.is_aborted


async def test_a_client_that_reads_again_goes_on() -> None:
    client, tunnel, program = ends()
    tunnel.pause_writing()
    joined = asyncio.ensure_future(join(tunnel, program))
    program.says.put_nowait(b"one")
    program.says.put_nowait(b"two")
    await turns()
    assert client.sent == [b"one"]
    tunnel.resume_writing()
    await turns()
    assert client.sent == [b"one", b"two"]
    tunnel.connection_lost(None)
    await joined


async def test_whoever_vanishes_ends_it() -> None:
    _, tunnel, program = ends()
    joined = asyncio.ensure_future(join(tunnel, program))
    await turns()
    tunnel.connection_lost(ConnectionResetError())
    await asyncio.wait_for(joined, 60)
    client, tunnel, program = ends()
    program.says.put_nowait(SandboxGone("died"))
    await asyncio.wait_for(join(tunnel, program), 60)
    assert client.is_closed


async def test_a_client_that_does_not_close_after_the_program_has_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0.05)
    client, tunnel, program = ends()
    program.says.put_nowait(b"")
    await asyncio.wait_for(join(tunnel, program), 60)
    assert client.has_eof
    assert client.is_closed
