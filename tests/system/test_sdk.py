"""The SDK against a real server and real sandboxes: over the unix socket and over TCP, synchronous and awaited."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import cove
from cove import aio
from waiting_support import until

if TYPE_CHECKING:
    from tests_support import NewServer, RunningServer

pytestmark = pytest.mark.real

SECRET = "sleep 4321"
"""A command that a test finds again among the sandbox's processes."""


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, server: RunningServer) -> tuple[str, str | None]:
    return (f"unix:{server.socket}", None) if request.param == "unix" else (server.url, server.key)


@pytest.fixture
def client(address: tuple[str, str | None]) -> Iterator[cove.Client]:
    with cove.connect(*address) as client:
        yield client


@pytest.fixture
def box(client: cove.Client) -> Iterator[cove.Sandbox]:
    with client.create(memory="256m") as box:
        yield box


@pytest.fixture
async def async_box(address: tuple[str, str | None]) -> AsyncIterator[aio.Sandbox]:
    async with aio.connect(*address) as client, client.create(memory="256m") as box:
        yield box


def is_running(box: cove.Sandbox, command: str) -> bool:
    listing = box.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").out
    return listing.count(command) > 0


def test_a_command_and_its_result(box: cove.Sandbox) -> None:
    result = box.run("echo out; echo err >&2; exit 3")
    assert (result.exit, result.why, result.out, result.err) == (3, "exited", "out\n", "err\n")
    assert result.ms > 0
    assert box.run(["printf", "%s", "a  b"]).out == "a  b"
    assert box.run("cat; pwd; echo $A", stdin=b"\xff\n", cwd="/tmp", env={"A": "b"}).out_bytes == b"\xff\n/tmp\nb\n"
    assert box.run("no-such-command").exit == 127
    timed = box.run("sleep 60", timeout="200ms")
    assert (timed.exit, timed.why, timed.ok) == (124, "timeout", False)
    assert box.run("kill -9 $$").exit == 137
    with pytest.raises(cove.CommandFailed, match="boom"):
        box.run("echo boom >&2; false", check=True)


def test_more_output_than_is_kept(box: cove.Sandbox) -> None:
    result = box.run("head -c 12000000 /dev/zero; echo end")
    assert result.out_bytes.endswith(b"\0end\n")
    assert result.out_dropped + len(result.out_bytes) == 12_000_004
    with box.stream("head -c 12000000 /dev/zero; echo end") as running:
        assert sum(len(chunk.data) for chunk in running) == 12_000_004
    assert running.result is not None
    assert running.result.out_dropped > 0


def test_a_sandbox_is_deleted_at_the_end_of_its_with(client: cove.Client) -> None:
    with client.create(name="sdk-with", metadata={"t": "1"}) as box:
        assert client.get("sdk-with").id == box.id
        assert [other.id for other in client.list(metadata={"t": "1"})] == [box.id]
        assert cove.Sandbox(box.id, client=client).info.name == "sdk-with"
        assert box.isolation is not None
        assert box.isolation.driver
    assert box.state == "terminated"
    assert client.get(box.id).info.end_reason is not None
    with pytest.raises(cove.Gone) as caught:
        box.run("true")
    assert caught.value.request_id


def test_pause_resume_update_and_usage(box: cove.Sandbox) -> None:
    assert box.pause().state == "paused"
    assert box.resume().state == "running"
    assert box.update(timeout="1h", memory="300m", metadata={"a": "b"}).memory_mib == 300
    assert box.metadata == {"a": "b"}
    assert box.info.expires_at is not None
    assert box.update(timeout=None).expires_at is None
    assert box.usage().pids > 0


def test_output_arrives_while_the_command_runs(box: cove.Sandbox) -> None:
    with box.stream("echo first; until [ -e /tmp/gate ]; do sleep 0.05; done; echo second") as running:
        chunks = iter(running)
        assert next(chunks).text == "first\n"
        box.run("touch /tmp/gate")
        assert next(chunks).text == "second\n"
        assert list(chunks) == []
    assert running.exit is not None
    assert running.exit.ok


def test_a_stream_that_is_left_kills_its_command(box: cove.Sandbox) -> None:
    with box.stream(f"echo go; exec {SECRET}") as running:
        next(iter(running))
        assert is_running(box, SECRET)
    until(lambda: not is_running(box, SECRET))


def test_a_job_with_input_signals_and_output_from_anywhere(box: cove.Sandbox, client: cove.Client) -> None:
    with box.start("trap 'echo hup' HUP; cat; echo bye; (trap '' HUP; exec sleep 60) & wait; wait", stdin=True) as job:
        job.write("héllo\n")
        job.write(iter([b"a", b"b\n"]))
        job.close_stdin()
        seen = b""
        for chunk in job:
            seen += chunk.data
            if seen.endswith(b"bye\n"):
                break
        assert seen.decode() == "héllo\nab\nbye\n"
        job.signal("HUP")
        again = client.get(box.id).attach(job.id, after=job.seen)
        assert next(iter(again)).text == "hup\n"
        assert [other.id for other in box.jobs()] == [job.id]
        assert job.wait("100ms") is None
    end = job.wait()
    assert end is not None
    assert (end.why, end.exit) == ("killed", 137)
    job.kill()
    assert "".join(chunk.text for chunk in box.attach(job.id).output()).startswith("héllo")
    job.forget()
    with pytest.raises(cove.NotFound):
        job.refresh()


def test_a_job_goes_on_over_a_restart_of_the_server(new_server: NewServer) -> None:
    server = new_server()
    with cove.connect(f"unix:{server.socket}") as client:
        box = client.create()
        job = box.start("for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.3; done")
        chunks = iter(job)
        text = next(chunks).text
        restart = threading.Thread(target=lambda: (server.stop(), server.start()))
        restart.start()
        try:
            text += "".join(chunk.text for chunk in chunks)
        finally:
            restart.join()
        assert text == "1\n2\n3\n4\n5\n6\n7\n8\n"
        assert job.exit is not None
        assert job.exit.ok
        box.destroy()


def test_files_of_all_sizes(box: cove.Sandbox, tmp_path: Path) -> None:
    files = box.files
    files["/w/a/b.json"] = b"{}"
    assert files["/w/a/b.json"] == b"{}"
    assert "/w/a/b.json" in files
    del files["/w/a/b.json"]
    with pytest.raises(FileNotFoundError):
        files["/w/a/b.json"]
    local, copy = tmp_path / "big", tmp_path / "copy"
    with local.open("wb") as file:
        for _ in range(24):
            file.write(os.urandom(1 << 20))
    local.chmod(0o750)
    assert files.put(local, "/w/big").size == 24 << 20
    assert files.stat("/w/big").mode == 0o750
    assert box.run("sha256sum < /w/big").out[:64] == hashlib.sha256(local.read_bytes()).hexdigest()
    assert files.get("/w/big", copy) == 24 << 20
    assert copy.read_bytes() == local.read_bytes()
    with files.stream("/w/big", offset=5, length=7) as pieces:
        assert b"".join(pieces) == local.read_bytes()[5:12]
    files.mkdir("/w/d/e")
    files.move("/w/big", "/w/d/e/big")
    files.set("/w/d/e/big", mode=0o600)
    assert [(f.name, f.kind) for f in files.list("/w/d")] == [("e", "directory")]
    with pytest.raises(cove.FilePresent):
        files.write("/w/d/e/big", b"", exclusive=True)
    assert files.remove("/w/d", recursive=True) == 3


def test_a_large_upload_that_is_refused_early_still_gets_its_answer(box: cove.Sandbox, tmp_path: Path) -> None:
    local = tmp_path / "big"
    with local.open("wb") as file:
        file.truncate(64 << 20)
    for _ in range(3):
        with pytest.raises(cove.FileMissing):
            box.files.put(local, "/nowhere/big", parents=False)
        with pytest.raises(cove.NotFound):
            cove.Sandbox("no-such-box", client=box._client).files.put(local, "/w/big")
    with pytest.raises(cove.FileError):
        box.files.put(local, "/proc/version")
    assert box.run("true").ok


def test_a_long_directory_is_listed_whole(box: cove.Sandbox) -> None:
    box.run("mkdir -p /w/many && cd /w/many && touch $(seq 1 2500)", check=True)
    assert sorted(map(int, box.files.names("/w/many"))) == list(range(1, 2501))


def test_errors_say_what_to_do(client: cove.Client, server: RunningServer) -> None:
    with pytest.raises(cove.NotFound) as caught:
        client.create("localhost/pyhton")  # a name that no registry is asked for
    assert caught.value.field == "image"
    assert caught.value.request_id
    with pytest.raises(cove.BadRequest) as bad:
        client.create(memory="1m")
    assert bad.value.field == "memory_mib"
    with cove.connect(server.url, "wrong") as stranger, pytest.raises(cove.Unauthorized, match="cove key create"):
        stranger.server()


def test_the_same_key_makes_one_sandbox(client: cove.Client) -> None:
    one = client.create(idempotency_key=os.urandom(8).hex() + "-sdk")
    key = os.urandom(8).hex()
    two, three = client.create(idempotency_key=key), client.create(idempotency_key=key)
    assert two.id == three.id != one.id
    with pytest.raises(cove.IdempotencyConflict):
        client.create(idempotency_key=key, pids=100)
    one.destroy()
    two.destroy()


def test_keys_projects_images_and_the_server(client: cove.Client) -> None:
    key = client.create_key("sdk-test", scopes=["read"])
    assert key.key is not None
    listed = client.keys()
    assert key.id in {other.id for other in listed}
    client.revoke_key(key.id)
    assert client.projects()
    assert "base" in {image.name for image in client.images()}
    assert client.server()["default_driver"]
    assert "server-timing" in client.last_headers


def test_many_threads_share_a_client(box: cove.Sandbox) -> None:
    outputs: list[str] = []
    threads = [threading.Thread(target=lambda n=n: outputs.append(box.run(f"echo {n}").out)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outputs) == sorted(f"{n}\n" for n in range(16))


def test_shutdown_over_the_socket(new_server: NewServer) -> None:
    server = new_server()
    with cove.connect(f"unix:{server.socket}") as client:
        client.create()
        assert client.shutdown(all=True) == {"sandboxes": 0}
    assert server.process is not None
    server.process.wait(60)


async def test_the_awaited_surface(async_box: aio.Sandbox, tmp_path: Path) -> None:
    box = async_box
    assert (await box.run("echo hi")).out == "hi\n"
    async with box.stream("echo a; echo b >&2") as running:
        streams = {chunk.stream async for chunk in running}
    assert streams == {"stdout", "stderr"}
    assert running.result is not None
    assert running.result.ok
    assert "etc\n" in "".join([chunk.text async for chunk in box.start("ls /")])
    async with box.start("cat", stdin=True) as job:
        await job.write("x")
        await job.close_stdin()
        assert "".join([chunk.text async for chunk in job]) == "x"
    data = os.urandom(5 << 20)
    (tmp_path / "a").write_bytes(data)
    await box.files.put(tmp_path / "a", "/w/a")
    assert await box.files.get("/w/a", tmp_path / "b") == len(data)
    assert (tmp_path / "b").read_bytes() == data
    results = await asyncio.gather(*(box.run(f"echo {n}") for n in range(20)))
    assert [result.out for result in results] == [f"{n}\n" for n in range(20)]


async def test_cancelling_a_run_kills_its_command(async_box: aio.Sandbox) -> None:
    async def is_there() -> bool:
        return SECRET in (await async_box.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")).out

    for start in (async_box.run, _read_stream(async_box)):
        task = asyncio.create_task(start(SECRET.split()))
        async with asyncio.timeout(60):
            while not await is_there():
                await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(60):
            while await is_there():
                await asyncio.sleep(0.02)


def _read_stream(box: aio.Sandbox):  # noqa: ANN202 - a coroutine function like box.run
    async def read(command: list[str]) -> None:
        async with box.stream(command) as running:
            async for _ in running:
                pass

    return read


async def test_a_cancelled_task_deletes_its_sandbox(server: RunningServer) -> None:
    async with aio.connect(f"unix:{server.socket}") as client:
        made: list[aio.Sandbox] = []

        async def work() -> None:
            async with client.create() as box:
                made.append(box)
                await box.run("sleep 60")

        task = asyncio.create_task(work())
        while not made:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await made[0].refresh()).state == "terminated"
