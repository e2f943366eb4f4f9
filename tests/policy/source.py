"""What the policy tests look at: the files of this repository, and its Python as syntax trees. Reads only."""

from __future__ import annotations

import ast
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

TOP: Final = Path(__file__).resolve().parents[2]
SRC: Final = TOP / "src" / "cove"
_SKIPPED: Final = {".git", ".venv", "__pycache__", "node_modules", "dist", "build"}


@cache
def repository_files() -> tuple[Path, ...]:
    """All files that are, or would be, committed. Without git: all but what .gitignore usually names."""
    if shutil.which("git") and (TOP / ".git").exists():
        listing = subprocess.run(
            ["git", "-c", f"safe.directory={TOP}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=TOP,
            capture_output=True,
            check=False,
        )
        if listing.returncode == 0:
            names = [name for name in listing.stdout.decode().split("\0") if name]
            return tuple(path for name in sorted(set(names)) if (path := TOP / name).is_file())
    return tuple(p for p in sorted(TOP.rglob("*")) if p.is_file() and not _SKIPPED.intersection(p.parts))


@cache
def modules() -> tuple[tuple[Path, ast.Module], ...]:
    """Every Python module of the package, parsed."""
    return tuple((path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(SRC.rglob("*.py")))


def layer_of(path: Path) -> str:
    """`engine` for `src/cove/engine/pool.py`."""
    return path.relative_to(SRC).parts[0]


def shown(path: Path) -> str:
    """The path as a reader names it."""
    return str(path.relative_to(TOP))


def imported_names(tree: ast.Module) -> Iterator[str]:
    """Dotted names of all that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


def text_of(path: Path) -> str:
    """The file's text; empty for one that is not text."""
    data = path.read_bytes()
    return "" if b"\0" in data[:8192] else data.decode(errors="replace")
