"""Terminals: from a keystroke to its echo over the WebSocket, and what open ones cost while nothing happens."""

from __future__ import annotations

import os
import pty
import subprocess
import termios
import time
from contextlib import ExitStack
from pathlib import Path

from websockets.sync.client import ClientConnection, connect

from bench.common import Api, Report, RunningServer, quantiles

ECHO_P50_MS = 3.0
IDLE_PERCENT = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")


def bench_terminals(report: Report, server: RunningServer, api: Api, rounds: int) -> None:
    """Echo by the terminal itself and by a line editor, both beside the same on a local terminal; then idling."""
    for what, command, local in (
        ("terminal", ["cat"], ["cat"]),
        ("bash", ["bash", "--norc"], ["bash", "--norc"]),
    ):
        here = quantiles(_local_echo(local, rounds))
        box = str(api.call("POST", "/sandboxes", {})["id"])
        with _attached(server, api, box, command) as peer:
            there = quantiles(_echo(peer, rounds))
        api.call("DELETE", f"/sandboxes/{box}")
        report.add(
            f"keystroke to echo by {what}, WebSocket",
            f"p50 <= {ECHO_P50_MS:g} ms",
            f"p50 {there[0]:.2f}  p99 {there[1]:.2f} ms",
            ok=there[0] <= ECHO_P50_MS,
        )
        report.add(f"peer: local terminal, echo by {what}", "-", f"p50 {here[0]:.3f}  p99 {here[1]:.3f} ms")
    _bench_idle(report, server, api, 100, 10.0)


def _attached(server: RunningServer, api: Api, box: str, command: list[str]) -> ClientConnection:
    made = api.call("POST", f"/sandboxes/{box}/terminals", {"command": command})
    url = f"ws://127.0.0.1:{server.port}/api/v1/sandboxes/{box}/terminals/{made['id']}/attach"
    return connect(
        url, additional_headers={"Authorization": f"Bearer {server.key}"}, compression=None, ping_interval=None
    )


def _echo(peer: ClientConnection, rounds: int) -> list[float]:
    _quiet(peer)
    samples = []
    for number in range(rounds + 20):
        if number % 40 == 0:  # a line editor redraws at the end of a line, which is not what is measured: erase it
            peer.send(b"\x15")
            _quiet(peer)
        start = time.perf_counter()
        peer.send(b"x")
        peer.recv(timeout=5)
        if number >= 20:
            samples.append(time.perf_counter() - start)
        time.sleep(0.002)
    return samples


def _quiet(peer: ClientConnection) -> None:
    """Until nothing more comes."""
    while True:
        try:
            peer.recv(timeout=0.3)
        except TimeoutError:
            return


def _local_echo(command: list[str], rounds: int) -> list[float]:
    """The same on a terminal of this process: what the kernel and the program alone take."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    program = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    time.sleep(0.5)
    samples = []
    try:
        for number in range(rounds):
            if number % 40 == 0:
                os.write(master, b"\x15")
                time.sleep(0.05)
                os.set_blocking(master, False)
                _drain(master)
                os.set_blocking(master, True)
            start = time.perf_counter()
            os.write(master, b"x")
            os.read(master, 4096)
            samples.append(time.perf_counter() - start)
            time.sleep(0.002)
    finally:
        os.close(master)
        program.kill()
        program.wait()
    return samples


def _drain(master: int) -> None:
    try:
        while os.read(master, 4096):
            pass
    except BlockingIOError:
        return


def _bench_idle(report: Report, server: RunningServer, api: Api, count: int, seconds: float) -> None:
    """`count` shells in ten sandboxes, a client at each, and nobody types."""
    boxes = [str(api.call("POST", "/sandboxes", {})["id"]) for _ in range(10)]
    with ExitStack() as stack:
        for number in range(count):
            stack.enter_context(_attached(server, api, boxes[number % 10], ["bash", "--norc"]))
        time.sleep(3)
        before, start = _cpu_s(server, api, boxes), time.perf_counter()
        time.sleep(seconds)
        used = (_cpu_s(server, api, boxes) - before) / (time.perf_counter() - start) * 100
    for box in boxes:
        api.call("DELETE", f"/sandboxes/{box}")
    report.add(
        f"{count} open terminals, idle: server and sandboxes",
        f"< {IDLE_PERCENT:g} % of a core",
        f"{used:.2f} %",
        ok=used < IDLE_PERCENT,
    )


def _cpu_s(server: RunningServer, api: Api, boxes: list[str]) -> float:
    assert server.process is not None
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    usages = [api.call("GET", f"/sandboxes/{box}")["usage"]["cpu_ms"] / 1000 for box in boxes]  # type: ignore[index,call-overload]
    return (int(fields[11]) + int(fields[12])) / _TICKS + sum(usages)
