"""What gVisor's answers mean: of its control socket, and of its checkpoints."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cove.engine.checkpoints import processor
from cove.engine.checkpoints.runsc import REFUSALS, Runsc
from cove.model.errors import CapacityExceeded, EngineFailure, SandboxGone, Unsupported

BOX = "0123456789abcdef"


def runsc(tmp_path: Path, says: str = "", code: int = 1) -> Runsc:
    """A runsc that writes `says` to its log and ends with `code`."""
    program, said = tmp_path / "runsc", tmp_path / "said"
    said.write_text(json.dumps({"msg": says, "level": "error"}) + "\n")
    program.write_text(f'#!/bin/sh\nwhile [ "$1" != --log ]; do shift; done\ncat {said} >> "$2"\nexit {code}\n')
    program.chmod(0o755)
    return Runsc(program, tmp_path)


@asynccontextmanager
async def sentry(tmp_path: Path, *answers: bytes) -> AsyncGenerator[list[object]]:
    """A control socket that gives one of `answers` to each call, cut in two; the calls it got."""
    calls: list[object] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(json.loads(await reader.read(4096)))
        answer = answers[len(calls) - 1]
        writer.write(answer[:5])
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(answer[5:])
        writer.close()

    async with await asyncio.start_unix_server(serve, str(tmp_path / f"runsc-{BOX}.sock")):
        yield calls


async def test_a_sentry_is_told_and_its_answer_believed(tmp_path: Path) -> None:
    good, bad = b'{"success":true,"err":"","result":{}}', b'{"success":false,"err":"unknown method"}'
    async with sentry(tmp_path, good, good, bad, b"", b'{"success":true', b"{" * 200000) as calls:
        one = runsc(tmp_path)
        await one.pause(BOX)
        await one.resume(BOX)
        with pytest.raises(EngineFailure):
            await one.pause(BOX)
        for _ in range(3):
            with pytest.raises(SandboxGone):
                await one.pause(BOX)
    assert [call["method"] for call in calls[:2] if isinstance(call, dict)] == [
        "containerManager.Pause",
        "containerManager.Resume",
    ]


async def test_a_sentry_that_is_gone_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(SandboxGone):
        await runsc(tmp_path).resume(BOX)


@pytest.mark.parametrize("words", sorted(REFUSALS))
async def test_what_cannot_be_kept_is_named(tmp_path: Path, words: str) -> None:
    message = f"checkpoint failed: encoding error: {words}:\n" + "goroutine 1 [running]\n" * 3000
    with pytest.raises(Unsupported) as caught:
        await runsc(tmp_path, message).checkpoint(BOX, tmp_path, tmp_path)
    assert REFUSALS[words] in caught.value.public
    assert caught.value.field == "memory"


async def test_a_full_disk_and_anything_else_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CapacityExceeded):
        await runsc(tmp_path, "write: no space left on device").checkpoint(BOX, tmp_path, tmp_path)
    with pytest.raises(EngineFailure) as caught:
        await runsc(tmp_path, "something new").checkpoint(BOX, tmp_path, tmp_path)
    assert "something new" in caught.value.internal


async def test_why_it_cannot_go_on_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineFailure, match="processor"):
        await runsc(tmp_path, "incompatible FeatureSet").go_on(BOX, tmp_path, tmp_path)


async def test_only_what_this_call_said_is_read(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(json.dumps({"msg": "no space left on device"}) + "\n")
    with pytest.raises(EngineFailure):
        await runsc(tmp_path, "something new").checkpoint(BOX, tmp_path, tmp_path)


def test_memory_moves_to_a_processor_that_can_do_as_much() -> None:
    here = processor.features()
    assert processor.lacking(here) == ()
    assert processor.lacking(f"{here} avx999 zzz") == ("avx999", "zzz")
    assert processor.lacking("") == ()
