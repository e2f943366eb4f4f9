"""Modules end at 500 lines and functions at 80, but for what `sizes.toml` excuses with a reason."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

from source import modules, shown

MODULE_LINES = 500
FUNCTION_LINES = 80
EXCUSED = tomllib.loads(Path(__file__).with_name("sizes.toml").read_text(encoding="utf-8"))


def module_sizes() -> dict[str, int]:
    return {shown(path): len(path.read_text(encoding="utf-8").splitlines()) for path, _ in modules()}


def function_sizes() -> dict[str, int]:
    return {f"{shown(path)}:{name}": lines for path, tree in modules() for name, lines in functions(tree)}


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    for node in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, (node.end_lineno or node.lineno) - node.lineno + 1
            name += "."
        yield from functions(node, name)


def too_large(sizes: dict[str, int], limit: int, excused: dict[str, dict[str, object]]) -> list[str]:
    return [
        f"{name} has {lines} lines, {limit} are allowed: split it by subject"
        for name, lines in sizes.items()
        if lines > limit and lines > int(str(excused.get(name, {}).get("lines", 0)))
    ]


def test_no_module_is_longer_than_500_lines() -> None:
    assert not too_large(module_sizes(), MODULE_LINES, EXCUSED["modules"])


def test_no_function_is_longer_than_80_lines() -> None:
    assert not too_large(function_sizes(), FUNCTION_LINES, EXCUSED["functions"])


def test_every_excuse_is_needed_and_has_a_reason() -> None:
    stale = [
        f"{name}: {excuse}"
        for kind, sizes, limit in (
            ("modules", module_sizes(), MODULE_LINES),
            ("functions", function_sizes(), FUNCTION_LINES),
        )
        for name, excuse in EXCUSED[kind].items()
        if sizes.get(name, 0) <= limit or not excuse.get("reason")
    ]
    assert not stale, "no longer needed, or without a reason: " + "; ".join(stale)
