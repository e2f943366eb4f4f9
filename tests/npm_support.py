"""Programs of the npm registry that `make setup-dev` fetches (tests/npm): Node.js, and clients that others wrote."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests_support import CHECKOUT, SOAK

HOME = CHECKOUT / ".venv" / "npm"
SCRIPTS = CHECKOUT / "tests" / "dialects" / "isorun" / "node"
SOURCE_OF_CASES = re.compile(r"^export async function (\w+)\(\)", re.MULTILINE)


def node() -> str:
    """The program of the npm package `node`, which brings one package for each architecture."""
    found = sorted((HOME / "node" / "node_modules").glob("node-linux-*/bin/node"))
    return str(found[0]) if found else pytest.fail("no Node.js for tests: run `make setup-dev`")


def package(name: str, within: str = "isorun") -> Path:
    """Where a package lies."""
    found = HOME / within / "node_modules" / name
    return found if found.exists() else pytest.fail(f"no npm package {name}: run `make setup-dev`")


def modules_at(home: Path, scripts: Path = SCRIPTS) -> Path:
    """A directory of the scripts in which Node.js finds the packages."""
    place = home / "node"
    place.mkdir()
    (place / "node_modules").symlink_to(package("isorun").parent)
    for script in scripts.glob("*.mjs"):
        (place / script.name).write_bytes(script.read_bytes())
    return place


def cases_in(script: str) -> list[str]:
    """The names of a script's cases, in its order."""
    return SOURCE_OF_CASES.findall((SCRIPTS / script).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Client:
    """How scripts reach a server, as the isorun client takes it."""

    url: str
    key: str
    image: str

    def env(self) -> dict[str, str]:
        """An environment without the machine's own settings of clients, which could lead elsewhere."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return kept | {"URL": self.url, "KEY": self.key, "IMAGE": self.image, "FORKS": "10" if SOAK else "3"}


def results_of(place: Path, script: str, client: Client, *names: str, limit_s: float = 300.0) -> dict[str, Any]:
    """Run a script's cases in one process; what each came to, by name."""
    argv = [node(), "cases.mjs", script, *names]
    done = subprocess.run(
        argv, cwd=place, env=client.env(), capture_output=True, text=True, timeout=limit_s, check=False
    )
    found = {line["case"]: line for line in map(json.loads, _lines(done.stdout))}
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-4000:])
    return found


def load_of(place: Path, client: Client, *, clients: int, seconds: float, memory_mib: int) -> dict[str, Any]:
    """What `load.mjs` reports: `operations` with count, p50 and p99 (ms), `createMs`, `declared` refusals, `failed`."""
    argv = [node(), "load.mjs", str(clients), str(seconds), str(memory_mib)]
    done = subprocess.run(
        argv, cwd=place, env=client.env(), capture_output=True, text=True, timeout=seconds + 300, check=False
    )
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-4000:])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _lines(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line.startswith("{"))
