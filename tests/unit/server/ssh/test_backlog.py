"""Clients that take in nothing, whatever window they have announced: what waits for them here is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Self, cast

import asyncssh
import pytest
import uvloop
from msgspec.structs import replace

from cove.core.quotabook import QuotaBook
from cove.core.ratelimits import RateLimits, RateSettings
from cove.engine.clock import SystemClock
from cove.model.access import Principal, Scope
from cove.model.execs import Chunk, ExecEvent, Stream
from cove.server import config
from cove.server.ssh import backlog, listener
from cove.server.ssh.listener import bind, open_ssh
from tests_support import free_port

WHO = Principal(key_id="ssh:1", name="n", project="p", scopes=frozenset({Scope.EXEC}))
PIECE = bytes(64 * 1024)
ENOUGH = 128 * 1024 * 1024
"""A flood ends here, so that a failing test does not take the machine with it."""


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run it on the server's own kind of loop, which binds some callbacks of a protocol before they can be replaced."""

    @functools.wraps(test)
    def run(*args: Any, **more: Any) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(test(*args, **more))

    return run


class Flood:
    """A command that prints as fast as anybody takes it."""

    def __init__(self) -> None:
        self.printed = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ExecEvent:
        await asyncio.sleep(0)
        if self.printed >= ENOUGH:
            await asyncio.Event().wait()
        self.printed += len(PIECE)
        return Chunk(Stream.STDOUT, PIECE)

    async def write(self, data: bytes) -> bool:
        del data
        return True

    def write_eof(self) -> None:
        pass


class Core:
    """Everybody may come in, and gets a flood."""

    def __init__(self) -> None:
        self.flood = Flood()
        self.ssh_keys = self.execs = self
        self.rate_limits = RateLimits(RateSettings(), cast("QuotaBook", None), SystemClock())

    def admit(self, blob: bytes, ref: str) -> tuple[Principal, str]:
        del blob, ref
        return WHO, "box"

    def why_leave(self, who: Principal, sandbox: str) -> str | None:
        del who, sandbox
        return None

    def used(self, who: Principal) -> None:
        del who

    @contextlib.asynccontextmanager
    async def session(self, *_: object) -> AsyncIterator[Flood]:
        yield self.flood


@contextlib.asynccontextmanager
async def inside(tmp_path: Path, core: Core) -> AsyncIterator[Any]:
    port = free_port()
    settings = replace(config.load({"COVE_DATA_DIR": str(tmp_path)}).settings, ssh_port=port)
    async with (
        open_ssh(settings, core),  # type: ignore[arg-type]
        asyncssh.connect(
            "127.0.0.1",
            port,
            username="otter",
            client_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            known_hosts=None,
            config=None,
            agent_path=None,
        ) as conn,
    ):
        yield conn


async def settled(flood: Flood) -> int:
    """What was printed when for half a second nothing more was."""
    before = -1
    while flood.printed != before:
        before = flood.printed
        await asyncio.sleep(0.5)
    return before


@on_uvloop
async def test_a_huge_window_of_a_client_that_reads_nothing_fills_no_memory(tmp_path: Path) -> None:
    core = Core()
    async with asyncio.timeout(60), inside(tmp_path, core) as conn:
        process = await conn.create_process("flood", encoding=None, window=2**31 - 1)
        conn._transport.pause_reading()
        assert await settled(core.flood) < 32 * 1024 * 1024, "the kernel's buffers and a little of ours"
        conn._transport.resume_reading()
        await process.stdout.readexactly(core.flood.printed + len(PIECE))


@on_uvloop
async def test_output_goes_on_after_a_key_exchange(tmp_path: Path) -> None:
    core = Core()
    async with asyncio.timeout(60), inside(tmp_path, core) as conn:
        process = await conn.create_process("flood", encoding=None)
        for _ in range(3):
            await process.stdout.readexactly(4 * len(PIECE))
            conn._send_kexinit()
            conn._kexinit_sent = True
        await process.stdout.readexactly(64 * len(PIECE))


@on_uvloop
async def test_a_key_exchange_that_is_never_finished_fills_no_memory(tmp_path: Path) -> None:
    core = Core()
    async with asyncio.timeout(60), inside(tmp_path, core) as conn:
        process = await conn.create_process("flood", encoding=None)
        conn._packet_handlers = {**conn._packet_handlers, 20: lambda *_: None}  # MSG_KEXINIT
        process.channel._recv_window = 2**31
        process.channel.send_packet(93, (2**31).to_bytes(4, "big"))  # MSG_CHANNEL_WINDOW_ADJUST
        conn._send_kexinit()
        before = core.flood.printed
        assert await settled(core.flood) < before + 16 * 1024 * 1024
        assert not conn.is_closed()


@on_uvloop
async def test_answers_that_nobody_reads_end_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "MOST_BYTES", 64 * 1024)

    def bound(host: str, port: int) -> socket.socket:
        sock = bind(host, port)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # inherited; else the kernel holds many megabytes
        return sock

    monkeypatch.setattr(listener, "bind", bound)
    async with asyncio.timeout(60), inside(tmp_path, Core()) as conn:
        transport = conn._transport
        transport.pause_reading()
        while not transport.is_closing():
            for _ in range(200):
                conn.send_packet(80, asyncssh.packet.String(b"what@is.this"), b"\1")  # MSG_GLOBAL_REQUEST
            while transport.get_write_buffer_size() and not transport.is_closing():
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)
