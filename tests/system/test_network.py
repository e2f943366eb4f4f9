"""Connected sandboxes, end to end: what they have inside, what outlives the server, what is left when all is gone.

What they may reach is in `tests/security/test_network_*.py`; here it is that they reach anything at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from cove.engine.network.netns import NetNs
from cove.engine.network.router import box_links
from cove.engine.network.rtnetlink import End, RtNetlink, new_pair
from tests_support import NewServer, RunningServer
from waiting_support import until
from world_namespace_support import Namespace
from world_support import GOOD, World

pytestmark = pytest.mark.real

DRIVERS = ("runc", "crun", "gvisor")
OPEN = {"mode": "open"}
STRAY = 60000
PING = f"""python3 -c '
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
s.settimeout(5)
s.sendto(struct.pack("!BBHHH", 8, 0, 0, 0, 1) + b"hello", ("{GOOD}", 0))
print(s.recv(100)[-5:].decode())'"""


class Boxes:
    """Sandboxes of a server, deleted at the end."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.client = server.client()
        self.made: list[str] = []

    def make(self, network: dict[str, object] | None = None, **more: object) -> str:
        answer = self.client.post("/sandboxes", json={"network": network, **more})
        assert answer.status_code == 201, answer.text
        self.made.append(str(answer.json()["id"]))
        return self.made[-1]

    def run(self, box: str, command: str) -> tuple[int, str]:
        answer = self.client.post(f"/sandboxes/{box}/exec", json={"command": command, "timeout_s": 30})
        assert answer.status_code == 200, answer.text
        done = answer.json()
        return done["exit_code"], done["stdout"] + done["stderr"]

    def said(self, box: str, command: str) -> str:
        code, text = self.run(box, command)
        assert code == 0, (command, text)
        return text

    def set(self, box: str, network: dict[str, object]) -> None:
        answer = self.client.put(f"/sandboxes/{box}/network", json=network)
        assert answer.status_code == 200, answer.text

    def seen(self, box: str) -> dict[str, object]:
        answer = self.client.get(f"/sandboxes/{box}/network")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def interfaces(self, box: str) -> set[str]:
        return {line.split(":")[0].strip() for line in self.said(box, "cat /proc/net/dev").splitlines()[2:]}

    def drop(self) -> None:
        for box in self.made:
            self.client.delete(f"/sandboxes/{box}")
        self.made.clear()

    def again(self) -> None:
        """The server was started again."""
        self.client.close()
        self.client = self.server.client()


@pytest.fixture
def boxes(world_server: RunningServer) -> Iterator[Boxes]:
    made = Boxes(world_server)
    yield made
    made.drop()
    made.client.close()


@pytest.fixture
def mortal(new_server: NewServer, world: World) -> Iterator[Boxes]:
    """Of a server that the test may kill."""
    made = Boxes(new_server(COVE_POOL_SIZE="1", **world.settings))
    yield made
    made.client.close()


@contextmanager
def router_of(server: RunningServer) -> Iterator[NetNs]:
    """The server's router, also while the server is dead."""
    assert server.process is not None
    space = NetNs(Path(f"/proc/{server.process.pid}/root{server.run_dir}/router"), "look")
    try:
        yield space
    finally:
        space.close()


def router_links(server: RunningServer) -> set[int]:
    """The numbers of the boxes with an interface in the server's router."""
    with router_of(server) as space:
        return set(space.call(box_links))


def make_stray() -> None:
    """An interface as of a box, which is nobody's."""
    with RtNetlink() as kernel:
        kernel.change(new_pair(End(name=f"sv{STRAY}", index=61000), End(name="stray", is_up=False)))


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_open_sandbox_reaches_the_internet_by_address_and_by_name(boxes: Boxes, driver: str) -> None:
    box = boxes.make(OPEN, driver=driver)
    assert GOOD in boxes.said(box, f"curl -sS -m 10 http://{GOOD}/")
    assert GOOD in boxes.said(box, "curl -sS -m 10 http://good.example/")
    assert boxes.said(box, PING).strip() == "hello"
    isolation = boxes.client.get(f"/sandboxes/{box}").json()["isolation"]
    assert (isolation["network"], isolation["missing"]) == ("open", [])


@pytest.mark.parametrize("driver", ["runc", "crun"])
def test_without_a_network_there_is_no_interface_whoever_was_connected_before(boxes: Boxes, driver: str) -> None:
    for _ in range(3):
        boxes.make(OPEN, driver=driver)
        assert boxes.interfaces(boxes.make(driver=driver)) == {"lo"}


def test_inside_are_one_address_one_resolver_and_no_ipv6(boxes: Boxes) -> None:
    box = boxes.make(OPEN)
    address = boxes.seen(box)["address"]
    assert boxes.interfaces(box) == {"lo", "eth0"}
    assert f"inet {address}/32" in boxes.said(box, "ip -4 addr show eth0")
    assert boxes.said(box, "ip -6 addr show eth0") == ""
    assert "nameserver 169.254.1.1\n" in boxes.said(box, "cat /etc/resolv.conf")
    assert boxes.run(box, "ip link set eth0 down")[0] != 0
    assert boxes.run(box, "ip addr add 10.213.9.9/32 dev eth0")[0] != 0
    assert boxes.said(box, "echo nameserver 1.2.3.4 > /etc/resolv.conf && cat /etc/resolv.conf").split()[1] == "1.2.3.4"


def test_a_network_is_given_taken_and_given_again_while_it_runs(boxes: Boxes) -> None:
    box = boxes.make()
    assert boxes.run(box, f"curl -sS -m 5 http://{GOOD}/")[0] == 7
    boxes.set(box, OPEN)
    assert GOOD in boxes.said(box, f"curl -sS -m 10 http://{GOOD}/")
    boxes.set(box, {"mode": "none"})
    assert boxes.run(box, f"curl -sS -m 5 http://{GOOD}/")[0] != 0
    boxes.set(box, OPEN)
    assert GOOD in boxes.said(box, f"curl -sS -m 10 http://{GOOD}/")


def test_bandwidth_is_limited_in_each_direction_and_live(boxes: Boxes) -> None:
    box = boxes.make({**OPEN, "bandwidth_mbps": 0.5})
    size = 600_000
    both = (
        f"curl -sS -m 30 -o /dev/null 'http://{GOOD}/bytes?n={size}'",
        f"head -c {size} /dev/zero | curl -sS -m 30 -o /dev/null --data-binary @- http://{GOOD}/",
    )

    def seconds() -> list[float]:
        taken: list[float] = []
        for command in both:
            began = time.monotonic()
            boxes.said(box, command)
            taken.append(time.monotonic() - began)
        return taken

    limited = seconds()
    boxes.set(box, OPEN)
    assert min(limited) > 0.8, limited
    assert max(seconds()) < 0.8 * min(limited)


def test_each_of_many_has_an_address_of_its_own_and_leaves_nothing(boxes: Boxes) -> None:
    before = router_links(boxes.server) if boxes.made or boxes.make(OPEN) else set[int]()
    with ThreadPoolExecutor(6) as threads:
        made = list(threads.map(lambda _: boxes.make(OPEN, driver="crun"), range(12)))
    addresses = {str(boxes.seen(box)["address"]) for box in made}
    assert len(addresses) == 12
    numbers = {int(address.rpartition(".")[2]) for address in addresses}
    assert numbers <= router_links(boxes.server)
    boxes.drop()
    until(lambda: not numbers & router_links(boxes.server))
    assert len(router_links(boxes.server)) <= len(before) + 4  # of the pool's members some may have one by now


def test_what_was_refused_a_moment_before_the_end_is_on_record(boxes: Boxes) -> None:
    made = [boxes.make(OPEN) for _ in range(4)]
    for box in made:
        assert boxes.run(box, "curl -sS -m 5 http://10.0.0.5/")[0] == 7
        boxes.client.delete(f"/sandboxes/{box}")
    for box in made:
        answer = boxes.client.get("/audit", params={"sandbox": box, "event": "network.blocked"})
        assert [line["data"]["ip"] for line in answer.json()["lines"]] == ["10.0.0.5"], answer.text


def test_connections_and_counts_survive_a_killed_server_and_stray_interfaces_do_not(mortal: Boxes) -> None:
    box = mortal.make(OPEN)
    # The pool's one member has an interface already now, which goes where none is wanted.
    until(lambda: len(router_links(mortal.server)) == 2)
    assert mortal.interfaces(mortal.make()) == {"lo"}
    flow = f"""
import socket, time
s = socket.create_connection(("{GOOD}", 9999), 5)
s.settimeout(5)
for n in range(200):
    s.sendall(b"x")
    assert s.recv(1) == b"x"
    open("/tmp/beat", "w").write(str(n))
    time.sleep(0.05)
"""
    mortal.client.put(f"/sandboxes/{box}/files/content", params={"path": "/root/flow.py"}, content=flow.encode())
    mortal.said(box, "nohup python3 /root/flow.py >/tmp/out 2>&1 & sleep 0.5; cat /tmp/beat")
    before = mortal.seen(box)
    with router_of(mortal.server) as space:
        mortal.server.kill()
        space.call(make_stray)
    time.sleep(0.7)
    mortal.server.start()
    mortal.again()
    until(lambda: STRAY not in router_links(mortal.server))
    first = int(mortal.said(box, "cat /tmp/beat"))
    assert first > 10, "the connection waited for the server"
    until(lambda: int(mortal.said(box, "cat /tmp/beat")) > first + 5)
    assert mortal.said(box, "cat /tmp/out") == ""
    after = mortal.seen(box)
    assert after["address"] == before["address"]
    assert int(str(after["sent_bytes"])) > int(str(before["sent_bytes"])) > 0
    assert GOOD in mortal.said(box, "curl -sS -m 10 http://good.example/")


def test_when_all_is_taken_down_the_outside_is_as_it_was(new_server: NewServer, world: World) -> None:
    def outside() -> tuple[str, ...]:
        return (
            world.outside.command("ip", "-br", "link"),
            world.outside.command("nft", "list", "ruleset"),
            world.outside.command("cat", "/proc/sys/net/ipv4/ip_forward"),
        )

    before = outside()
    one, two = (Boxes(new_server(COVE_POOL_SIZE="0", COVE_DRIVERS="crun", **world.settings)) for _ in range(2))
    boxes = one.make(OPEN), two.make(OPEN)
    for server, box in zip((one, two), boxes, strict=True):
        assert GOOD in server.said(box, f"curl -sS -m 10 http://{GOOD}/")
    assert outside() != before
    one.server.down()
    assert GOOD in two.said(boxes[1], f"curl -sS -m 10 http://{GOOD}/")
    assert world.outside.command("cat", "/proc/sys/net/ipv4/ip_forward").strip() == "1"
    two.server.down()
    assert outside() == before
    for server in (one, two):
        server.client.close()


def test_another_outside_is_taken_at_the_next_start_and_the_first_one_left(mortal: Boxes, world: World) -> None:
    box = mortal.make(OPEN)
    table = f"cove_{mortal.server.instance}"
    assert table in world.outside.command("nft", "list", "tables")
    elsewhere = Namespace()
    try:
        mortal.server.stop()
        mortal.server.env["COVE_NETWORK_OUTSIDE"] = elsewhere.path
        mortal.server.start()
        mortal.again()
        assert table not in world.outside.command("nft", "list", "tables")
        assert table in elsewhere.command("nft", "list", "tables")
        assert mortal.run(box, f"curl -sS -m 2 http://{GOOD}/")[0] != 0
        mortal.server.stop()
    finally:
        elsewhere.close()
    mortal.server.start()  # its outside is gone: it works all the same, without a network
    mortal.again()
    assert mortal.client.post("/sandboxes", json={"network": OPEN}).status_code == 501
    assert mortal.interfaces(mortal.make()) == {"lo"}


def test_what_an_administrator_flushes_or_deletes_of_the_way_out_is_put_back(boxes: Boxes, world: World) -> None:
    box = boxes.make(OPEN)
    link = f"cv-{boxes.server.instance}"

    def is_whole() -> bool:
        rules = world.outside.command("nft", "list", "ruleset")
        return f"cove_{boxes.server.instance}" in rules and "cove_forwarding" in rules and f'"{link}" masq' in rules

    until(is_whole)
    world.outside.command("nft", "flush", "ruleset")
    until(is_whole)
    assert GOOD in boxes.said(box, f"curl -sS -m 10 http://{GOOD}/")
    world.outside.command("ip", "link", "delete", link)
    until(lambda: link in world.outside.command("ip", "-br", "link"))
    until(lambda: boxes.run(box, f"curl -sS -m 2 http://{GOOD}/")[0] == 0)


def test_where_the_operator_has_no_network_a_create_says_why(new_server: NewServer) -> None:
    with new_server(COVE_NETWORK="0", COVE_POOL_SIZE="1").client() as client:
        refused = client.post("/sandboxes", json={"network": OPEN})
        assert (refused.status_code, refused.json()["field"]) == (501, "network"), refused.text
        assert "COVE_NETWORK" in refused.text
        made: httpx2.Response = client.post("/sandboxes", json={})
        assert made.status_code == 201
        assert any("no network" in one for one in made.json()["isolation"]["missing"])
