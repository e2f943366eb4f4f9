from __future__ import annotations

from pathlib import Path

from cove.cli.main import COMMANDS
from cove.cli.reference import PAGE, page

TOP = Path(__file__).parents[3]


def test_the_page_is_current() -> None:
    assert (TOP / PAGE).read_text() == page(), f"python -m cove.cli.reference > {PAGE}"


def test_the_page_has_every_command() -> None:
    text = page()
    for name in COMMANDS:
        assert f"\n## cove {name}\n" in text
