"""Whether criu will be able to restore the sessions of a process tree: it finds out only when it restores.

A process joins a session by being born in it, so criu must bear each one below the session's leader, or, where the
leader has ended, as an orphan of init. What an adopter other than init (PR_SET_CHILD_SUBREAPER) took in from a session
whose leader has ended can be born nowhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct


class Task(Struct, frozen=True):
    """One process: numbers as the machine's (`pid`, `parent`) and as the box sees them (`own`, `session`)."""

    pid: int
    parent: int
    own: int
    session: int


def tasks_of(pids: Iterable[int], proc: Path = Path("/proc")) -> list[Task]:
    """What the kernel says of the processes; those that ended meanwhile are left out."""
    found: list[Task] = []
    for pid in pids:
        with contextlib.suppress(OSError, KeyError, ValueError, IndexError):
            lines = (proc / str(pid) / "status").read_text(errors="replace").splitlines()
            words = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
            found.append(Task(pid, int(words["PPid"][0]), int(words["NSpid"][-1]), int(words["NSsid"][-1])))
    return found


def has_lost_leader(tasks: Iterable[Task], init: int) -> bool:
    """Whether a task belongs to a session that it cannot be born into (criu 4.2, `prepare_pstree_ids`)."""
    by_pid = {task.pid: task for task in tasks}
    born: dict[int, int] = {}
    for task in by_pid.values():
        above = by_pid.get(task.parent)
        if task.pid == init or task.session == task.own or above is None or above.session == task.session:
            continue
        if above.pid == init:
            continue
        while above is not None and above.own != task.session:
            if born.setdefault(above.pid, task.session) != task.session:
                return True
            above = None if above.pid == init else by_pid.get(above.parent)
        if above is None:
            return True
    return False
