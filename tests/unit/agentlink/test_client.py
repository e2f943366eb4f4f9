"""The client with the real agent, run as a plain process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cove.agentlink.client import AgentClient
from cove.model.errors import AgentTimeout, BadRequest, Conflict, FileError, NotFound, SandboxGone
from cove.model.execs import Chunk, Ended, ExecSpec, Gap, Paused, Started, Stream, Why
from cove.model.files import Attributes, FileKind
from waiting_support import comes_true

from .conftest import lives

if TYPE_CHECKING:
    from conftest import RunningAgent


def sh(script: str, **more: Any) -> ExecSpec:
    return ExecSpec(shell=script, **more)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def names_in(directory: Path) -> set[str]:
    return {one.name for one in directory.iterdir()}


def touch(directory: Path, name: bytes) -> None:
    Path(os.fsdecode(bytes(directory) + b"/" + name)).touch()


async def ends_as_gone(call: Awaitable[object]) -> None:
    with pytest.raises(SandboxGone):
        await call


async def test_a_command_gives_both_streams_and_its_code(client: AgentClient) -> None:
    result = await client.exec(sh("echo out; echo err >&2; exit 3"))
    assert (result.stdout, result.stderr, result.exit.code, result.exit.why) == (b"out\n", b"err\n", 3, Why.EXITED)


@pytest.mark.parametrize(("program", "code"), [("no-such-program", 127), ("/etc/passwd", 126), ("/etc", 126)])
async def test_a_program_that_cannot_start_is_a_result_like_a_shells(
    client: AgentClient, program: str, code: int
) -> None:
    result = await client.exec(ExecSpec(argv=(program,)))
    assert result.exit.code == code
    assert program.encode() in result.stderr


async def test_environment_directory_and_input_reach_the_command(client: AgentClient, tmp_path: Path) -> None:
    spec = sh("pwd; echo $A; cat", env={"A": "ä"}, cwd=str(tmp_path), stdin=b"in")
    assert (await client.exec(spec)).stdout == f"{tmp_path}\nä\nin".encode()


async def test_input_larger_than_the_credit_arrives_whole(client: AgentClient) -> None:
    result = await client.exec(sh("sleep 0.1; wc -c", stdin=bytes(5_000_000)))
    assert result.stdout.strip() == b"5000000"


async def test_a_command_that_ignores_its_input_ends(client: AgentClient) -> None:
    assert (await client.exec(ExecSpec(argv=("true",), stdin=bytes(5_000_000)))).exit.code == 0
    assert (await client.exec(ExecSpec(argv=("true",)))).exit.code == 0


async def test_the_tail_of_long_output_wins(client: AgentClient) -> None:
    result = await client.exec(sh("head -c 3000000 /dev/zero; echo end", output_limit_bytes=1000))
    assert (len(result.stdout), result.stdout_dropped_bytes) == (1000, 2999004)
    assert result.stdout.endswith(b"\0end\n")


async def test_a_time_limit_kills_the_group(client: AgentClient) -> None:
    result = await client.exec(sh("sleep 300 & echo $!; sleep 300", timeout_s=0.5))
    assert (result.exit.why, result.exit.code, result.exit.signal) == (Why.TIMEOUT, 137, 9)
    await comes_true(lambda: not lives(int(result.stdout)))


async def test_a_background_child_that_keeps_the_pipe_does_not_hold_the_result(
    client: AgentClient, tmp_path: Path
) -> None:
    gate, said = tmp_path / "gate", tmp_path / "said"
    wait = f"until [ -e {gate} ]; do sleep 0.01; done"
    result = await client.exec(sh(f"({wait}; echo late; echo $? > {said}.new; mv {said}.new {said}) & echo done"))
    assert result.stdout == b"done\n"
    gate.touch()
    await comes_true(said.exists)
    assert said.read_text() == "0\n", "its later output must not kill it"


async def test_output_of_an_ended_command_waits_for_a_slow_reader(client: AgentClient) -> None:
    async with client.exec_stream(sh("head -c 1200000 /dev/zero")) as events:
        await asyncio.sleep(0.5)
        assert sum([len(event.data) async for event in events if isinstance(event, Chunk)]) == 1_200_000


async def test_a_stream_begins_with_started_and_ends_with_ended(client: AgentClient) -> None:
    async with client.exec_stream(sh("echo a; sleep 0.05; echo b >&2")) as events:
        got = [event async for event in events]
    assert isinstance(got[0], Started)
    assert got[1:-1] == [Chunk(Stream.STDOUT, b"a\n"), Chunk(Stream.STDERR, b"b\n")]
    assert isinstance(got[-1], Ended)


async def test_leaving_a_stream_kills_the_command(client: AgentClient) -> None:
    async with client.exec_stream(sh("sleep 300")) as events:
        started = await anext(events)
    assert isinstance(started, Started)
    await comes_true(lambda: not lives(started.pid))
    async with asyncio.timeout(60):
        while (await client.stats()).attached:
            await asyncio.sleep(0.01)


async def test_closing_the_connection_kills_attached_and_leaves_kept_commands(
    agent: RunningAgent, tmp_path: Path
) -> None:
    one, other = await agent.connect(), await agent.connect()
    pid = tmp_path / "pid"
    await one.start("kept", sh("sleep 30"), keep_bytes=4096, stdin_open=False)
    async with asyncio.TaskGroup() as group:
        group.create_task(ends_as_gone(one.exec(sh(f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 300"))))
        await comes_true(pid.exists)
        await one.close()
    await comes_true(lambda: not lives(int(pid.read_text())))
    assert (await other.command("kept")).running
    await other.close()


async def test_an_agent_that_ends_takes_its_commands_along(agent: RunningAgent, client: AgentClient) -> None:
    started = await client.start("a", sh("sleep 60"), keep_bytes=4096, stdin_open=False)
    assert agent.stop() == 0
    await asyncio.wait_for(client.wait_closed(), 60)
    assert client.is_closed
    await comes_true(lambda: not lives(started.pid), "the command lives on")


async def test_a_kept_command_is_listed_waited_for_and_forgotten(client: AgentClient) -> None:
    await client.start("a", sh("echo x; exit 4"), keep_bytes=4096, stdin_open=False)
    done = await client.wait("a", 5)
    assert (done.running, done.exit.code, done.cursor, done.argv) == (False, 4, 2, ("/bin/sh", "-c", "echo x; exit 4"))
    assert [one.id for one in await client.commands()] == ["a"]
    await client.forget("a")
    with pytest.raises(NotFound):
        await client.command("a")


async def test_waiting_has_a_limit(client: AgentClient) -> None:
    await client.start("a", sh("sleep 30"), keep_bytes=4096, stdin_open=False)
    assert (await client.wait("a", 0.05)).running


async def test_an_id_in_use_and_a_signal_to_an_ended_command_are_conflicts(client: AgentClient) -> None:
    await client.start("a", sh("true"), keep_bytes=4096, stdin_open=False)
    with pytest.raises(Conflict):
        await client.start("a", sh("true"), keep_bytes=4096, stdin_open=False)
    await client.wait("a", 5)
    with pytest.raises(Conflict):
        await client.signal("a", signal.SIGTERM)
    with pytest.raises(BadRequest):
        await client.start("b", ExecSpec(argv=("no-such",)), keep_bytes=4096, stdin_open=False)


async def test_kept_output_is_read_in_parts_and_followed_to_the_end(client: AgentClient) -> None:
    await client.start("a", sh("echo one; echo two >&2; read x; echo $x"), keep_bytes=4096, stdin_open=True)
    while (await client.command("a")).cursor < 8:
        await asyncio.sleep(0.01)
    async with client.output("a", cursor=0, follow=False, limit_bytes=0) as events:
        *chunks, last = [event async for event in events]
    assert sorted(chunk.data for chunk in chunks) == [b"one\n", b"two\n"]
    assert last == Paused(8)
    assert await client.stdin("a", pieces(b"thr", b"ee\n"), close=True) == 6
    async with client.output("a", cursor=8, follow=True, limit_bytes=0) as events:
        *chunks, last = [event async for event in events]
    assert b"".join(chunk.data for chunk in chunks) == b"three\n"
    assert (last.exit.code, last.cursor) == (0, 14)
    with pytest.raises(BadRequest):
        await client.stdin("a", pieces(b"more"), close=False)


async def test_output_that_is_no_longer_kept_is_a_gap(client: AgentClient) -> None:
    await client.start("a", sh("head -c 10000 /dev/zero"), keep_bytes=4096, stdin_open=False)
    await client.wait("a", 5)
    async with client.output("a", cursor=100, follow=False, limit_bytes=0) as events:
        got = [event async for event in events]
    assert got[0] == Gap(10000 - 4096 - 100)
    assert sum(len(event.data) for event in got if isinstance(event, Chunk)) == 4096


async def test_many_commands_at_once(client: AgentClient) -> None:
    results = await asyncio.gather(*(client.exec(sh(f"echo {n}")) for n in range(100)))
    assert [result.stdout for result in results] == [b"%d\n" % n for n in range(100)]


async def test_a_file_is_written_and_read_whole(client: AgentClient, tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    path = str(tmp_path / "new" / "file")
    info = await client.write(path, pieces(content[:1_500_000], b"", content[1_500_000:]), parents=True, mode=0o640)
    assert (info.size, info.mode, info.kind) == (len(content), 0o640, FileKind.FILE)
    async with client.read(path) as reader:
        assert reader.info.size == len(content)
        assert b"".join([piece async for piece in reader]) == content
    async with client.read(path, offset=10, length=5) as reader:
        assert b"".join([piece async for piece in reader]) == content[10:15]


async def test_appending_and_writing_at_an_offset_are_in_place(client: AgentClient, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    await client.write(str(path), pieces(b"def"), append=True)
    await client.write(str(path), pieces(b"XY"), offset=1)
    assert path.read_bytes() == b"aXYdef"


async def test_a_failing_source_leaves_the_old_file_and_no_other(client: AgentClient, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")

    async def broken() -> AsyncIterator[bytes]:
        yield b"new"
        raise OSError("upload cut")

    with pytest.raises(OSError, match="upload cut"):
        await client.write(str(path), broken())
    await comes_true(lambda: names_in(tmp_path) == {"a.sock", "f"})
    assert path.read_bytes() == b"old"


async def test_writing_through_a_link_keeps_link_and_mode(client: AgentClient, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "target").chmod(0o604)
    (tmp_path / "link").symlink_to("target")
    await client.write(str(tmp_path / "link"), pieces(b"new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o604


async def test_what_is_not_a_regular_file_is_refused(client: AgentClient, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, reason in ((tmp_path / "fifo", "invalid"), (tmp_path, "is_directory"), (tmp_path / "no", "not_found")):
        with pytest.raises(FileError) as caught:
            async with client.read(str(path)):
                pass
        assert caught.value.reason == reason
    with pytest.raises(FileError):
        await client.write(str(tmp_path / "fifo"), pieces(b"x"))


async def test_leaving_a_download_early_leaves_the_connection_usable(client: AgentClient, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(10_000_000))
    async with client.read(str(tmp_path / "f")) as reader:
        await anext(reader)
    assert (await client.stat(str(tmp_path / "f"))).size == 10_000_000


@pytest.mark.parametrize("path", ["relative", "", "/a\0b", "/" + "x" * 5000])
async def test_paths_that_are_none_are_refused(client: AgentClient, path: str) -> None:
    with pytest.raises(FileError) as caught:
        await client.stat(path)
    assert caught.value.reason == "invalid"


async def test_a_directory_is_listed_in_pages_by_name(client: AgentClient, tmp_path: Path) -> None:
    names = sorted(["a\nb", "\u202egpj.exe", *(f"{n:04}" for n in range(1500))], key=str.encode)
    (tmp_path / "d").mkdir()
    for name in names:
        (tmp_path / "d" / name).touch()
    got, after, more = [], None, True
    while more:
        page, more = await client.list(str(tmp_path / "d"), limit=400, after=after)
        got += [entry.name for entry in page]
        after = got[-1]
    assert got == names


async def test_names_that_are_no_text_do_not_trap_a_reader_of_pages(client: AgentClient, tmp_path: Path) -> None:
    for name in (b"a", b"\xff1", b"\xff2", b"z"):
        touch(tmp_path, name)
    seen, after, more = 0, None, True
    while more:
        page, more = await client.list(str(tmp_path), limit=1, after=after)
        seen, after = seen + 1, page[-1].name
        assert seen < 10


async def test_directories_are_made_moved_and_removed(client: AgentClient, tmp_path: Path) -> None:
    made = await client.mkdir(str(tmp_path / "a" / "b"), parents=True, mode=0o700)
    assert (made.kind, made.mode) == (FileKind.DIRECTORY, 0o700)
    await client.mkdir(str(tmp_path / "a" / "b"), parents=True)
    with pytest.raises(FileError) as caught:
        await client.mkdir(str(tmp_path / "a" / "b"))
    assert caught.value.reason == "exists"
    await client.write(str(tmp_path / "a" / "f"), pieces(b"x"))
    (tmp_path / "taken").touch()
    with pytest.raises(FileError):
        await client.move(str(tmp_path / "a" / "f"), str(tmp_path / "taken"))
    assert (await client.move(str(tmp_path / "a"), str(tmp_path / "c"))).name == "c"
    with pytest.raises(FileError) as caught:
        await client.remove(str(tmp_path / "c"))
    assert caught.value.reason == "not_empty"
    assert await client.remove(str(tmp_path / "c"), recursive=True) == 3
    with pytest.raises(FileError):
        await client.remove("/", recursive=True)


async def test_attributes_of_a_link_are_its_own(client: AgentClient, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "l").symlink_to("f")
    assert (await client.set_attributes(str(tmp_path / "f"), Attributes(mode=0o400))).mode == 0o400
    assert (await client.stat(str(tmp_path / "l"))).target == "f"
    with pytest.raises(FileError) as caught:
        await client.set_attributes(str(tmp_path / "l"), Attributes(mode=0o400))
    assert caught.value.reason == "unsupported"


async def test_a_claim_happens_once(client: AgentClient) -> None:
    await client.claim({"WHO": "me"}, "/tmp", "box")
    result = await client.exec(sh("echo $WHO; pwd"))
    assert result.stdout == b"me\n/tmp\n"
    with pytest.raises(Conflict):
        await client.claim({}, None, None)


async def test_a_claim_names_the_user_of_commands(client: AgentClient) -> None:
    await client.claim({}, None, None, "65534:65534")
    assert (await client.exec(sh("id -u; id -g"))).stdout == b"65534\n65534\n"
    own = await client.exec(ExecSpec(shell="id -u", user="0"))
    assert own.stdout == b"0\n"


async def test_a_default_directory_that_is_closed_to_a_user_is_not_asked_for(
    client: AgentClient, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    await client.claim({}, str(closed), None)
    assert (await client.exec(sh("pwd", user="65534"))).stdout == b"/\n"
    assert (await client.exec(sh("pwd"))).stdout == f"{closed}\n".encode()
    assert (await client.exec(sh("pwd", user="65534", cwd=str(closed)))).exit.code == 126


async def test_a_port_inside_is_dialled_and_half_closed(client: AgentClient) -> None:
    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(upper, "127.0.0.1", 0)
    async with server, client.dial(server.sockets[0].getsockname()[1]) as stream:
        await stream.write(b"x" * 3_000_000)
        await stream.write_eof()
        assert b"".join([piece async for piece in stream]) == b"X" * 3_000_000
    with pytest.raises(Conflict):
        async with client.dial(1):
            pass


async def test_a_quiesced_agent_lets_go_and_comes_back(agent: RunningAgent, tmp_path: Path) -> None:
    client = await agent.connect()
    await client.start("kept", sh("sleep 30"), keep_bytes=4096, stdin_open=False)
    (tmp_path / "quiesce").touch()
    await client.quiesce()
    await asyncio.wait_for(client.wait_closed(), 60)
    await asyncio.sleep(0.1)
    assert not agent.path.exists()
    (tmp_path / "quiesce").unlink()
    again = await agent.connect()
    assert (await again.command("kept")).running
    await again.close()


async def test_a_ping_answers_while_a_command_floods(client: AgentClient) -> None:
    async with client.exec_stream(sh("cat /dev/zero")) as events:
        await anext(events)
        assert await client.ping() < 20


async def test_a_writer_gives_up_on_a_command_that_reads_nothing(client: AgentClient) -> None:
    await client.start("c1", ExecSpec(argv=("sleep", "60")), keep_bytes=4096, stdin_open=True)
    with pytest.raises(AgentTimeout):
        await client.stdin("c1", pieces(*[bytes(500_000)] * 4), close=False, stall_s=0.3)
    async with asyncio.timeout(60):  # the sandbox lets go of it, and of the next
        while True:
            try:
                assert await client.stdin("c1", pieces(), close=True) == 0
            except Conflict:
                await asyncio.sleep(0.01)
            else:
                break


async def test_a_look_at_output_waits_for_the_first_byte(client: AgentClient) -> None:
    await client.start("c1", sh("sleep 0.3; echo hi; sleep 60"), keep_bytes=4096, stdin_open=False)
    async with client.output("c1", wait_s=20) as events:
        assert [one async for one in events] == [Chunk(stream=Stream.STDOUT, data=b"hi\n"), Paused(cursor=3)]
    async with client.output("c1", cursor=3, wait_s=0.1) as events:
        assert [one async for one in events] == [Paused(cursor=3)]
