"""One root, one tree: the drawing, the classes, the wire and the reference agree."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

import cove
from cove.sdk import errors
from cove.sdk.results import Result

LINE = re.compile(r"^    (?P<lead>(?:[│ ] {3}|[├└]── )*)(?P<name>[A-Z]\w+)(?:\s{2,}.*)?$")
REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "sdk.md"
CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and value.__module__ == errors.__name__
}


def test_the_drawing_shows_every_class_below_its_parent() -> None:
    drawn: dict[str, str | None] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := LINE.match(line):
            depth = len(match["lead"]) // 4
            drawn[match["name"]] = above[depth - 1] if depth else None
            above[depth:] = [match["name"]]
    assert drawn == {n: None if c is errors.Error else c.__bases__[0].__name__ for n, c in CLASSES.items()}


def test_every_class_is_public_and_in_the_reference() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    for name in CLASSES:
        assert name in cove.__all__
        assert f"`{name}`" in text, name


def test_every_public_name_is_in_the_reference() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    assert [name for name in cove.__all__ if not re.search(rf"\b{re.escape(name)}\b", text)] == []


@pytest.mark.parametrize(
    ("reason", "kind", "builtin"),
    [
        ("not_found", errors.FileMissing, FileNotFoundError),
        ("exists", errors.FilePresent, FileExistsError),
        ("permission", errors.FileRefused, PermissionError),
        ("no_space", errors.FileError, OSError),
        ("a later word", errors.FileError, OSError),
    ],
)
def test_file_errors_are_also_the_usual_ones(reason: str, kind: type, builtin: type) -> None:
    error = errors.from_problem({"code": "file-error", "reason": reason, "detail": "x"}, status=404)
    assert type(error) is kind
    assert isinstance(error, builtin)
    assert str(error) == "x (file-error)"


def test_the_answer_cannot_name_a_class() -> None:
    for code in ("Error", "builtins.exec", "command-failed", "unreachable", "__class__"):
        assert type(errors.from_problem({"code": code, "detail": "x"})) is errors.Error


def test_fields_of_a_wrong_type_do_no_harm() -> None:
    error = errors.from_problem(
        {"code": 5, "detail": ["x"], "hint": {}, "request_id": 1, "retryable": "yes"}, status=500, headers={}
    )
    assert (error.code, error.message, error.hint, error.retryable) == (
        "http-500",
        "the server answered 500",
        "",
        False,
    )


def test_an_error_reads_as_a_sentence_with_its_cure() -> None:
    error = errors.NotFound("no image pyhton", hint="did you mean python?")
    assert str(error) == "no image pyhton (not-found)\nhint: did you mean python?"


def test_errors_travel_between_processes() -> None:
    missing = {"code": "file-error", "reason": "not_found", "detail": "no such file", "request_id": "r"}
    for error in (
        errors.from_problem({"code": "gone", "detail": "ended", "hint": "h", "request_id": "r"}, status=410),
        errors.from_problem(missing, status=404),
        errors.CommandFailed("it failed", result=Result(exit=3)),
    ):
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        assert (type(again), str(again), again.args) == (type(error), str(error), error.args)
        assert vars(again) == vars(error)
        assert getattr(again, "errno", None) == getattr(error, "errno", None)
