from __future__ import annotations

import json

import pytest

from cove.cli import failures
from cove.model.errors import BadRequest as ServerBadRequest
from cove.sdk import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BadRequest("x"), 2),
        (errors.TooLarge("x"), 2),
        (errors.NotFound("x"), 120),
        (errors.Gone("x"), 120),
        (errors.FileMissing("x", reason="not_found"), 120),
        (errors.FileRefused("x", reason="permission"), 121),
        (errors.Conflict("x"), 121),
        (errors.CapacityExceeded("x"), 121),
        (errors.QuotaExceeded("x"), 121),
        (errors.Unauthorized("x"), 122),
        (errors.Forbidden("x"), 122),
        (errors.Unreachable("x"), 123),
        (errors.Error("x", code="server-stopping"), 123),
        (errors.AgentTimeout("x"), 124),
        (errors.EngineFailure("x"), 125),
        (errors.SandboxGone("x"), 125),
        (errors.Error("x", code="of-tomorrow"), 125),
        (failures.usage("x"), 2),
        (KeyboardInterrupt(), 130),
        (FileNotFoundError(2, "No such file", "/a"), 120),
        (ServerBadRequest("x", field="port"), 2),
        (ZeroDivisionError("x"), 125),
    ],
)
def test_each_kind_of_failure_has_its_exit_code(error: BaseException, code: int) -> None:
    assert failures.tell(error, json=False) == code


def test_a_socket_that_is_roots_means_not_authorised() -> None:
    error = errors.Unreachable("no permission to use /run/cove/x/api.sock")
    error.__cause__ = PermissionError(13, "Permission denied")
    assert failures.tell(error, json=False) == 122


def test_a_failure_is_an_error_line_and_a_hint_line(capsys: pytest.CaptureFixture[str]) -> None:
    failures.tell(errors.NotFound("no image pyhton", hint="cove image ls"), json=False)
    assert capsys.readouterr() == ("", "error: no image pyhton (not-found)\nhint: cove image ls\n")


def test_what_a_server_says_is_cleaned(capsys: pytest.CaptureFixture[str]) -> None:
    failures.tell(errors.NotFound("a\x1b]0;x\x07b\nc", hint="\x1b[2J"), json=False)
    assert capsys.readouterr().err == "error: a]0;xb c (not-found)\nhint: [2J\n"


def test_a_failure_of_ours_names_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    failures.tell(errors.EngineFailure("it broke", request_id="rq_1"), json=False)
    assert "request rq_1" in capsys.readouterr().err


def test_json_failures_are_one_line_with_the_documented_fields(capsys: pytest.CaptureFixture[str]) -> None:
    failures.tell(
        errors.CapacityExceeded("full", hint="wait", docs="/d", request_id="r", field="memory_mib"), json=True
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err) == {
        "code": "capacity",
        "message": "full",
        "hint": "wait",
        "docs": "/d",
        "request_id": "r",
        "retryable": True,
        "field": "memory_mib",
    }


def test_an_error_of_ours_shows_its_place_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COVE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        failures.tell(ZeroDivisionError("x"), json=False)
