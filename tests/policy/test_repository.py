"""What no file of this repository may hold, and the shape of its commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from urllib.parse import urlsplit

from source import TOP, repository_files, shown, text_of

RECIPE_LINES = 25


def test_no_file_names_a_registry_or_mirror_of_this_machine() -> None:
    """Hosts come from the machine's own clients: whoever clones this has others, and ours are nobody's business."""
    hosts = registry_hosts()
    pattern = re.compile("|".join(map(re.escape, sorted(hosts)))) if hosts else None
    found = [
        f"{shown(path)}: {match.group()}"
        for path in repository_files()
        if pattern is not None and (match := pattern.search(text_of(path)))
    ]
    assert not found, "take it from the client's configuration"


def registry_hosts() -> set[str]:
    """Hosts that this machine's pip, apt and npm are configured for, and pip's and npm's built-in ones."""
    urls = " ".join(
        [
            said([sys.executable, "-m", "pip", "config", "list"]),
            said([sys.executable, "-c", "from pip._internal.models.index import PyPI; print(PyPI.url)"]),
            said(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]),
            said(["npm", "config", "get", "registry"]),
            *(value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "NPM_CONFIG_"))),
        ]
    )
    found = {urlsplit(url).hostname or "" for url in re.findall(r"https?://[^\s'\"]+", urls)}
    return {host for host in found if "." in host and not host[0].isdigit()}


def said(argv: list[str]) -> str:
    if shutil.which(argv[0]) is None:
        return ""
    return subprocess.run(argv, capture_output=True, check=False, text=True, timeout=60, cwd="/").stdout


def test_no_file_points_out_of_the_repository() -> None:
    outside = ".." + "/shared"
    found = [shown(path) for path in repository_files() if outside in text_of(path)]
    assert not found, "say it here: the reader has nothing but this repository"


def test_no_file_holds_a_private_key() -> None:
    mark = "-----BEGIN " + r"([A-Z]+ )?PRIVATE KEY-----"
    assert not [shown(path) for path in repository_files() if re.search(mark, text_of(path))]


def test_no_text_file_has_trailing_blanks_or_lacks_its_last_newline() -> None:
    kinds = {".py", ".md", ".toml", ".go", ".txt", ".sql", ".sh", ".yml"}
    bad = [
        shown(path)
        for path in repository_files()
        if path.suffix in kinds
        and (text := text_of(path))
        and (not text.endswith("\n") or re.search(r"[ \t]+$", text, re.MULTILINE))
    ]
    assert not bad


def test_recipes_of_the_makefile_are_short_and_the_public_ones_are_explained() -> None:
    text = (TOP / "Makefile").read_text(encoding="utf-8")
    recipes = re.findall(r"^([\w./-]+):[^\n]*\n((?:\t[^\n]*\n)*)", text, re.MULTILINE)
    assert not [name for name, body in recipes if body.count("\n") > RECIPE_LINES]
    for name in ("run", "setup", "test", "soak", "check", "bench", "clean"):
        assert re.search(rf"^{name}:.*## \S", text, re.MULTILINE), f"{name} has no help"


def test_ci_runs_the_same_recipes_and_stops_at_the_first_failure() -> None:
    path = TOP / ".ci" / "run"
    text = path.read_text(encoding="utf-8")
    assert os.access(path, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert [line for line in text.splitlines() if line.startswith("make ")] == ["make check", "make test"]


def test_the_locked_versions_name_no_index_and_are_exact() -> None:
    for path in sorted((TOP / "requirements").glob("*.txt")):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
        assert lines == sorted(lines, key=lambda line: line.split("==")[0])
        assert not [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.+!-]+", line)], path.name
