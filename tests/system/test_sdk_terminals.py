"""Terminals of the SDK on real sandboxes: over the unix socket and TCP, synchronous and awaited."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

import cove
from cove import aio
from tests_support import NewServer, RunningServer

pytestmark = pytest.mark.real


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, server: RunningServer) -> tuple[str, str | None]:
    return (f"unix:{server.socket}", None) if request.param == "unix" else (server.url, server.key)


@pytest.fixture
def box(address: tuple[str, str | None]) -> Iterator[cove.Sandbox]:
    with cove.connect(*address) as client, client.create() as box:
        yield box


@pytest.fixture
async def async_box(address: tuple[str, str | None]) -> AsyncIterator[aio.Sandbox]:
    async with aio.connect(*address) as client, client.create() as box:
        yield box


def read_until(terminal: cove.Terminal, text: str) -> str:
    seen = ""
    for chunk in terminal:
        seen += chunk.text
        if text in seen:
            return seen
    raise AssertionError(f"it ended before it said {text!r}:\n{seen}")


async def aread_until(terminal: aio.Terminal, text: str) -> str:
    seen = ""
    async for chunk in terminal:
        seen += chunk.text
        if text in seen:
            return seen
    raise AssertionError(f"it ended before it said {text!r}:\n{seen}")


def test_a_shell_is_typed_at(box: cove.Sandbox) -> None:
    with box.terminal(["bash"], cols=100, rows=30, env={"A": "b"}, cwd="/tmp", user="nobody") as terminal:
        terminal.write("echo $A; pwd; id -un; stty size; tty\n")
        seen = read_until(terminal, "/dev/pts")
        assert "b\r\n/tmp\r\nnobody\r\n30 100\r\n" in seen
        terminal.resize(90, 20)
        terminal.write("stty size\n")
        read_until(terminal, "20 90")
        assert (terminal.refresh().cols, terminal.info.rows) == (90, 20)
        terminal.write("sleep 100\n")
        while "sleep" not in box.run("cat /proc/[0-9]*/comm").out:
            time.sleep(0.02)
        terminal.write(b"\x03")
        read_until(terminal, "$ ")
        terminal.write("echo rc=$?; exit 9\n")
        read_until(terminal, "rc=130")
        list(terminal)
        assert terminal.exit is not None
        assert (terminal.exit.exit, terminal.exit.why) == (9, "exited")
        with pytest.raises(cove.Conflict):
            terminal.write("more")
    assert box.terminals() == []
    with pytest.raises(cove.NotFound):
        box.attach_terminal(terminal.id)


async def test_a_shell_is_typed_at_awaited_too(async_box: aio.Sandbox) -> None:
    async with async_box.terminal(["sh"], cols=100, rows=30) as terminal:
        await terminal.write("stty size\n")
        await aread_until(terminal, "30 100")
        await terminal.resize(90, 20)
        await terminal.write("stty size; exit 9\n")
        await aread_until(terminal, "20 90")
        [chunk async for chunk in terminal]
        assert terminal.exit is not None
        assert terminal.exit.exit == 9
    assert await async_box.terminals() == []


def test_several_sit_at_one_terminal_and_come_back(box: cove.Sandbox) -> None:
    terminal = box.terminal(["sh", "-c", "stty -echo; echo ready; while read line; do echo got $line; done"], keep=True)
    with terminal:
        read_until(terminal, "ready")
    other = box.attach_terminal(terminal.id)
    again = box.attach_terminal(terminal.id, after=terminal.cursor)
    assert [one.id for one in box.terminals()] == [terminal.id]
    assert [job.id for job in box.jobs()] == []
    other.write("one\n")
    assert read_until(again, "got one").lstrip() == "got one\r\n"
    assert read_until(other, "got one").startswith("ready")
    again.signal("HUP")
    assert again.wait("10s") is not None
    for one in (other, again):
        one.detach()
    terminal.forget()


def test_wait_has_a_limit_and_sees_the_end(box: cove.Sandbox) -> None:
    with box.terminal(["sh", "-c", "read x; exit 4"]) as terminal:
        before = time.monotonic()
        assert terminal.wait(0.3) is None
        assert 0.2 < time.monotonic() - before < 45
        typist = threading.Timer(0.3, terminal.write, ["\n"])
        typist.start()
        ended = terminal.wait("30s")
        typist.join()
        assert ended is not None
        assert ended.exit == 4


async def test_wait_has_a_limit_awaited_too(async_box: aio.Sandbox) -> None:
    async with async_box.terminal(["sh", "-c", "read x; exit 4"]) as terminal:
        assert await terminal.wait(0.3) is None
        async with anyio.create_task_group() as group:
            group.start_soon(terminal.write, "\n")
            ended = await terminal.wait("30s")
        assert ended is not None
        assert ended.exit == 4


def test_the_end_of_the_sandbox_ends_its_terminals(box: cove.Sandbox) -> None:
    with box.terminal("echo up; sleep 60") as terminal:
        read_until(terminal, "up")
        box.destroy()
        assert list(terminal) == []
        assert terminal.exit is not None
        assert terminal.exit.why == "sandbox-gone"
        with pytest.raises(cove.Gone):
            terminal.refresh()


async def test_a_killed_server_is_attached_to_again(new_server: NewServer) -> None:
    server = new_server()
    program = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.01; done"
    with cove.connect(f"unix:{server.socket}") as client:
        box = client.create()
        seen: dict[str, str] = {}
        plain = box.terminal(program, keep=True)
        follower = threading.Thread(target=lambda: seen.update(plain="".join(chunk.text for chunk in plain)))
        follower.start()
        async with aio.connect(server.url, server.key) as async_client:
            terminal = await (await async_client.get(box.id)).attach_terminal(plain.id)
            async with anyio.create_task_group() as group:

                async def follow() -> None:
                    seen["awaited"] = "".join([chunk.text async for chunk in terminal])

                group.start_soon(follow)
                while terminal.cursor < 500:
                    await anyio.sleep(0.02)
                server.kill()
                await anyio.to_thread.run_sync(server.start)
        follower.join(60)
    whole = "".join(f"line {number}\r\n" for number in range(300))
    assert seen == {"plain": whole, "awaited": whole}
