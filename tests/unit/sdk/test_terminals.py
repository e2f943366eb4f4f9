"""Terminals against a small WebSocket server: what arrives, what is typed, and what a broken connection does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from websockets.sync.server import ServerConnection

import cove
from cove import aio
from cove.sdk.aio.terminals import Terminal as AioTerminal
from cove.sdk.terminal_calls import INPUT_BYTES, Patience, TerminalReader, exit_of, open_body
from cove.sdk.terminals import Terminal
from cove.sdk.transport import Lost
from terminals_support import FakeTerminal, begin, deaf, echo, refusal, running, say, up_to, whole
from waiting_support import until

LINES = b"".join(b"line %06d\r\n" % number for number in range(20_000))


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeTerminal]:
    with running(tmp_path) as fake:
        yield fake


@pytest.fixture(params=["tcp", "unix"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patience, "_FIRST_S", 0.001)
    monkeypatch.setattr(Patience, "_LONGEST_S", 0.01)


def terminal_of(fake: FakeTerminal, kind: str = "tcp", cursor: int = 0) -> Terminal:
    return Terminal("box", "t1", client=cove.Client(*fake.target(kind)), cursor=cursor)


def aio_terminal_of(fake: FakeTerminal, kind: str = "tcp", cursor: int = 0) -> AioTerminal:
    return AioTerminal("box", "t1", client=aio.Client(*fake.target(kind)), cursor=cursor)


def read(terminal: Terminal) -> bytes:
    return b"".join(chunk.data for chunk in terminal)


async def aread(terminal: AioTerminal) -> bytes:
    return b"".join([chunk.data async for chunk in terminal])


def test_all_output_arrives_and_the_end(fake: FakeTerminal, kind: str) -> None:
    fake.output, fake.exit = LINES, {"exit": 3, "why": "exited", "signal": None}
    terminal = terminal_of(fake, kind)
    assert read(terminal) == LINES
    assert terminal.cursor == len(LINES)
    assert terminal.exit is not None
    assert (terminal.exit.exit, terminal.exit.why) == (3, "exited")
    assert list(terminal) == []
    assert fake.headers[0].get("authorization") == (None if kind == "unix" else "Bearer k-test")
    assert fake.headers[0]["cove-version"] == "1"


async def test_all_output_arrives_awaited_too(fake: FakeTerminal, kind: str) -> None:
    fake.output, fake.exit = LINES, {"exit": None, "why": "killed", "signal": 9}
    terminal = aio_terminal_of(fake, kind)
    assert await aread(terminal) == LINES
    assert terminal.exit is not None
    assert (terminal.exit.exit, terminal.exit.why, terminal.exit.signal) == (137, "killed", 9)
    assert fake.headers[0].get("authorization") == (None if kind == "unix" else "Bearer k-test")


BREAKS = [up_to(4_000, 1012), up_to(4_000, 0), up_to(9_999, 1011), up_to(30_000, 1001)]


def test_a_broken_connection_is_made_again_where_it_was(fake: FakeTerminal, kind: str) -> None:
    fake.output, fake.acts = LINES, [*BREAKS, whole]
    terminal = terminal_of(fake, kind)
    states: list[bool] = []
    terminal.on_connection = states.append
    assert read(terminal) == LINES
    assert fake.cursors == [0, 4_000, 4_000, 9_999, 30_000]
    assert states == [False, True] * 4


async def test_a_broken_connection_is_made_again_awaited_too(fake: FakeTerminal, kind: str) -> None:
    fake.output, fake.acts = LINES, [*BREAKS, whole]
    terminal = aio_terminal_of(fake, kind)
    states: list[bool] = []
    terminal.on_connection = states.append
    assert await aread(terminal) == LINES
    assert fake.cursors == [0, 4_000, 4_000, 9_999, 30_000]
    assert states == [False, True] * 4


def test_what_is_no_longer_kept_is_counted(fake: FakeTerminal) -> None:
    fake.output, fake.oldest = LINES, 1_000
    terminal = terminal_of(fake, cursor=10)
    chunks = list(terminal)
    assert chunks[0].lost == 990
    assert sum(chunk.lost for chunk in chunks) == 990
    assert terminal.cursor == len(LINES)
    assert b"".join(chunk.data for chunk in chunks) == LINES[1_000:]


def test_a_server_that_refuses_while_it_starts_is_asked_again(fake: FakeTerminal) -> None:
    fake.output, fake.acts = LINES, [up_to(500, 1012), whole]
    terminal = terminal_of(fake)
    chunks = iter(terminal)
    assert len(next(chunks).data) == 500
    fake.refusals = [refusal(503, "server-stopping"), refusal(503, "capacity"), refusal(502, "")]
    fake.refusals[-1].body = b"<html>"
    assert b"".join(chunk.data for chunk in chunks) == LINES[500:]


@pytest.mark.parametrize(
    ("status", "code", "kind_of_error"),
    [(404, "not-found", cove.NotFound), (410, "gone", cove.Gone), (401, "unauthorized", cove.Unauthorized)],
)
async def test_a_refusal_is_the_error_that_it_describes(
    fake: FakeTerminal, status: int, code: str, kind_of_error: type[cove.Error]
) -> None:
    fake.refusals = [refusal(status, code, "that is why")] * 2
    with pytest.raises(kind_of_error, match="that is why") as told:
        list(terminal_of(fake))
    assert (told.value.status, told.value.request_id) == (status, "req_1")
    with pytest.raises(kind_of_error, match="that is why"):
        await aread(aio_terminal_of(fake))


async def test_nobody_there_is_told_at_once(tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:1", f"unix:{tmp_path}/none.sock"):
        with pytest.raises(cove.Unreachable):
            list(Terminal("box", "t1", client=cove.Client(url, "k")))
        with pytest.raises(cove.Unreachable):
            await aread(AioTerminal("box", "t1", client=aio.Client(url, "k")))


async def test_what_speaks_no_websocket_is_a_bad_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(2):
                with server.accept()[0] as peer:
                    peer.recv(4096)
                    peer.sendall(b"HELO mail.example\r\n\r\n")
                    peer.recv(4096)

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(cove.BadAnswer):
            list(Terminal("box", "t1", client=cove.Client(url, "k")))
        with pytest.raises(cove.BadAnswer):
            await aread(AioTerminal("box", "t1", client=aio.Client(url, "k")))
        thread.join(60)


def test_an_error_in_the_stream_is_raised(fake: FakeTerminal) -> None:
    def fail(_: FakeTerminal, connection: ServerConnection, cursor: int) -> None:
        begin(fake, connection, cursor)
        say(connection, type="error", code="sandbox-gone", detail="it ended", request_id="req_9")
        connection.close(1011)

    fake.acts = [fail]
    with pytest.raises(cove.SandboxGone, match="it ended") as told:
        list(terminal_of(fake))
    assert told.value.request_id == "req_9"


def test_attempts_end(fake: FakeTerminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patience, "LIMIT_S", 0.2)
    fake.acts = [up_to(0, 0)]
    before = time.monotonic()
    with pytest.raises(cove.Unreachable):
        list(terminal_of(fake))
    assert time.monotonic() - before < 30
    assert len(fake.cursors) > 2


def test_what_is_typed_arrives(fake: FakeTerminal, kind: str) -> None:
    fake.acts = [echo]
    terminal = terminal_of(fake, kind)
    terminal.write("häh")
    chunks = iter(terminal)
    assert next(chunks).text == "häh"
    terminal.write(b"\x03exit")
    assert b"".join(chunk.data for chunk in chunks) == b"\x03exit"
    with pytest.raises(cove.Conflict):
        terminal.write("more")


async def test_what_is_typed_arrives_awaited_too(fake: FakeTerminal, kind: str) -> None:
    fake.acts = [echo]
    terminal = aio_terminal_of(fake, kind)
    await terminal.write("hi")
    chunks = aiter(terminal)
    assert (await anext(chunks)).text == "hi"
    await terminal.write(b"\x03exit")
    assert b"".join([chunk.data async for chunk in chunks]) == b"\x03exit"
    with pytest.raises(cove.Conflict):
        await terminal.write("more")


def test_neither_direction_waits_for_the_other(fake: FakeTerminal, kind: str) -> None:
    """The other side writes 3 MB before it reads a byte, and we write 3 MB before we read one."""
    fake.output, fake.acts = bytes(3_000_000), [deaf]
    terminal = terminal_of(fake, kind)
    pasted = bytes(range(256)) * 12_000
    terminal.write(pasted)
    chunks = iter(terminal)
    count = 0
    while count < len(fake.output):
        count += len(next(chunks).data)
    assert fake.wait_typed(len(pasted)) == pasted
    terminal.detach()


def test_one_thread_writes_while_another_reads(fake: FakeTerminal, kind: str) -> None:
    fake.output, fake.acts = bytes(20_000_000), [deaf]
    terminal = terminal_of(fake, kind)
    pasted = bytes(range(256)) * 40_000
    writer = threading.Thread(target=terminal.write, args=[pasted])
    chunks = iter(terminal)
    count = len(next(chunks).data)
    writer.start()
    while count < len(fake.output):
        count += len(next(chunks).data)
    writer.join(60)
    assert fake.wait_typed(len(pasted)) == pasted
    terminal.detach()


async def test_one_task_writes_while_another_reads(fake: FakeTerminal, kind: str) -> None:
    fake.output, fake.acts = bytes(5_000_000), [deaf]
    terminal = aio_terminal_of(fake, kind)
    pasted = bytes(range(256)) * 10_000
    async with anyio.create_task_group() as group:
        chunks = aiter(terminal)
        count = len((await anext(chunks)).data)
        group.start_soon(terminal.write, pasted)
        while count < len(fake.output):
            count += len((await anext(chunks)).data)
    assert await anyio.to_thread.run_sync(fake.wait_typed, len(pasted)) == pasted
    await terminal.detach()


@pytest.fixture
def secured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTerminal]:
    with running(tmp_path, with_tls=True) as fake:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        yield fake


def test_two_threads_share_a_connection_with_tls(secured: FakeTerminal) -> None:
    test_one_thread_writes_while_another_reads(secured, "tcp")
    secured.typed.clear()
    test_neither_direction_waits_for_the_other(secured, "tcp")


async def test_tls_awaited_too(secured: FakeTerminal) -> None:
    await test_one_task_writes_while_another_reads(secured, "tcp")


async def test_a_certificate_that_nobody_knows_is_refused(
    secured: FakeTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(cove.Unreachable, match="certificate"):
        list(terminal_of(secured))
    with pytest.raises(cove.Unreachable, match="certificate"):
        await aread(aio_terminal_of(secured))
    assert secured.headers == []


class Proxy:
    """An HTTP proxy that lets through, or not, and notes to where."""

    def __init__(self, status: bytes) -> None:
        self.heads: list[bytes] = []
        self._status = status
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://me:pass%20word@127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(60)

    def _serve(self) -> None:
        try:
            while True:
                with self._server.accept()[0] as peer:
                    self._let_through(peer)
        except OSError:
            return

    def _let_through(self, peer: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += peer.recv(4096)
        self.heads.append(head)
        peer.sendall(b"HTTP/1.1 " + self._status + b"\r\nX-A: b\r\n\r\n")
        if self._status[:3] != b"200":
            return
        host, _, port = head.split()[1].decode().rpartition(":")
        with socket.create_connection((host, int(port))) as there:
            back = threading.Thread(target=carry, args=[there, peer])
            back.start()
            carry(peer, there)
            back.join(60)


def carry(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def of_another_machine(fake: FakeTerminal, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 127.0.0.1 count as another machine, which only the proxy reaches."""
    for name in ("NO_PROXY", "no_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setattr("cove.sdk.tcp.is_loopback", lambda _url: False)
    fake.output = LINES


async def test_the_way_through_a_proxy(fake: FakeTerminal, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy(b"200 Connection established")
    of_another_machine(fake, proxy, monkeypatch)
    assert read(terminal_of(fake)) == LINES
    assert await aread(aio_terminal_of(fake)) == LINES
    proxy.close()
    assert len(proxy.heads) == 2
    for head in proxy.heads:
        assert head.startswith(b"CONNECT 127.0.0.1:")
        assert b"Proxy-Authorization: Basic bWU6cGFzcyB3b3Jk\r\n" in head
        assert b"k-test" not in head


async def test_a_proxy_that_refuses_is_told(fake: FakeTerminal, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy(b"407 Proxy Authentication Required")
    of_another_machine(fake, proxy, monkeypatch)
    with pytest.raises(cove.Unreachable, match="407"):
        list(terminal_of(fake))
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(cove.Unreachable, match="socks5"):
        await aread(aio_terminal_of(fake))
    proxy.close()


def test_a_connection_found_broken_is_made_again_before_typing(fake: FakeTerminal, kind: str) -> None:
    fake.output, fake.acts = b"abc", [up_to(3, 1012), echo]
    terminal = terminal_of(fake, kind)
    assert next(iter(terminal)).data == b"abc"
    until(lambda: fake.cursors == [0])
    time.sleep(0.05)  # until the close has arrived; when it has not, the write fails as documented
    fake.typed += b"abc"
    terminal.write("x")
    assert fake.wait_typed(4) == b"abcx"
    assert fake.cursors == [0, 3]
    terminal.detach()


def test_nothing_is_typed_twice(fake: FakeTerminal, kind: str) -> None:
    """The connection breaks in the middle of a paste: what follows is an error, not a second try."""

    def cut(_: FakeTerminal, connection: ServerConnection, cursor: int) -> None:
        begin(fake, connection, cursor)
        fake.wait_typed(INPUT_BYTES)
        connection.socket.shutdown(socket.SHUT_RDWR)

    fake.acts = [cut, echo]
    terminal = terminal_of(fake, kind)
    with pytest.raises(cove.Unreachable):
        terminal.write(bytes(50_000_000))
    assert fake.cursors == [0]


def test_detach_wakes_who_reads(fake: FakeTerminal, kind: str) -> None:
    fake.acts = [echo]
    terminal = terminal_of(fake, kind)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read(terminal)))
    reader.start()
    terminal.write("a")
    fake.wait_typed(1)
    until(lambda: terminal.cursor == 1)
    terminal.detach()
    reader.join(60)
    assert got == [b"a"]
    assert terminal.exit is None


async def test_detach_wakes_who_reads_awaited_too(fake: FakeTerminal, kind: str) -> None:
    fake.acts = [echo]
    terminal = aio_terminal_of(fake, kind)
    got: list[bytes] = []

    async def take() -> None:
        got.append(await aread(terminal))

    async with anyio.create_task_group() as group:
        group.start_soon(take)
        await terminal.write("a")
        with anyio.fail_after(10):
            while terminal.cursor < 1:
                await anyio.sleep(0.01)
        await terminal.detach()
    assert got == [b"a"]


def test_detach_ends_the_waiting_for_a_server(fake: FakeTerminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patience, "_FIRST_S", 30.0)
    fake.output, fake.acts = b"abc", [up_to(3, 1012)]
    terminal = terminal_of(fake)
    reader = threading.Thread(target=lambda: read(terminal))
    lost = threading.Event()
    terminal.on_connection = lambda is_there: None if is_there else lost.set()
    reader.start()
    assert lost.wait(60)
    terminal.detach()
    reader.join(60)
    assert not reader.is_alive()


@contextmanager
def answering(*, closes: bool) -> Iterator[Terminal]:
    """A terminal whose server says everything in one piece with the handshake."""
    from websockets.protocol import State
    from websockets.server import ServerProtocol

    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer = server.accept()[0]
            with peer:
                protocol = ServerProtocol()
                while protocol.state is State.CONNECTING:
                    protocol.receive_data(peer.recv(4096))
                    for request in protocol.events_received():
                        protocol.send_response(protocol.accept(request))  # type: ignore[arg-type]
                protocol.send_text(b'{"type":"attached","cursor":0}')
                protocol.send_binary(b"ab", fin=False)
                protocol.send_continuation(b"c", fin=True)
                protocol.send_text(b'{"type":"exit","exit":0,"why":"exited","signal":null,"cursor":3}')
                if closes:
                    protocol.send_close(1000)
                peer.sendall(b"".join(protocol.data_to_send()))
                peer.recv(4096)

        thread = threading.Thread(target=answer)
        thread.start()
        yield Terminal("box", "t1", client=cove.Client(f"http://127.0.0.1:{server.getsockname()[1]}", "k"))
        thread.join(60)


@pytest.mark.parametrize("closes", [False, True])
def test_the_first_message_may_come_with_the_handshake(*, closes: bool) -> None:
    with answering(closes=closes) as terminal:
        assert read(terminal) == b"abc"


def test_the_close_may_come_with_the_handshake_too() -> None:
    with answering(closes=True) as terminal:
        with pytest.raises(cove.Conflict):
            terminal.write("x")
        terminal.detach()


def test_a_character_cut_in_two_comes_whole() -> None:
    reader = TerminalReader(0)
    texts = [chunk.text for piece in (b"h\xc3", b"\xa4h") if (chunk := reader.read(piece))]
    assert texts == ["h", "äh"]
    with pytest.raises(cove.BadAnswer):
        reader.read("no json")
    assert reader.read('{"type":"later"}') is None


def test_an_end_is_read_in_both_forms() -> None:
    assert exit_of({"exit": None, "signal": 15, "why": "killed"}).exit == 143
    assert exit_of({"exit": {"exit_code": 2, "why": "exited", "duration_ms": 5}}).ms == 5


def test_patience_has_an_end_and_knows_what_is_final() -> None:
    now = [0.0]
    patience = Patience(lambda: now[0])
    assert patience.delay_s(cove.NotFound("no")) is None
    assert patience.delay_s(Lost("gone")) is not None
    now[0] = Patience.LIMIT_S + 1
    assert patience.delay_s(Lost("gone")) is None
    patience.reset()
    assert patience.delay_s(Lost("gone")) is not None


def test_the_body_of_a_terminal_says_only_what_was_given() -> None:
    nothing = {"env": None, "cwd": None, "user": None, "keep_bytes": None}
    assert open_body(None, cols=80, rows=24, **nothing) == {"cols": 80, "rows": 24}  # type: ignore[arg-type]
    assert open_body(["a"], cols=1, rows=2, env={"A": "b"}, cwd="/", user="u", keep_bytes=5) == {
        "command": ["a"], "cols": 1, "rows": 2, "env": {"A": "b"}, "cwd": "/", "user": "u", "keep_bytes": 5,
    }  # fmt: skip
    with pytest.raises(cove.BadRequest):
        open_body([], cols=80, rows=24, **nothing)  # type: ignore[arg-type]
