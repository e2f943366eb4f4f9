"""docs/security.md against what it claims: each test and attack that it names exists, and each attack is named."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from source import SRC, TOP

PAGE = (TOP / "docs" / "security.md").read_text(encoding="utf-8")
PAGES = ("docs/security.md", "docs/specification.md", "docs/reference/dialects/isorun.md")


@cache
def functions(path: str) -> frozenset[str]:
    """Names of all functions of a file; for Go, by their first line."""
    text = (TOP / path).read_text(encoding="utf-8")
    if path.endswith(".go"):
        return frozenset(re.findall(r"^func (\w+)\(", text, re.MULTILINE))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(ast.parse(text)) if isinstance(node, kinds))


def attacks() -> set[str]:
    """Names of all attacks that ship."""
    folder = SRC / "engine" / "attacks"
    names = [name for path in folder.glob("*.py") for name in functions(str(path.relative_to(TOP)))]
    return {name for name in names if name.startswith("attack_")}


def named_tests(text: str) -> list[tuple[str, str]]:
    """(file, test) of each `path::test`, and of each `::test` that goes on with the path before it."""
    found: list[tuple[str, str]] = []
    path = ""
    for given, name in re.findall(r"`((?:tests|agent)/[\w/.]+)?::(\w+)(?:\[[^`]*\])?`", text):
        path = given or path
        found.append((path, name))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_is_named_exists(page: str) -> None:
    wrong: list[str] = []
    for path, name in named_tests((TOP / page).read_text(encoding="utf-8")):
        if not (TOP / path).is_file() or name not in functions(path):
            wrong.append(f"{path}::{name}")
    assert not wrong, "a claim without its test: name another one, or say argued or pending"


def test_every_file_that_is_named_exists() -> None:
    paths = set(re.findall(r"`((?:tests|agent|src)/[\w/]+\.\w+)", PAGE))
    missing = sorted(path for path in paths if not (TOP / path).is_file())
    layers = set(re.findall(r"`((?:engine|core|agentlink)/[\w/]+\.py)`", PAGE))
    missing += sorted(path for path in layers if not (SRC / path).is_file())
    assert paths
    assert not missing


def test_every_check_of_the_conformance_suite_that_is_named_exists() -> None:
    named = set(re.findall(r"\[runc-(check_\w+)\]", PAGE))
    assert named
    suite = functions("src/cove/engine/conformance.py") | functions("src/cove/engine/conformance_state.py")
    assert not named - suite


def test_every_attack_that_is_named_exists_and_each_that_ships_is_named() -> None:
    named = set(re.findall(r"`(attack_\w+)`", PAGE))
    # Its subject is told under its own case: where images are unpacked, no network yet.
    elsewhere = {"attack_a18_hostile_layers", "attack_c41_connections_and_ports"}
    assert not named - attacks(), "an attack that is gone"
    assert not attacks() - named - elsewhere, "an attack that the page does not tell of"


def test_every_row_of_the_cases_has_a_status() -> None:
    tables = PAGE.partition("## Known vulnerabilities")[2].partition("## Reporting")[0]
    rows = [
        line for line in tables.splitlines() if re.match(r"\| (\d|[A-Za-z])", line) and not line.startswith("| CVE")
    ]
    words = ("tested", "argued", "pending")
    silent = [row[:60] for row in rows if not any(word in row.rsplit("|", 2)[1] for word in words)]
    assert len(rows) > 80
    assert not silent
