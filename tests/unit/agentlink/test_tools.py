"""The programs that the agent brings, byte by byte: sftp from hostile clients, the old scp, a unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cove.agentlink.client import AgentClient
from cove.agentlink.session import ExecSession
from cove.model.execs import Chunk, Ended, ExecSpec, Stream

INIT, VERSION, OPEN, CLOSE, READ, WRITE, STATUS, HANDLE, DATA, NAME, ATTRS = 1, 2, 3, 4, 5, 6, 101, 102, 103, 104, 105
OK, EOF, NO_FILE, DENIED, FAILURE, BAD, UNSUPPORTED = 0, 1, 2, 3, 4, 5, 8


def text(data: str | bytes) -> bytes:
    raw = data.encode() if isinstance(data, str) else data
    return struct.pack(">I", len(raw)) + raw


class Sftp:
    """A client that says what a test wants."""

    def __init__(self, session: ExecSession) -> None:
        self._session = session
        self._came = b""
        self._next = 0
        self.ended: Ended | None = None

    async def send(self, raw: bytes) -> None:
        await self._session.write(raw)

    async def ask(self, kind: int, payload: bytes = b"") -> tuple[int, bytes]:
        """One request; the kind and the payload of its answer."""
        self._next += 1
        body = bytes([kind]) + struct.pack(">I", self._next) + payload
        await self.send(struct.pack(">I", len(body)) + body)
        kind, answer = await self.hear()
        assert struct.unpack_from(">I", answer)[0] == self._next
        return kind, answer[4:]

    async def status(self, kind: int, payload: bytes = b"") -> int:
        answered, answer = await self.ask(kind, payload)
        assert answered == STATUS
        return int(struct.unpack_from(">I", answer)[0])

    async def open(self, path: Path, flags: int = 1) -> bytes:
        kind, answer = await self.ask(OPEN, text(bytes(path)) + struct.pack(">II", flags, 0))
        assert kind == HANDLE, answer
        return answer[4:]

    async def hear(self) -> tuple[int, bytes]:
        size = struct.unpack(">I", await self._exactly(4))[0]
        body = await self._exactly(size)
        return body[0], body[1:]

    async def end(self) -> None:
        """Read to the end of the program."""
        with contextlib.suppress(EOFError):
            while True:
                await self._exactly(1)

    async def _exactly(self, count: int) -> bytes:
        while len(self._came) < count:
            event = await anext(self._session)
            if isinstance(event, Chunk) and event.stream is Stream.STDOUT:
                self._came += event.data
            elif isinstance(event, Ended):
                self.ended = event
                raise EOFError
        taken, self._came = self._came[:count], self._came[count:]
        return taken


@asynccontextmanager
async def sftp(client: AgentClient, home: Path) -> AsyncIterator[Sftp]:
    spec = ExecSpec(argv=("sftp",), tool=True, env={"HOME": str(home)})
    async with client.exec_session(spec) as session, asyncio.timeout(60):
        one = Sftp(session)
        await one.send(struct.pack(">IBI", 5, INIT, 3))
        kind, answer = await one.hear()
        assert (kind, answer[:4]) == (VERSION, b"\0\0\0\3")
        yield one


async def test_reading_takes_any_length_and_gives_what_there_is(client: AgentClient, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    (tmp_path / "f").write_bytes(data)
    async with sftp(client, tmp_path) as one:
        handle = await one.open(Path("f"))
        for offset, length in ((0, 10), (1000, 32768), (5, 0xFFFFFFFF)):
            kind, answer = await one.ask(READ, text(handle) + struct.pack(">QI", offset, length))
            assert kind == DATA
            got = answer[4:]
            assert 0 < len(got) <= 256 * 1024
            assert got == data[offset : offset + len(got)]
            assert len(got) == min(length, 255 * 1024)
        assert await one.status(READ, text(handle) + struct.pack(">QI", len(data), 1)) == EOF
        assert await one.status(READ, text(handle) + struct.pack(">QI", 2**64 - 1, 1)) == FAILURE
        assert await one.status(CLOSE, text(handle)) == OK
        assert await one.status(CLOSE, text(handle)) == FAILURE
        assert await one.status(READ, text(handle) + struct.pack(">QI", 0, 1)) == FAILURE


async def test_writing_at_offsets_keeps_to_the_open_file_when_it_is_renamed(
    client: AgentClient, tmp_path: Path
) -> None:
    async with sftp(client, tmp_path) as one:
        handle = await one.open(Path("f"), 2 | 8)
        assert await one.status(WRITE, text(handle) + struct.pack(">Q", 0) + text(b"abc")) == OK
        assert await one.status(18, text("f") + text("g")) == OK
        assert await one.status(WRITE, text(handle) + struct.pack(">Q", 6) + text(b"ghi")) == OK
        (tmp_path / "f").write_text("another")
        assert await one.status(18, text("g") + text("f")) == FAILURE, "version 3 renames over nothing"
        assert await one.status(200, text("posix-rename@openssh.com") + text("g") + text("f")) == OK
    assert (tmp_path / "f").read_bytes() == b"abc\0\0\0ghi"


async def test_handles_are_bounded_and_given_back(client: AgentClient, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    async with sftp(client, tmp_path) as one:
        handles = [await one.open(Path("f")) for _ in range(512)]
        assert await one.status(OPEN, text("f") + struct.pack(">II", 1, 0)) == FAILURE
        assert await one.status(CLOSE, text(handles[0])) == OK
        await one.open(Path("f"))


async def test_listing_is_complete_and_names_are_bytes(client: AgentClient, tmp_path: Path) -> None:
    names = {f"n{number}".encode() for number in range(300)} | {b"\xff\xfe", "ü".encode(), b"new\nline"}
    for name in names:
        (tmp_path / "d").mkdir(exist_ok=True)
        Path(os.fsdecode(bytes(tmp_path / "d") + b"/" + name)).touch()
    async with sftp(client, tmp_path) as one:
        kind, answer = await one.ask(11, text("d"))
        assert kind == HANDLE
        handle, found = answer[4:], set()
        while True:
            kind, answer = await one.ask(12, text(handle))
            if kind == STATUS:
                assert struct.unpack_from(">I", answer)[0] == EOF
                break
            count, at = struct.unpack_from(">I", answer)[0], 4
            for _ in range(count):
                size = struct.unpack_from(">I", answer, at)[0]
                found.add(answer[at + 4 : at + 4 + size])
                at += 4 + size
                at += 4 + struct.unpack_from(">I", answer, at)[0]
                at += 4 + 8 + 8 + 4 + 8
            assert at == len(answer)
    assert found == names


@pytest.mark.parametrize(
    ("kind", "payload", "code"),
    [
        (OPEN, text("missing") + struct.pack(">II", 1, 0), NO_FILE),
        (OPEN, text("x") + struct.pack(">II", 0, 0), FAILURE),
        (OPEN, text("x") + b"\0", BAD),
        (OPEN, struct.pack(">I", 0xFFFFFFFF) + b"x", BAD),
        (OPEN, text("a\0b") + struct.pack(">II", 1, 0), FAILURE),
        (READ, b"", FAILURE),
        (READ, text(b"\0\0\0\1\0") + struct.pack(">QI", 0, 1), FAILURE),
        (WRITE, text(b"\0\0\0\x09") + struct.pack(">Q", 0) + text(b"x"), FAILURE),
        (12, text(b"\0\0\0\1"), FAILURE),
        (9, text("x") + struct.pack(">II", 0x80000000, 0xFFFFFFFF), BAD),
        (19, text("."), FAILURE),
        (13, text("."), FAILURE),
        (200, text("no-such-extension@x") + text("y"), UNSUPPORTED),
        (200, b"", UNSUPPORTED),
        (42, b"whatever", UNSUPPORTED),
        (17, text("x" * 5000), FAILURE),
    ],
)
async def test_a_bad_request_is_answered_and_the_next_one_works(
    client: AgentClient, tmp_path: Path, kind: int, payload: bytes, code: int
) -> None:
    async with sftp(client, tmp_path) as one:
        answered = await one.status(kind, payload)
        assert answered in {code, BAD}, answered
        assert (await one.ask(16, text(".")))[0] == NAME


@pytest.mark.parametrize("raw", [b"\0\0\0\0", b"\xff\xff\xff\xff\1", struct.pack(">I", 256 * 1024 + 1) + b"\3"])
async def test_a_packet_of_an_impossible_length_ends_the_session(
    client: AgentClient, tmp_path: Path, raw: bytes
) -> None:
    async with sftp(client, tmp_path) as one:
        await one.send(raw)
        await one.end()
        assert one.ended is not None
        assert one.ended.exit.code == 1


async def test_a_fifo_and_a_device_do_not_hold_the_session(client: AgentClient, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    async with sftp(client, tmp_path) as one:
        handle = await one.open(Path("fifo"))
        assert await one.status(READ, text(handle) + struct.pack(">QI", 0, 1)) in {FAILURE, EOF}
        assert await one.status(OPEN, text("fifo/x") + struct.pack(">II", 1, 0)) == NO_FILE
        assert await one.status(OPEN, text("/dev/tty") + struct.pack(">II", 1, 0)) == FAILURE


async def test_many_requests_in_one_piece_are_answered_in_their_order(client: AgentClient, tmp_path: Path) -> None:
    async with sftp(client, tmp_path) as one:
        packets = b"".join(struct.pack(">IBI", 10, 16, number) + text(".") for number in range(1000))
        await one.send(packets)
        for number in range(1000):
            kind, answer = await one.hear()
            assert (kind, struct.unpack_from(">I", answer)[0]) == (NAME, number)


async def _scp(client: AgentClient, home: Path, *args: str, says: bytes) -> tuple[bytes, int]:
    spec = ExecSpec(argv=("scp", *args), tool=True, env={"HOME": str(home)}, cwd=str(home))
    async with client.exec_session(spec) as session, asyncio.timeout(60):
        await session.write(says)
        session.write_eof()
        out = b""
        async for event in session:
            if isinstance(event, Chunk) and event.stream is Stream.STDOUT:
                out += event.data
            if isinstance(event, Ended):
                return out, event.exit.code
    raise AssertionError("no end")


@pytest.mark.parametrize(
    "says",
    [
        b"C0644 1 ../up\nx\0",
        b"C0644 1 ..\nx\0",
        b"C0644 1 a/b\nx\0",
        b"C0644 1 \nx\0",
        b"C0644 -1 f\n\0",
        b"C0644 99999999999999999999 f\n\0",
        b"C9999 1 f\nx\0",
        b"D0755 0 ..\n",
        b"X\n",
        b"\n",
        b"C" + b"x" * 70000 + b"\n",
    ],
)
async def test_the_old_scp_takes_no_name_but_a_name(client: AgentClient, tmp_path: Path, says: bytes) -> None:
    home = tmp_path / "home"
    home.mkdir()
    before = {one.name for one in tmp_path.iterdir()}
    _, code = await _scp(client, home, "-r", "-t", ".", says=says)
    assert code == 1
    assert list(home.iterdir()) == []
    assert {one.name for one in tmp_path.iterdir()} == before


async def test_the_old_scp_receives_and_sends(client: AgentClient, tmp_path: Path) -> None:
    out, code = await _scp(client, tmp_path, "-t", ".", says=b"C0640 3 f\nabc\0")
    assert (out, code) == (b"\0\0\0", 0)
    assert (tmp_path / "f").read_bytes() == b"abc"
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640
    out, code = await _scp(client, tmp_path, "-f", "f", says=b"\0\0\0\0")
    assert (out, code) == (b"C0640 3 f\nabc\0", 0)
    assert (await _scp(client, tmp_path, "-t", ".", says=b"C0640 3 g\nab"))[1] == 1
    assert (await _scp(client, tmp_path, "-x", ".", says=b""))[1] == 2


async def test_a_unix_socket_is_joined_both_ways(client: AgentClient, tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read())[::-1])
        writer.close()

    server = await asyncio.start_unix_server(answer, tmp_path / "s")
    async with server, client.exec_session(ExecSpec(argv=("socket", str(tmp_path / "s")), tool=True)) as session:
        await session.write(b"abc")
        session.write_eof()
        out = [event.data async for event in session if isinstance(event, Chunk)]
    assert b"".join(out) == b"cba"
    async with client.exec_session(ExecSpec(argv=("socket", str(tmp_path / "none")), tool=True)) as session:
        last = [event async for event in session][-1]
    assert isinstance(last, Ended)
    assert last.exit.code == 1
