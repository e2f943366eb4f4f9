from __future__ import annotations

import re

from cove.model import errors
from cove.model.errors import CoveError


def every(kind: type[CoveError]) -> list[type[CoveError]]:
    """`kind` and all below it in `model.errors`; a subclass that another module keeps to itself is not in the tree."""
    own = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [kind, *(grandchild for child in own for grandchild in every(child))]


def drawn() -> dict[str, str]:
    """Class -> its parent, from the drawing in the module's docstring."""
    parents: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│├└─ ]*)([A-Z]\w+)", line)
        if found is None:
            continue
        depth = len(found[1])
        while stack and stack[-1][0] >= depth:
            stack.pop()
        if stack:
            parents[found[2]] = stack[-1][1]
        stack.append((depth, found[2]))
    return parents


def test_the_drawing_is_the_tree() -> None:
    classes = {kind.__name__: kind.__bases__[0].__name__ for kind in every(CoveError) if kind is not CoveError}
    assert drawn() == classes


def test_every_class_has_a_kind_of_its_own() -> None:
    kinds = [kind.kind for kind in every(CoveError)]
    assert len(kinds) == len(set(kinds))


def test_the_text_of_an_error_is_its_public_sentence() -> None:
    error = errors.EngineFailure("sorry", internal="/secret/path")
    assert str(error) == "sorry"
    assert "/secret" not in repr(error)
