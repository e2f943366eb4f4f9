from __future__ import annotations

import hashlib
import platform
from pathlib import Path

import msgspec
import pytest

from cove.server.setup.runtimes import (
    REQUIRED,
    SCHEME,
    Entry,
    Manifest,
    altered_programs,
    is_current,
    parse_version,
    program_version,
    sweep,
)
from cove.server.setup.settings import SetupFailed


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.3.6+ds1", (1, 3, 6)),
        ("1.1.5+ds1-1+deb12u1", (1, 1, 5)),
        ("2:4.2.1-1", (4, 2, 1)),
        ("0.0~20240729.0-7+b1", (20240729, 0)),
        ("20240729.0", (20240729, 0)),
        ("1.28", (1, 28)),
        ("unknown", ()),
        ("", ()),
    ],
)
def test_versions_are_compared_by_their_leading_numbers(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


def test_an_unknown_version_is_never_new_enough() -> None:
    assert all(parse_version("HEAD") < need.least for need in REQUIRED)


def installed(runtimes_dir: Path) -> list[Path]:
    """A set in which every program is a small file."""
    programs: list[Entry] = []
    paths: list[Path] = []
    (runtimes_dir / "set").mkdir(parents=True)
    for need in REQUIRED:
        path = runtimes_dir / "set" / need.name
        path.write_text(need.name)
        facts = path.stat()
        programs.append(
            Entry(
                name=need.name,
                version=".".join(map(str, need.least)),
                origin="system",
                path=str(path),
                sha256=hashlib.sha256(need.name.encode()).hexdigest(),
                size_bytes=facts.st_size,
                mtime_ns=facts.st_mtime_ns,
            )
        )
        paths.append(path)
    manifest = Manifest(scheme=SCHEME, machine=platform.machine(), made_at=0, programs=tuple(programs))
    (runtimes_dir / "set" / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    (runtimes_dir / "current").symlink_to("set")
    return paths


def test_a_complete_set_is_current_and_unaltered(tmp_path: Path) -> None:
    installed(tmp_path)
    assert is_current(tmp_path)
    assert altered_programs(tmp_path) == []


def test_a_missing_or_damaged_manifest_is_not_current(tmp_path: Path) -> None:
    assert not is_current(tmp_path)
    installed(tmp_path)
    (tmp_path / "current" / "manifest.json").write_text("{")
    assert not is_current(tmp_path)


def test_a_removed_program_makes_the_set_stale(tmp_path: Path) -> None:
    installed(tmp_path)[0].unlink()
    assert not is_current(tmp_path)


def test_a_program_with_other_bytes_is_named(tmp_path: Path) -> None:
    path = installed(tmp_path)[0]
    path.write_text("evil")
    assert not is_current(tmp_path)
    assert altered_programs(tmp_path) == [path.name]
    assert altered_programs(tmp_path, only="criu") == []


def test_without_a_set_every_program_counts_as_altered(tmp_path: Path) -> None:
    assert altered_programs(tmp_path) == [need.name for need in REQUIRED]


def test_the_rest_of_an_interrupted_run_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".building-1" / "usr").mkdir(parents=True)
    installed(tmp_path)
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "set"]


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_a_program_tells_its_version_on_either_stream(tmp_path: Path) -> None:
    need = next(need for need in REQUIRED if need.name == "criu")
    assert program_version(script(tmp_path / "a", "echo Version: 4.2.1 >&2"), need) == "4.2.1"


def test_a_program_that_says_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="hello"):
        program_version(script(tmp_path / "a", "echo hello; exit 3"), REQUIRED[0])


def test_a_program_that_does_not_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="does not run"):
        program_version(tmp_path / "absent", REQUIRED[0])
