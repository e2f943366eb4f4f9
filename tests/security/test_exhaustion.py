"""Group C through the API: what a caller is told when a sandbox takes all it can, and that the server does not suffer.

The attacks themselves, each on every driver, ship with the product: `cove.engine.attacks.exhaustion`, run by
`test_attacks.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx2
import pytest

from tests_support import SOAK, RunningServer

pytestmark = pytest.mark.real


def run(client: httpx2.Client, box: str, command: str, timeout_s: float = 20.0) -> dict[str, object]:
    answer = client.post(f"/sandboxes/{box}/exec", json={"command": command, "timeout_s": timeout_s})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def make(client: httpx2.Client, **limits: object) -> str:
    answer = client.post("/sandboxes", json=limits)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def neighbour(client: httpx2.Client, driver: str) -> Iterator[str]:
    box = make(client, driver=driver)
    yield box
    assert run(client, box, "echo fine")["stdout"] == "fine\n"
    client.delete(f"/sandboxes/{box}")


def test_out_of_memory_is_told_apart_from_a_kill(client: httpx2.Client, driver: str, neighbour: str) -> None:
    box = make(client, driver=driver, memory_mib=128)
    killed = run(client, box, "kill -9 $$")
    hog = run(client, box, 'exec python3 -c "x=[bytearray(1000000) for _ in range(300)]"')
    client.delete(f"/sandboxes/{box}")
    assert (killed["why"], killed["signal"]) == ("killed", 9)
    # To the host's kernel gVisor is one process: what it kills there may be the whole sandbox.
    assert hog["why"] in ({"oom", "sandbox-gone"} if driver == "gvisor" else {"oom"}), hog
    assert run(client, neighbour, "true")["exit_code"] == 0


@pytest.mark.parametrize(
    "bomb",
    ["head -c 300000000 /dev/zero > /dev/shm/f", "head -c 300000000 /dev/zero | tail"],
    ids=["shm", "pipe"],
)
def test_after_a_memory_bomb_the_sandbox_works_on(client: httpx2.Client, bomb: str) -> None:
    # /dev/shm holds 64 MiB at most, and what lies in it stays charged after its writer was killed.
    box = make(client, memory_mib=128)
    assert run(client, box, bomb)["exit_code"] != 0
    assert run(client, box, "echo alive")["stdout"] == "alive\n"
    client.delete(f"/sandboxes/{box}")


def test_a_full_disk_fails_inside_and_space_comes_back(client: httpx2.Client, driver: str, neighbour: str) -> None:
    box = make(client, driver=driver, disk_mib=64)
    full = run(client, box, "head -c 200000000 /dev/zero > /root/f && sync /root/f")
    again = run(client, box, "rm -f /root/f && sync && echo ok > /root/g && cat /root/g")
    assert full["exit_code"] != 0
    assert again["stdout"] == "ok\n", again
    assert run(client, neighbour, "head -c 1000000 /dev/zero > /root/f && sync /root/f")["exit_code"] == 0
    client.delete(f"/sandboxes/{box}")


def test_an_output_flood_keeps_the_tail_and_the_servers_memory(client: httpx2.Client, driver: str) -> None:
    box = make(client, driver=driver)
    result = run(client, box, "head -c 200000000 /dev/zero | tr '\\0' a; echo end", timeout_s=60)
    assert result["exit_code"] == 0
    assert str(result["stdout"]).endswith("aend\n")
    assert result["stdout_dropped_bytes"] == 200_000_004 - 10 * 1024 * 1024
    client.delete(f"/sandboxes/{box}")


def test_a_reader_that_stops_reading_blocks_only_its_command(
    server: RunningServer, client: httpx2.Client, driver: str
) -> None:
    box = make(client, driver=driver)
    body = {"command": "yes"}
    with server.client() as slow, slow.stream("POST", f"/sandboxes/{box}/exec/stream", json=body) as stream:
        iterator = stream.iter_raw(1024)
        next(iterator)
        time.sleep(2)
        assert run(client, box, "echo fine")["stdout"] == "fine\n"
    deadline = time.monotonic() + 60
    while "yes" in str(run(client, box, "cat /proc/[0-9]*/comm")["stdout"]).split():
        assert time.monotonic() < deadline, "the abandoned command still runs"
        time.sleep(0.1)
    client.delete(f"/sandboxes/{box}")


def test_a_child_that_keeps_the_pipe_open_does_not_hold_the_answer(client: httpx2.Client, driven_sandbox: str) -> None:
    started = time.monotonic()
    result = run(client, driven_sandbox, "sleep 300 & echo done")
    assert result["stdout"] == "done\n"
    assert time.monotonic() - started < 30


def test_ignored_signals_do_not_prolong_a_command(client: httpx2.Client, driven_sandbox: str) -> None:
    started = time.monotonic()
    result = run(client, driven_sandbox, "trap '' TERM INT HUP; while :; do :; done", timeout_s=1)
    assert result["why"] == "timeout"
    assert result["exit_code"] == 124
    assert time.monotonic() - started < 30


def test_a_stopped_process_is_killed_at_its_deadline(client: httpx2.Client, driven_sandbox: str) -> None:
    assert run(client, driven_sandbox, "kill -STOP $$", timeout_s=1)["why"] == "timeout"


def test_zombies_are_reaped(client: httpx2.Client, driven_sandbox: str) -> None:
    count = 100_000 if SOAK else 300
    script = f"for i in $(seq {count}); do (sleep 0 &) ; done; sleep 0.5"
    run(client, driven_sandbox, script, timeout_s=1500 if SOAK else 30)
    states = str(run(client, driven_sandbox, "cat /proc/[0-9]*/stat | awk '{print $3}'")["stdout"]).split()
    assert states.count("Z") <= 1, states


def test_huge_arguments_and_environments_are_refused_or_reported(client: httpx2.Client, driven_sandbox: str) -> None:
    answer = client.post(f"/sandboxes/{driven_sandbox}/exec", json={"command": ["echo", "x" * 1_500_000]})
    assert answer.status_code in {200, 400, 413}
    if answer.status_code == 200:
        assert answer.json()["exit_code"] in {126, 127}
    big = {f"V{n}": "x" * 200 for n in range(1001)}
    answer = client.post(f"/sandboxes/{driven_sandbox}/exec", json={"command": "true", "env": big})
    assert answer.status_code in {400, 413}
    assert answer.json()["field"].startswith("env")
