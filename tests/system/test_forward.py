"""TCP into sandboxes with `cove forward` and the SDK: PostgreSQL, half-closes, many connections, breaks, a restart."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import cove
import tcp_app
from cove import aio
from tests_support import SOAK, NewServer, RunningServer, free_port, make_images
from waiting_support import until

pytestmark = pytest.mark.real

PORT = 7000
MIB = 1024 * 1024
SIZE = (1024 if SOAK else 64) * MIB
MANY = 100
BLOCK = bytes(range(256)) * 4096


def serve(box: cove.Sandbox) -> None:
    job = box.start(["python3", "-c", tcp_app.SOURCE, str(PORT)])
    deadline = time.monotonic() + 60
    while not any(b"ready" in chunk.data for chunk in job.output()):
        assert time.monotonic() < deadline, "the sandbox's server does not come up"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[cove.Client]:
    with cove.connect(server.url, server.key) as client:
        yield client


@pytest.fixture(scope="module")
def box(client: cove.Client) -> Iterator[cove.Sandbox]:
    with client.create(memory="512m") as box:
        serve(box)
        yield box


def open_at(local: cove.Forward, *first: bytes) -> socket.socket:
    sock = socket.create_connection((local.host, local.port), timeout=60)
    sock.sendall(b"".join(first))
    return sock


def drained(sock: socket.socket) -> bytes:
    found = bytearray()
    while data := sock.recv(MIB):
        found += data
    return bytes(found)


def rss_kib(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]


def descriptors(server: RunningServer) -> int:
    assert server.process is not None
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def test_a_half_close_is_kept_in_both_directions(box: cove.Sandbox) -> None:
    with box.forward(PORT) as local:
        with open_at(local, b"sum\n", BLOCK) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert drained(sock).decode() == hashlib.sha256(BLOCK).hexdigest()
        with open_at(local, b"say hello\n") as sock:
            assert drained(sock) == b"hello"
            sock.sendall(b"after the end")
        with open_at(local, b"rest\n") as sock:
            assert drained(sock) == b"after the end"


def test_large_transfers_pass_both_ways_with_flat_memory(server: RunningServer, box: cove.Sandbox) -> None:
    assert server.process is not None
    with box.forward(PORT) as local:
        before = rss_kib(server.process.pid)
        seen = hashlib.sha256()
        with open_at(local, b"sum\n") as sock:
            for _ in range(SIZE // len(BLOCK)):
                sock.sendall(BLOCK)
                seen.update(BLOCK)
            sock.shutdown(socket.SHUT_WR)
            assert drained(sock).decode() == seen.hexdigest()
        with open_at(local, b"give %d\n" % SIZE) as sock:
            count = 0
            while data := sock.recv(MIB):
                count += len(data)
        assert count == SIZE
        assert rss_kib(server.process.pid) < before + 24 * 1024


def test_a_hundred_connections_at_a_time(box: cove.Sandbox) -> None:
    with box.forward(PORT) as local:
        socks = [open_at(local, b"echo\n") for _ in range(MANY)]
        for number, sock in enumerate(socks):
            sock.sendall(b"%04d" % number)
        for number, sock in enumerate(socks):
            assert sock.recv(4, socket.MSG_WAITALL) == b"%04d" % number
        for sock in socks:
            sock.close()


def test_two_directions_never_wait_for_one_another(box: cove.Sandbox) -> None:
    # An echo whose answers nobody reads while it is fed: both windows fill, and it goes on as soon as one reads.
    with box.forward(PORT) as local, open_at(local, b"echo\n") as sock, ThreadPoolExecutor(1) as pool:
        fed = pool.submit(sock.sendall, BLOCK * 24)
        time.sleep(0.5)
        left = 24 * len(BLOCK)
        while left:
            left -= len(sock.recv(min(left, MIB)))
        fed.result(60)


def test_a_break_is_a_reset_and_not_an_end(box: cove.Sandbox) -> None:
    with box.forward(PORT + 1) as local:
        with open_at(local) as sock, pytest.raises(ConnectionResetError):
            drained(sock)
        assert isinstance(local.failure, cove.Conflict)
        assert f"nothing listens on port {PORT + 1}" in str(local.failure)


def test_whoever_vanishes_leaves_nothing_behind(server: RunningServer, box: cove.Sandbox) -> None:
    count = "ls /proc/[0-9]*/fd 2>/dev/null | wc -l"
    before, inside = descriptors(server), int(box.run(count).out)
    local = box.forward(PORT)
    socks = [open_at(local, b"hold\n", b"x" * 1000) for _ in range(20)]
    socks += [open_at(local, b"give %d\n" % (1024 * MIB)) for _ in range(4)]
    time.sleep(0.3)
    for number, sock in enumerate(socks):
        if number % 2:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
    local.close()
    with pytest.raises(ConnectionRefusedError):
        open_at(local)
    until(lambda: descriptors(server) <= before + 2)
    # The handlers that hold still sleep inside, with a socket each; those that gave have ended.
    until(lambda: int(box.run(count).out) <= inside + 20 + 4)


def test_a_taken_local_port_and_a_wrong_one_are_refused(box: cove.Sandbox) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(cove.Conflict, match="in use") as refused:
            box.forward(PORT, local_port=taken.getsockname()[1])
        assert refused.value.field == "local_port"
    for port in (0, 65536, -1):
        with pytest.raises(cove.BadRequest):
            box.forward(port)
    with pytest.raises(cove.BadRequest, match="cannot listen"):
        box.forward(PORT, host="192.0.2.1")


def test_a_connection_without_a_local_port(box: cove.Sandbox) -> None:
    with box.connect(PORT) as peer:
        peer.sendall(b"sum\n" + BLOCK * 3)
        peer.send_eof()
        assert peer.recv(8) + peer.recv() == hashlib.sha256(BLOCK * 3).hexdigest().encode()
        assert peer.recv() == b""
    with pytest.raises(cove.Conflict, match="nothing listens"):
        box.connect(PORT + 1)


async def test_the_awaited_twins(server: RunningServer, box: cove.Sandbox) -> None:
    async with aio.connect(f"unix:{server.socket}") as client:
        twin = await client.get(box.id)
        async with twin.connect(PORT) as peer:
            await peer.sendall(b"echo\nhello")
            assert await peer.recv() == b"hello"
            await peer.send_eof()
            assert await peer.recv() == b""
        async with twin.forward(PORT) as local:
            reader, writer = await asyncio.open_connection(local.host, local.port)
            writer.write(b"sum\nabc")
            writer.write_eof()
            assert (await reader.read()).decode() == hashlib.sha256(b"abc").hexdigest()
            writer.close()
            await writer.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(local.host, local.port)


@contextmanager
def forwarding(server: RunningServer, *argv: str) -> Generator[subprocess.Popen[str]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COVE_", "XDG_"))}
    env = kept | {"COVE_URL": server.url, "COVE_API_KEY": server.key, "HOME": str(server.data_dir)}
    command = [sys.executable, "-m", "cove.cli.main", "forward", *argv]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline().strip()


def test_cove_forward_carries_postgres_with_the_hosts_psql(new_server: NewServer, tmp_path: Path) -> None:
    psql = shutil.which("psql")
    assert psql is not None, "psql is missing here: apt-get install postgresql-client"
    make_images(tmp_path / "recipes", ["test-software"])
    server = new_server(COVE_POOL_SIZE="0")
    with cove.connect(server.url, server.key) as client, client.create("test-software", memory="1g") as box:
        script = (
            "PATH=$(echo /usr/lib/postgresql/*/bin):$PATH; initdb -A trust -D /tmp/db >/tmp/log && "
            "pg_ctl -D /tmp/db -w -t 60 -o '-c unix_socket_directories=/tmp' -l /tmp/pg.log start"
        )
        box.run(script, user="postgres", cwd="/tmp", check=True)
        local = free_port()
        with forwarding(server, box.name, f"{local}:5432", f"0:{PORT}") as process:
            assert line_of(process) == f"127.0.0.1:{local} leads to port 5432 of {box.name}"
            assert line_of(process).endswith(f" leads to port {PORT} of {box.name}")

            def query(sql: str, stdin: str | None = None) -> str:
                where = f"host=127.0.0.1 port={local} user=postgres connect_timeout=20"
                argv = [psql, "-X", "-At", "-v", "ON_ERROR_STOP=1", where, "-c", sql]
                ran = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=60)
                assert ran.returncode == 0, ran.stderr
                return ran.stdout

            query("create table t (n int, s text)")
            rows = "".join(f"{n}\t{'x' * 100}\n" for n in range(50_000))
            query("copy t from stdin", rows)
            assert query("select count(*), sum(n) from t") == f"50000|{sum(range(50_000))}\n"
            assert query("copy t to stdout") == rows
            with ThreadPoolExecutor(20) as pool:
                assert set(pool.map(query, ["select 1"] * 20)) == {"1\n"}
            server.kill()
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(query, "select 2")
                server.start()
                assert waiting.result() == "2\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0


def test_cove_forward_ends_with_its_sandbox_and_says_why(server: RunningServer, client: cove.Client) -> None:
    box = client.create(keep=True)
    local = free_port()
    with forwarding(server, box.name, f"{local}:{PORT}") as process:
        line_of(process)
        with socket.create_connection(("127.0.0.1", local)) as sock, pytest.raises(ConnectionResetError):
            drained(sock)
        assert line_of(process) == f"port {PORT}: nothing listens on port {PORT} in the sandbox"
        box.destroy()
        with socket.create_connection(("127.0.0.1", local)) as sock, pytest.raises(ConnectionResetError):
            drained(sock)
        assert process.wait(60) == 120


@pytest.mark.parametrize("words", [["x"], ["1:2:3"], [":"], ["-5"], ["99999"], ["5432", "99999:1"]])
def test_cove_forward_refuses_what_is_no_port(server: RunningServer, box: cove.Sandbox, words: list[str]) -> None:
    with forwarding(server, box.name, "--", *words) as process:
        assert process.wait(60) == 2
