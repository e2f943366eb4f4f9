"""Code and its contexts: what is asked, what comes back, who is told of it. Both surfaces."""

from __future__ import annotations

import pickle
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import cove
from cove import aio
from cove.sdk.executions import KEEP_RESULTS, CodeReader, CodeResult

BOX = "/api/v1/sandboxes/sb_0000000000000000"
CONTEXT = f"{BOX}/contexts/python"
PNG = b"\x89PNG\r\n\x1a\n"
RAISED = {"name": "ZeroDivisionError", "value": "division by zero", "traceback": ["Traceback", "1 / 0"]}
DONE = {"status": "ok", "count": 3, "duration_ms": 4.5, "detail": None}
WHOLE = DONE | {
    "context": "python",
    "fresh": True,
    "stdout": "out\n",
    "stderr": "err\n",
    "stdout_dropped_bytes": 7,
    "results": [
        {"data": {"text/plain": "shown"}, "display_id": "d"},
        {"data": {"text/plain": "42", "text/html": "<b>42</b>"}, "main": True},
    ],
    "results_dropped": 1,
}
INFO = {
    "id": "python",
    "language": "python",
    "kernel": "ipython",
    "version": "3.11.2",
    "cwd": "/root",
    "alive": True,
    "busy": False,
    "rich": True,
    "runs": 2,
    "started_at": "2026-01-01T00:00:00.000Z",
}


@pytest.fixture
def box(address: str) -> Iterator[cove.Sandbox]:
    with cove.connect(address, "k-test") as client:
        yield client.create()


def events(wire: Any, *more: bytes) -> Any:
    """An answer that streams a run with every kind of event, then `more`."""
    pieces = [
        wire.event("started", context="python", count=3, fresh=False),
        wire.event("stdout", text="a"),
        wire.event("stderr", text="b"),
        wire.event("stdout", text="\N{SNOWMAN}"),
        wire.event("result", data={"text/plain": "1"}, main=True),
        wire.event("error", **RAISED),
        *(more or [wire.event("done", **DONE | {"status": "error"})]),
    ]
    return wire.answer(stream=lambda: iter(pieces), headers={"Content-Type": "text/event-stream"})


class Told:
    """Callbacks that remember."""

    def __init__(self) -> None:
        self.all: list[tuple[str, object]] = []

    def by(self, name: str) -> Callable[[object], None]:
        def hear(what: object) -> None:
            self.all.append((name, what))

        return hear


def test_a_run_is_asked_for_as_given_and_read_whole(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    stub.fail("POST", f"{BOX}/code", wire.answer(json=WHOLE), wire.answer(json=WHOLE))
    done = box.run_code("6 * 7", language="python", env={"A": "1"}, timeout="1m")
    sent = stub.asked("POST", f"{BOX}/code")[0].json
    assert sent == {"code": "6 * 7", "language": "python", "env": {"A": "1"}, "timeout_s": 60.0}
    assert (done.ok, done.status, done.count, done.duration_ms, done.context) == (True, "ok", 3, 4.5, "python")
    assert (done.text, done.main, done.fresh, done.results_dropped) == ("42", done.results[1], True, 1)
    assert (done.logs.stdout, done.logs.stderr, done.logs.stdout_dropped) == ("out\n", "err\n", 7)
    assert (done.error, done.detail, done.checked()) == (None, None, done)
    box.run_code("1", context="c1")
    assert stub.asked("POST", f"{BOX}/code")[1].json == {"code": "1", "context": "c1"}


def test_what_the_code_raises_is_a_value_unless_it_is_checked(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    failed = WHOLE | {"status": "error", "error": RAISED, "results": []}
    stub.fail("POST", f"{BOX}/code", *[wire.answer(json=failed)] * 2)
    done = box.run_code("1 / 0")
    assert done.error is not None
    assert (done.ok, done.text, done.error.name, str(done.error)) == (False, None, RAISED["name"], "Traceback\n1 / 0")
    with pytest.raises(cove.CodeFailed, match="ZeroDivisionError: division by zero") as caught:
        box.run_code("1 / 0", check=True)
    assert caught.value.execution == done
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert again.execution == done


def test_callbacks_get_everything_as_it_comes(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    stub.fail("POST", f"{BOX}/code/stream", events(wire))
    told = Told()
    hear = {f"on_{name}": told.by(name) for name in ("stdout", "stderr", "result", "error")}
    done = box.run_code("x", **hear)  # type: ignore[arg-type]
    assert told.all == [
        ("stdout", "a"),
        ("stderr", "b"),
        ("stdout", "\N{SNOWMAN}"),
        ("result", done.main),
        ("error", done.error),
    ]
    assert (done.logs.stdout, done.logs.stderr, done.text, done.status) == ("a\N{SNOWMAN}", "b", "1", "error")
    assert (done.context, done.fresh, done.count) == ("python", False, 3)


def test_one_callback_is_enough_and_its_error_ends_the_run(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    stub.fail("POST", f"{BOX}/code/stream", events(wire), events(wire, b"wait"))
    seen: list[str] = []
    box.run_code("x", on_stderr=seen.append)
    assert seen == ["b"]

    def stop(_: object) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError):
        box.run_code("x", on_result=stop)
    assert stub.left.wait(30), "the connection stayed open, and the code would have run on"


def test_a_stream_that_breaks_or_fails_is_an_error(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    gone = wire.event("error", code="sandbox-gone", detail="it ended", status=502)
    stub.fail("POST", f"{BOX}/code/stream", events(wire, wire.event("later", x=1)), events(wire, gone))
    with pytest.raises(cove.Unreachable, match="before the code did"):
        box.run_code("x", on_stdout=print)
    with pytest.raises(cove.SandboxGone, match="it ended"):
        box.run_code("x", on_stdout=print)


def test_updates_and_clears_leave_what_a_notebook_would_show(wire: Any) -> None:
    reader = CodeReader()

    def told(kind: str, **fields: Any) -> None:
        list(reader.feed(wire.event(kind, **fields)))

    told("result", data={"text/plain": "gone"})
    told("clear", wait=False)
    told("result", data={"text/plain": "0 %"}, display_id="bar")
    told("result", data={"text/plain": "99 %"}, display_id="bar", update=True)
    told("result", data={"text/plain": "nobody"}, display_id="other", update=True)
    told("clear", wait=True)
    told("done", **DONE)
    assert reader.execution is not None
    assert [result.text for result in reader.execution.results] == ["99 %"], "nothing came after the clear"
    told("stdout", text="next")
    for _ in range(KEEP_RESULTS + 2):
        told("result", data={})
    told("done", **DONE)
    assert len(reader.execution.results) == KEEP_RESULTS
    assert reader.execution.results_dropped == 2


def test_each_form_of_a_result_is_at_hand() -> None:
    data = {
        "text/plain": "t",
        "text/html": "<p>",
        "text/markdown": "*m*",
        "text/latex": "$x$",
        "image/svg+xml": "<svg/>",
        "image/png": b64encode(PNG).decode(),
        "image/jpeg": b64encode(b"jpeg").decode(),
        "application/json": '{"a": [1]}',
    }
    result = CodeResult(data, {"image/png": {"width": 3}}, main=True)
    assert (result.text, result.html, result.markdown, result.latex) == ("t", "<p>", "*m*", "$x$")
    assert (result.svg, result.png, result.jpeg, result.json) == ("<svg/>", PNG, b"jpeg", {"a": [1]})
    assert result.content("image/png") == PNG
    assert result.content("image/svg+xml") == b"<svg/>"
    assert result.content("video/mp4") is None
    bundle: Any = getattr(result, "_repr_mimebundle_")  # noqa: B009 - IPython's name for it
    shown, about = bundle()
    assert shown == data | {"application/json": {"a": [1]}}
    assert about == {"image/png": {"width": 3}}
    assert bundle(include={"text/html"})[0] == {"text/html": "<p>"}
    assert "text/html" not in bundle(exclude={"text/html"})[0]
    nothing = CodeResult({})
    assert (nothing.text, nothing.png, nothing.json) == (None, None, None)


@pytest.mark.parametrize("wrong", ['{"results": [{}]}', '{"results": ["x"]}', "[]"])
def test_an_answer_of_another_form_is_told(box: cove.Sandbox, stub: Any, wire: Any, wrong: str) -> None:
    stub.fail("POST", f"{BOX}/code", wire.answer(body=wrong.encode()))
    with pytest.raises(cove.BadAnswer):
        box.run_code("1")


def test_a_context_is_made_used_and_removed_by_its_with(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    stub.fail("POST", f"{BOX}/contexts", wire.answer(201, INFO | {"id": "c1"}), wire.answer(201, INFO))
    stub.fail("DELETE", f"{BOX}/contexts/c1", wire.answer(204))
    stub.fail("POST", f"{BOX}/code", wire.answer(json=WHOLE), wire.answer(json=WHOLE))
    with box.contexts.create("python", cwd="/w", user="u", idle_timeout="1h") as context:
        assert (context.id, context.language, context.info.kernel, repr(context)) == (
            "c1",
            "python",
            "ipython",
            "<Context c1 python>",
        )
        assert context.info.started_at is not None
        context.run("x", env={"A": "1"}, timeout=2)
        box.run_code("y", context=context)
    made = stub.asked("POST", f"{BOX}/contexts")[0].json
    assert made == {"language": "python", "cwd": "/w", "user": "u", "idle_timeout_s": 3600.0}
    runs = [request.json for request in stub.asked("POST", f"{BOX}/code")]
    assert runs == [
        {"code": "x", "context": "c1", "env": {"A": "1"}, "timeout_s": 2.0},
        {"code": "y", "context": "c1"},
    ]
    assert stub.asked("DELETE", f"{BOX}/contexts/c1")
    box.contexts.create()
    assert stub.asked("POST", f"{BOX}/contexts")[1].json == {"language": "python"}


def test_what_can_be_done_with_a_context(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    stub.fail("GET", f"{BOX}/contexts", wire.answer(json={"contexts": [INFO]}))
    stub.fail("GET", CONTEXT, wire.answer(json=INFO), wire.answer(json=INFO | {"busy": True, "missing": ["x"]}))
    stub.fail("POST", f"{CONTEXT}/interrupt", wire.answer(204))
    stub.fail("POST", f"{CONTEXT}/restart", wire.answer(json=INFO | {"runs": 0}))
    matches = {"matches": ["print", "property"], "start": 0, "end": 2}
    stub.fail("POST", f"{CONTEXT}/complete", wire.answer(json=matches), wire.answer(json=matches))
    (context,) = box.contexts.list()
    assert box.contexts.get("python").info == context.info
    assert (context.refresh().busy, context.info.missing) == (True, ("x",))
    context.interrupt()
    assert context.restart().runs == 0
    completion = context.complete("pr")
    assert (completion.matches, completion.start, completion.end) == (("print", "property"), 0, 2)
    context.complete("pr(x)", cursor=2)
    asked = [request.json for request in stub.asked("POST", f"{CONTEXT}/complete")]
    assert asked == [{"code": "pr", "cursor": 2}, {"code": "pr(x)", "cursor": 2}]
    for wrong in ("", ".."):
        with pytest.raises(cove.BadRequest, match="names no context"):
            box.contexts.get(wrong)


def test_removing_what_is_gone_is_no_error_and_hides_none(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    stub.fail("POST", f"{BOX}/contexts", *[wire.answer(201, INFO)] * 2)
    stub.fail("DELETE", CONTEXT, wire.problem("not-found", 404), wire.problem("forbidden", 403))
    box.contexts.create().remove()
    with pytest.raises(KeyError) as caught, box.contexts.create():
        raise KeyError
    assert "not removed" in caught.value.__notes__[0]


def test_languages_say_what_they_lack(box: cove.Sandbox, stub: Any, wire: Any) -> None:
    known = {"name": "ruby", "kernel": "jupyter:ruby", "usable": False, "rich": True, "missing": ["no such program"]}
    stub.fail("GET", f"{BOX}/languages", wire.answer(json={"languages": [known]}))
    (language,) = box.languages()
    assert (language.name, language.usable, language.missing) == ("ruby", False, ("no such program",))


async def test_the_awaited_twin_does_the_same(address: str, stub: Any, wire: Any) -> None:
    stub.fail("POST", f"{BOX}/code", wire.answer(json=WHOLE))
    stub.fail("POST", f"{BOX}/code/stream", events(wire), events(wire, wire.event("later")))
    stub.fail("POST", f"{BOX}/contexts", wire.answer(201, INFO))
    stub.fail("GET", f"{BOX}/contexts", wire.answer(json={"contexts": [INFO]}))
    stub.fail("GET", f"{BOX}/languages", wire.answer(json={"languages": []}))
    seen: list[str] = []

    async def hear(text: str) -> None:
        seen.append(text)

    async with aio.connect(address, "k-test") as client:
        box = await client.create()
        assert (await box.run_code("6 * 7")).text == "42"
        with pytest.raises(cove.CodeFailed):
            await box.run_code("x", on_stdout=hear, on_stderr=seen.append, check=True)
        assert seen == ["a", "b", "\N{SNOWMAN}"]
        with pytest.raises(cove.Unreachable):
            await box.run_code("x", on_stdout=hear)
        async with await box.contexts.create() as context:
            assert context.language == "python"
        assert stub.asked("DELETE", CONTEXT)
        assert [one.id for one in await box.contexts.list()] == ["python"]
        assert await box.languages() == []
        with pytest.raises(RuntimeError, match="nothing is known"):
            _ = aio.Context("x", "y", client=client).info
