"""What ids boxes get on a machine that lacks something."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cove.engine.ids import Ids, choose, shifted_copy

NOTHING: frozenset[Ids] = frozenset()


def test_a_whole_machine_gives_each_box_its_own_range() -> None:
    choice = choose(frozenset(Ids), user_namespaces="", idmapped_mounts="")
    assert (choice.ids, choice.missing, choice.refusal) == (Ids.MAPPED, (), "")


@pytest.mark.parametrize(
    ("userns", "idmap", "ids"), [("EPERM", "", Ids.HOST), ("", "ENOSYS", Ids.SHARED), ("EPERM", "ENOSYS", Ids.HOST)]
)
def test_less_is_refused_unless_the_operator_allowed_exactly_that(userns: str, idmap: str, ids: Ids) -> None:
    for allowed in (NOTHING, frozenset({Ids.SHARED, Ids.HOST} - {ids})):
        refused = choose(allowed, user_namespaces=userns, idmapped_mounts=idmap)
        assert f"COVE_DEGRADE={ids.value}" in refused.refusal
    allowed_one = choose(frozenset({ids}), user_namespaces=userns, idmapped_mounts=idmap)
    assert allowed_one.ids is ids
    assert not allowed_one.refusal
    assert (userns or idmap) in allowed_one.missing[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_a_shifted_copy_has_the_same_files_with_other_owners_and_follows_no_link(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.write_text("host")
    (tree / "bin" / "tool").write_text("x")
    (tree / "bin" / "tool").chmod(0o4755)
    os.chown(tree / "bin" / "tool", 1000, 1001)
    (tree / "bin" / "tool").chmod(0o4755)
    (tree / "link").symlink_to(outside)
    (tree / "up").symlink_to(tmp_path)
    copy = shifted_copy(tree, tmp_path / "shifted" / "c", 0x70000000)
    info = (copy / "bin" / "tool").stat()
    assert (info.st_uid, info.st_gid, info.st_mode & 0o7777) == (0x70000000 + 1000, 0x70000000 + 1001, 0o4755)
    assert (copy / "link").lstat().st_uid == 0x70000000
    assert (copy / "link").readlink() == outside
    assert outside.stat().st_uid == tmp_path.stat().st_uid == os.geteuid()
    assert shifted_copy(tree, copy, 0x70000000) == copy
    assert sorted(p.name for p in (tmp_path / "shifted").iterdir()) == ["c"]
