"""Says which languages this image has kernels for. Quick: it looks, and starts nothing but `node --version`."""

# What code of strangers makes has no known types.
# pyright: basic

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import util
from typing import Any

_SPECS = 64
_NODE = 18


def main() -> int:
    """Print one line of JSON. Gives an exit code."""
    languages = [_python(), _bash(), *_node(), *_jupyter()]
    sys.stdout.write(json.dumps({"languages": languages}, ensure_ascii=True) + "\n")
    return 0


def _row(name: str, kernel: str, missing: str = "", *, usable: bool = True, rich: bool = False) -> dict[str, Any]:
    return {"name": name, "kernel": kernel, "usable": usable, "rich": rich, "missing": [missing] if missing else []}


def _python() -> dict[str, Any]:
    if util.find_spec("IPython") is not None:
        return _row("python", "ipython", rich=True)
    return _row("python", "python", "IPython is not installed in this image: no magics, no !commands.")


def _bash() -> dict[str, Any]:
    if shutil.which("bash"):
        return _row("bash", "bash")
    return _row("bash", "bash", "There is no bash in this image.", usable=False)


def _node() -> list[dict[str, Any]]:
    program = shutil.which("node")
    missing = "There is no node in this image."
    version: tuple[int, ...] = ()
    if program:
        try:
            said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=5, check=True)
            version = tuple(map(int, said.stdout.strip().lstrip("v").split(".")[:2]))
        except (OSError, ValueError, subprocess.SubprocessError):
            missing = "The node of this image does not start."
        if version and version < (_NODE, 0):
            missing = f"The node of this image is older than {_NODE}."
    usable = version >= (_NODE, 0)
    # stripTypeScriptTypes came with 23.2, and 22.13.
    strips = version >= (23, 2) or (22, 13) <= version < (23, 0)
    return [
        _row("javascript", "node", "" if usable else missing, usable=usable, rich=False),
        _row(
            "typescript",
            "node",
            missing if not usable else "" if strips else "This node cannot strip types: 22.13 or newer can.",
            usable=usable and strips,
        ),
    ]


def _spec_places() -> list[str]:
    home = os.path.expanduser("~")
    given = os.environ.get("JUPYTER_PATH", "").split(os.pathsep)
    own = [os.environ.get("JUPYTER_DATA_DIR") or os.path.join(home, ".local/share/jupyter")]
    shared = [os.path.join(sys.prefix, "share/jupyter"), "/usr/local/share/jupyter", "/usr/share/jupyter"]
    return [os.path.join(place, "kernels") for place in (*given, *own, *shared) if place]


def specs() -> dict[str, dict[str, Any]]:
    """The kernelspecs of the image by their names, as jupyter_client finds them, with `directory`; the first wins."""
    found: dict[str, dict[str, Any]] = {}
    for place in _spec_places():
        try:
            names = sorted(os.listdir(place))[: _SPECS * 4]
        except OSError:
            continue
        for name in names:
            path = os.path.join(place, name, "kernel.json")
            try:
                with open(path, encoding="utf-8") as file:
                    spec = json.loads(file.read(1 << 16))
            except (OSError, ValueError):
                continue
            if isinstance(spec, dict) and isinstance(spec.get("argv"), list) and len(found) < _SPECS:
                found.setdefault(name.lower(), dict(spec, directory=os.path.dirname(path)))
    return found


def _jupyter() -> list[dict[str, Any]]:
    can = util.find_spec("jupyter_client") is not None
    missing = "" if can else "It is a Jupyter kernel, and jupyter_client is not installed in this image."
    names = [name for name in sorted(specs()) if name not in ("python", "bash", "javascript", "typescript")]
    return [_row(name, f"jupyter:{name}"[:200], missing, usable=can, rich=can) for name in names]
