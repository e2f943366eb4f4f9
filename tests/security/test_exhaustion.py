"""Group C: a sandbox that takes all it can. It suffers; a neighbour and the server do not."""

from __future__ import annotations

import time

import httpx2
import pytest

from tests_support import RunningServer

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
def neighbour(client: httpx2.Client):  # type: ignore[no-untyped-def] # noqa: ANN201
    box = make(client)
    yield box
    assert run(client, box, "echo fine")["stdout"] == "fine\n"
    client.delete(f"/sandboxes/{box}")


def test_a_fork_bomb_stays_inside(client: httpx2.Client, neighbour: str) -> None:
    box = make(client, pids=100)
    run(client, box, "f(){ f|f& };f; sleep 60", timeout_s=3)
    started = time.monotonic()
    assert run(client, neighbour, "true")["exit_code"] == 0
    assert time.monotonic() - started < 5
    assert client.delete(f"/sandboxes/{box}").status_code == 200


def test_a_thread_bomb_stays_inside(client: httpx2.Client, neighbour: str) -> None:
    box = make(client, pids=64)
    code = "import threading,time\nwhile True: threading.Thread(target=time.sleep,args=(60,)).start()"
    result = run(client, box, f"python3 -c '{code}'", timeout_s=10)
    assert result["exit_code"] != 0
    assert run(client, neighbour, "true")["exit_code"] == 0
    client.delete(f"/sandboxes/{box}")


@pytest.mark.parametrize(
    "bomb",
    [
        "head -c 300000000 /dev/zero | tail",
        "head -c 300000000 /dev/zero > /dev/shm/f",
        "python3 -c \"import os; f=os.memfd_create('x'); [os.write(f, b'x'*1000000) for _ in range(300)]\"",
        'python3 -c "x=[bytearray(1000000) for _ in range(300)]"',
    ],
    ids=["pipe", "shm", "memfd", "heap"],
)
def test_a_memory_bomb_is_stopped_inside_and_reported(client: httpx2.Client, neighbour: str, bomb: str) -> None:
    # /dev/shm holds 64 MiB at most, and what lies in it stays charged after its writer was killed.
    box = make(client, memory_mib=128)
    result = run(client, box, bomb)
    assert result["exit_code"] != 0, result
    assert run(client, box, "echo alive")["stdout"] == "alive\n"
    assert run(client, neighbour, "true")["exit_code"] == 0
    client.delete(f"/sandboxes/{box}")


def test_out_of_memory_is_told_apart_from_a_kill(client: httpx2.Client) -> None:
    box = make(client, memory_mib=64)
    hog = run(client, box, 'exec python3 -c "x=[bytearray(1000000) for _ in range(300)]"')
    killed = run(client, box, "kill -9 $$")
    client.delete(f"/sandboxes/{box}")
    assert hog["why"] == "oom", hog
    assert killed["why"] == "killed", killed
    assert killed["signal"] == 9


def test_a_full_disk_fails_inside_and_space_comes_back(client: httpx2.Client, neighbour: str) -> None:
    box = make(client, disk_mib=64)
    full = run(client, box, "head -c 200000000 /dev/zero > /root/f && sync /root/f")
    again = run(client, box, "rm -f /root/f && sync && echo ok > /root/g && cat /root/g")
    assert full["exit_code"] != 0
    assert again["stdout"] == "ok\n", again
    assert run(client, neighbour, "head -c 1000000 /dev/zero > /root/f && sync /root/f")["exit_code"] == 0
    client.delete(f"/sandboxes/{box}")


def test_many_files_meet_the_disk_limit(client: httpx2.Client) -> None:
    box = make(client, disk_mib=16)
    code = "import os; os.mkdir('/root/d'); [open(f'/root/d/{i}','w').write('x'*3000) for i in range(200000)]"
    result = run(client, box, f'python3 -c "{code}"', timeout_s=60)
    assert result["exit_code"] != 0
    assert "quota" in str(result["stderr"]).lower() or "space" in str(result["stderr"]).lower()
    client.delete(f"/sandboxes/{box}")


def test_an_output_flood_keeps_the_tail_and_the_servers_memory(server: RunningServer, client: httpx2.Client) -> None:
    box = make(client)
    result = run(client, box, "head -c 200000000 /dev/zero | tr '\\0' a; echo end", timeout_s=60)
    assert result["exit_code"] == 0
    assert str(result["stdout"]).endswith("aend\n")
    assert result["stdout_dropped_bytes"] == 200_000_004 - 10 * 1024 * 1024
    client.delete(f"/sandboxes/{box}")


def test_a_reader_that_stops_reading_blocks_only_its_command(server: RunningServer, client: httpx2.Client) -> None:
    box = make(client)
    body = {"command": "yes"}
    with server.client() as slow, slow.stream("POST", f"/sandboxes/{box}/exec/stream", json=body) as stream:
        iterator = stream.iter_raw(1024)
        next(iterator)
        time.sleep(2)
        assert run(client, box, "echo fine")["stdout"] == "fine\n"
    deadline = time.monotonic() + 10
    while "yes" in str(run(client, box, "cat /proc/[0-9]*/comm")["stdout"]).split():
        assert time.monotonic() < deadline, "the abandoned command still runs"
        time.sleep(0.1)
    client.delete(f"/sandboxes/{box}")


def test_a_child_that_keeps_the_pipe_open_does_not_hold_the_answer(client: httpx2.Client, sandbox: str) -> None:
    started = time.monotonic()
    result = run(client, sandbox, "sleep 300 & echo done")
    assert result["stdout"] == "done\n"
    assert time.monotonic() - started < 5


def test_ignored_signals_do_not_prolong_a_command(client: httpx2.Client, sandbox: str) -> None:
    started = time.monotonic()
    result = run(client, sandbox, "trap '' TERM INT HUP; while :; do :; done", timeout_s=1)
    assert result["why"] == "timeout"
    assert result["exit_code"] == 124
    assert time.monotonic() - started < 5


def test_a_stopped_process_is_killed_at_its_deadline(client: httpx2.Client, sandbox: str) -> None:
    assert run(client, sandbox, "kill -STOP $$", timeout_s=1)["why"] == "timeout"


def test_zombies_are_reaped(client: httpx2.Client, sandbox: str) -> None:
    run(client, sandbox, "for i in $(seq 300); do (sleep 0 &) ; done; sleep 0.5")
    states = str(run(client, sandbox, "cat /proc/[0-9]*/stat | awk '{print $3}'")["stdout"]).split()
    assert states.count("Z") <= 1, states


def test_huge_arguments_and_environments_are_refused_or_reported(client: httpx2.Client, sandbox: str) -> None:
    answer = client.post(f"/sandboxes/{sandbox}/exec", json={"command": ["echo", "x" * 1_500_000]})
    assert answer.status_code in {200, 400, 413}
    if answer.status_code == 200:
        assert answer.json()["exit_code"] in {126, 127}
    big = {f"V{n}": "x" * 200 for n in range(1001)}
    answer = client.post(f"/sandboxes/{sandbox}/exec", json={"command": "true", "env": big})
    assert answer.status_code in {400, 413}
    assert answer.json()["field"].startswith("env")


def test_a_cpu_hog_gets_its_share_and_no_more(client: httpx2.Client) -> None:
    box = make(client, cpus=0.2)
    started = time.monotonic()
    result = run(client, box, "timeout 2 sh -c 'while :; do :; done'", timeout_s=20)
    wall = time.monotonic() - started
    client.delete(f"/sandboxes/{box}")
    assert float(str(result["cpu_ms"])) / 1000 < 0.2 * wall + 0.3


def test_an_fd_bomb_meets_its_limit(client: httpx2.Client, sandbox: str) -> None:
    code = "import os\nfs=[]\nwhile True: fs.append(os.open('/dev/null',0))"
    result = run(client, sandbox, f'python3 -c "{code}"')
    assert "Too many open files" in str(result["stderr"])
