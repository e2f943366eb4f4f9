"""Claims that two servers on one machine share."""

from __future__ import annotations

from pathlib import Path

import pytest

from cove.engine.claims import RANGE_SIZE, Claims, UidRanges
from cove.model.errors import CapacityExceeded


def instance(root: Path, name: str) -> Path:
    (root / name).mkdir(exist_ok=True)
    return root / name


def test_two_instances_never_hold_the_same_number(tmp_path: Path) -> None:
    one = Claims("uid", instance(tmp_path, "one"), count=8, root=tmp_path)
    two = Claims("uid", instance(tmp_path, "two"), count=8, root=tmp_path)
    taken = [c.take() for c in (one, two) * 4]
    assert sorted(taken) == list(range(8))
    with pytest.raises(CapacityExceeded):
        one.take()


def test_what_an_instance_that_is_gone_held_is_free_again(tmp_path: Path) -> None:
    gone = Claims("uid", instance(tmp_path, "gone"), count=1, root=tmp_path)
    gone.take()
    (tmp_path / "gone").rmdir()
    assert Claims("uid", instance(tmp_path, "new"), count=1, root=tmp_path).take() == 0


def test_a_restarted_instance_finds_its_claims(tmp_path: Path) -> None:
    name = instance(tmp_path, "one")
    Claims("uid", name, count=8, root=tmp_path).take()
    assert Claims("uid", name, count=8, root=tmp_path).held() == [0]


def test_uid_ranges_do_not_overlap_and_come_back_last(tmp_path: Path) -> None:
    ranges = UidRanges.of(instance(tmp_path, "one"), root=tmp_path)
    taken = [ranges.take() for _ in range(130)]
    assert len(set(taken)) == 130
    assert all(base % RANGE_SIZE == 0 and 0x70000000 <= base < 0x7FFE0000 for base in taken)
    ranges.give_back(taken[0])
    assert ranges.take() != taken[0]


def test_two_servers_never_share_a_uid_range(tmp_path: Path) -> None:
    one = UidRanges.of(instance(tmp_path, "one"), root=tmp_path)
    two = UidRanges.of(instance(tmp_path, "two"), root=tmp_path)
    assert not {one.take() for _ in range(100)} & {two.take() for _ in range(100)}


def test_an_adopted_range_is_not_handed_out(tmp_path: Path) -> None:
    name = instance(tmp_path, "one")
    base = UidRanges.of(name, root=tmp_path).take()
    again = UidRanges.of(name, root=tmp_path)
    again.mark(base)
    assert base not in [again.take() for _ in range(63)]


def test_a_number_is_claimed_by_one_and_may_be_claimed_again_by_its_owner(tmp_path: Path) -> None:
    one = Claims("port", instance(tmp_path, "one"), count=65536, root=tmp_path)
    two = Claims("port", instance(tmp_path, "two"), count=65536, root=tmp_path)
    assert one.take_first([20001, 20002]) == 20001
    assert one.take_first([20001]) == 20001
    assert two.take_first([20001]) is None
    assert two.take_first([20001, 20002]) == 20002
    two.give_back(20001)
    assert two.take_first([20001]) is None
    one.give_back(20001)
    assert two.take_first([20001]) == 20001
