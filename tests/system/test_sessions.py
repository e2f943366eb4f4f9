"""What is under way in a sandbox while a snapshot of it is taken goes on, there and in what is made of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from cove import aio
from tests_support import SOAK, RunningServer

pytestmark = pytest.mark.real

SNAPSHOTS = 20 if SOAK else 1
DRIVERS = ("runc", "gvisor")

ECHO = """
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
socketserver.ThreadingTCPServer.allow_reuse_address = True
server = socketserver.ThreadingTCPServer(("127.0.0.1", 8000), Echo)
print("ready", flush=True)
server.serve_forever()
"""

# What a process and its copy say of themselves when they are asked.
TALKER = """
import cove_fork, random, ssl, time
random.seed(5)
cove_fork.on_fork(lambda: print("told", flush=True))
while True:
    time.sleep(0.05)
    try:
        open("/root/ask")
    except OSError:
        continue
    print(random.random(), ssl.RAND_bytes(8).hex(), flush=True)
    break
"""


@pytest.fixture
async def remote(server: RunningServer) -> AsyncIterator[aio.Client]:
    async with aio.connect(server.url, server.key) as client:
        yield client


class Busy:
    """A sandbox with callers of each kind, who check all that they are told."""

    def __init__(self, box: aio.Sandbox) -> None:
        self.box = box
        self.is_over = False
        self.dice = random.Random(7)  # noqa: S311 - a test

    async def prints(self) -> None:
        script = "for i in $(seq 200); do echo $i; sleep 0.01; done; exit 3"
        seen = ""
        async with self.box.stream(script, timeout=60) as job:
            async for chunk in job:
                seen += chunk.text
        assert seen.split() == [str(n) for n in range(1, 201)]
        assert job.exit is not None
        assert job.exit.exit == 3

    async def uploads(self) -> None:
        data = self.dice.randbytes(16 << 20)

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(data), 64 << 10):
                yield data[start : start + (64 << 10)]
                await asyncio.sleep(0.004)

        await self.box.files.write("/root/up", pieces())
        assert await self.box.files.read("/root/up") == data

    async def talks(self) -> None:
        async with self.box.connect(8000) as link:
            while not self.is_over:
                data = self.dice.randbytes(5000)
                await link.sendall(data)
                got = b""
                while len(got) < len(data):
                    got += await link.recv()
                assert got == data
                await asyncio.sleep(0.01)

    async def types(self) -> None:
        async with self.box.terminal(["cat"], cols=80, rows=24) as terminal:
            await terminal.write("word-0\n")
            count, seen = 0, ""
            async for chunk in terminal:
                seen += chunk.text
                if seen.count(f"word-{count}\r\n") < 2:  # the terminal's echo, and what cat says
                    continue
                count += 1
                if self.is_over:
                    return
                await terminal.write(f"word-{count}\n")
                await asyncio.sleep(0.01)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("driver", DRIVERS)
async def test_callers_do_not_notice_a_snapshot(remote: aio.Client, driver: str) -> None:
    async with remote.create(driver=driver) as box:
        await box.files.write("/root/echo.py", ECHO)
        server = await box.start(["python3", "/root/echo.py"])
        while not await server.output(wait=5):
            pass
        busy = Busy(box)
        async with asyncio.TaskGroup() as tasks:
            work = [tasks.create_task(one) for one in (busy.prints(), busy.uploads())]
            tasks.create_task(busy.talks())
            tasks.create_task(busy.types())
            await asyncio.sleep(0.5)
            for _ in range(SNAPSHOTS):
                snapshot = await box.snapshot(memory=True)
                assert snapshot.memory
                await remote.snapshots.delete(snapshot)
            await asyncio.gather(*work)
            busy.is_over = True


@pytest.mark.timeout(300)
@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_copy_goes_on_without_its_callers(remote: aio.Client, driver: str) -> None:
    """Attached commands run on in the background, limits have their rest left, generators are seeded anew."""
    async with remote.create(driver=driver, env={"A": "1", "B": "2"}) as box:
        await box.files.write("/root/talker.py", TALKER)
        talker = await box.start(["python3", "/root/talker.py"])
        limited = await box.start("sleep 60", timeout=3)
        await box.files.write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
        watch = await box.watch("/root")
        attached = asyncio.ensure_future(box.run("while [ ! -e /root/go ]; do sleep 0.05; done; echo gone; exit 5"))
        await asyncio.sleep(0.5)
        snapshot = await box.snapshot(memory=True)
        await asyncio.sleep(2.5)  # longer than the limit has left
        try:
            async with remote.snapshots.restore(snapshot, env={"B": "3"}) as copy:
                jobs = {job.info.command[-1].split()[0]: job for job in await copy.jobs()}
                assert set(jobs) == {"/root/talker.py", "sleep", "while"}
                for one in (box, copy):
                    await one.files.write("/root/ask", "")
                    await one.files.write("/root/go", "")
                ended = await jobs["while"].wait(60)
                assert ended is not None
                assert ended.exit == 5
                assert "".join([chunk.text for chunk in await jobs["while"].output()]) == "gone\n"
                ended = await jobs["sleep"].wait(60)
                assert ended is not None
                assert ended.why == "timeout"
                assert 2500 < ended.ms < 5000, "neither at once nor late"
                words = []
                for one in (talker, jobs["/root/talker.py"]):
                    await one.wait(60)
                    words.append("".join([chunk.text for chunk in await one.output()]).split())
                assert words[1][0] == "told"
                assert not set(words[0]) & set(words[1])
                said = (await copy.run("echo $A $B; cat /etc/machine-id /run/cove/generation")).out.split()
                assert said[:2] == ["1", "3"]
                assert len({*said[2:], "0123456789abcdef0123456789abcdef"}) == 3
                changes = [one.kind for one in await (await copy.watches())[0].changes()]
                assert "overflow" in changes
            assert (await attached).exit == 5
            assert (await limited.wait(60)) is not None
            assert not (await box.run("cat /run/cove/generation")).ok
            assert "overflow" not in [one.kind for one in await watch.changes()]
        finally:
            await remote.snapshots.delete(snapshot)
