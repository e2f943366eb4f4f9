"""The sandboxes' network: what a policy costs at create, in names and in bytes, beside a plain veth pair.

Everything happens in a world of namespaces (tests/world_support.py): the machine's own network is not in it. The same
two programs send and take bytes everywhere; the plain pair joins two namespaces with nothing between them.
`python -m bench.network` runs this part alone.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.common import Api, Report, RunningServer, quantiles, wait_pool
from world_namespace_support import Namespace, wire
from world_support import GOOD, OTHER, OUTSIDE, RESOLVER, World, running_world

POOL = 32
BOXES, RULES = 500, 30
SINK_PORT = 5201
PLAIN_NEAR, PLAIN_FAR = "10.99.0.1", "10.99.0.2"

POLICY = {
    "mode": "policy",
    "rules": [
        {"action": "allow", "target": f"{GOOD}/32"},
        {"action": "allow", "target": f"{OUTSIDE}/32"},
        {"action": "allow", "target": "*.wild.example"},
        *({"action": "deny", "target": f"deny{n}.example"} for n in range(3)),
        *({"action": "allow", "target": f"20.{n}.0.0/16"} for n in range(4)),
    ],
}
"""Ten rules, as an agent's list of hosts has them."""

SINK = """
import socket, sys
s = socket.create_server(("0.0.0.0", int(sys.argv[1])), backlog=64)
room = bytearray(1 << 20)
while True:
    c, _ = s.accept()
    total = 0
    while count := c.recv_into(room):
        total += count
    c.sendall(str(total).encode())
    c.close()
"""
"""Takes bytes to the end of a connection, then says how many."""

SEND = """
import socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
block = bytes(1 << 20)
began = time.perf_counter()
end = began + float(sys.argv[3])
while time.perf_counter() < end:
    s.sendall(block)
s.shutdown(socket.SHUT_WR)
taken = int(s.recv(100))
print(taken / (time.perf_counter() - began))
"""
"""Bytes per second that a sink took."""

ROUND = """
import socket, statistics, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], 9999))
s.settimeout(5)
times = []
for _ in range(int(sys.argv[2])):
    began = time.perf_counter()
    s.send(b"x")
    s.recv(10)
    times.append(time.perf_counter() - began)
print(statistics.median(times))
"""

ASK = """
import socket, statistics, struct, sys, time
server, first, count, fresh = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "fresh"
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((server, 53))
s.settimeout(5)
times = []
for n in range(count):
    label = (first + str(n if fresh else 0)).encode()
    name = bytes([len(label)]) + label + b"\\x04wild\\x07example\\0"
    began = time.perf_counter()
    s.send(struct.pack("!6H", n, 256, 1, 0, 0, 0) + name + struct.pack("!2H", 1, 1))
    answer = s.recv(1000)
    times.append(time.perf_counter() - began)
    assert answer[7] == 1, "no address came"
    time.sleep(0.006)  # below the 200 questions a second that one sandbox may ask
print(statistics.median(times))
"""

FETCH = """
import socket, sys, time
s = socket.create_connection((sys.argv[1], 80))
s.sendall(b"GET /bytes?n=%d HTTP/1.1\\r\\nHost: %s\\r\\nConnection: close\\r\\n\\r\\n"
          % (int(sys.argv[3]), sys.argv[2].encode()))
room = bytearray(1 << 20)
began = time.perf_counter()
total = 0
while total < int(sys.argv[3]) and (count := s.recv_into(room)):
    total += count
assert total >= int(sys.argv[3]), total
print(total / (time.perf_counter() - began))
"""


def bench_network(report: Report, folder: Path, scale: int) -> None:
    """All of it."""
    with running_world(folder) as world:
        # The sink listens where both the router and the plain pair end, so nothing of the rig is in between.
        opened = f"{OUTSIDE}/32:{SINK_PORT}"
        server = world.server(folder, COVE_POOL_SIZE=str(POOL), COVE_DRIVERS="runc", COVE_NETWORK_OPENED_RANGES=opened)
        server.start()
        try:
            api = Api(server)
            bench_create(report, api, 100 // scale)
            bench_changes(report, api, 200 // scale)
            bench_names(report, world, api, 500 // scale)
            bench_bytes(report, world, server, api, scale)
        finally:
            server.down()


def bench_create(report: Report, api: Api, rounds: int) -> None:
    """Warm creates with a policy and without, by turns so that both see the same noise."""
    seen: dict[str, list[float]] = {"none": [], "policy": []}
    for turn in range(2 * rounds):
        kind = ("none", "policy")[turn % 2]
        wait_pool(api, POOL)
        start = time.perf_counter()
        box = api.call("POST", "/sandboxes", {"network": POLICY} if kind == "policy" else {})
        took = time.perf_counter() - start
        if box["source"] == "warm":
            seen[kind].append(took)
        api.call("DELETE", f"/sandboxes/{box['id']}")
    without, with_policy = quantiles(seen["none"]), quantiles(seen["policy"])
    report.add("create, warm, without a network", "beside it", f"p50 {without[0]:.2f}  p99 {without[1]:.2f} ms")
    added = with_policy[0] - without[0]
    report.add(
        "create, warm, with a policy of 10 rules",
        "p50 <= 0.5 ms added",
        f"p50 {with_policy[0]:.2f} (+{added:.2f})  p99 {with_policy[1]:.2f} ms",
        ok=added <= 0.5,
    )


def bench_changes(report: Report, api: Api, rounds: int) -> None:
    """A living sandbox gets another policy."""
    box = api.call("POST", "/sandboxes", {"network": POLICY})
    other = {**POLICY, "rules": list(reversed(POLICY["rules"]))}  # type: ignore[call-overload]
    times: list[float] = []
    for turn in range(rounds):
        start = time.perf_counter()
        api.call("PUT", f"/sandboxes/{box['id']}/network", (POLICY, other)[turn % 2])
        times.append(time.perf_counter() - start)
    p50, p99 = quantiles(times)
    report.add("change the policy of a living sandbox", "-", f"p50 {p50:.2f}  p99 {p99:.2f} ms")
    api.call("DELETE", f"/sandboxes/{box['id']}")


def bench_names(report: Report, world: World, api: Api, count: int) -> None:
    """A question under a policy, beside the same program that asks the upstream resolver directly."""
    box = api.call("POST", "/sandboxes", {"network": POLICY})
    rounds: dict[str, list[float]] = {"direct": [], "fresh": [], "again": []}
    for turn in range(3):
        rounds["direct"].append(_outside(world.outside, ASK, RESOLVER, f"d{turn}x", str(count), "fresh"))
        for kind in ("fresh", "again"):
            rounds[kind].append(_inside(api, box, ASK, "169.254.1.1", f"{kind[0]}{turn}x", str(count), kind))
    direct, fresh, again = (min(rounds[kind]) * 1000 for kind in ("direct", "fresh", "again"))
    report.add("DNS, the upstream asked directly, p50", "beside it", f"{direct:.3f} ms")
    added = fresh - direct
    report.add("DNS under a policy, a new name, p50", "<= 1 ms added", f"{fresh:.3f} ms (+{added:.3f})", ok=added <= 1)
    report.add("DNS under a policy, a known name, p50", "-", f"{again:.3f} ms")
    api.call("DELETE", f"/sandboxes/{box['id']}")


def bench_bytes(report: Report, world: World, server: RunningServer, api: Api, scale: int) -> None:
    """From a sandbox to the world, beside a plain pair; then the same among the rules of 500 sandboxes."""
    seconds = str(3 / scale if scale < 10 else 0.5)
    box = api.call("POST", "/sandboxes", {"network": POLICY, "cpus": 2})
    with _plain(world.outside) as near, _program(world.outside, SINK, SINK_PORT):

        def ratio() -> tuple[float, float]:
            pairs = [
                (
                    _outside(near, SEND, PLAIN_FAR, str(SINK_PORT), seconds),
                    _inside(api, box, SEND, OUTSIDE, str(SINK_PORT), seconds),
                )
                for _ in range(5 if scale == 1 else 2)
            ]
            return statistics.median(plain for plain, _ in pairs), statistics.median(routed for _, routed in pairs)

        rtts = [_inside(api, box, ROUND, GOOD, "300") * 1e6]
        plain, routed = ratio()
        _tell_ratio(report, "bytes out of a sandbox, by the router", plain, routed)
        with _crowd(server, BOXES // scale) as each:
            what = f"packet rules of one sandbox of {BOXES // scale}, {RULES} rules"
            report.add(what, "p50 <= 0.5 ms", f"p50 {each * 1000:.3f} ms", ok=each <= 0.0005)
            plain, routed = ratio()
            rtts.append(_inside(api, box, ROUND, GOOD, "300") * 1e6)
        _tell_ratio(report, f"the same beside {BOXES // scale} sandboxes x {RULES} rules", plain, routed)
        what = f"{rtts[0]:.0f} us, beside {BOXES // scale} sandboxes {rtts[1]:.0f} us"
        report.add("datagram there and back, p50", "-", what)
        size = str(256 * 1024 * 1024 // scale)
        proxied = statistics.median(_inside(api, box, FETCH, OTHER, "a.wild.example", size) for _ in range(3))
        direct = statistics.median(_inside(api, box, FETCH, GOOD, GOOD, size) for _ in range(3))
        report.add("HTTP download, an address rule (no proxy)", "beside it", f"{direct / 1e6:.0f} MB/s")
        report.add("HTTP download, a name rule (proxy)", "-", f"{proxied / 1e6:.0f} MB/s")
    api.call("DELETE", f"/sandboxes/{box['id']}")


def _tell_ratio(report: Report, what: str, plain: float, routed: float) -> None:
    share = routed / plain
    seen = f"{share:.0%} ({routed / 1e6:.0f} of {plain / 1e6:.0f} MB/s)"
    report.add(what, ">= 90 % of a plain veth", seen, ok=share >= 0.9)


@contextmanager
def _plain(far: Namespace) -> Generator[Namespace]:
    """A namespace with a wire to `far`, and nothing else."""
    near = Namespace()
    wire(near, "plain", far, "plain")
    near.ip(f"addr add {PLAIN_NEAR}/30 dev plain")
    far.ip(f"addr add {PLAIN_FAR}/30 dev plain")
    try:
        yield near
    finally:
        near.close()


@contextmanager
def _program(where: Namespace, source: str, port: int) -> Generator[None]:
    """A program that serves, for the time of a `with`."""
    process = where.run(lambda: subprocess.Popen([sys.executable, "-c", source, str(port)]))
    time.sleep(0.3)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def _crowd(server: RunningServer, count: int) -> Generator[float]:
    """The rules of so many more sandboxes in the server's router. Yields the median seconds of putting one's there."""
    process = server.process
    assert process is not None
    argv = [sys.executable, "-m", "bench.crowd", str(process.pid), server.instance, str(count), str(RULES)]
    crowd = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert crowd.stdin is not None
    assert crowd.stdout is not None
    ready = crowd.stdout.readline()
    assert ready.startswith("ready"), "the crowd's rules were not made"
    try:
        yield float(ready.split()[1])
    finally:
        crowd.stdin.close()
        crowd.wait(120)


def _inside(api: Api, box: dict[str, object], source: str, *argv: str) -> float:
    body = {"command": ["python3", "-c", source, *argv], "timeout_s": 120}
    result = api.call("POST", f"/sandboxes/{box['id']}/exec", body)
    if result["exit_code"] != 0:
        sys.exit(f"a program in the sandbox failed: {json.dumps(result)[:1000]}")
    return float(str(result["stdout"]))


def _outside(where: Namespace, source: str, *argv: str) -> float:
    return float(where.command(sys.executable, "-c", source, *argv, timeout_s=120))


def main() -> None:
    """This part alone; `--quick` takes a tenth of the samples."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cove-bench-", dir="/var/tmp")))
        bench_network(Report(), folder, 10 if "--quick" in sys.argv else 1)


if __name__ == "__main__":
    main()
