"""Which process trees criu can give their sessions back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cove.engine.checkpoints.sessions import Task, has_lost_leader, tasks_of

INIT = Task(100, 1, 1, 1)


@pytest.mark.parametrize(
    ("tasks", "is_lost"),
    [
        ([Task(101, 100, 2, 2), Task(102, 101, 3, 2)], False),  # a shell and its child
        ([Task(101, 100, 2, 9)], False),  # an orphan that init took in
        ([Task(101, 100, 2, 9), Task(102, 101, 3, 9)], False),  # and its child
        ([Task(101, 100, 2, 2), Task(102, 101, 3, 9)], True),  # an orphan that another took in
        ([Task(101, 100, 2, 2), Task(102, 101, 3, 1)], False),  # forked before its parent called setsid
        ([Task(101, 100, 2, 2), Task(102, 101, 3, 3), Task(103, 102, 4, 2)], False),  # forked before setsid
        ([Task(101, 100, 2, 2), Task(102, 101, 3, 3), Task(103, 102, 4, 2), Task(104, 102, 5, 9)], True),
    ],
)
def test_only_what_can_be_born_somewhere_is_taken(tasks: list[Task], is_lost: bool) -> None:  # noqa: FBT001
    assert has_lost_leader([INIT, *tasks], INIT.pid) is is_lost


def test_the_kernels_words_are_read() -> None:
    (own,) = tasks_of([os.getpid(), 0])
    assert (own.pid, own.parent) == (os.getpid(), os.getppid())


def test_a_tree_without_leaders_at_all_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "status").write_text("PPid:\t1\nNSpid:\t5\n")
    assert tasks_of([5, 6], tmp_path) == []
