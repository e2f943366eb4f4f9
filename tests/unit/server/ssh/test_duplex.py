"""The bytes of a channel, without SSH and without a sandbox."""

from __future__ import annotations

import asyncio

from cove.server.ssh.duplex import HELD_BYTES, Duplex


class Channel:
    def __init__(self) -> None:
        self.written: list[tuple[bytes, int | None]] = []
        self.calls: list[str] = []
        self.is_broken = False

    def write(self, data: bytes, datatype: int | None = None) -> None:
        if self.is_broken:
            raise BrokenPipeError
        self.written.append((data, datatype))

    def write_eof(self) -> None:
        self.calls.append("eof")

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        del high, low

    def close(self) -> None:
        self.calls.append("close")

    def is_closing(self) -> bool:
        return False


def joined() -> tuple[Duplex, Channel]:
    duplex, channel = Duplex(), Channel()
    duplex.on_made(channel)
    return duplex, channel


async def test_bytes_come_in_order_and_then_the_end() -> None:
    duplex, _ = joined()
    reading = asyncio.ensure_future(duplex.read())
    await asyncio.sleep(0)
    duplex.on_data(b"a")
    assert await reading == b"a"
    duplex.on_data(b"b")
    duplex.on_eof()
    assert [await duplex.read(), await duplex.read(), await duplex.read()] == [b"b", None, None]


async def test_a_full_hold_pauses_the_client_until_half_is_read() -> None:
    duplex, channel = joined()
    piece = bytes(HELD_BYTES // 4)
    for _ in range(6):
        duplex.on_data(piece)
    assert channel.calls == ["pause"]
    for _ in range(4):
        await duplex.read()
    assert channel.calls == ["pause"]
    await duplex.read()
    assert channel.calls == ["pause", "resume"]


async def test_writing_waits_while_the_client_does_not_read() -> None:
    duplex, channel = joined()
    await duplex.write(b"1")
    duplex.on_writable(is_writable=False)
    writing = asyncio.ensure_future(duplex.write(b"2", to_stderr=True))
    await asyncio.sleep(0)
    assert channel.written == [(b"1", None)]
    duplex.on_writable(is_writable=True)
    await writing
    assert channel.written == [(b"1", None), (b"2", 1)]


async def test_a_lost_channel_wakes_everybody_and_takes_nothing() -> None:
    duplex, channel = joined()
    duplex.on_writable(is_writable=False)
    reading, writing = asyncio.ensure_future(duplex.read()), asyncio.ensure_future(duplex.write(b"x"))
    await asyncio.sleep(0)
    duplex.on_lost()
    assert await reading is None
    await writing
    assert duplex.is_lost
    duplex.write_eof()
    duplex.close()
    assert (channel.written, channel.calls) == ([], [])


async def test_a_channel_that_breaks_while_it_is_written_is_no_error() -> None:
    duplex, channel = joined()
    channel.is_broken = True
    await duplex.write(b"x")
