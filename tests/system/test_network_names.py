"""The resolver and both proxies in a real router, before a world of the test's own; a process stands for a sandbox.

What sandboxes themselves can try: tests/security/test_network_*.py. Here each layer is asked directly, and quickly.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TypeVar

import dns.message
import dns.rdatatype
import pytest

from cove.engine.config import RUN_ROOT
from cove.engine.network.netns import NetNs
from cove.engine.network.service import SandboxNetwork, open_network
from cove.engine.network.topology import NetworkConfig
from cove.model.network import OPEN_NETWORK, NetworkMode, NetworkPolicy, NetworkRule, Refusal, Verdict
from world_support import EVIL, GOOD, OTHER, RESOLVER, World

pytestmark = pytest.mark.real

T = TypeVar("T")
GATEWAY = "169.254.1.1"
LIMIT_S = 20.0


def policy(*allow: str, deny: tuple[str, ...] = ()) -> NetworkPolicy:
    rules = [NetworkRule(verdict=Verdict.DENY, target=target) for target in deny]
    rules += [NetworkRule(verdict=Verdict.ALLOW, target=target) for target in allow]
    return NetworkPolicy(mode=NetworkMode.POLICY, rules=tuple(rules))


class Inside:
    """What a program in the sandbox can do, as blocking calls in its network namespace."""

    def __init__(self, network: SandboxNetwork, space: NetNs, world: World) -> None:
        self.network = network
        self.world = world
        self.refusals: list[Refusal] = []
        self._space = space
        network.on_refusal = self.refusals.append

    async def may(self, rules: NetworkPolicy) -> None:
        """Apply a policy, and start to look anew."""
        await self.network.apply("box", rules, {})
        self.refusals.clear()
        self.world.forget()

    async def run(self, work: Callable[[], T]) -> T:
        return await self._space.run(work)

    async def ask(self, name: str, kind: str = "A", *, tcp: bool = False) -> dns.message.Message:
        query = dns.message.make_query(name, kind, use_edns=True)
        wire = query.to_wire()

        def by_udp() -> bytes:
            with socket.socket(type=socket.SOCK_DGRAM) as sock:
                sock.settimeout(6)
                sock.connect((GATEWAY, 53))
                sock.send(wire)
                return sock.recv(65535)

        def by_tcp() -> bytes:
            with socket.create_connection((GATEWAY, 53), 6) as sock, sock.makefile("rb") as file:
                sock.sendall(struct.pack("!H", len(wire)) + wire)
                (length,) = struct.unpack("!H", file.read(2))
                return file.read(length)

        answer = dns.message.from_wire(await self.run(by_tcp if tcp else by_udp))
        assert answer.id == query.id
        return answer

    async def addresses(self, name: str, *, tcp: bool = False) -> list[str]:
        answer = await self.ask(name, tcp=tcp)
        return sorted(item.to_text() for rrset in answer.answer for item in rrset if rrset.rdtype == dns.rdatatype.A)

    async def talk(self, address: str, port: int, data: bytes = b"") -> bytes:
        """Connect, say something, and hear until the end. Raises: OSError."""

        def work() -> bytes:
            with socket.create_connection((address, port), LIMIT_S) as sock:
                sock.settimeout(LIMIT_S)
                sock.sendall(data)
                heard = b""
                while piece := sock.recv(65536):
                    heard += piece
                return heard

        return await self.run(work)

    async def get(self, address: str, host: str, port: int = 80) -> bytes:
        """The status and the body of an HTTP answer of `address`, asked for `host`. Raises: OSError."""

        def work() -> bytes:
            with contextlib.closing(http.client.HTTPConnection(address, port, timeout=LIMIT_S)) as connection:
                connection.request("GET", "/", headers={"Host": host})
                answer = connection.getresponse()
                return b"%d %s" % (answer.status, answer.read())

        return await self.run(work)

    async def secure(self, address: str, name: str | None, port: int = 443) -> str:
        """The names in the certificate that `address` shows when it is asked for `name`. Raises: OSError."""

        def work() -> str:
            context = ssl.create_default_context(cafile=str(self.world.ca_file))
            context.check_hostname = False
            with (
                socket.create_connection((address, port), LIMIT_S) as sock,
                context.wrap_socket(sock, server_hostname=name) as tls,
            ):
                return str(tls.getpeercert())

        return await self.run(work)

    async def until_refused(self) -> Refusal:
        async with asyncio.timeout(60):
            while not self.refusals:
                await asyncio.sleep(0.01)
        return self.refusals[-1]


@pytest.fixture
async def inside(world: World, tmp_path: Path) -> AsyncGenerator[Inside]:
    """A process with a network namespace, joined to a router of the test's own."""
    instance = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]
    config = NetworkConfig(
        instance=instance, run_dir=RUN_ROOT / instance, outside=Path(world.outside.path), resolvers=(RESOLVER,)
    )
    config.run_dir.mkdir(parents=True)
    with subprocess.Popen(["unshare", "--net", "sleep", "1000"]) as process:  # noqa: ASYNC220 - 2 ms
        path = Path(f"/proc/{process.pid}/ns/net")
        while path.stat().st_ino == Path("/proc/self/ns/net").stat().st_ino:
            await asyncio.sleep(0.005)
        space = NetNs(path, "inside")
        try:
            async with open_network(config) as network:
                assert network.missing == ()
                await network.join("box", process.pid)
                world.forget()
                yield Inside(network, space, world)
                await network.leave("box")
                await network.release()
        finally:
            space.close()
            process.send_signal(signal.SIGKILL)
            shutil.rmtree(config.run_dir, ignore_errors=True)


async def test_names_resolve_under_the_policy_and_nothing_else_leaves(inside: Inside) -> None:
    await inside.may(policy("good.example", "tcp-only.example", "huge.example"))
    for tcp in (False, True):
        assert await inside.addresses("good.example", tcp=tcp) == [GOOD]
        assert await inside.addresses("GOOD.Example.", tcp=tcp) == [GOOD]
        refused = await inside.ask("secret.tunnel.example", tcp=tcp)
        assert refused.rcode() == 3
        assert "default: deny" in refused.to_text()
    assert await inside.addresses("tcp-only.example") == [GOOD]
    assert (await inside.ask("good.example", "AAAA")).answer == []
    assert (await inside.ask("good.example", "TXT")).answer == []
    assert {query.name for query in inside.world.dns.asked} == {"good.example", "tcp-only.example"}
    refusal = await inside.until_refused()
    assert (refusal.layer, refusal.name, refusal.rule) == ("dns", "secret.tunnel.example", "default: deny")


@pytest.mark.parametrize(
    "name", ["metadata.example", "metadata.google.internal", "loopback.example", "private.example", "host.example",
             "cname-private.example", "mapped.example"]
)  # fmt: skip
async def test_answers_that_point_inwards_bring_nothing(inside: Inside, name: str) -> None:
    await inside.may(OPEN_NETWORK)
    answer = await inside.ask(name)
    assert answer.answer == [] or {rrset.rdtype for rrset in answer.answer} == {dns.rdatatype.CNAME}


async def test_hostile_answers_neither_arrive_nor_stop_the_others(inside: Inside) -> None:
    await inside.may(OPEN_NETWORK)
    start = time.monotonic()
    for name in ("pointer-loop.example", "garbage.example", "poison.example", "huge.example"):
        answer = await inside.ask(name)
        found = {item.to_text() for rrset in answer.answer for item in rrset if rrset.rdtype == dns.rdatatype.A}
        assert all(one.startswith("11.0.0.") for one in found)
    assert await inside.addresses("good.example") == [GOOD]
    assert await inside.addresses("half-private.example") == [GOOD]
    assert time.monotonic() - start < 60
    assert (await inside.ask("cname-loop.example")).rcode() == 2


async def test_a_name_that_leads_to_a_denied_one_is_refused(inside: Inside) -> None:
    await inside.may(policy("*", deny=("evil.example",)))
    assert await inside.addresses("cname-good.example") == [GOOD]
    assert (await inside.ask("cname-denied.example")).rcode() == 3


async def test_tls_is_judged_by_its_server_name_and_dialled_where_we_resolve_it(inside: Inside) -> None:
    await inside.may(policy("good.example"))
    assert "good.example" in await inside.secure(GOOD, "good.example")
    assert "good.example" in await inside.secure(EVIL, "good.example"), "the client's address does not count"
    assert inside.world.seen_at(EVIL) == []
    for name in ("evil.example", "fronted.example", None):
        with pytest.raises(OSError, match=r"(?i)alert|reset"):  # at once: nothing waits until it is given up
            await inside.secure(GOOD, name)
    assert {one.sni for one in inside.world.seen} == {"good.example"}
    refusal = await inside.until_refused()
    assert (refusal.layer, refusal.port, refusal.rule) == ("proxy", 443, "default: deny")


async def test_http_is_judged_by_each_requests_host(inside: Inside) -> None:
    await inside.may(policy("good.example"))
    assert b"of-this-host" in await inside.get(GOOD, "good.example")
    assert b'"at": "11.0.0.10"' in await inside.get(EVIL, "good.example")
    for host in ("evil.example", "169.254.169.254", "10.0.0.5"):
        with pytest.raises(ConnectionResetError):
            await inside.get(GOOD, host)
    both = b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\nGET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    for data in (both, b"GET http://evil.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n"):
        with pytest.raises(ConnectionResetError):
            await inside.talk(GOOD, 80, data)
    assert inside.world.seen_at(EVIL) == []


async def test_other_ports_are_open_for_the_addresses_that_a_name_brought(inside: Inside) -> None:
    await inside.may(policy("good.example"))
    with pytest.raises(OSError, match=r"(?i)refused|unreachable|prohibited|no route"):
        await inside.get(GOOD, "good.example", 8080)
    assert await inside.addresses("good.example") == [GOOD]
    assert b"of-this-host" in await inside.get(GOOD, "good.example", 8080)
    with pytest.raises(OSError, match=r"(?i)refused|unreachable|prohibited|no route"):
        await inside.get(OTHER, "good.example", 8080)


async def test_only_what_was_redirected_is_taken(inside: Inside) -> None:
    await inside.may(OPEN_NETWORK)
    with pytest.raises(OSError, match=r"(?i)refused|reset|prohibited|no route"):
        await inside.talk(GATEWAY, 3129, b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n")


async def test_the_proxy_that_programs_ask_knows_patterns_and_every_port(inside: Inside) -> None:
    await inside.may(policy("re:g[o]+d\\.example"))
    whole = b"GET http://good.example:8080/ HTTP/1.1\r\nHost: good.example:8080\r\nConnection: close\r\n\r\n"
    assert b"of-this-host" in await inside.talk(GATEWAY, 3128, whole)
    tunnel = b"CONNECT %s HTTP/1.1\r\nHost: good.example\r\n\r\n"
    for target in (
        b"evil.example:443",
        b"169.254.169.254:80",
        b"11.0.0.10:443",
        b"[fd00:ec2::254]:80",
        b"0xa9fea9fe:80",
    ):
        assert (await inside.talk(GATEWAY, 3128, tunnel % target)).startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 "))

    def through() -> bytes:
        with socket.create_connection((GATEWAY, 3128), LIMIT_S) as sock:
            sock.sendall(tunnel % b"good.example:9999")
            assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
            sock.sendall(b"\0echo")
            return sock.recv(100)

    assert await inside.run(through) == b"\0echo"


async def test_a_change_cuts_proxied_connections_that_it_forbids(inside: Inside) -> None:
    await inside.may(policy("good.example", "other.example"))
    context = ssl.create_default_context(cafile=str(inside.world.ca_file))

    def connect(name: str, address: str) -> ssl.SSLSocket:
        return context.wrap_socket(socket.create_connection((address, 443), LIMIT_S), server_hostname=name)

    kept = await inside.run(lambda: connect("good.example", GOOD))
    cut = await inside.run(lambda: connect("other.example", OTHER))
    with kept, cut:
        await inside.may(policy("good.example"))

        def hear() -> bytes:
            kept.sendall(b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n")
            return kept.recv(1000)

        with contextlib.suppress(ConnectionResetError):  # OpenSSL tells of a reset as of an end
            assert await inside.run(lambda: cut.recv(1)) == b""
        assert (await inside.run(hear)).startswith(b"HTTP/1.1 200 ")


async def test_a_flood_of_questions_does_not_keep_the_server_from_working(inside: Inside) -> None:
    await inside.may(policy("good.example"))

    def flood() -> int:
        query = dns.message.make_query("x.tunnel.example", "A").to_wire()
        sent, end = 0, time.monotonic() + 1
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.connect((GATEWAY, 53))
            while time.monotonic() < end:
                with contextlib.suppress(OSError):
                    sent += sock.send(query) > 0
        return sent

    worst = 0.0
    async with asyncio.TaskGroup() as tasks:
        flooding = tasks.create_task(inside.run(flood))
        while not flooding.done():
            start = time.monotonic()
            await asyncio.sleep(0.01)
            worst = max(worst, time.monotonic() - start - 0.01)
    assert flooding.result() > 1000
    assert worst < 0.8, f"the loop stood still for {worst * 1000:.0f} ms"
    await asyncio.sleep(0.3)
    assert await inside.addresses("good.example") == [GOOD]
    assert not any(query.name == "x.tunnel.example" for query in inside.world.dns.asked)
