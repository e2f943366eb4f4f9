"""How the package is cut: docstrings, names, and what each layer may touch. The reason stands beside each rule."""

from __future__ import annotations

import ast

import pytest
from source import SRC, imported_names, layer_of, modules, shown

# Names that do not tell what is inside.
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc", "lib", "stuff"}

LAYERS = {
    "__init__.py", "__main__.py", "py.typed", "model", "agentlink", "engine", "store", "core", "edge", "dialects",
    "web", "server", "sdk", "cli",
}  # fmt: skip

# The layers below the wire: they are told things and never look around, so that a test can tell them too.
TOLD = {"model", "agentlink", "engine", "store", "core", "edge", "dialects", "web"}

# Package -> (layers that may import it, why).
FENCED = {
    "starlette": ({"edge", "dialects", "web", "server"}, "HTTP ends at the edge"),
    "uvicorn": ({"edge", "server"}, "HTTP is spoken at the edge and served by the composition root"),
    "httpx2": ({"sdk"}, "one HTTP client, in the SDK"),
    "click": ({"cli"}, "only the CLI talks to a terminal"),
    "sqlite3": ({"store"}, "only the store remembers"),
    "subprocess": ({"engine", "server", "cli"}, "only the engine and setup start programs"),
    "prometheus_client": ({"core", "edge", "server"}, "metrics are counted where rules are"),
}

# Modules that start a task without a group, each with the reason why it cannot outlive its starter.
LONE_TASKS = {
    "src/cove/edge/interrupt.py": "a group would wait for a client that never leaves; a finally block cancels it",
    "src/cove/core/following.py": "a group cannot be held open over a generator's yields; a finally block ends it",
}


def test_every_module_says_what_it_is() -> None:
    silent = [shown(path) for path, tree in modules() if not ast.get_docstring(tree)]
    assert not silent, "a module opens with what it is and what it is not"


def test_every_folder_is_a_package_with_a_docstring() -> None:
    folders = {path.parent for path, _ in modules()}
    silent = [shown(f) for f in folders if f != SRC and not (f / "__init__.py").is_file()]
    assert not silent, "a folder of modules has an __init__.py that says what it is and what it may import"


def test_no_module_has_an_empty_name() -> None:
    empty = [
        shown(path) for path, _ in modules() if EMPTY_NAMES.intersection((*path.relative_to(SRC).parts[:-1], path.stem))
    ]
    assert not empty, "name it after what it holds"


def test_there_is_no_layer_that_the_design_does_not_know() -> None:
    found = {entry.name for entry in SRC.iterdir() if not entry.name.startswith((".", "__pycache__"))}
    strangers = {name for name in found - LAYERS if (SRC / name).is_dir()}
    assert not strangers, "a new layer is a decision: docs/architecture.md, the contracts in pyproject.toml, this list"


@pytest.mark.parametrize("package", FENCED)
def test_a_library_stays_in_its_layers(package: str) -> None:
    allowed, why = FENCED[package]
    found = [
        shown(path)
        for path, tree in modules()
        if layer_of(path) not in allowed and any(name.split(".")[0] == package for name in imported_names(tree))
    ]
    assert not found, f"{package}: {why}"


def test_lower_layers_are_told_and_never_read_the_environment() -> None:
    found = [
        f"{shown(path)}:{node.lineno}"
        for path, tree in modules()
        if layer_of(path) in TOLD and SRC / "engine" / "inside" not in path.parents  # those run in sandboxes
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") and is_name(node.value, "os")
    ]
    assert not found, "settings are built once in server/ and passed down"


def test_nothing_relies_on_del_or_atexit() -> None:
    found = [
        f"{shown(path)}:{node.lineno}"
        for path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "__del__"
    ]
    found += [shown(path) for path, tree in modules() if "atexit" in imported_names(tree)]
    assert not found, "who acquires releases by a context manager; a start reconciles what a crash left"


def test_tasks_are_started_by_a_task_group_only() -> None:
    found = [
        f"{shown(path)}:{node.lineno}"
        for path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (
            (node.func.attr == "create_task" and is_name(node.func.value, "asyncio"))
            or (node.func.attr == "ensure_future" and is_name(node.func.value, "asyncio"))
        )
    ]
    strangers = [place for place in found if place.rpartition(":")[0] not in LONE_TASKS]
    assert not strangers, "a task without a group outlives whoever started it"
    assert {place.rpartition(":")[0] for place in found} == set(LONE_TASKS), "an excuse that nothing needs any more"


def is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
