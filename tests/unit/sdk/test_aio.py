"""The awaited surface against the stub, over both transports."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import cove
from cove import aio
from cove.sdk.transport import Retries

BOXES = "/api/v1/sandboxes"
BOX = f"{BOXES}/sb_0000000000000000"


@pytest.fixture
async def client(address: str) -> AsyncIterator[aio.Client]:
    async with aio.connect(address, "k-test") as client:
        yield client


@pytest.fixture
async def box(client: aio.Client) -> aio.Sandbox:
    return await client.create()


async def test_a_sandbox_is_made_used_and_deleted(client: aio.Client, stub: Any) -> None:
    async with client.create(memory="256m", name="x") as box:
        assert (await box.run("echo hi")).out == "hi\n"
        assert (await box.refresh()).id == box.id
        assert (await box.usage()).cpu_ms == 0
    assert stub.asked("POST", BOXES)[0].json == {"image": "base", "name": "x", "memory_mib": 256}
    assert stub.asked("POST", BOXES)[0].headers["authorization"] == "Bearer k-test"
    assert len(stub.asked("DELETE", BOX)) == 1


async def test_awaiting_makes_one_that_stays_until_its_with_ends(client: aio.Client, stub: Any) -> None:
    box = await client.create()
    assert not stub.asked("DELETE", BOX)
    async with box:
        await box.update(memory="1g")
    assert len(stub.asked("DELETE", BOX)) == 1
    async with client.create(keep=True), await client.get("box-0"):
        pass
    assert len(stub.asked("DELETE", BOX)) == 1


async def test_an_exit_code_raises_only_when_asked(box: aio.Sandbox, stub: Any) -> None:
    stub.exec |= {"exit_code": 3}
    assert (await box.run("exit 3")).exit == 3
    with pytest.raises(cove.CommandFailed):
        await box.run("exit 3", check=True)


async def test_retries_are_those_of_the_other_surface(client: aio.Client, stub: Any, wire: Any) -> None:
    stub.fail("POST", BOXES, wire.cut, wire.problem("capacity", 503, retry_after=0))
    box = await client.create()
    assert len({request.headers["idempotency-key"] for request in stub.asked("POST", BOXES)}) == 1
    stub.fail("POST", f"{BOX}/exec", wire.cut)
    with pytest.raises(cove.Unreachable, match="may have been done"):
        await box.run("true")
    assert len(stub.asked("POST", f"{BOX}/exec")) == 1
    stub.fail("GET", "/api/v1/server", *[wire.cut] * 9)
    with pytest.raises(cove.Unreachable):
        await client.server()
    assert len(stub.asked("GET", "/api/v1/server")) == 1 + Retries.LIMIT


async def test_errors_are_those_of_the_other_surface(client: aio.Client, stub: Any, wire: Any) -> None:
    with pytest.raises(cove.NotFound) as caught:
        await client.get("nope")
    assert (caught.value.code, caught.value.request_id) == ("not-found", "req_1")
    stub.fail("GET", "/api/v1/server", wire.answer(302), wire.problem("unauthorized", 401))
    with pytest.raises(cove.BadAnswer):
        await client.server()
    with pytest.raises(cove.Unauthorized, match="the key is from"):
        await client.server()


async def test_leaving_with_an_error_keeps_the_error(client: aio.Client, stub: Any, wire: Any) -> None:
    stub.fail("DELETE", BOX, wire.problem("engine-failure", 500))
    with pytest.raises(ValueError, match="mine") as caught:
        async with client.create():
            raise ValueError("mine")
    assert "was not deleted" in caught.value.__notes__[0]


async def test_a_cancelled_task_still_deletes_its_sandbox(client: aio.Client, stub: Any) -> None:
    inside = asyncio.Event()

    async def work() -> None:
        async with client.create():
            inside.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(stub.asked("DELETE", BOX)) == 1


async def test_lists_are_fetched_page_by_page(client: aio.Client) -> None:
    for _ in range(3):
        await client.create()
    assert [box.name async for box in client.list(page_size=2)] == ["box-0", "box-1", "box-2"]


async def test_a_stream_ends_in_the_result(box: aio.Sandbox, stub: Any, wire: Any) -> None:
    stub.events.append([wire.piece("stdout", b"x"), wire.event("exit", **wire.end)])
    async with box.stream("x") as running:
        assert [chunk.text async for chunk in running] == ["x"]
    assert running.result is not None
    assert running.result.out == "x"
    stub.events.append([wire.piece("stderr", b"y"), wire.event("exit", **wire.end)])
    assert [chunk.stream async for chunk in box.stream("x")] == ["stderr"]


async def test_leaving_a_stream_early_closes_the_connection(box: aio.Sandbox, stub: Any, wire: Any) -> None:
    stub.events.append([wire.piece("stdout", b"x"), b"wait"])
    async with box.stream("yes") as running:
        async for _ in running:
            break
    assert await asyncio.to_thread(stub.left.wait, 5)


async def test_cancelling_the_reader_closes_the_connection(box: aio.Sandbox, stub: Any, wire: Any) -> None:
    stub.events.append([wire.piece("stdout", b"x"), b"wait"])
    reading = asyncio.Event()

    async def read() -> None:
        async with box.stream("yes") as running:
            async for _ in running:
                reading.set()

    task = asyncio.create_task(read())
    await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(stub.left.wait, 5)


async def test_a_started_command_is_awaited_entered_or_iterated(box: aio.Sandbox, stub: Any, wire: Any) -> None:
    end = wire.event("exit", **wire.end)
    stub.events += [[wire.piece("stdout", b"a"), b"cut"], [end], [wire.piece("stdout", b"b"), end]]
    assert [chunk.text async for chunk in box.start("x")] == ["a"]
    async with box.start("x", stdin=True) as job:
        assert await job.write("in") == 2
        await job.write(iter([b"1"]))
        await job.close_stdin()
        assert [chunk.text async for chunk in job] == ["b"]
    assert stub.stdin == b"in1"
    job = await box.start("x")
    assert [chunk.text for chunk in await job.output()] == ["kept"]
    end_of_job = await job.wait()
    assert end_of_job is not None
    assert end_of_job.ok
    await job.kill()
    assert [each.id for each in await box.jobs()] == ["c1"]
    assert (await box.attach("c1", after=3)).seen == 3
    await job.forget()


async def test_a_job_whose_with_is_left_is_killed(box: aio.Sandbox, stub: Any) -> None:
    async with box.start("sleep 9"):
        pass
    assert [r.json["signal"] for r in stub.asked("POST", f"{BOX}/commands/c1/signal")] == ["KILL"]


async def test_files_both_ways(box: aio.Sandbox, stub: Any, tmp_path: Path) -> None:
    data = os.urandom(700_000)
    local = tmp_path / "a"
    local.write_bytes(data)
    await box.files.put(local, "/w/a")
    assert stub.requests[-1].headers["content-length"] == "700000"
    assert await box.files.get("/w/a", tmp_path / "b") == 700_000
    assert (tmp_path / "b").read_bytes() == data
    await box.files.put(io.BytesIO(b"x"), "/w/b")
    target = io.BytesIO()
    assert await box.files.get("/w/b", target) == 1

    async def pieces() -> AsyncIterator[bytes]:
        yield b"1"
        yield b"2"

    def plain() -> Iterator[bytes]:
        yield b"3"

    await box.files.write("/w/c", pieces())
    await box.files.write("/w/d", plain())
    await box.files.write("/w/e", "é")
    assert await box.files.read("/w/c") + await box.files.read("/w/d") == b"123"
    assert await box.files.read_text("/w/e") == "é"
    async with box.files.stream("/w/c", length=0) as none:
        assert [piece async for piece in none] == []
    assert await box.files.names("/w") == ["a", "b", "c", "d", "e"]
    assert await box.files.exists("/w/a")
    assert await box.files.remove("/w/a") == 1
    assert not await box.files.exists("/w/a")
    with pytest.raises(FileNotFoundError):
        await box.files.read("/w/a")
    with pytest.raises(cove.BadRequest, match="cannot be sent"):
        await box.files.write("/w/f", pieces(), size=1)


async def test_facts_that_nobody_asked_for_are_said_to_be_unknown(client: aio.Client) -> None:
    with pytest.raises(RuntimeError, match="refresh"):
        _ = aio.Sandbox("x", client=client).name


async def test_the_local_socket_without_a_server(tmp_path: Path) -> None:
    async with aio.connect(f"unix:{tmp_path}/none.sock") as client:
        with pytest.raises(cove.Unreachable, match="no server on this machine"):
            await client.server()


async def test_the_module_functions_use_what_is_configured(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COVE_URL", address)
    monkeypatch.setenv("COVE_API_KEY", "k-test")
    monkeypatch.chdir(tmp_path)
    async with aio.create() as box:
        assert [other.id async for other in aio.list()] == [box.id]
        assert (await aio.get(box.id)).name == box.name
    async with aio.Sandbox.create(keep=True) as other:
        assert other.name == "box-1"
    assert await aio.images()
    await aio.close()
