from __future__ import annotations

import base64
import hashlib
import io
import sys
import tarfile
from pathlib import Path

import pytest

from cove.server.setup.commands import Runner
from cove.server.setup.npm import add_archives, debian_architecture, unpack
from cove.server.setup.recipes import NpmArchive
from cove.server.setup.settings import SetupFailed


def packed(target: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> NpmArchive:
    """An archive of the registry with `members` at `target`, and the recipe's entry for it."""
    with tarfile.open(target, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid = len(content), 0o755, 1234
            tar.addfile(info, io.BytesIO(content))
        for name, to in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, to
            tar.addfile(info)
    digest = base64.b64encode(hashlib.sha512(target.read_bytes()).digest()).decode()
    return NpmArchive(name="thing", version="1.0.0", integrity=f"sha512-{digest}", into="usr/local/lib/thing")


def files(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*") if not path.is_dir())


def test_an_archive_is_unpacked_without_its_top_directory(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.tgz", {"package/index.js": b"x", "package/bin/run": b"y"})
    unpack(archive, tmp_path / "a.tgz", tmp_path / "root")
    assert files(tmp_path / "root") == ["usr/local/lib/thing/bin/run", "usr/local/lib/thing/index.js"]
    assert (tmp_path / "root/usr/local/lib/thing/bin/run").stat().st_mode & 0o777 == 0o755


def test_only_the_members_that_the_recipe_names_are_taken(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.tgz", {"package/bin/run": b"y", "package/binary": b"", "package/doc/x": b""})
    only = NpmArchive(name="thing", version="1.0.0", integrity=archive.integrity, into="opt", members=("bin",))
    unpack(only, tmp_path / "a.tgz", tmp_path / "root")
    assert files(tmp_path / "root") == ["opt/bin/run"]


def test_an_archive_with_another_digest_is_refused_before_it_is_read(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.tgz", {"package/index.js": b"x"})
    (tmp_path / "a.tgz").write_bytes(b"something else")
    with pytest.raises(SetupFailed, match="its sha512 differs"):
        unpack(archive, tmp_path / "a.tgz", tmp_path / "root")
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("name", ["package/../../../../../evil", "package//etc/evil"])
def test_a_member_cannot_leave_its_place(tmp_path: Path, name: str) -> None:
    archive = packed(tmp_path / "a.tgz", {name: b"x"})
    root = tmp_path / "deep" / "root"
    try:
        unpack(archive, tmp_path / "a.tgz", root)
    except SetupFailed as error:
        assert "cannot be unpacked" in error.public  # noqa: PT017 - either is right
    assert all(found.startswith("deep/root/usr/local/lib/thing/") for found in files(tmp_path) if "evil" in found)


def test_links_are_not_unpacked(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.tgz", {"package/a": b"x"}, {"package/link": "/etc/passwd"})
    unpack(archive, tmp_path / "a.tgz", tmp_path / "root")
    assert files(tmp_path / "root") == ["usr/local/lib/thing/a"]


def test_the_machines_npm_is_asked_for_the_exact_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = packed(tmp_path / "a.tgz", {"package/index.js": b"x"})
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(
        f"#!{sys.executable}\nimport shutil, sys\nassert sys.argv[1:3] == ['pack', 'thing@1.0.0']\n"
        f"shutil.copy('{tmp_path}/a.tgz', sys.argv[4] + '/thing-1.0.0.tgz')\n"
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent))
    add_archives(Runner(), [archive], tmp_path / "work", tmp_path / "root")
    assert files(tmp_path / "root") == ["usr/local/lib/thing/index.js"]


def test_archives_of_other_machines_are_not_fetched(tmp_path: Path) -> None:
    other = "arm64" if debian_architecture() == "amd64" else "amd64"
    archive = NpmArchive(name="thing", version="1.0.0", integrity="", into="opt", architecture=other)
    add_archives(Runner(), [archive], tmp_path / "work", tmp_path / "root")
    assert not (tmp_path / "work").exists()
