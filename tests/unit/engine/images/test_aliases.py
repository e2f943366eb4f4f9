"""Stand-ins for well-known images."""

from __future__ import annotations

import pytest

from cove.engine.images.aliases import find_alias
from cove.model.reference import parse_reference

TABLE = (("python:*", "python"), ("debian:*", "base"), ("ghcr.io/team/app:1.*", "app"), ("node", "node"))


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("python", "python"),
        ("python:3.12-slim", "python"),
        ("docker.io/library/python:3", "python"),
        ("node:22", "node"),
        ("ghcr.io/team/app:1.5", "app"),
        ("ghcr.io/team/app:2.0", None),
        ("team/python", None),
        ("ghcr.io/library/python", None),
        ("pythonx", None),
        ("python@sha256:" + "0" * 64, None),
    ],
)
def test_only_the_official_image_of_that_name_has_a_stand_in(name: str, image: str | None) -> None:
    assert find_alias(parse_reference(name), TABLE) == image
