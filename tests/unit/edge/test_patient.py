"""An answer that takes long: spaces before the JSON, and what becomes of failures and clients that go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from cove.dialects.isorun.errors import TABLE
from cove.edge.endpoint import Reporter, attend
from cove.edge.exchange import Exchange, Message
from cove.edge.limits import EdgeLimits
from cove.edge.ops import Answer, Json
from cove.edge.patient import Patient
from cove.edge.stopping import Stopping
from cove.edge.texts import TextsJson
from cove.model.errors import SandboxGone

LIMITS = EdgeLimits(patience_s=0.01, ping_s=0.02)


class Client:
    """A request, and what came of it."""

    def __init__(self, limits: EdgeLimits = LIMITS) -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self.stopping = Stopping()
        scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "client": None}
        self.exchange = Exchange(scope, self._receive, self._send, limits, self.stopping)
        self.exchange.body_done = True

    async def _receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    async def ask(self, finish: Callable[[], Awaitable[Answer]]) -> None:
        async def handle() -> Answer:
            await asyncio.sleep(0)
            return Patient(finish)

        await attend(self.exchange, Reporter(TABLE), handle)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(one["body"] for one in self.sent[1:])

    async def wait_spaces(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.sent) <= count:
                await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    "answer", [Json({"stdout": "x"}), TextsJson({"stdout": ""}, {"stdout": b"x"}, "utf-8")], ids=["small", "large"]
)
async def test_a_long_one_begins_early_and_goes_on_with_spaces(answer: Answer) -> None:
    client = Client()

    async def finish() -> Answer:
        await client.wait_spaces(3)
        return answer

    await client.ask(finish)
    assert client.status == 200
    assert client.body.startswith(b"   ")
    assert json.loads(client.body) == {"stdout": "x"}
    assert client.sent[-1]["more_body"] is False
    heads = [one for one in client.sent if one["type"] == "http.response.start"]
    assert len(heads) == 1


async def test_a_short_one_is_as_any_other() -> None:
    client = Client(EdgeLimits())

    async def finish() -> Answer:
        await asyncio.sleep(0)
        return Json({"a": 1})

    await client.ask(finish)
    assert (client.status, client.body) == (200, b'{"a":1}')
    assert dict(client.sent[0]["headers"])[b"content-length"] == b"7"


async def test_a_failure_in_time_is_a_status_and_a_late_one_is_the_body() -> None:
    client = Client(EdgeLimits())

    async def fail() -> Answer:
        await asyncio.sleep(0)
        raise SandboxGone("it is gone")

    await client.ask(fail)
    assert (client.status, json.loads(client.body)) == (404, {"error": "it is gone"})
    late = Client()

    async def fail_late() -> Answer:
        await late.wait_spaces(1)
        raise SandboxGone("it is gone")

    await late.ask(fail_late)
    assert (late.status, json.loads(late.body)) == (200, {"error": "it is gone"})


async def test_the_work_is_cancelled_when_the_client_goes_or_the_server_stops() -> None:
    for begun in (False, True):
        client = Client(LIMITS if begun else EdgeLimits())
        ended: list[bool] = []

        async def finish(one: Client = client, ends: list[bool] = ended) -> Answer:
            try:
                await asyncio.sleep(600)
            finally:
                ends.append(True)
            return Json({"never": one.status})

        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            tasks.create_task(client.ask(finish))
            if begun:
                await client.wait_spaces(1)
            else:
                await asyncio.sleep(0.01)
            client.gone.set()
        assert ended == [True]
    stopped = Client(EdgeLimits())

    async def wait() -> Answer:
        await asyncio.sleep(600)
        return Json({})

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(stopped.ask(wait))
        await asyncio.sleep(0.01)
        stopped.stopping.stop()
    assert stopped.status == 503
