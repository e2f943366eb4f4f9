"""Background commands in real sandboxes: every way to end is told, floods and slow readers cost nobody else."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests_support import SOAK, NewServer, RunningServer

pytestmark = pytest.mark.real


def events_of(lines: Iterator[str]) -> Iterator[tuple[str, str, dict[str, object]]]:
    """(id, name, data) of each event."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            yield fields.get("id", ""), fields["event"], json.loads(fields["data"])
            fields = {}


def start(client: httpx2.Client, box: str, command: str, **more: object) -> str:
    made = client.post(f"/sandboxes/{box}/commands", json={"command": command, **more})
    assert made.status_code == 201, made.text
    return f"/sandboxes/{box}/commands/{made.json()['id']}"


def last_event(client: httpx2.Client, path: str) -> tuple[str, dict[str, object]]:
    with client.stream("GET", f"{path}/output", params={"follow": "true"}) as answer:
        *_, last = events_of(answer.iter_lines())
    return last[1], last[2]


def rss_kib(server: RunningServer) -> int:
    assert server.process is not None
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def test_every_way_a_command_ends_is_the_last_event_of_its_stream(client: httpx2.Client) -> None:
    def ends(why: str) -> tuple[str, str, dict[str, object]]:
        box = client.post("/sandboxes", json={"memory_mib": 64}).json()["id"]
        command = {
            "exited": "echo hi; exit 3",
            "killed": "sleep 60",
            "timeout": "sleep 60",
            "oom": "python3 -c 'x = bytearray(200 << 20)'",
            "sandbox-gone": "sleep 60",
        }[why]
        path = start(client, box, command, **({"timeout_s": 0.5} if why == "timeout" else {}))
        timer = None
        if why == "killed":
            timer = threading.Timer(0.5, lambda: client.post(f"{path}/signal", json={"signal": "KILL"}))
        if why == "sandbox-gone":
            timer = threading.Timer(0.5, lambda: client.delete(f"/sandboxes/{box}"))
        if timer:
            timer.start()
        name, data = last_event(client, path)
        if why != "sandbox-gone":  # also when it is read again, after the end
            assert last_event(client, path) == (name, data)
        client.delete(f"/sandboxes/{box}")
        return why, name, data

    with ThreadPoolExecutor(5) as threads:
        whys = ("exited", "killed", "timeout", "oom", "sandbox-gone")
        for why, name, data in threads.map(ends, whys):
            assert (name, data["why"]) == ("exit", why), data


@pytest.mark.timeout(300)
def test_a_stopping_server_says_so_and_the_stream_goes_on_behind_it(new_server: NewServer) -> None:
    server = new_server()
    with server.client() as client:
        box = client.post("/sandboxes", json={"idle_timeout_s": None}).json()["id"]
        path = start(client, box, "for i in $(seq 60); do echo $i; sleep 0.05; done")
        text, last_id = "", ""
        for stopped in (True, False):
            head = {"Last-Event-ID": last_id} if last_id else {}
            stream = client.stream("GET", f"{path}/output", params={"follow": "true"}, headers=head)
            with stream as answer:
                for id_, name, data in events_of(answer.iter_lines()):
                    last_id = id_ or last_id
                    text += str(data["data"]) if name == "stdout" else ""
                    if stopped and server.process and text.count("\n") == 10:
                        server.process.terminate()
            if stopped:
                assert (name, data["code"], data["retryable"]) == ("error", "server-stopping", True)
                assert server.process is not None
                server.process.wait(60)
                server.start()
        assert (name, data["why"]) == ("exit", "exited")
        assert text.split() == [str(n) for n in range(1, 61)]


def test_a_child_that_inherits_the_output_does_not_keep_a_command_open(client: httpx2.Client, sandbox: str) -> None:
    # Case 39: `nohup … &` leaves a process behind that holds both pipes for ever.
    script = "nohup sh -c 'while :; do echo tick; sleep 0.05; done' & echo started"
    began = time.monotonic()
    done = client.post(f"/sandboxes/{sandbox}/exec", json={"command": script}).json()
    assert (done["exit_code"], done["why"]) == (0, "exited")
    path = start(client, sandbox, script)
    name, data = last_event(client, path)
    assert (name, data["why"]) == ("exit", "exited")
    assert client.post(f"{path}/wait", json={"timeout_s": 5}).json()["running"] is False
    with client.stream("POST", f"/sandboxes/{sandbox}/exec/stream", json={"command": script}) as answer:
        *_, last = events_of(answer.iter_lines())
    assert last[1] == "exit"
    assert time.monotonic() - began < 45
    ticking = client.post(f"/sandboxes/{sandbox}/exec", json={"command": "pgrep -fc 'echo tick' || cat /proc/*/comm"})
    assert ticking.json()["stdout"].strip() != "0", "the children live on"


@pytest.mark.timeout(600)
def test_a_flood_into_a_kept_command_is_never_held_up_by_its_slow_reader(
    server: RunningServer, client: httpx2.Client, sandbox: str
) -> None:
    # Case 37. The ring drops its oldest bytes; whoever reads too slowly is told how many.
    size = 1 << (30 if SOAK else 27)
    path = start(client, sandbox, f"head -c {size} /dev/zero", keep_bytes=65536)
    before = rss_kib(server)
    with client.stream("GET", f"{path}/output", params={"follow": "true", "encoding": "base64"}) as answer:
        lines = answer.iter_lines()
        next(lines)  # and then not again until the command has ended
        ended = client.post(f"{path}/wait", json={"timeout_s": 120}, timeout=130).json()
        assert (ended["running"], ended["cursor"]) == (False, size)
        assert rss_kib(server) - before < 16 * 1024
        *_, last = events_of(lines)
    assert (last[1], last[2]["cursor"]) == ("exit", size)
    page = client.get(f"{path}/output", params={"encoding": "base64"}).json()
    assert (page["lost_bytes"], page["cursor"]) == (size - 65536, size)


def test_a_reader_of_one_byte_a_second_costs_one_buffer(
    server: RunningServer, client: httpx2.Client, sandbox: str
) -> None:
    # Case 38. What it does not take waits in the sandbox: the command is held, the server's memory is not.
    before = rss_kib(server)
    readers = []
    for _ in range(8):
        reader = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = b'{"command":"yes"}'
        reader.sendall(
            b"POST /api/v1/sandboxes/%b/exec/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (sandbox.encode(), server.key.encode(), len(body), body)
        )
        readers.append(reader)
    for _ in range(2):
        time.sleep(1)
        assert all(len(reader.recv(1)) == 1 for reader in readers)
        began = time.monotonic()
        assert client.post(f"/sandboxes/{sandbox}/exec", json={"command": "echo ok"}).json()["stdout"] == "ok\n"
        assert time.monotonic() - began < 20
    # Eight times the credit of 1 MiB, what the connections hold, and the text that they become.
    assert rss_kib(server) - before < 64 * 1024
    for reader in readers:
        reader.close()
    deadline = time.monotonic() + 60
    look = {"command": "cat /proc/[0-9]*/comm"}
    while "yes" in client.post(f"/sandboxes/{sandbox}/exec", json=look).json()["stdout"].split():
        assert time.monotonic() < deadline, "a command whose reader left still runs"
        time.sleep(0.1)
