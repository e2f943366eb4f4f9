"""Trees over a real agent, and what a lying one can make of their streams."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cove.agentlink.client import AgentClient
from cove.agentlink.frames import Kind
from cove.agentlink.trees import MAX_LINE_BYTES
from cove.model.errors import AgentViolation, FileError
from cove.model.files import Attributes, FileInfo
from cove.model.trees import FindEnd, Search, Walk

if TYPE_CHECKING:
    from conftest import Liar

STAT = b'{"path":"/x","name":"x","kind":"file","size":1,"mode":420,"uid":0,"gid":0,"mtime":1.5}\n'
END = {"entries": 1, "unreadable": 0, "stopped": None}


async def found(client: AgentClient, path: str) -> tuple[list[FileInfo], FindEnd]:
    entries: list[FileInfo] = []
    async with client.find(path, Walk()) as pieces:
        async for piece in pieces:
            if isinstance(piece, FindEnd):
                return entries, piece
            entries += piece
    raise AssertionError("a list without its end")


async def test_ten_thousand_entries_come_whole(client: AgentClient, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(10_000):
        (many / f"{number:05}").touch()
    entries, end = await found(client, str(many))
    assert end == FindEnd(entries=10_000, unreadable=0, stopped=None)
    assert {entry.name for entry in entries} == {f"{number:05}" for number in range(10_000)}


async def test_leaving_a_list_frees_the_connection_for_others(client: AgentClient, tmp_path: Path) -> None:
    for number in range(5_000):
        (tmp_path / f"{number:05}").touch()
    async with client.find(str(tmp_path), Walk()) as pieces:
        async for _ in pieces:
            break
    assert (await client.stat(str(tmp_path))).name == tmp_path.name


async def test_a_line_in_two_frames_is_one_line(lied_to: tuple[AgentClient, Liar]) -> None:
    client, liar = lied_to
    task = asyncio.create_task(found(client, "/x"))
    channel, call = await liar.hear_call()
    assert (call["op"], call["timeout_ms"]) == ("find", 300_000)
    await liar.say(Kind.DATA, channel, STAT[:20])
    await liar.say(Kind.DATA, channel, STAT[20:])
    await liar.say(Kind.RESULT, channel, END)
    entries, _ = await task
    assert [entry.path for entry in entries] == ["/x"]


@pytest.mark.parametrize(
    "lie",
    [
        b"x" * (MAX_LINE_BYTES + 1),
        b"x" * (MAX_LINE_BYTES + 1) + b"\n",
        b"{}\n",
        b"\n" * 1_000_000,
        STAT.replace(b'"size":1', b'"size":-1'),
        STAT.replace(b'"kind":"file"', b'"kind":"door"'),
        STAT[:-1],
    ],
    ids=["endless", "too-long", "another-type", "empty-lines", "negative", "unknown-kind", "half"],
)
async def test_lines_that_are_none_are_a_violation(lied_to: tuple[AgentClient, Liar], lie: bytes) -> None:
    client, liar = lied_to
    tracemalloc.start()
    task = asyncio.create_task(found(client, "/x"))
    channel, _ = await liar.hear_call()
    await liar.say(Kind.DATA, channel, lie)
    await liar.say(Kind.RESULT, channel, END)
    with pytest.raises(AgentViolation):
        await task
    assert tracemalloc.get_traced_memory()[1] < 64 * 1024 * 1024
    tracemalloc.stop()
    await liar.hear_end()


async def test_a_list_of_rewritten_files_that_does_not_end_is_a_violation(lied_to: tuple[AgentClient, Liar]) -> None:
    client, liar = lied_to
    work = client.replace("/", Walk(), Search(pattern="x"), "y", limit=10)
    task = asyncio.create_task(work)
    channel, _ = await liar.hear_call()
    line = b'{"path":"/%b","replacements":1}\n' % (b"p" * 8000)

    async def lie() -> None:
        while not task.done():
            for _ in range(16):
                await liar.say(Kind.DATA, channel, line)
            await asyncio.sleep(0)

    lying = asyncio.create_task(lie())
    with pytest.raises(AgentViolation):
        await task
    lying.cancel()


async def test_a_refusal_comes_before_the_stream(client: AgentClient) -> None:
    for walk, search in ((Walk(glob=("",)), Search(pattern="x")), (Walk(), Search(pattern="("))):
        with pytest.raises(FileError) as refused:
            async with client.search("/tmp", walk, search):
                pass
        assert refused.value.reason == "invalid"


async def test_an_older_agent_is_not_asked_for_what_it_would_ignore(lied_to: tuple[AgentClient, Liar]) -> None:
    client, _ = lied_to  # it names no features
    for change in (Attributes(mode=0o644, recursive=True), Attributes(owner="app")):
        with pytest.raises(FileError, match="older") as refused:
            await client.set_attributes("/x", change)
        assert refused.value.reason == "unsupported"
