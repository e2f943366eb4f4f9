"""`import cove` costs nothing and `from cove import Sandbox` little; what is public is written once."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cove

LIMIT_MS = 100.0
"""Of processor time: what the machine does besides is not ours."""
CODE = """
import sys, time
before = time.process_time()
from cove import Sandbox
print((time.process_time() - before) * 1000)
print(*sys.modules)
"""


def fresh(code: str) -> list[str]:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


def test_the_sandbox_class_is_there_at_once_and_brings_nothing_heavy() -> None:
    runs = [fresh(CODE) for _ in range(3)]
    assert min(float(run[0]) for run in runs) <= LIMIT_MS
    loaded = set(runs[0][1].split())
    heavy = {"httpx2", "msgspec", "uvicorn", "starlette", "anyio", "asyncio", "ssl", "h11", "click"}
    assert not loaded & heavy
    layers = {"server", "core", "engine", "edge", "dialects", "model", "store", "agentlink", "cli", "web"}
    assert not {name for name in loaded if name.startswith("cove.") and name.split(".")[1] in layers}


def test_importing_the_package_loads_only_itself() -> None:
    assert fresh("import sys, cove; print(*(n for n in sys.modules if n.startswith('cove')))") == ["cove"]


def test_the_local_socket_needs_no_http_library() -> None:
    code = """
import sys, cove
try:
    cove.connect("unix:/nonexistent/api.sock").server()
except cove.Unreachable as error:
    print(error.code)
print(*sys.modules)
"""
    code_word, modules = fresh(code)
    assert code_word == "unreachable"
    assert not {"httpx2", "msgspec", "anyio", "ssl"} & set(modules.split())


def test_each_public_name_can_be_loaded_and_is_listed_for_type_checkers() -> None:
    tree = ast.parse(Path(cove.__file__).read_text(encoding="utf-8"))
    typed = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert typed | {"__version__"} == set(cove.__all__)
    assert sorted(cove.__all__) == sorted(dir(cove)) == sorted(set(cove.__all__))
    for name in cove.__all__:
        assert getattr(cove, name) is not None
    assert set(cove._HOME) < set(cove.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        cove.nope  # noqa: B018
    assert not hasattr(cove, "httpx2")


def test_the_servers_packages_are_still_found_below() -> None:
    from cove import sdk, server

    assert server.__name__ == "cove.server"
    assert sdk.__name__ == "cove.sdk"
