"""criu's log lines, as it wrote them for real boxes, and what an owner is told of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.engine.checkpoints.criulog import is_passing, needs_places, why_not_kept, why_not_restored
from cove.model.errors import CapacityExceeded, CoveError, EngineFailure, Unsupported

END = "Error (criu/cr-dump.c:1975): Dumping FAILED.\n"
NOISE = "Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"


@pytest.mark.parametrize(
    ("line", "clause"),
    [
        ("Error (criu/fsnotify.c:284): fsnotify: \tCan't dump that handle", "watches files"),
        ("Error (compel/src/lib/infect.c:262): Unseizable non-zombie 17643 found, state t, err -1/10", "traced"),
        (
            "Error (criu/tty.c:1800): tty: ctty inheritance detected sid/pgrp 26 (ctty pid_real 32241 pty pid_real 14)",
            "has opened /dev/tty",
        ),
        (
            "Error (criu/files-ext.c:94): Can't dump file 3 of that type [600] (anon anon_inode:[landlock-ruleset])",
            "has something open",
        ),
        ("(00.1) Error (criu/new.c:1): what no page knows yet", "has something open"),
    ],
)
def test_what_cannot_be_kept_is_named(line: str, clause: str) -> None:
    error = why_not_kept(f"{NOISE}{line}\n{END}")
    assert isinstance(error, Unsupported)
    assert clause in error.public
    assert error.field == "memory"
    assert line.split("Error ")[1] in error.internal
    assert "RLIMIT" not in error.internal


def test_a_full_disk_is_no_fault_of_the_sandbox() -> None:
    line = "Error (criu/image.c:600): Can't write: No space left on device\n"
    assert isinstance(why_not_kept(line + END), CapacityExceeded)
    assert isinstance(why_not_restored(line), CapacityExceeded)


def test_a_criu_that_was_killed_is_a_failure_of_the_machine() -> None:
    assert isinstance(why_not_kept("criu ended without an answer"), EngineFailure)


def test_what_is_worth_another_try_is_told_apart() -> None:
    assert is_passing("(05.0) Error (criu/cr-dump.c:11): Timeout reached. Try to interrupt: 0\n" + END)
    assert not is_passing(END)
    assert needs_places("Error (criu/fsnotify.c:284): fsnotify: \tCan't dump that handle\n")


@given(st.text(max_size=400))
def test_names_that_a_sandbox_chose_are_never_shown(text: str) -> None:
    hostile = f"Error (criu/files.c:1): Can't open file <<{text}>>\n{END}"
    for error in (why_not_kept(hostile), why_not_restored(hostile)):
        assert isinstance(error, CoveError)
        assert "<<" not in error.public
