"""Snapshots in the SDK: what is sent, how answers are read, files in and out, both surfaces."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import cove
from cove.sdk import models, snapshot_calls
from cove.sdk.aio.client import Client as AsyncClient
from cove.sdk.aio.sandbox import Sandbox as AsyncSandbox
from cove.sdk.client import Client
from cove.sdk.sandbox import Sandbox
from cove.sdk.transport import Retry

SNAPSHOT = {"id": "sn_0000000000000007", "name": "before", "state": "ready", "memory": True, "processes": 3}
BOX = {"id": "sb_0000000000000001", "name": "otter", "state": "running"}
CAME = {"snapshot": "sn_0000000000000007", "sandbox": "sb_0000000000000001", "memory": False, "reason": "why"}


class Wire:
    """Answers by path, and keeps what was sent."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.seen: list[tuple[str, str, Any, dict[str, str]]] = []

    def take(self, method: str, target: str, head: list[tuple[str, str]], body: Any) -> Answer:
        sent = json.loads(body) if isinstance(body, bytes) and body.startswith(b"{") else body
        self.seen.append((method, target, sent, dict(head)))
        found = self.answers[target.removeprefix("/api/v1").partition("?")[0]]
        if isinstance(found, list):
            found = found.pop(0)
        return Answer(found if isinstance(found, bytes) else json.dumps(found).encode())


class Answer:
    status = 200

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.headers = {"content-length": str(len(body))}

    def chunks(self) -> Iterator[bytes]:
        yield from (self.body[at : at + 4] for at in range(0, len(self.body), 4))

    def close(self) -> None: ...


class Awaited(Answer):
    def chunks(self) -> AsyncIterator[bytes]:  # type: ignore[override]
        async def each() -> AsyncIterator[bytes]:
            for piece in Answer.chunks(self):
                yield piece

        return each()

    async def close(self) -> None:  # type: ignore[override]
        ...


class Transport:
    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def send(self, method: str, target: str, head: Any, body: Any, silence_s: float | None) -> Answer:
        assert silence_s is None, "a long operation must not be cut by a silence limit"
        if body is not None and not isinstance(body, bytes):
            body = b"".join(body)
        return self.wire.take(method, target, head, body)

    def close(self) -> None: ...


class AsyncTransport(Transport):
    async def send(self, method: str, target: str, head: Any, body: Any, silence_s: float | None) -> Answer:  # type: ignore[override]
        assert silence_s is None
        if body is not None and not isinstance(body, bytes):
            body = b"".join([piece async for piece in body])
        return Awaited(self.wire.take(method, target, head, body).body)

    async def close(self) -> None:  # type: ignore[override]
        ...


def client_of(answers: dict[str, Any]) -> tuple[Client, Wire]:
    wire = Wire(answers)
    client = Client("http://127.0.0.1:1", "key")
    client._transport = Transport(wire)
    return client, wire


def test_taking_one_has_a_key_of_its_own_and_may_be_repeated() -> None:
    client, wire = client_of({"/sandboxes/otter/snapshots": SNAPSHOT})
    made = Sandbox("otter", client=client).snapshot("before", tags={"run": "7"}, memory=True)
    assert (made.name, made.memory, made.processes, made.parent) == ("before", True, 3, None)
    method, _, sent, head = wire.seen[-1]
    assert (method, sent) == ("POST", {"name": "before", "tags": {"run": "7"}, "memory": True})
    assert len(head["idempotency-key"]) == 32
    one = snapshot_calls.take("a", name=None, tags=None, memory=None, idempotency_key="k")
    assert (one.retry, one.headers["idempotency-key"]) == (Retry.CREATE, "k")
    assert snapshot_calls.rollback("a", "b", memory=None).retry is Retry.NEVER


def test_a_fork_is_a_list_of_sandboxes() -> None:
    children = [BOX | {"id": f"sb_{n:016x}", "name": f"otter-{n}", "came_from": CAME} for n in (2, 3)]
    client, wire = client_of({"/sandboxes/otter/fork": {"sandboxes": children, "memory": False, "reason": "why"}})
    first, second = Sandbox("otter", client=client).fork(2, env={"A": "1"}, memory_limit="1g", idle_timeout=None)
    assert (first.name, second.name, first.keep) == ("otter-2", "otter-3", False)
    assert first.info.came_from == cove.CameFrom(
        memory=False, reason="why", snapshot="sn_0000000000000007", sandbox="sb_0000000000000001"
    )
    assert wire.seen[-1][2] == {"count": 2, "env": {"A": "1"}, "memory_mib": 1024, "idle_timeout_s": None}


@pytest.mark.parametrize("wrong", ["1g", 512, 1.0])
def test_a_size_where_memory_is_a_question_is_told_as_such(wrong: Any) -> None:
    box = Sandbox("otter", client=client_of({})[0])
    for act in (box.fork, box.snapshot, box.hibernate):
        with pytest.raises(cove.BadRequest, match="memory: True, False or None") as caught:
            act(memory=wrong)
        assert "memory_limit" in (caught.value.hint or "")


def test_hibernating_and_rolling_back_update_what_is_known() -> None:
    asleep = BOX | {"state": "hibernated", "kept": {"memory": False, "reason": "why"}}
    client, wire = client_of({"/sandboxes/otter/hibernate": asleep, "/sandboxes/otter/rollback": BOX})
    box = Sandbox("otter", client=client)
    assert box.hibernate().kept == cove.Kept(memory=False, reason="why")
    assert (box.state, wire.seen[-1][2]) == ("hibernated", {"memory": None})
    box.rollback(models.snapshot(SNAPSHOT))
    assert (box.state, wire.seen[-1][2]) == ("running", {"snapshot": "sn_0000000000000007", "memory": None})


def test_lists_page_and_snapshots_stand_for_their_ids() -> None:
    pages = [{"snapshots": [SNAPSHOT], "cursor": "c"}, {"snapshots": [SNAPSHOT | {"name": "b"}], "cursor": None}]
    answers = {"/snapshots": pages, "/snapshots/sn_0000000000000007": SNAPSHOT, "/snapshots/before/restore": BOX}
    client, wire = client_of(answers)
    found = list(client.snapshots.list(sandbox="otter", state="ready", tags={"a b": "c&d"}))
    assert [one.name for one in found] == ["before", "b"]
    assert wire.seen[0][1].endswith("/snapshots?sandbox=otter&state=ready&limit=100&tags.a+b=c%26d")
    assert "cursor=c" in wire.seen[1][1]
    assert client.snapshots.get(found[0]).id == found[0].id
    client.snapshots.update(found[0], tags={"x": None})
    assert (wire.seen[-1][0], wire.seen[-1][2]) == ("PATCH", {"tags": {"x": None}})
    with client.snapshots.restore("before", keep=True, timeout="1h", metadata={}) as box:
        assert box.name == "otter"
    assert wire.seen[-1][2] == {"timeout_s": 3600.0, "metadata": {}}
    for wrong in ("", ".", ".."):
        with pytest.raises(cove.BadRequest):
            client.snapshots.get(wrong)


def test_files_go_out_and_in_with_their_progress(tmp_path: Path) -> None:
    client, wire = client_of(
        {"/snapshots/before/export": b"0123456789", "/snapshots/import": SNAPSHOT | {"imported": True}}
    )
    seen: list[tuple[int, int]] = []
    target = tmp_path / "before.cove"
    assert client.snapshots.export("before", target, on_progress=lambda *at: seen.append(at)) == 10
    assert (target.read_bytes(), seen) == (b"0123456789", [(4, 10), (8, 10), (10, 10)])
    seen.clear()
    assert client.snapshots.import_(target, name="again", on_progress=lambda *at: seen.append(at)).imported
    method, path, sent, head = wire.seen[-1]
    assert (method, path, sent) == ("POST", "/api/v1/snapshots/import?name=again", b"0123456789")
    assert (head["content-length"], seen) == ("10", [(10, 10)])
    client.snapshots.import_(io.BytesIO(b"abc"))
    assert (wire.seen[-1][2], "content-length" in wire.seen[-1][3]) == (b"abc", False)


def test_the_awaited_twin_sends_the_same(tmp_path: Path) -> None:
    wire = Wire(
        {
            "/snapshots": {"snapshots": [SNAPSHOT], "cursor": None},
            "/snapshots/before/restore": BOX | {"came_from": CAME},
            "/snapshots/before/export": b"0123456789",
            "/snapshots/import": SNAPSHOT,
            "/sandboxes/otter/fork": {"sandboxes": [BOX], "memory": True, "reason": None},
            "/sandboxes/sb_0000000000000001": BOX,
        }
    )

    async def work() -> None:
        client = AsyncClient("http://127.0.0.1:1", "key")
        client._transport = AsyncTransport(wire)  # type: ignore[assignment]
        assert [one.name async for one in client.snapshots.list()] == ["before"]
        async with client.snapshots.restore("before", env={"A": "1"}) as box:
            assert box.info.came_from is not None
        assert wire.seen[-1][0] == "DELETE"
        (child,) = await AsyncSandbox("otter", client=client).fork()
        assert (child.name, wire.seen[-1][2]) == ("otter", {"count": 1})
        seen: list[int] = []
        target = tmp_path / "x"
        assert await client.snapshots.export("before", target, on_progress=lambda done, _: seen.append(done)) == 10
        assert (await client.snapshots.import_(target)).name == "before"
        assert (wire.seen[-1][2], seen) == (b"0123456789", [4, 8, 10])

    asyncio.run(work())


def test_the_configured_servers_are_there_without_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = client_of({"/snapshots": {"snapshots": [SNAPSHOT], "cursor": None}})
    monkeypatch.setattr("cove.sdk.client.default_client", lambda: client)
    assert [one.name for one in cove.snapshots.list()] == ["before"]
    assert isinstance(cove.aio.snapshots, cove.aio.Snapshots)
