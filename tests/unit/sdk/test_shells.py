"""Shells: what is asked, what comes back, and that a `with` ends them. Both surfaces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import cove
from cove import aio

BOX = "/api/v1/sandboxes/sb_0000000000000000"
SHELL = f"{BOX}/shells/s1"


@pytest.fixture
def box(address: str) -> Iterator[cove.Sandbox]:
    with cove.connect(address, "k-test") as client:
        yield client.create()


def test_a_shell_asks_for_what_was_given_and_is_closed_by_its_with(box: cove.Sandbox, stub: Any) -> None:
    with box.shell(program="bash", env={"A": "1"}, cwd="/w", user="u") as shell:
        assert (shell.id, shell.info.program, shell.info.job_control, shell.info.exit) == ("s1", "bash", True, None)
        assert repr(shell) == "<Shell s1 bash>"
    sent = stub.asked("POST", f"{BOX}/shells")[0].json
    assert sent == {"program": "bash", "env": {"A": "1"}, "cwd": "/w", "user": "u"}
    assert stub.asked("DELETE", SHELL)
    box.shell()
    assert stub.asked("POST", f"{BOX}/shells")[1].json == {}


def test_a_command_gives_its_result(box: cove.Sandbox, stub: Any) -> None:
    shell = box.shells()[0]
    assert shell.run("pwd", timeout="1m").out == "hi\n"
    assert stub.asked("POST", f"{SHELL}/run")[0].json == {"command": "pwd", "encoding": "base64", "timeout_s": 60.0}
    stub.exec |= {"exit_code": 3}
    with pytest.raises(cove.CommandFailed):
        shell.run("false", check=True)
    assert shell.cwd() == "/w"
    assert shell.info.exit is not None
    for wrong in ("", " \n", ["ls"]):
        with pytest.raises(cove.BadRequest):
            shell.run(wrong)  # type: ignore[arg-type]


def test_streams_jobs_and_signals_go_to_the_shell(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    shell = box.shells()[0]
    stub.events.append([wire.piece("stdout", b"x"), wire.event("exit", **wire.end)])
    assert [chunk.text for chunk in shell.stream("make")] == ["x"]
    job = shell.start("make", keep_bytes=4096, timeout=2)
    assert (job.id, job.info.shell, job.info.queued) == ("c1", "s1", True)
    sent = stub.asked("POST", f"{SHELL}/commands")[0].json
    assert sent == {"command": "make", "encoding": "base64", "keep_bytes": 4096, "timeout_s": 2.0}
    shell.signal()
    assert stub.asked("POST", f"{SHELL}/signal")[0].json == {"signal": "INT"}


def test_closing_what_is_gone_is_no_error_and_hides_none(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    stub.fail("DELETE", SHELL, wire.problem("gone", 410))
    box.shells()[0].close()
    stub.fail("DELETE", SHELL, wire.problem("forbidden", 403))
    with pytest.raises(KeyError) as caught, box.shell():
        raise KeyError
    assert "not closed" in caught.value.__notes__[0]


async def test_the_awaited_twin_does_the_same(address: str, stub: Any, wire: Any) -> None:
    async with aio.connect(address, "k-test") as client:
        box = await client.create()
        async with box.shell() as shell:
            assert (await shell.run("true")).out == "hi\n"
            assert await shell.cwd() == "/w"
            stub.events.append([wire.piece("stdout", b"x"), wire.event("exit", **wire.end)])
            assert [chunk.text async for chunk in shell.stream("make")] == ["x"]
            assert (await shell.start("make")).info.queued
            await shell.signal("TERM")
        assert stub.asked("DELETE", SHELL)
        assert [one.id for one in await box.shells()] == ["s1"]
        assert (await box.shell()).info.pid == 9
