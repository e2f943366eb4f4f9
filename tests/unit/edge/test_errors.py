# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import pytest

from cove.dialects.native.errors import ROWS, TABLE
from cove.edge.errors import BodyTooLarge, Malformed, NoSuchRoute, Where
from cove.model import errors as model
from cove.model.errors import CoveError, EngineFailure, FileError
from cove.model.hints import HINTS


def kinds(kind: type[CoveError] = CoveError):
    return {one.kind for one in vars(model).values() if isinstance(one, type) and issubclass(one, kind)} - {"error"}


def test_every_kind_has_a_row_and_a_hint():
    assert kinds() - set(ROWS) == set()
    assert kinds() - set(HINTS) == set()


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (FileError("x", reason="no_space"), 507, "file-error"),
        (FileError("x", reason="never heard of"), 400, "file-error"),
        (Malformed("x", where=Where.BODY), 400, "bad-request"),
        (BodyTooLarge("x"), 413, "too-large"),
        (NoSuchRoute("x"), 404, "not-found"),
        (EngineFailure("x"), 500, "engine-failure"),
    ],
)
def test_a_kind_without_a_row_has_its_parents(error, status, code):
    assert TABLE.row(error) == (status, code)


def test_what_is_internal_is_not_rendered():
    body = TABLE.render(TABLE.failure(EngineFailure("public", internal="/var/lib/secret"), "req_1"))
    assert b"secret" not in body
    assert b"req_1" in body
