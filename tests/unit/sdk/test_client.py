"""The synchronous surface against the stub, over both transports: requests, retries, errors, the end of a `with`."""

from __future__ import annotations

from typing import Any

import pytest

import cove
from cove.sdk.client import default_client
from cove.sdk.transport import Retries

BOXES = "/api/v1/sandboxes"
BOX = f"{BOXES}/sb_0000000000000000"


@pytest.fixture
def client(address: str):  # noqa: ANN201 - an iterator of clients
    with cove.connect(address, "k-test") as client:
        yield client


def test_a_sandbox_is_made_used_and_deleted(client: cove.Client, stub: Any) -> None:
    with client.create(memory="256m", env={"A": "1"}, timeout="2h", idle_timeout="never") as box:
        assert (box.id, box.name, box.state) == ("sb_0000000000000000", "box-0", "running")
        result = box.run("echo hi", cwd="/w", user="root", timeout=5, stdin="in")
        assert (result.ok, result.exit, result.out) == (True, 0, "hi\n")
    made, ran = stub.asked("POST", BOXES)[0], stub.asked("POST", f"{BOX}/exec")[0]
    assert made.json == {
        "image": "base",
        "memory_mib": 256,
        "env": {"A": "1"},
        "timeout_s": 7200,
        "idle_timeout_s": None,
    }
    assert ran.json["command"] == "echo hi"
    assert (ran.json["cwd"], ran.json["user"], ran.json["timeout_s"], ran.json["stdin"]) == ("/w", "root", 5, "aW4=")
    assert made.headers["authorization"] == "Bearer k-test"
    assert made.headers["cove-version"] == "1"
    assert len(stub.asked("DELETE", BOX)) == 1


def test_a_list_is_an_argv(client: cove.Client, stub: Any) -> None:
    client.create().run(["printf", "%s", "a b"])
    assert stub.asked("POST", f"{BOX}/exec")[0].json["command"] == ["printf", "%s", "a b"]


def test_a_command_without_a_timeout_sends_none(client: cove.Client, stub: Any) -> None:
    client.create().run("sleep 1")
    assert "timeout_s" not in stub.asked("POST", f"{BOX}/exec")[0].json


@pytest.mark.parametrize("empty", ["", [], b"true"])
def test_what_is_no_command_is_refused_before_it_is_sent(client: cove.Client, stub: Any, empty: Any) -> None:
    box = client.create()
    with pytest.raises(cove.BadRequest, match="command"):
        box.run(empty)
    assert not stub.asked("POST", f"{BOX}/exec")


def test_an_exit_code_raises_only_when_asked(client: cove.Client, stub: Any) -> None:
    stub.exec |= {"exit_code": 3, "stderr": "YmFk"}
    box = client.create()
    assert box.run("exit 3").exit == 3
    with pytest.raises(cove.CommandFailed, match="exit code 3: bad") as caught:
        box.run("exit 3", check=True)
    assert caught.value.result.err == "bad"


@pytest.mark.parametrize("why", ["timeout", "oom", "killed", "sandbox-gone"])
def test_a_command_that_did_not_exit_is_not_ok(client: cove.Client, stub: Any, why: str) -> None:
    stub.exec |= {"why": why, "exit_code": None, "signal": 9}
    result = client.create().run("x")
    assert (result.ok, result.why, result.exit) == (False, why, 137)


def test_keep_keeps_and_get_never_deletes(client: cove.Client, stub: Any) -> None:
    with client.create(keep=True):
        pass
    with client.get("box-0") as box:
        assert box.id == "sb_0000000000000000"
    assert not stub.asked("DELETE", BOX)


def test_a_sandbox_that_has_ended_leaves_its_with_quietly(client: cove.Client, stub: Any, wire: Any) -> None:
    stub.fail("DELETE", BOX, wire.problem("gone", 410))
    with client.create():
        pass


def test_an_error_inside_is_not_replaced_by_a_failure_to_delete(client: cove.Client, stub: Any, wire: Any) -> None:
    stub.fail("DELETE", BOX, wire.problem("engine-failure", 500, "the disk is gone"))
    with pytest.raises(ValueError, match="mine") as caught, client.create():
        raise ValueError("mine")
    assert "was not deleted: the disk is gone" in caught.value.__notes__[0]


def test_an_idempotency_key_is_made_and_used_again(client: cove.Client, stub: Any, wire: Any) -> None:
    stub.fail("POST", BOXES, wire.cut, wire.problem("capacity", 503, retry_after=0))
    client.create()
    keys = {request.headers["idempotency-key"] for request in stub.asked("POST", BOXES)}
    assert len(stub.asked("POST", BOXES)) == 3
    assert len(keys) == 1
    client.create(idempotency_key="mine")
    client.create()
    assert len({request.headers["idempotency-key"] for request in stub.asked("POST", BOXES)}) == 3


def test_a_command_is_never_sent_twice(client: cove.Client, stub: Any, wire: Any) -> None:
    box = client.create()
    stub.fail("POST", f"{BOX}/exec", wire.cut)
    with pytest.raises(cove.Unreachable) as caught:
        box.run("rm -r /w")
    assert "may have been done" in caught.value.hint
    assert len(stub.asked("POST", f"{BOX}/exec")) == 1


def test_a_read_is_repeated_but_not_for_ever(client: cove.Client, stub: Any, wire: Any) -> None:
    stub.fail("GET", "/api/v1/server", wire.cut, wire.problem("server-stopping", 503, retry_after=0))
    assert client.server()["version"] == "1"
    stub.requests.clear()
    stub.fail("GET", "/api/v1/server", *[wire.cut] * 9)
    with pytest.raises(cove.Unreachable):
        client.server()
    assert len(stub.requests) == 1 + Retries.LIMIT


def test_a_quota_is_not_waited_for(client: cove.Client, stub: Any, wire: Any) -> None:
    stub.fail("POST", BOXES, wire.problem("quota-exceeded", 429, retry_after=7))
    with pytest.raises(cove.QuotaExceeded) as caught:
        client.create()
    assert caught.value.retry_after_s == 7
    assert len(stub.asked("POST", BOXES)) == 1


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("bad-request", 400, "BadRequest"),
        ("too-large", 413, "TooLarge"),
        ("unauthorized", 401, "Unauthorized"),
        ("forbidden", 403, "Forbidden"),
        ("not-found", 404, "NotFound"),
        ("conflict", 409, "Conflict"),
        ("idempotency-conflict", 409, "IdempotencyConflict"),
        ("gone", 410, "Gone"),
        ("unsupported", 501, "Unsupported"),
        ("sandbox-gone", 502, "SandboxGone"),
        ("agent-timeout", 504, "AgentTimeout"),
        ("agent-violation", 502, "AgentViolation"),
        ("engine-failure", 500, "EngineFailure"),
        ("of-a-later-server", 418, "Error"),
    ],
)
def test_each_code_is_an_error_of_its_own(  # noqa: PLR0913, PLR0917 - fixtures and the table's columns
    client: cove.Client, stub: Any, wire: Any, code: str, status: int, kind: str
) -> None:
    box = client.create()
    stub.fail("POST", f"{BOX}/exec", wire.problem(code, status, "so it is", hint="do this", field="image"))
    with pytest.raises(cove.Error, match="so it is") as caught:
        box.run("true")
    error = caught.value
    assert type(error).__name__ == kind
    assert (error.code, error.status, error.request_id, error.field) == (code, status, "req_1", "image")
    assert error.docs.endswith(f"/docs/errors#{code}")
    assert error.retryable is False
    if code != "unauthorized":
        assert error.hint == "do this"


def test_an_error_about_the_key_says_where_the_key_came_from(client: cove.Client, stub: Any, wire: Any) -> None:
    stub.fail("GET", "/api/v1/server", wire.problem("unauthorized", 401))
    with pytest.raises(cove.Unauthorized) as caught:
        client.server()
    assert "the key is from api_key" in caught.value.hint
    assert "k-test" not in str(caught.value)


def test_what_is_no_cove_server_is_told_apart(client: cove.Client, stub: Any, wire: Any) -> None:
    stub.fail("GET", "/api/v1/server", wire.answer(200, body=b"<html>"), wire.answer(502, body=b"<html>"))
    for _ in range(2):
        with pytest.raises(cove.BadAnswer):
            client.server()


def test_a_redirect_is_an_error_and_is_not_followed(client: cove.Client, stub: Any, wire: Any) -> None:
    stub.fail("DELETE", "/api/v1/keys/k", wire.answer(302, headers={"Location": "http://elsewhere.example/"}))
    with pytest.raises(cove.BadAnswer, match="302"):
        client.revoke_key("k")


def test_a_list_is_fetched_page_by_page(client: cove.Client, stub: Any) -> None:
    for _ in range(5):
        client.create()
    boxes = client.list(page_size=2, state="running", metadata={"a": "1"})
    assert next(boxes).name == "box-0"
    assert len(stub.asked("GET", BOXES)) == 1
    assert [box.name for box in boxes] == ["box-1", "box-2", "box-3", "box-4"]
    assert len(stub.asked("GET", BOXES)) == 3
    assert stub.asked("GET", BOXES)[0].query == {"limit": ["2"], "state": ["running"], "metadata.a": ["1"]}


def test_what_is_not_given_does_not_change(client: cove.Client, stub: Any) -> None:
    box = client.create()
    box.update(timeout=None, memory="1g")
    assert stub.asked("PATCH", BOX)[0].json == {"timeout_s": None, "memory_mib": 1024}
    assert box.pause().state == "paused"
    assert box.resume().state == "running"


def test_a_name_cannot_leave_its_path(client: cove.Client, stub: Any) -> None:
    with pytest.raises(cove.NotFound):
        client.get("../../server")
    assert not stub.asked("GET", "/api/v1/server")
    for bad in ("", ".", ".."):
        with pytest.raises(cove.BadRequest):
            client.get(bad)


def test_keys_images_and_shutdown(client: cove.Client, stub: Any) -> None:
    key = client.create_key("ci", scopes=["read"], timeout="30d")
    assert key.key == "cove_secret"
    assert "cove_secret" not in repr(key)
    assert [image.name for image in client.images()] == ["base"]
    assert client.shutdown(all=True) == {"sandboxes": 0}
    assert stub.asked("POST", "/api/v1/server/shutdown")[0].json == {"all": True}


def test_a_body_that_lies_about_its_length_is_the_callers_error(client: cove.Client, stub: Any) -> None:
    box = client.create()
    with pytest.raises(cove.BadRequest, match="cannot be sent"):
        box.files.write("/w/a", iter([b"12345"]), size=3)
    assert client.server()["version"] == "1"  # the next request has a connection of its own


def test_an_answer_cut_short_is_not_taken_for_whole(client: cove.Client, stub: Any, wire: Any) -> None:
    box = client.create()
    stub.fail("POST", f"{BOX}/exec", wire.answer(200, {"exit_code": 0}, headers={"X-Says": "999"}))
    with pytest.raises(cove.Unreachable):
        box.run("true")


def test_no_server_says_what_was_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("COVE_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COVE_URL", raising=False)
    with pytest.raises(cove.Unreachable, match="no server on this machine") as caught:
        cove.get("x")
    hint = caught.value.hint
    assert hint.startswith("start one: sudo cove serve")
    assert hint.index("COVE_URL not set") < hint.index(".cove.toml") < hint.index("config.toml") < hint.index("socket")
    with cove.connect("http://127.0.0.1:1") as client, pytest.raises(cove.Unreachable, match="no server answers"):
        client.server()


def test_the_module_functions_use_what_is_configured(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("COVE_URL", address)
    monkeypatch.setenv("COVE_API_KEY", "k-test")
    monkeypatch.chdir(tmp_path)
    with cove.create() as box:
        assert [other.id for other in cove.list()] == [box.id]
        assert cove.get(box.id).name == cove.Sandbox(box.id).name == box.name
    assert cove.Sandbox.create(name="x").run("true").ok
    assert cove.images()
    ours = default_client()
    assert default_client() is ours
    with monkeypatch.context() as child:
        child.setattr("os.getpid", lambda: -1)
        assert default_client() is not ours
    cove.close()
