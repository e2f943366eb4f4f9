"""From isol8's words to ours and back, without a server."""

from __future__ import annotations

import msgspec
import pytest

from cove.dialects.isol8 import errors, translate, wire
from cove.edge.errors import KeyMissing, MethodNotAllowed, NoSuchRoute
from cove.model.errors import BadRequest, CapacityExceeded, Unauthorized
from cove.model.execs import Stream, Why
from cove.model.execution import (
    ExecutionOutput,
    ExecutionResult,
    ExecutionSpec,
    RemoteFault,
    RemoteRefused,
    Stage,
    StageEnded,
    StageFailure,
    WrongRuntime,
)


def spec(**request: object) -> ExecutionSpec:
    body = msgspec.convert({"request": {"runtime": "bash", "code": "x", **request}}, wire.Envelope)
    return translate.spec_of(body.request, body.options, body.session_id)


def test_defaults_are_those_of_the_original() -> None:
    settings = translate.settings_of(wire.Options())
    assert (settings.cpus, settings.memory_bytes, settings.pids) == (1.0, 512 * 1024**2, 64)
    assert (settings.scratch_bytes, settings.tmp_bytes) == (512 * 1024**2, 256 * 1024**2)
    assert (settings.read_only, settings.output_limit_bytes, settings.timeout_s) == (True, 1048576, 30.0)
    assert not settings.keep


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("2b", 2), ("1k", 1024), ("1.5M", 1572864), ("1gb", 1024**3), ("1T", 1024**4), (" 5 m ", 5 * 1024**2)],
)
def test_sizes(text: str, size: int) -> None:
    assert translate.bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "0", "x", "1p", "-1", "1e9", "99999999t", "1,5m"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(BadRequest, match="Invalid memory limit format"):
        translate.bytes_of(text)


def test_events_of_a_run() -> None:
    told = [
        ExecutionOutput(Stage.SETUP, Stream.STDOUT, "a"),
        StageEnded(stage=Stage.SETUP, code=0, why=Why.EXITED),
        ExecutionOutput(Stage.CODE, Stream.STDERR, "b"),
        StageEnded(stage=Stage.CODE, code=3, why=Why.EXITED),
        ExecutionResult(id="i", runtime="bash", ended_at=0.0),
    ]
    found = [msgspec.json.encode(one).decode() for event in told for one in translate.events_of(event)]
    assert found == [
        '{"type":"stdout","data":"a","phase":"setup"}',
        '{"type":"exit","data":"0","phase":"setup"}',
        '{"type":"stderr","data":"b","phase":"code"}',
        '{"type":"exit","data":"3","phase":"code"}',
    ]


def test_failures_before_the_program() -> None:
    install = StageFailure(stage=Stage.INSTALL, code=1, stderr="no index\n")
    assert translate.failure_text(install) == "Package install failed (exit code 1): no index\n"
    path = StageFailure(stage=None, code=1, path="/x")
    assert translate.failure_text(path) == "Failed to write file /x in container (exit code 1)"
    result = ExecutionResult(id="i", runtime="bash", ended_at=0.0, failure=install)
    assert [msgspec.to_builtins(one) for one in translate.events_of(result)] == [
        {"type": "error", "data": "Package install failed (exit code 1): no index\n"}
    ]


def test_a_result_has_the_keys_in_their_order() -> None:
    result = ExecutionResult(
        id="i",
        runtime="bash",
        ended_at=1.5,
        why=Why.TIMEOUT,
        code=137,
        stdout="a \n",
        stdout_bytes=30,
        stdout_cut=True,
        output_limit_bytes=3,
        sandbox="s",
        files={"/x": b"\0"},
    )
    found = msgspec.to_builtins(translate.result_of(result))
    keys = "stdout stderr exitCode durationMs truncated executionId runtime timestamp containerId resourceUsage files"
    assert " ".join(found) == keys
    assert found["stdout"] == "a \n\n\n--- OUTPUT TRUNCATED (30 bytes, limit: 3) ---"
    assert found["stderr"] == "\n--- EXECUTION TIMED OUT ---"
    assert found["timestamp"] == "1970-01-01T00:00:01.500Z"
    assert found["files"] == {"/x": "AA=="}


SWITCH = (
    b'{"error":"Cannot switch runtime from \\"python\\" to \\"node\\". Each persistent container supports a single '
    b'runtime. Create a new Isol8 instance for a different runtime."}'
)


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (KeyMissing("x"), 401, b'{"error":"Missing Authorization header"}'),
        (Unauthorized("x"), 403, b'{"error":"Invalid API key"}'),
        (NoSuchRoute("x"), 404, b"404 Not Found"),
        (MethodNotAllowed("x", allowed=("GET",)), 404, b"404 Not Found"),
        (CapacityExceeded("full", retry_after_s=1), 429, b'{"error":"full"}'),
        (BadRequest("their sentence"), 500, b'{"error":"their sentence"}'),
        (RemoteRefused(RemoteFault.TIMEOUT, "30000"), 500, b'{"error":"Remote code fetch timed out after 30000ms"}'),
        (
            WrongRuntime("python", "node"),
            500,
            SWITCH,
        ),
    ],
)
def test_failures(error: BadRequest, status: int, body: bytes) -> None:
    failure = errors.TABLE.failure(error, "r")
    assert (failure.status, errors.TABLE.render(failure)) == (status, body)


def test_every_fault_of_a_fetch_has_a_sentence() -> None:
    for fault in RemoteFault:
        assert errors.sentence(RemoteRefused(fault, "x"))


def test_names_and_values_of_a_request() -> None:
    made = spec(
        files={"a": {"type": "Buffer", "data": [0, 255]}, "b": "ä"},
        metadata={"userId": "u", "n": 1},
        stdin="",
        timeoutMs=1,
    )
    assert made.files == {"a": b"\0\xff", "b": "ä".encode()}
    assert made.metadata == {"userId": "u", "n": "1"}
    assert (made.stdin, made.timeout_s) == (None, 0.001)
