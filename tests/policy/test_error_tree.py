"""The drawing in `model/errors.py` is the tree of its classes."""

from __future__ import annotations

import re

from cove.model import errors

LINE = re.compile(r"^    (?P<lead>(?:[│ ] {3}|[├└]── )*)(?P<name>[A-Z]\w+)(?:\s{2,}.*)?$")


def drawn_parents() -> dict[str, str | None]:
    parents: dict[str, str | None] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        depth = len(match["lead"]) // 4
        parents[match["name"]] = above[depth - 1] if depth else None
        above[depth:] = [match["name"]]
    return parents


def real_parents() -> dict[str, str | None]:
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    return {c.__name__: c.__bases__[0].__name__ if c is not errors.CoveError else None for c in classes}


def test_the_drawing_shows_every_class_below_its_parent() -> None:
    assert drawn_parents() == real_parents()


def test_every_class_has_a_kind_of_its_own() -> None:
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.CoveError)
    ]
    kinds = [c.kind for c in classes]
    assert len(set(kinds)) == len(kinds)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", kind) for kind in kinds)


def test_every_class_says_when_it_is_raised() -> None:
    assert not [name for name, value in vars(errors).items() if isinstance(value, type) and not value.__doc__]
