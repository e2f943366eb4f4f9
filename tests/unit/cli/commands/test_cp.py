# ruff: noqa: ANN001 - fixtures are typed where they are defined
from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

HERE = "/sandboxes/sb_0000000000000001/files"


def entry(path: str, kind: str = "file", **facts: object) -> dict[str, object]:
    return {"path": path, "name": path.rpartition("/")[2], "kind": kind, "size": 1, "mode": "0640", **facts}


def tar(*members: tuple[str, bytes, str]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            data = content.encode() if kind == tarfile.REGTYPE else b""
            member.type, member.size, member.linkname = kind, len(data), "" if data else content
            archive.addfile(member, io.BytesIO(data))
    return made.getvalue()


def test_neither_side_in_a_sandbox_is_wrong_usage(cove) -> None:
    assert cove("cp", "a", "b").code == 2
    assert cove("cp", "./a:b", "/c:d").code == 2


def test_a_file_comes_out_with_its_mode(cove, stub, tmp_path: Path) -> None:
    stub.extra["GET", HERE] = entry("/w/a")
    stub.extra["GET", f"{HERE}/content"] = b"data"
    ran = cove("cp", "brave:/w/a", f"{tmp_path}/")
    assert (ran.code, ran.out, ran.err) == (0, "", "Copied 1 file, 4B.\n")
    assert (tmp_path / "a").read_bytes() == b"data"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert cove("cp", "--json", "brave:/w/a", f"{tmp_path}/b").objects == [{"files": 1, "bytes": 4, "skipped": 0}]


def test_a_dash_is_stdout_and_there_is_no_talk(cove, stub) -> None:
    stub.extra["GET", f"{HERE}/content"] = b"data\n"
    ran = cove("cp", "brave:/w/a", "-")
    assert (ran.code, ran.out, ran.err) == (0, "data\n", "")


@pytest.mark.parametrize("name", ["../evil", "..", "a/../../evil", "/etc/passwd"])
def test_a_name_that_leads_out_of_the_target_is_refused(cove, stub, tmp_path: Path, name: str) -> None:
    stub.extra["GET", HERE] = entry("/w", "directory")
    stub.extra["GET", f"{HERE}/archive"] = tar((name, tarfile.REGTYPE, "evil"))
    target = tmp_path / "in" / "out"
    target.parent.mkdir()
    ran = cove("cp", "brave:/w", str(target))
    assert (ran.code, "named a file" in ran.err) == (125, True)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "state" not in path.parts] == []


def test_outward_links_are_left_out_and_counted(cove, stub, tmp_path: Path) -> None:
    stub.extra["GET", HERE] = entry("/w", "directory")
    links = (("l", tarfile.SYMTYPE, "/etc/passwd"), ("a", tarfile.REGTYPE, "x"), ("in", tarfile.SYMTYPE, "a"))
    stub.extra["GET", f"{HERE}/archive"] = tar(*links)
    ran = cove("cp", "-r", "brave:/w", str(tmp_path / "out"))
    assert ran.err == "Copied 2 files, 1B. Left out: 1 outward links or special files.\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "in"]


def test_a_link_below_the_target_is_not_followed(cove, stub, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out = tmp_path / "out"
    (out / "w").mkdir(parents=True)
    (out / "w" / "sub").symlink_to(elsewhere)
    stub.extra["GET", HERE] = entry("/w", "directory")
    stub.extra["GET", f"{HERE}/archive"] = tar(("sub/x", tarfile.REGTYPE, "evil"))
    assert cove("cp", "brave:/w", str(out)).code != 0
    assert list(elsewhere.iterdir()) == []


def test_a_loop_of_links_ends(cove, stub, tmp_path: Path) -> None:
    stub.extra["GET", HERE] = entry("/w/l", "symlink", target="l")
    ran = cove("cp", "brave:/w/l", str(tmp_path / "x"))
    assert (ran.code, "too many links" in ran.err) == (121, True)


def test_a_missing_target_directory_is_named(cove, stub, tmp_path: Path) -> None:
    stub.extra["GET", HERE] = entry("/w/a")
    ran = cove("cp", "brave:/w/a", str(tmp_path / "no" / "a"))
    assert ran.code == 120
    assert f"hint: mkdir -p {tmp_path / 'no'}" in ran.err


def test_a_missing_local_file_is_not_found(cove) -> None:
    assert cove("cp", "/nowhere/a", "brave:/w/").code == 120


def test_stdin_has_no_name(cove) -> None:
    assert cove("cp", "-", "brave:/w/").code == 2
