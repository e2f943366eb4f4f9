# ruff: noqa: ANN001 - fixtures are typed where they are defined
from __future__ import annotations

from pathlib import Path

import pytest


def paths(stub) -> list[str]:
    return [f"{method} {path.removeprefix('/api/v1')}" for method, path, _ in stub.seen]


def test_the_exact_name_costs_one_request(cove, stub) -> None:
    assert cove("exec", "brave-otter", "true").code == 0
    assert paths(stub) == ["POST /sandboxes/brave-otter/exec/stream"]


@pytest.mark.parametrize("ref", ["brave", "b", "sb_0000000000000001"])
def test_a_unique_prefix_will_do(cove, stub, ref: str) -> None:
    assert cove("exec", ref, "true").code == 0
    assert paths(stub)[-1].startswith("POST /sandboxes/")


def test_a_prefix_of_the_id_without_its_kind_will_do(cove, stub) -> None:
    stub.boxes[0]["id"] = "sb_7777000000000000"
    assert cove("exec", "7777", "true").code == 0


def test_an_ambiguous_prefix_is_refused_and_nothing_is_done(cove, stub) -> None:
    stub.boxes[1]["name"] = "brave-heron"
    ran = cove("rm", "brave")
    assert (ran.code, ran.out) == (2, "")
    assert "may be any of brave-otter, brave-heron" in ran.err
    assert len(stub.boxes) == 2


def test_an_unknown_name_suggests_the_nearest(cove) -> None:
    ran = cove("exec", "brave-oter", "true")
    assert ran.code == 120
    assert ran.err == 'error: no sandbox "brave-oter" (not-found)\nhint: did you mean brave-otter?  cove ls\n'


def test_a_dash_is_the_last_one_used(cove, stub) -> None:
    ran = cove("exec", "-", "true")
    assert (ran.code, "no sandbox was used yet" in ran.err) == (120, True)
    cove("exec", "calm", "true")
    stub.seen.clear()
    assert cove("pause", "-").code == 0
    assert paths(stub) == ["POST /sandboxes/sb_0000000000000002/pause"]


def test_the_project_file_names_this_directorys_box(cove, stub, tmp_path: Path) -> None:
    assert cove("pause").code == 2
    (tmp_path / ".cove.toml").write_text('box = "calm-heron"\n')
    assert cove("pause").code == 0
    assert cove("exec", ".", "true").code == 0
    assert paths(stub)[-1] == "POST /sandboxes/calm-heron/exec/stream"


def test_a_state_directory_that_cannot_be_written_is_no_failure(cove, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/x")
    assert cove("exec", "brave-otter", "true").code == 0


def test_an_empty_reference_names_nothing(cove) -> None:
    assert cove("rm", "").code == 2
