"""Lines of kernels over the client: the real agent, and a listener that says what a hostile kernel may."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Mapping

import pytest

from cove.agentlink.client import AgentClient
from cove.agentlink.kernels import LINE_BYTES, KernelLink
from cove.model.errors import SandboxError, SandboxGone

LIMIT_S = 30.0


class Kernel:
    """Listens under a name of its own; `say` writes to the last connection."""

    def __init__(self) -> None:
        self.name = f"test.{secrets.token_hex(8)}"
        self.writer: asyncio.StreamWriter | None = None
        self.heard: asyncio.Queue[dict[str, object]] = asyncio.Queue()
        self.is_left = asyncio.Event()
        self.server: asyncio.Server | None = None

    async def listen(self) -> None:
        self.server = await asyncio.start_unix_server(self._serve, f"\0cove-code-{self.name}", limit=4 * LINE_BYTES)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        try:
            while line := await reader.readline():
                self.heard.put_nowait(json.loads(line))
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
            self.is_left.set()

    async def say(self, data: bytes | Mapping[str, object]) -> None:
        assert self.writer is not None
        self.writer.write(data if isinstance(data, bytes) else json.dumps(data).encode() + b"\n")
        await self.writer.drain()


@pytest.fixture
async def kernel() -> AsyncIterator[Kernel]:
    made = Kernel()
    await made.listen()
    yield made
    assert made.server is not None
    made.server.close()
    if made.writer is not None:
        made.writer.transport.abort()
        await asyncio.wait_for(made.is_left.wait(), LIMIT_S)


@pytest.fixture
async def link(client: AgentClient, kernel: Kernel) -> KernelLink:
    made = client.kernel_link(kernel.name, None)
    await made.send({"op": "hello"})
    assert await asyncio.wait_for(kernel.heard.get(), LIMIT_S) == {"op": "hello"}
    return made


async def test_lines_come_as_they_were_sent(link: KernelLink, kernel: Kernel) -> None:
    await kernel.say(b'{"t":"stdout","run":"r","d":"\xc3\xbc"}\n{"t":"done","run":"r","st')
    first = await link.next(LIMIT_S)
    assert first is not None
    assert (first.t, first.run, first.d, link.is_quiet) == ("stdout", "r", "\u00fc", False)
    await kernel.say(b'atus":"ok","count":3,"unknown":[1]}\n')
    second = await link.next(LIMIT_S)
    assert second is not None
    assert (second.t, second.status, second.count, link.is_quiet) == ("done", "ok", 3, True)


async def test_a_wait_that_is_over_loses_nothing(link: KernelLink, kernel: Kernel) -> None:
    await kernel.say(b'{"t":"std')
    with pytest.raises(TimeoutError):
        await link.next(0.05)
    await kernel.say(b'out","d":"x"}\n')
    line = await link.next(LIMIT_S)
    assert line is not None
    assert line.d == "x"


async def test_an_answer_is_found_among_other_lines(link: KernelLink, kernel: Kernel) -> None:
    for one in ({"t": "stdout", "d": "x"}, {"t": "completed", "id": "1"}, {"t": "completed", "id": "2", "start": 4}):
        await kernel.say(one)
    answer = await link.answer("completed", LIMIT_S, "2")
    assert answer is not None
    assert answer.start == 4


async def test_nobody_listens(client: AgentClient) -> None:
    link = client.kernel_link("nobody", None)
    assert await link.greet(LIMIT_S) is None
    assert "refused" in link.complaint
    assert link.is_quiet is False


async def test_a_kernel_that_ends_closes(link: KernelLink, kernel: Kernel) -> None:
    await kernel.say({"t": "ready"})
    assert kernel.writer is not None
    kernel.writer.close()
    assert await link.next(LIMIT_S) is not None
    assert await link.next(LIMIT_S) is None
    assert await link.next(LIMIT_S) is None


@pytest.mark.parametrize(
    "said",
    [
        b"nonsense\n",
        b"[]\n",
        b"\n",
        b"null\n",
        b'{"d":"x"}\n',
        b'{"t":1}\n',
        b'{"t":"stdout","d":"\xff"}\n',
        b'{"t":"stdout","d":"\\ud800"}\n',
        b'{"t":"done","count":-1}\n',
        b'{"t":"done","count":99999999999999999999999}\n',
        b'{"t":"' + b"t" * 300 + b'"}\n',
        b'{"t":"result","data":{"a":1}}\n',
        b'{"t":"result","meta":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}\n",
        b'{"t":"x","other":' + b"[" * 200_000 + b"]" * 200_000 + b"}\n",
        b'{"t":"stdout","d":"' + b"x" * LINE_BYTES + b'"}\n',
        b"x" * (LINE_BYTES + 1),
    ],
)
async def test_what_breaks_the_protocol_closes_the_connection(link: KernelLink, kernel: Kernel, said: bytes) -> None:
    talking = asyncio.ensure_future(asyncio.wait({asyncio.ensure_future(kernel.say(said))}))
    with pytest.raises(SandboxError, match="broke its protocol"):
        await link.next(LIMIT_S)
    await asyncio.wait_for(kernel.is_left.wait(), LIMIT_S)
    await asyncio.wait_for(talking, LIMIT_S)
    assert await link.next(LIMIT_S) is None


async def test_a_kernel_gets_no_further_ahead_than_the_credit(link: KernelLink, kernel: Kernel) -> None:
    line = json.dumps({"t": "stdout", "d": "x" * 60_000}).encode() + b"\n"
    count = 500

    async def flood() -> None:
        for _ in range(count):
            await kernel.say(line)

    flooding = asyncio.ensure_future(flood())
    await asyncio.sleep(0.2)
    assert flooding.done() is False
    for _ in range(count):
        got = await link.next(LIMIT_S)
        assert got is not None
        assert len(got.d) == 60_000
    await asyncio.wait_for(flooding, LIMIT_S)


async def test_closing_is_heard_by_the_kernel(link: KernelLink, kernel: Kernel) -> None:
    link.close()
    link.close()
    await asyncio.wait_for(kernel.is_left.wait(), LIMIT_S)
    assert link.is_quiet is False


async def test_a_sandbox_that_ends_is_told(client: AgentClient, link: KernelLink) -> None:
    waiting = asyncio.ensure_future(link.next(LIMIT_S))
    await asyncio.sleep(0)
    client.drop()
    with pytest.raises(SandboxGone):
        await waiting
