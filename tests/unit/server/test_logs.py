"""Log lines name the request and the sandbox that they are about."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest

from cove.model.origin import Origin, current_origin, note_sandbox, own_context, working_for
from cove.server import logs


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    logs.configure(level="info", as_json=True)
    stream = io.StringIO()
    handler = root.handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


def test_a_line_has_the_ids_of_the_request_and_its_sandbox(lines: io.StringIO) -> None:
    with working_for(Origin(request_id="req_1")):
        note_sandbox("00112233445566ff")
        logging.getLogger("cove.test").info("done")
    logging.getLogger("cove.test").info("alone")
    first, second = map(json.loads, lines.getvalue().splitlines())
    assert (first["request_id"], first["sandbox"], first["text"]) == ("req_1", "00112233445566ff", "done")
    assert "request_id" not in second
    assert "sandbox" not in second


def test_what_the_record_says_itself_wins(lines: io.StringIO) -> None:
    with working_for(Origin(request_id="req_1")):
        logging.getLogger("cove.test").info("done", extra={"request_id": "req_2"})
    assert json.loads(lines.getvalue())["request_id"] == "req_2"


def test_a_line_cannot_be_forged(lines: io.StringIO) -> None:
    logging.getLogger("cove.test").info("a\nlevel=error \x1b[31m")
    assert len(lines.getvalue().splitlines()) == 1
    assert "\x1b" not in lines.getvalue()


async def test_tasks_work_for_whoever_started_them_and_supervisors_for_nobody() -> None:
    async def who() -> Origin:
        return current_origin()

    with working_for(Origin(request_id="req_1", key="k1")):
        async with asyncio.TaskGroup() as tasks:
            started = tasks.create_task(who())
            own = tasks.create_task(who(), context=own_context("00112233445566ff"))
    assert started.result().key == "k1"
    assert (own.result().key, own.result().request_id) == ("cove", "")
    assert own.result().sandbox == "00112233445566ff"
