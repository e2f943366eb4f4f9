"""The packet rules with real packets: a router, two boxes and a world, each a namespace. No sandbox, no server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cove.engine.network import baseline, conntrack
from cove.engine.network.baseline import Baseline
from cove.engine.network.nfnetlink import Message
from cove.engine.network.refusals import open_refusals
from cove.engine.network.ruleset import open_ruleset
from cove.model.closed import ClosedRanges, Opening
from cove.model.errors import EngineFailure
from cove.model.network import (
    NO_NETWORK,
    OPEN_NETWORK,
    NetworkMode,
    NetworkPolicy,
    NetworkRule,
    PortRange,
    Protocol,
    Verdict,
)
from waiting_support import comes_true
from yard_support import (
    ADDRESSES,
    METADATA,
    OTHER,
    PRIVATE,
    PUBLIC,
    RANGE,
    TRANSIT,
    Table,
    Yard,
    ip_packet,
    yard,
)

pytestmark = pytest.mark.real

NEVER_S = 20.0
"""A refusal comes in milliseconds; who is not refused waits for more than this."""


@pytest.fixture
async def here() -> AsyncIterator[Yard]:
    async with yard() as made:
        yield made


def allow(target: str, *ports: int, protocol: Protocol | None = None) -> NetworkRule:
    ranges = tuple(PortRange(port, port) for port in ports)
    return NetworkRule(verdict=Verdict.ALLOW, target=target, ports=ranges, protocol=protocol)


def deny(target: str, *ports: int) -> NetworkRule:
    ranges = tuple(PortRange(port, port) for port in ports)
    return NetworkRule(verdict=Verdict.DENY, target=target, ports=ranges)


def policy(*rules: NetworkRule, default: Verdict = Verdict.DENY, **more: object) -> NetworkPolicy:
    return NetworkPolicy(mode=NetworkMode.POLICY, rules=rules, default=default, **more)  # type: ignore[arg-type]


async def test_a_box_without_rules_reaches_nothing_at_all(here: Yard) -> None:
    assert await here.tcp(PUBLIC, 80) == "silent"
    assert await here.tcp("169.254.1.1", 53) == "silent"


async def test_none_refuses_at_once(here: Yard) -> None:
    await here.apply(NO_NETWORK)
    started = time.monotonic()
    assert await here.tcp(PUBLIC, 80) == "refused"
    assert await here.udp(PUBLIC, 5000) == "refused"
    assert await here.ping(PUBLIC) == "refused"
    for port in (53, 3128, 3130):
        assert await here.tcp("169.254.1.1", port) == "refused"
    assert await here.udp("169.254.1.1", 53) == "refused"
    assert time.monotonic() - started < NEVER_S


async def test_the_gateways_services_are_there_for_whom_they_serve(here: Yard) -> None:
    await here.apply(OPEN_NETWORK)
    for port in (53, 3128, 3130):
        assert await here.tcp("169.254.1.1", port) == "open"
    assert await here.udp("169.254.1.1", 53) == "open"
    await here.apply(NetworkPolicy(broker=True))
    assert await here.tcp("169.254.1.1", 3130) == "open"
    assert await here.tcp("169.254.1.1", 3128) == "refused"
    await here.apply(NO_NETWORK, links={"db": ADDRESSES[2]})
    assert await here.udp("169.254.1.1", 53) == "open"
    assert await here.tcp("169.254.1.1", 3130) == "refused"


async def test_open_reaches_the_world_and_nothing_that_is_closed(here: Yard) -> None:
    await here.apply(OPEN_NETWORK)
    assert await here.tcp(PUBLIC, 80) == "open"
    assert await here.tcp(PUBLIC, 853) == "open"
    assert await here.udp(PUBLIC, 443) == "open"
    assert await here.ping(PUBLIC) == "open"
    closed = (
        METADATA,
        PRIVATE,
        "192.168.7.7",
        "172.16.7.7",
        "100.100.100.200",
        "168.63.129.16",
        TRANSIT,
        "169.254.64.1",
    )
    for address in closed:
        assert await here.tcp(address, 80) == "refused", address
        assert await here.udp(address, 5000) == "refused", address
        assert await here.ping(address) == "refused", address


async def test_the_routers_other_ports_and_its_proxy_are_closed_to_direct_connections(here: Yard) -> None:
    await here.apply(OPEN_NETWORK)
    assert await here.tcp("169.254.1.1", 9999) == "refused"
    assert await here.tcp("169.254.1.1", 3129) == "refused"
    assert await here.udp("169.254.1.1", 5000) == "refused"
    assert await here.ping("169.254.1.1") == "refused"


async def test_dns_goes_to_the_resolver_only(here: Yard) -> None:
    await here.apply(OPEN_NETWORK)
    assert await here.udp(PUBLIC, 53) == "refused"
    assert await here.tcp(PUBLIC, 53) == "refused"


async def test_boxes_reach_each_other_by_links_only_and_one_way(here: Yard) -> None:
    await here.apply(OPEN_NETWORK, box=2)
    await here.apply(OPEN_NETWORK)
    assert await here.tcp(ADDRESSES[2], 7000) == "refused"
    await here.apply(NO_NETWORK, links={"db": ADDRESSES[2]})
    assert await here.tcp(ADDRESSES[2], 7000) == "open"
    assert await here.tcp(ADDRESSES[1], 7000, box=2) == "refused"
    open_one = await here.connected(ADDRESSES[2], 7000)
    await here.apply(NO_NETWORK)
    assert await here.tcp(ADDRESSES[2], 7000) == "refused"
    assert await here.echo(open_one) == "reset"
    open_one.close()


async def test_a_link_goes_with_the_box_that_it_leads_to(here: Yard) -> None:
    await here.apply(NO_NETWORK, box=2)
    await here.apply(NO_NETWORK, links={"db": ADDRESSES[2]})
    left = await here.connected(ADDRESSES[2], 7000)
    await here.ruleset.forget(2)
    await here.apply(NO_NETWORK, box=2)  # another, at the same address
    assert await here.tcp(ADDRESSES[2], 7000) == "refused"
    assert await here.echo(left) == "reset"
    left.close()


async def test_the_first_rule_that_fits_decides(here: Yard) -> None:
    await here.apply(policy(deny(f"{PUBLIC}/32", 22), allow("11.1.0.0/16"), deny("11.0.0.0/8"), allow("*", 5432)))
    assert await here.tcp(PUBLIC, 22) == "refused"
    assert await here.tcp(PUBLIC, 80) == "open"
    assert await here.ping(PUBLIC) == "open"
    assert await here.tcp(OTHER, 5432) == "refused"
    await here.apply(policy(allow("*", 5432, protocol=Protocol.TCP)))
    assert await here.tcp(OTHER, 5432) == "open"
    assert await here.udp(OTHER, 5000) == "refused"
    assert await here.ping(OTHER) == "refused"


async def test_a_rule_opens_nothing_that_is_closed(here: Yard) -> None:
    await here.apply(policy(allow(f"{METADATA}/32"), allow("10.0.0.0/8"), allow("*"), default=Verdict.ALLOW))
    for address in (METADATA, PRIVATE, ADDRESSES[2]):
        assert await here.tcp(address, 80) == "refused", address


async def test_what_the_operator_opened_is_under_the_policy() -> None:
    async with yard(opened=(Opening("10.9.9.0/24", 80), Opening("192.168.7.7/32"))) as here:
        await here.apply(OPEN_NETWORK)
        assert await here.tcp(PRIVATE, 80) == "open"
        assert await here.tcp(PRIVATE, 443) == "refused"
        assert await here.tcp("192.168.7.7", 443) == "open"
        await here.apply(policy(allow(f"{PUBLIC}/32")))
        assert await here.tcp(PRIVATE, 80) == "refused"


async def test_web_ports_go_to_the_proxy_where_a_name_must_be_checked(here: Yard) -> None:
    await here.apply(policy(allow("api.example"), allow(f"{OTHER}/32")))
    assert await here.tcp(PUBLIC, 443) == "open"
    assert await here.tcp(OTHER, 80) == "open"
    assert here.proxied == [(PUBLIC, 443), (OTHER, 80)]
    assert await here.udp(PUBLIC, 443) == "refused"
    assert await here.udp(OTHER, 443) == "refused"
    assert await here.tcp(OTHER, 853) == "refused"
    assert await here.tcp(OTHER, 22) == "open"
    await here.apply(policy(allow(f"{OTHER}/32"), allow("api.example")))
    assert await here.tcp(OTHER, 80) == "open"
    assert len(here.proxied) == 2


async def test_other_ports_open_where_an_answer_for_the_name_brought_the_address(here: Yard) -> None:
    await here.apply(
        policy(deny("git.example", 5432), allow("*.example", 22, 5432), deny(f"{OTHER}/32"), allow("db.test"))
    )
    assert await here.tcp(PUBLIC, 22) == "refused"
    assert await here.ruleset.learn(1, "git.example", PUBLIC, 60)
    assert await here.tcp(PUBLIC, 22) == "open"
    assert await here.tcp(PUBLIC, 5432) == "refused"
    assert await here.udp(PUBLIC, 5000) == "refused"
    # A rule for the address that comes before the name's decides.
    assert await here.ruleset.learn(1, "db.test", OTHER, 60)
    assert await here.tcp(OTHER, 22) == "refused"
    # One box's names open nothing for another.
    await here.apply(policy(allow("*.example")), box=2)
    assert await here.tcp(PUBLIC, 22, box=2) == "refused"


async def test_what_a_name_brought_closes_when_its_time_is_over_and_longer_if_asked_again(here: Yard) -> None:
    await here.apply(policy(allow("git.example")))
    await here.ruleset.learn(1, "git.example", PUBLIC, 3)
    assert await here.tcp(PUBLIC, 22) == "open"
    await asyncio.sleep(3.3)
    assert await here.tcp(PUBLIC, 22) == "refused"
    await here.ruleset.learn(1, "git.example", PUBLIC, 1)
    await here.ruleset.learn(1, "git.example", PUBLIC, 60)
    await asyncio.sleep(1.3)
    assert await here.tcp(PUBLIC, 22) == "open"


async def test_what_names_brought_is_judged_anew_by_a_new_policy(here: Yard) -> None:
    await here.apply(policy(allow("git.example")))
    await here.ruleset.learn(1, "git.example", PUBLIC, 60)
    await here.apply(policy(allow("other.example")))
    assert await here.tcp(PUBLIC, 22) == "refused"
    await here.apply(policy(allow("*.example", 22)))
    assert await here.tcp(PUBLIC, 22) == "open"
    assert await here.tcp(PUBLIC, 5432) == "refused"


async def test_a_change_cuts_exactly_the_flows_that_it_refuses(here: Yard) -> None:
    await here.apply(policy(allow("11.0.0.0/8"), allow("git.example")))
    await here.ruleset.learn(1, "git.example", PUBLIC, 60)
    stays = await here.connected(OTHER, 22)
    goes = await here.connected(PUBLIC, 80)
    by_name = await here.connected(PUBLIC, 22)
    await here.apply(policy(allow(f"{OTHER}/32"), allow("git.example")))
    assert await here.echo(goes) == "reset"
    assert await here.echo(stays) == "open"
    assert await here.echo(by_name) == "open"
    await here.apply(NO_NETWORK)
    started = time.monotonic()
    assert await here.echo(stays) == "reset"
    assert await here.echo(by_name) == "reset"
    assert time.monotonic() - started < NEVER_S
    for one in (stays, goes, by_name):
        one.close()


async def test_a_flow_that_went_direct_does_not_go_on_where_its_name_must_be_checked_now(here: Yard) -> None:
    await here.apply(OPEN_NETWORK)
    direct = await here.connected(PUBLIC, 443)
    await here.apply(policy(allow("api.example"), default=Verdict.ALLOW))
    assert await here.echo(direct) in {"reset", "refused"}
    direct.close()


async def test_no_packet_passes_between_two_policies_that_both_refuse_it(here: Yard) -> None:
    first = policy(allow(f"{OTHER}/32"), deny(f"{PUBLIC}/32"), default=Verdict.ALLOW)
    second = policy(allow(f"{OTHER}/32", 22), default=Verdict.DENY)
    await here.apply(first)
    done = asyncio.Event()
    seen: set[str] = set()

    async def knock() -> None:
        while not done.is_set():
            seen.add(await here.tcp(PUBLIC, 5432))
            seen.add(await here.udp(PUBLIC, 5000))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(knock())
        for turn in range(200):
            await here.apply(second if turn % 2 == 0 else first)
            await asyncio.sleep(0)
        done.set()
    # Past a thousand a second refusals are silent.
    assert "refused" in seen
    assert seen <= {"refused", "silent"}


async def test_a_restart_leaves_no_moment_without_rules_and_no_flow_cut(here: Yard) -> None:
    chosen = policy(allow(f"{OTHER}/32", 22), allow("git.example"))
    await here.apply(chosen)
    await here.ruleset.learn(1, "git.example", PUBLIC, 60)
    await here.apply(OPEN_NETWORK, box=2)
    await here.apply(chosen, links={"db": ADDRESSES[2]})
    open_one = await here.connected(OTHER, 22)
    by_name = await here.connected(PUBLIC, 22)
    linked = await here.connected(ADDRESSES[2], 7000)
    closed = ClosedRanges(inside=[RANGE, "169.254.64.0/18"])
    for _ in range(2):
        async with open_ruleset(here.router, addresses=RANGE, closed=closed) as again:
            # Before anything is applied again, what was holds; a box that is not known any more is closed.
            assert await here.tcp(OTHER, 22) == "open"
            assert await here.tcp(OTHER, 5432) == "refused"
            await again.reconcile(ADDRESSES)
            assert await here.echo(linked) == "open"
            await again.apply(1, ADDRESSES[1], chosen, {"db": ADDRESSES[2]})
            assert await here.echo(linked) == "open"
            assert await here.echo(open_one) == "open"
            assert await here.echo(by_name) == "open"
            assert await here.tcp(PUBLIC, 22) == "open"
            assert await here.tcp(PUBLIC, 5432) == "open"
    async with open_ruleset(here.router, addresses=RANGE, closed=closed) as again:
        await again.reconcile({1: ADDRESSES[1]})
        assert await here.tcp(PUBLIC, 80, box=2) == "silent"
        assert await here.echo(linked) != "open"
        await again.apply(1, ADDRESSES[1], policy(allow("git.example")), {})
        assert await here.echo(open_one) == "reset"
    for one in (open_one, by_name, linked):
        one.close()


async def test_what_somebody_changed_in_the_kernel_is_made_anew_and_closed_meanwhile(here: Yard) -> None:
    await here.apply(OPEN_NETWORK)
    left = await here.connected(PUBLIC, 80)
    for wreck in ("delete element ip cove1 defaults { 10.213.0.1 }", "delete table ip cove1"):
        here.space.command("nft", wreck)
        await here.apply(policy(allow(f"{PUBLIC}/32", 80)))
        assert await here.tcp(PUBLIC, 80) == "open"
        assert await here.tcp(PUBLIC, 22) == "refused"
        assert await here.tcp(METADATA, 80) == "refused"
        assert await here.echo(left) != "open"
        await here.apply(OPEN_NETWORK)
        assert await here.tcp(PUBLIC, 22) == "open"
    left.close()


async def test_a_long_policy_is_applied_beside_other_work_and_what_is_learned_meanwhile_counts(here: Yard) -> None:
    many = tuple(allow(f"20.{n}.0.0/16", 1000 + n) for n in range(200))
    await here.apply(policy(*many[:5], allow("git.example")))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(here.apply(policy(*many, allow("git.example"))))
        tasks.create_task(here.ruleset.learn(1, "git.example", PUBLIC, 60))
    assert await here.tcp(PUBLIC, 22) == "open"
    assert await here.tcp(OTHER, 22) == "refused"


async def test_a_change_that_came_too_late_is_taken_back(here: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel did it, but whoever waited was told that it failed: what held before must hold again."""
    narrow = policy(allow("20.1.0.0/16"))
    wide = policy(*(allow(f"20.{n}.0.0/16", 1000 + n) for n in range(200)), default=Verdict.ALLOW)
    await here.apply(narrow)
    apart = here.ruleset._transact_apart  # pyright: ignore[reportPrivateUsage]

    async def late(changes: list[Message]) -> None:
        await apart(changes)
        raise EngineFailure("the machine's network did not answer in time")

    monkeypatch.setattr(here.ruleset, "_transact_apart", late)
    with pytest.raises(EngineFailure):
        await here.apply(wide)
    assert await here.tcp(PUBLIC, 80) == "open"
    await here.apply(narrow)
    assert await here.tcp(PUBLIC, 80) == "refused"


async def test_ranges_that_close_while_sandboxes_live_close_at_once(here: Yard) -> None:
    await here.apply(OPEN_NETWORK)
    open_one = await here.connected(PUBLIC, 80)
    await here.ruleset.close_ranges(ClosedRanges(own=[PUBLIC], inside=[RANGE]))
    assert await here.echo(open_one) == "reset"
    assert await here.tcp(PUBLIC, 80) == "refused"
    assert await here.tcp(OTHER, 80) == "open"
    assert await here.tcp(METADATA, 80) == "refused"
    open_one.close()


async def test_who_gets_an_address_again_inherits_no_flow(here: Yard) -> None:
    await here.apply(OPEN_NETWORK)
    left = await here.connected(PUBLIC, 80)
    await here.ruleset.forget(1)
    assert await here.echo(left) == "silent"
    await here.apply(NO_NETWORK)
    assert await here.echo(left) == "reset"
    left.close()


async def test_spoofed_sources_options_and_other_protocols_are_dropped_or_refused(here: Yard) -> None:
    """Cases 56 and 59."""
    await here.apply(OPEN_NETWORK)
    await here.apply(OPEN_NETWORK, box=2)
    sent = b"\x30\x39\x13\x88\x00\x09\x00\x00x"  # UDP from 12345 to 5000
    with here.world.datagrams(PUBLIC, 5001) as witness:
        to_witness = sent[:2] + (5001).to_bytes(2, "big") + sent[4:]
        here.raw(ip_packet(ADDRESSES[2], PUBLIC, 17, to_witness))
        here.raw(ip_packet("11.9.9.9", PUBLIC, 17, to_witness))
        here.raw(ip_packet(ADDRESSES[1], PUBLIC, 17, to_witness, options=b"\x07\x07\x04\0\0\0\0\0"))
        here.raw(ip_packet(ADDRESSES[1], PUBLIC, 47, b"\0" * 8))
        await asyncio.sleep(0.1)
        with pytest.raises(BlockingIOError):
            witness.recv(100)
        # The control: the same with its own address arrives.
        here.raw(ip_packet(ADDRESSES[1], PUBLIC, 17, to_witness))
        assert await comes_true(lambda: received(witness)) == b"x"


async def test_a_box_cannot_end_anothers_flow_by_a_spoofed_reset(here: Yard) -> None:
    """Case 59."""
    await here.apply(OPEN_NETWORK)
    await here.apply(OPEN_NETWORK, box=2)
    kept = await here.connected(PUBLIC, 80, box=2)
    port: int = kept.getsockname()[1]
    for sequence in range(0, 2**32, 2**28):
        reset = (
            port.to_bytes(2, "big")
            + (80).to_bytes(2, "big")
            + sequence.to_bytes(4, "big")
            + bytes(4)
            + b"\x50\x04"
            + bytes(6)
        )
        here.raw(ip_packet(ADDRESSES[2], PUBLIC, 6, reset))
    assert await here.echo(kept) == "open"
    kept.close()


async def test_fragments_are_put_together_before_they_are_judged(here: Yard) -> None:
    """Case 56: a port cannot hide in a later fragment."""
    await here.apply(policy(allow("*", 5000, protocol=Protocol.UDP)))
    assert await here.udp(PUBLIC, 5000, payload=b"f" * 9000) == "open"
    assert await here.udp(PUBLIC, 123, payload=b"f" * 9000) == "refused"


async def test_ipv6_is_closed(here: Yard) -> None:
    """Case 56: IPv6 where only IPv4 is filtered."""
    await here.apply(OPEN_NETWORK)
    for space, device, address in ((here.space, "sv1", "fd00::1"), (here.boxes[1], "eth0", "fd00::2")):
        space.sysctl(f"ipv6/conf/{device}/disable_ipv6", "0")
        space.ip(f"addr add {address}/64 dev {device} nodad")
    mac = here.space.command("ip", "-br", "link", "show", "sv1").split()[2]
    here.boxes[1].ip(f"neigh replace fd00::1 lladdr {mac} dev eth0")
    with (
        here.space.datagrams("fd00::1", 8080) as witness,
        here.boxes[1].socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender,
    ):
        sender.sendto(b"x", ("fd00::1", 8080))
        await asyncio.sleep(0.2)
        with pytest.raises(BlockingIOError):
            witness.recv(10)
        # The control: without the rules it arrives.
        here.space.command("nft", "delete table ip6 cove1")
        sender.sendto(b"x", ("fd00::1", 8080))
        assert await comes_true(lambda: received(witness)) == b"x"


async def test_icmp_is_echo_only_and_only_where_allowed(here: Yard) -> None:
    """Case 56: a tunnel through ICMP."""
    await here.apply(policy(allow(f"{PUBLIC}/32", protocol=Protocol.TCP)))
    assert await here.ping(PUBLIC) == "refused"
    await here.apply(policy(allow(f"{PUBLIC}/32", protocol=Protocol.ICMP)))
    assert await here.ping(PUBLIC) == "open"
    assert await here.ping(OTHER) == "refused"
    assert await here.tcp(PUBLIC, 80) == "refused"


async def test_a_dry_run_records_and_lets_through_but_for_what_is_closed(here: Yard) -> None:
    async with open_refusals(here.router, here.ruleset, Table(), here.refusals.append):
        await here.apply(policy(allow(f"{OTHER}/32"), dry_run=True))
        assert await here.tcp(PUBLIC, 22) == "open"
        assert await here.tcp(OTHER, 22) == "open"
        assert await here.tcp(METADATA, 80) == "refused"
        await comes_true(lambda: len(here.refusals) == 2)
    told = {(one.address, one.dry_run, one.rule) for one in here.refusals}
    assert told == {(PUBLIC, True, "default: deny"), (METADATA, False, f"closed: {METADATA} (metadata)")}


async def test_every_refusal_is_told_with_name_address_port_and_rule(here: Yard) -> None:
    async with open_refusals(here.router, here.ruleset, Table(), here.refusals.append):
        await here.apply(policy(deny("bad.example", 22), allow("*.example"), deny(f"{OTHER}/32")))
        await here.ruleset.learn(1, "bad.example", PUBLIC, 60)
        for _ in range(3):
            await here.tcp(PUBLIC, 22)
        await here.udp(OTHER, 5000)
        await here.udp(OTHER, 443)
        await here.udp(PUBLIC, 53)
        await here.ping(OTHER)
        await comes_true(lambda: len(here.refusals) == 5)
    told = {(one.name, one.address, one.port, one.protocol, one.rule, one.count) for one in here.refusals}
    assert told == {
        ("bad.example", PUBLIC, 22, "tcp", "rule 1: deny bad.example:22", 3),
        (None, OTHER, 5000, "udp", f"rule 3: deny {OTHER}/32", 1),
        (None, OTHER, 443, "udp", "names: QUIC is closed where a name must be checked", 1),
        ("bad.example", PUBLIC, 53, "udp", "names: DNS is answered by the sandbox's own resolver only", 1),
        (None, OTHER, 0, "icmp", f"rule 3: deny {OTHER}/32", 1),
    }
    assert {one.sandbox for one in here.refusals} == {"sb_1"}
    assert {one.layer for one in here.refusals} == {"packet"}


async def test_a_flood_of_refused_packets_is_told_as_few_and_holds_nobody_up(here: Yard) -> None:
    await here.apply(NO_NETWORK)
    await here.apply(OPEN_NETWORK, box=2)
    loop = asyncio.get_running_loop()
    async with open_refusals(here.router, here.ruleset, Table(), here.refusals.append) as refusals:
        stop = loop.time() + 1.0
        with here.boxes[1].socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)

            def flood() -> int:
                sent = 0
                while loop.time() < stop:
                    with contextlib.suppress(OSError):
                        sender.sendto(b"x" * 10, (PUBLIC, 1 + sent % 60000))
                    sent += 1
                return sent

            flooding = loop.run_in_executor(None, flood)
            slowest = 0.0
            while loop.time() < stop:
                started = loop.time()
                assert await here.tcp(PUBLIC, 80, box=2) == "open"
                assert await here.udp(METADATA, 5000, box=2) == "refused"
                slowest = max(slowest, loop.time() - started)
            sent = await flooding
        await asyncio.sleep(0.5)
    assert sent > 3_000
    # Past a thousand a second they are not even answered.
    assert 0 < here.boxes[1].run(unreachables) < 6_000
    assert slowest < 5
    assert 0 < sum(one.count for one in here.refusals) + refusals.lost < 1000
    assert len(here.refusals) <= 150


async def test_a_box_has_so_many_connections_and_no_more(here: Yard) -> None:
    """Case 41: one box cannot take all that the machine can track."""
    await here.apply(OPEN_NETWORK)
    await here.apply(OPEN_NETWORK, box=2)
    closed = here.ruleset.closed
    await here.router.run(lambda: baseline.install(Baseline(addresses=RANGE, closed=closed, connections=50)))
    with here.boxes[1].socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        for port in range(10_000, 10_300):
            with contextlib.suppress(OSError):  # past its number they are refused
                sender.sendto(b"x", (PUBLIC, port))
    assert await here.tcp(PUBLIC, 80) == "refused"
    assert await here.tcp(PUBLIC, 80, box=2) == "open"
    tracked = here.space.run(conntrack.count)
    assert tracked <= 60


async def test_new_connections_come_no_faster_than_the_policy_says(here: Yard) -> None:
    await here.apply(NetworkPolicy(mode=NetworkMode.OPEN, connections_per_s=5))
    got = [await here.tcp(PUBLIC, 80) for _ in range(20)]
    assert 5 <= got.count("open") <= 8
    assert got.count("refused") == 20 - got.count("open")
    await here.apply(OPEN_NETWORK)
    assert {await here.tcp(PUBLIC, 80) for _ in range(20)} == {"open"}


def received(sock: socket.socket) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return sock.recv(100)
    return b""


def unreachables() -> int:
    """How many errors of ICMP have arrived here."""
    names, values = Path("/proc/thread-self/net/snmp").read_text().split("\nIcmp: ")[1:]
    return int(values.split()[names.split().index("InDestUnreachs")])
