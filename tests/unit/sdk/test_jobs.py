"""Live output: streams tied to the connection, background commands that are followed across breaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import cove

BOX = "/api/v1/sandboxes/sb_0000000000000000"


@pytest.fixture
def box(address: str) -> Iterator[cove.Sandbox]:
    with cove.connect(address, "k-test") as client:
        yield client.create()


def test_a_stream_yields_both_streams_and_ends_in_the_result(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    stub.events.append(
        [
            wire.event("started", id="c9", pid=4),
            b": ping\n\n",
            wire.piece("stdout", b"one\n") + wire.piece("stderr", b"two\n"),
            wire.event("exit", **(wire.end | {"exit_code": 3})),
        ]
    )
    with box.stream("make") as running:
        assert running.result is None
        chunks = [(chunk.stream, chunk.text) for chunk in running]
        assert list(running) == []
    assert chunks == [("stdout", "one\n"), ("stderr", "two\n")]
    assert running.result is not None
    assert (running.id, running.result.exit, running.result.out, running.result.err) == ("c9", 3, "one\n", "two\n")


def test_a_stream_may_be_iterated_without_a_with(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    stub.events.append([wire.piece("stdout", b"x"), wire.event("exit", **wire.end)])
    running = box.stream("x")
    assert [chunk.data for chunk in running] == [b"x"]
    assert running.exit is not None
    assert list(running) == []
    with pytest.raises(RuntimeError, match="already"):
        running.__enter__()


def test_an_iteration_in_a_with_goes_on_where_it_was(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    stub.events.append(
        [
            wire.piece("stdout", b"1") + wire.piece("stdout", b"2"),
            wire.piece("stdout", b"3"),
            wire.event("exit", **wire.end),
        ]
    )
    with box.stream("x") as running:
        assert next(iter(running)).text == "1"
        for chunk in running:
            assert chunk.text == "2"
            break
        assert [chunk.text for chunk in running] == ["3"]
    assert running.result is not None
    assert running.result.out == "123"


def test_leaving_a_stream_early_closes_the_connection(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    stub.events.append([wire.piece("stdout", b"x"), b"wait"])
    with box.stream("yes") as running:
        next(iter(running))
    assert stub.left.wait(60)
    assert running.result is None


def test_dropping_an_iteration_closes_the_connection(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    stub.events.append([wire.piece("stdout", b"x"), b"wait"])
    for _ in box.stream("yes"):
        break
    assert stub.left.wait(60)


def test_a_stream_that_breaks_is_not_taken_for_ended(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    for last in (b"cut", b": ping\n\n"):
        stub.events.append([wire.piece("stdout", b"x"), last])
        with box.stream("x") as running, pytest.raises(cove.Unreachable):
            list(running)


def test_an_error_at_the_end_of_a_stream_is_raised(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    stub.events.append([wire.event("error", code="sandbox-gone", detail="it died", status=502)])
    with box.stream("x") as running, pytest.raises(cove.SandboxGone, match="it died"):
        list(running)


def test_a_job_is_followed_across_broken_connections(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    for number in range(6):  # more breaks than one call may retry: each made progress
        stub.events.append([wire.piece("stdout", b"%d" % number), b"event: stdout\ndata: half", b"cut"])
    stub.events.append([wire.event("exit", **wire.end)])
    job = box.start("x")
    assert b"".join(chunk.data for chunk in job) == b"012345"
    assert [r.query["cursor"] for r in stub.asked("GET", f"{BOX}/commands/c1/output")] == [[str(n)] for n in range(7)]
    assert (job.seen, job.exit and job.exit.ok) == (6, True)


def test_a_job_goes_on_when_the_server_says_that_it_stops(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    stub.events.append([wire.piece("stdout", b"1"), wire.event("error", code="server-stopping", detail="bye")])
    stub.events.append([wire.piece("stdout", b"2"), wire.event("error", code="sandbox-gone", detail="it died")])
    chunks = iter(box.start("x"))
    assert [next(chunks).data, next(chunks).data] == [b"1", b"2"]
    with pytest.raises(cove.SandboxGone, match="it died"):
        next(chunks)


def test_a_job_without_progress_is_given_up(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    job = box.start("x")
    stub.fail("GET", f"{BOX}/commands/c1/output", *[wire.cut] * 20)
    with pytest.raises(cove.Unreachable):
        list(job)
    assert len(stub.asked("GET", f"{BOX}/commands/c1/output")) == 11


def test_a_gap_is_counted(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    stub.events.append(
        [wire.event("gap", lost_bytes=5), wire.piece("stdout", b"x"), wire.event("exit", **wire.end)],
    )
    job = box.attach("c1", after=2)
    assert [(chunk.data, chunk.lost) for chunk in job] == [(b"x", 5)]
    assert job.seen == 8


def test_kept_output_without_waiting(box: cove.Sandbox, stub: Any) -> None:
    job = box.attach("c1")
    assert [(chunk.text, chunk.lost) for chunk in job.output()] == [("kept", 3)]
    assert (job.seen, job.exit and job.exit.exit) == (7, 0)


def test_input_signals_and_the_end(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    with box.start("cat", stdin=True, keep_bytes=4096) as job:
        assert job.write("a\n") == 2
        job.write(iter([b"b", b"c"]))
        job.close_stdin()
        job.signal("HUP")
        assert box.jobs()[0].id == job.id == "c1"
        end = job.wait("5s")
        assert end is not None
        assert end.ok
    started = stub.asked("POST", f"{BOX}/commands")[0].json
    assert (started["stdin_open"], started["keep_bytes"]) == (True, 4096)
    assert stub.stdin == b"a\nbc"
    signals = [r.json["signal"] for r in stub.asked("POST", f"{BOX}/commands/c1/signal")]
    assert signals == ["HUP"]  # it has ended: leaving sends none
    job.forget()
    assert stub.asked("DELETE", f"{BOX}/commands/c1")


def test_leaving_a_job_kills_it_and_one_that_ended_is_no_error(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    stub.fail("POST", f"{BOX}/commands/c1/signal", wire.problem("conflict", 409))
    with box.start("sleep 9"):
        pass
    assert [r.json["signal"] for r in stub.asked("POST", f"{BOX}/commands/c1/signal")] == ["KILL"]
    stub.fail("POST", f"{BOX}/commands/c1/signal", wire.problem("forbidden", 403))
    with pytest.raises(cove.Forbidden):
        box.attach("c1").kill()


def test_the_timeout_of_a_wait_is_sent_and_never_is_none(box: cove.Sandbox, stub: Any) -> None:
    box.attach("c1").wait()
    assert stub.asked("POST", f"{BOX}/commands/c1/wait")[0].json == {"timeout_s": None}
    with pytest.raises(cove.BadRequest):
        box.attach("c1").wait(0)
