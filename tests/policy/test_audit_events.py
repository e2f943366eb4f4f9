"""Every word that the code writes into the audit trail is in the guide: the words are part of the API."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/guides/audit.md"
WRITERS = {"note", "_note", "_noted", "kept"}
"""Functions whose first argument is an event, where it is a word with a dot."""

WORD = re.compile(r"[a-z_]+\.[a-z_-]+")


def written(tree: ast.AST) -> set[str]:
    """The events that a module hands to one of the functions that write."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            value = node.args[0].value
            if name in WRITERS and isinstance(value, str) and WORD.fullmatch(value):
                found.add(value)
    return found


def told() -> set[str]:
    """The words of the guide; `.attached` goes on from the word before it."""
    found: set[str] = set()
    for line in GUIDE.read_text().splitlines():
        noun = ""
        for word in re.findall(r"`([a-z_]*\.[a-z_-]+)`", line):
            noun = word.partition(".")[0] or noun
            found.add(f"{noun}.{word.partition('.')[2]}")
    return found


def test_every_event_is_in_the_guide() -> None:
    events: set[str] = set()
    for path in (ROOT / "src/cove").rglob("*.py"):
        events |= written(ast.parse(path.read_text()))
    lifecycle = (ROOT / "src/cove/core/auditevents.py").read_text()
    events |= set(re.findall(r'"(sandbox\.[a-z_]+)"', lifecycle))
    assert {"exec.start", "sandbox.created", "file.uploaded", "key.created", "webhook.created"} <= events
    assert sorted(events - told()) == []
