"""Sandboxes that are full, crowded or hostile are kept like others, or refused with the reason; none harms another."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from state_support import Caller, assert_in_step, assert_nothing_left, delete_all, lockstep, until
from tests_support import SOAK, RunningServer, make_server

pytestmark = pytest.mark.real
PROMPT_S: Final = 90.0 if SOAK else 60.0
TYPED: Final = frozenset({409, 410, 500, 501, 502, 503, 504, 507})
"""What a hostile sandbox may be told; 500: what it did to CRIU in the middle of its work was noticed there alone."""


class Case(NamedTuple):
    """`script` runs in the background. `is_kept`: its memory must be; otherwise it may be refused, with the reason."""

    script: str
    is_kept: bool = True
    wishes: dict[str, object] = {}  # noqa: RUF012 (nobody changes it)
    after: str = "true"
    """What must come true in it before it is kept."""


READY: Final = "until [ -e /root/ready ]; do sleep 0.05; done"
_PYTHON: Final = "exec python3 -c '%s'"

_FORKS: Final = (
    "cat > /tmp/forks.py << 'END'\n"
    "import os, time\n"
    "while True:\n"
    "    try:\n"
    "        if os.fork() == 0:\n"
    "            %s\n"
    "    except OSError:\n"
    "        open('/root/ready', 'w')\n"
    "        %s\n"
    "END\n"
    "exec python3 /tmp/forks.py"
)

ORDINARY: Final = {
    "at its memory limit": Case(
        "head -c 200M /dev/zero > /root/cache; sync; cat /root/cache > /dev/null; "
        + _PYTHON
        % 'import os, time; held = bytearray(os.urandom(40 << 20)); open("/root/ready", "w"); time.sleep(1e6)',
        wishes={"memory_mib": 112},
        after=READY,
    ),
    "at its limit of processes": Case(
        _FORKS % ("time.sleep(1e6)", "time.sleep(1e6)"), wishes={"pids": 64}, after=READY
    ),
    "its disk full": Case(
        "head -c 1G /dev/urandom > /root/f; touch /tmp/full; while :; do echo more >> /root/f; sleep 0.01; done",
        wishes={"disk_mib": 64},
        after="until [ -s /root/f ] && ! head -c 1M /dev/urandom > /root/g; do sleep 0.1; done",
    ),
    "a thousand threads": Case(
        _PYTHON
        % (
            "import threading, time; threading.stack_size(1 << 16); "
            "[threading.Thread(target=time.sleep, args=(1e6,)).start() for _ in range(1000)]; "
            'open("/root/ready", "w")'
        ),
        wishes={"pids": 1200},
        after=READY,
    ),
    "two hundred processes": Case("for i in $(seq 200); do sleep 1000 & done; touch /root/ready; wait", after=READY),
    "endless output": Case("yes endless"),
}
HOSTILE: Final = {
    "a fork bomb": Case(_FORKS % ("pass", "pass"), is_kept=False, wishes={"pids": 128, "cpus": 0.5}),
    "unlinks everything": Case(
        "while :; do rm -rf --one-file-system /usr/share /usr/lib/python3* /var /opt /srv /home; sleep 0.01; done",
        is_kept=False,
    ),
    "says quiesce itself": Case("while :; do touch /run/agent/quiesce; done", is_kept=False, wishes={"cpus": 0.5}),
    "fills the directory of the socket": Case(
        "cd /run/agent && i=0; while :; do i=$((i+1)); echo x > f$i || sleep 0.1; done",
        is_kept=False,
        wishes={"cpus": 0.5},
    ),
    "replaces the socket": Case(
        "while :; do ln -sf /etc/passwd /run/agent/a.sock; done", is_kept=False, wishes={"cpus": 0.5}
    ),
    "holds its agent by ptrace": Case(
        _PYTHON
        % (
            "import ctypes, time; trace = ctypes.CDLL(None).ptrace; trace(0x4206, 1, 0, 0); trace(0x4207, 1, 0, 0); "
            'open("/root/ready", "w"); time.sleep(1e6)'
        ),
        is_kept=False,
    ),
    "stops its agent": Case("while :; do kill -STOP 1; kill -TSTP 1; sleep 0.05; done", is_kept=False),
}


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """A server of its own, which nothing of this may harm."""
    server = make_server(tmp_path_factory.mktemp("server"), COVE_POOL_SIZE="0")
    server.start()
    try:
        with Caller(server) as made:
            yield made
            delete_all(made)
            assert_nothing_left(made)
    finally:
        server.down()
    assert not server.run_dir.exists(), f"left behind: {sorted(server.run_dir.rglob('*'))[:20]}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("cases", [ORDINARY, HOSTILE], ids=["ordinary", "hostile"])
def test_sandboxes_in_trouble_are_kept_or_refused_in_words(caller: Caller, cases: dict[str, Case]) -> None:
    bystander = caller.create(idle_timeout_s=None)
    lockstep(caller, bystander, 1)
    with ThreadPoolExecutor(3) as threads:
        found = dict(threads.map(lambda name: (name, in_trouble(caller.server, cases[name])), cases))
    assert not any(found.values()), {name: what for name, what in found.items() if what}
    assert_in_step(caller, bystander, 1)
    copy = caller.fork(bystander)[0]
    assert_in_step(caller, copy, 1)
    assert is_whole(caller), caller.server.log.read_text()[-2000:]


def in_trouble(server: RunningServer, case: Case) -> str:
    with Caller(server) as mine:
        return trouble(mine, case)


def trouble(mine: Caller, case: Case) -> str:
    """Keep one such sandbox, and copy it. What was wrong; empty: nothing."""
    box = mine.create(**{"idle_timeout_s": None, "memory_mib": 512, **case.wishes})
    command = mine.ask("POST", f"/sandboxes/{box}/commands", {"command": case.script})["id"]
    mine.client.post(f"/sandboxes/{box}/exec", json={"command": case.after, "timeout_s": 30})  # there may be no room
    time.sleep(0.3)
    began = time.monotonic()
    taken = mine.client.post(f"/sandboxes/{box}/snapshots", json={})
    if time.monotonic() - began > PROMPT_S:
        return f"an answer after {time.monotonic() - began:.0f} s"
    wrong = judged(case, taken.status_code, taken.json())
    if not wrong and taken.status_code == 201:
        restored = mine.client.post(f"/snapshots/{taken.json()['id']}/restore", json={})
        if restored.status_code == 201:
            wrong = works(mine, restored.json()["id"], command if taken.json()["memory"] else "")
        elif case.is_kept or restored.status_code not in TYPED:
            wrong = f"not restored: {restored.status_code} {restored.text}"
    if not wrong and case.is_kept:
        wrong = works(mine, box, command)
    for one in mine.ask("GET", "/sandboxes?limit=1000")["sandboxes"]:
        if one["id"] == box or (one["came_from"] or {}).get("sandbox") == box:
            mine.client.delete(f"/sandboxes/{one['id']}")
    return wrong


def judged(case: Case, status: int, answer: dict[str, Any]) -> str:
    """Whether a snapshot's answer may be so."""
    if status == 201:
        if case.is_kept and not answer["memory"]:
            return f"without memory: {answer['reason']}"
        return "" if answer["memory"] or answer["reason"] else "no reason is given"
    if case.is_kept or status not in TYPED:
        return f"not taken: {status} {answer}"
    return "" if answer["detail"] else "no reason is given"


def works(caller: Caller, box: str, command: str) -> str:
    """It lives: what ran in it runs, and once that is killed a command does."""
    if command:
        seen = caller.client.get(f"/sandboxes/{box}/commands/{command}")
        if seen.status_code != 200 or not seen.json()["running"]:
            return f"in {box} its command does not run: {seen.text}"
        caller.client.post(f"/sandboxes/{box}/commands/{command}/signal", json={"signal": "KILL"})

    def runs() -> bool:
        answer = caller.client.post(f"/sandboxes/{box}/exec", json={"command": "echo fine", "timeout_s": 10})
        return answer.status_code == 200 and answer.json()["stdout"] == "fine\n"

    try:
        until(runs, "no command runs")
    except AssertionError as error:
        return f"in {box} {error}"
    return ""


def is_whole(caller: Caller) -> bool:
    """The server never met something that it did not expect."""
    return "Traceback" not in Path(caller.server.log).read_text()
