"""What a sandbox is told of names, with a name server and a packet filter that only remember."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence

import dns.exception
import dns.message
import pytest

from cove.engine.network.dnswire import Answer, Kind, Rcode, Record
from cove.engine.network.port import Endpoint
from cove.engine.network.resolver import CACHE_ENTRIES, IN_FLIGHT, Judges, Resolver
from cove.engine.network.upstream_dns import NoAnswer
from cove.model.network import (
    OPEN_NETWORK,
    NetworkMode,
    NetworkPolicy,
    NetworkRule,
    Refusal,
    Verdict,
)
from cove.model.policy import ClosedRanges


def a(name: str, address: str, ttl: int = 60) -> Record:
    return Record(name=name, kind=Kind.A, ttl=ttl, data=ipaddress.IPv4Address(address).packed)


def alias(name: str, target: str) -> Record:
    return Record(name=name, kind=Kind.CNAME, ttl=60, data=b"", target=target)


def allow(*targets: str, deny: Sequence[str] = (), default: Verdict = Verdict.DENY, dry: bool = False) -> NetworkPolicy:
    rules = [NetworkRule(verdict=Verdict.DENY, target=target) for target in deny]
    rules += [NetworkRule(verdict=Verdict.ALLOW, target=target) for target in targets]
    return NetworkPolicy(mode=NetworkMode.POLICY, rules=tuple(rules), default=default, dry_run=dry)


class World:
    """A resolver, the name server behind it, and all that it said to others."""

    def __init__(self) -> None:
        self.zone: dict[str, list[Record]] = {}
        self.asked: list[tuple[str, int]] = []
        self.learned: list[tuple[str, str, float]] = []
        self.refusals: list[Refusal] = []
        self.gate: asyncio.Event | None = None
        self.now = 1000.0
        judges = Judges(closed=ClosedRanges, learner=self, report=self.refusals.append)
        self.resolver = Resolver(self, judges, clock=lambda: self.now)

    async def ask(self, name: str, kind: int) -> Answer:
        self.asked.append((name, kind))
        if self.gate is not None:
            await self.gate.wait()
        if name == "silent.example":
            raise NoAnswer("silent")
        records = self.zone.get(name)
        rcode = Rcode.NXDOMAIN if records is None else Rcode.NOERROR
        return Answer(rcode=rcode, is_truncated=False, records=tuple(records or ()))

    async def learn(self, index: int, name: str, address: str, seconds: float) -> bool:
        assert index == 7
        self.learned.append((name, address, seconds))
        return True

    async def __call__(
        self, policy: NetworkPolicy, name: str, kind: str = "A", links: dict[str, str] | None = None
    ) -> dns.message.Message:
        endpoint = Endpoint(box="b1", address="10.213.0.7", index=7, policy=policy, links=links or {})
        query = dns.message.make_query(name, kind, use_edns=True)
        answer = await self.resolver.answer(endpoint, query.to_wire())
        assert answer is not None
        return dns.message.from_wire(answer)


def addresses(answer: dns.message.Message) -> list[str]:
    return sorted(item.to_text() for rrset in answer.answer for item in rrset if rrset.rdtype == 1)


async def test_an_allowed_name_resolves_and_is_opened_before_the_answer() -> None:
    world = World()
    world.zone["api.example"] = [a("api.example", "11.0.0.1"), a("api.example", "11.0.0.2", ttl=900)]
    answer = await world(allow("api.example"), "API.example")
    assert addresses(answer) == ["11.0.0.1", "11.0.0.2"]
    assert world.learned == [("api.example", "11.0.0.1", 120), ("api.example", "11.0.0.2", 120)]
    assert not world.refusals


async def test_a_refused_name_never_leaves() -> None:
    world = World()
    answer = await world(allow("api.example"), "secret-data.evil.example")
    assert answer.rcode() == Rcode.NXDOMAIN
    assert "default: deny" in answer.to_text()
    assert world.asked == []
    (refusal,) = world.refusals
    assert (refusal.layer, refusal.name, refusal.rule) == ("dns", "secret-data.evil.example", "default: deny")


@pytest.mark.parametrize("policy", [NetworkPolicy(), NetworkPolicy(broker=True), allow("11.0.0.0/8")])
async def test_without_a_rule_for_names_none_resolves(policy: NetworkPolicy) -> None:
    world = World()
    assert (await world(policy, "api.example")).rcode() == Rcode.NXDOMAIN
    assert world.asked == []


@pytest.mark.parametrize("address", ["169.254.169.254", "10.0.0.1", "127.0.0.1", "192.168.1.1", "100.100.100.200"])
@pytest.mark.parametrize("policy", [OPEN_NETWORK, allow("*"), allow("rebind.example", dry=True)])
async def test_answers_that_point_inwards_are_left_out(address: str, policy: NetworkPolicy) -> None:
    world = World()
    world.zone["rebind.example"] = [a("rebind.example", address, ttl=0), a("rebind.example", "11.0.0.1", ttl=0)]
    assert addresses(await world(policy, "rebind.example")) == ["11.0.0.1"]
    (refusal,) = world.refusals
    assert (refusal.address, refusal.rule.startswith("closed: "), refusal.dry_run) == (address, True, False)
    world.zone["rebind.example"] = [a("rebind.example", address, ttl=0)]
    world.now += 2
    again = await world(policy, "rebind.example")
    assert again.answer == []
    assert {one for _, one, _ in world.learned} == {"11.0.0.1"}


async def test_an_alias_to_a_private_address_brings_nothing() -> None:
    world = World()
    world.zone["a.example"] = [alias("a.example", "inner.example"), a("inner.example", "10.1.2.3")]
    assert addresses(await world(OPEN_NETWORK, "a.example")) == []


async def test_an_alias_is_followed_to_where_no_rule_denies() -> None:
    world = World()
    world.zone["a.example"] = [alias("a.example", "x.cdn.example"), alias("x.cdn.example", "y.cdn.example")]
    world.zone["y.cdn.example"] = [a("y.cdn.example", "11.0.0.9")]
    answer = await world(allow("a.example"), "a.example")
    assert addresses(answer) == ["11.0.0.9"]
    assert world.asked == [("a.example", 1), ("y.cdn.example", 1)]
    denied = await world(allow("a.example", deny=["*.cdn.example"]), "a.example")
    assert denied.rcode() == Rcode.NXDOMAIN
    assert "x.cdn.example" in world.refusals[-1].rule


async def test_aliases_in_a_circle_end() -> None:
    world = World()
    world.zone["a.example"] = [alias("a.example", "b.example"), alias("b.example", "a.example")]
    assert (await world(OPEN_NETWORK, "a.example")).rcode() == Rcode.SERVFAIL


async def test_an_address_that_a_rule_denies_is_left_out() -> None:
    world = World()
    world.zone["a.example"] = [a("a.example", "11.0.0.1"), a("a.example", "11.9.0.1")]
    assert addresses(await world(allow("a.example", deny=["11.9.0.0/16"]), "a.example")) == ["11.0.0.1"]


async def test_records_of_another_owner_are_not_believed() -> None:
    world = World()
    world.zone["a.example"] = [a("bank.example", "11.0.0.66"), a("a.example", "11.0.0.1")]
    assert addresses(await world(OPEN_NETWORK, "a.example")) == ["11.0.0.1"]


async def test_ipv6_is_empty_and_other_types_pass_only_where_names_are_not_the_rule() -> None:
    world = World()
    text = Record(name="a.example", kind=Kind.TXT, ttl=60, data=b"\x02hi")
    world.zone["a.example"] = [text]
    assert (await world(OPEN_NETWORK, "a.example", "AAAA")).answer == []
    assert "hi" in (await world(OPEN_NETWORK, "a.example", "TXT")).answer[0].to_text()
    assert (await world(allow("a.example"), "a.example", "TXT")).answer == []
    assert (await world(allow("a.example"), "a.example", "HTTPS")).answer == []
    assert world.asked == [("a.example", Kind.TXT)]


async def test_reverse_names_of_closed_addresses_never_leave() -> None:
    world = World()
    assert (await world(OPEN_NETWORK, "1.0.0.10.in-addr.arpa", "PTR")).rcode() == Rcode.NXDOMAIN
    assert world.asked == []
    await world(OPEN_NETWORK, "1.0.0.11.in-addr.arpa", "PTR")
    assert world.asked == [("1.0.0.11.in-addr.arpa", Kind.PTR)]


async def test_links_have_names_that_never_leave() -> None:
    world = World()
    linked = NetworkPolicy(links=("db",))
    found = await world(linked, "DB.cove.internal", links={"db": "10.213.0.9"})
    assert addresses(found) == ["10.213.0.9"]
    assert (await world(linked, "other.cove.internal", links={"db": "10.213.0.9"})).rcode() == Rcode.NXDOMAIN
    assert (await world(linked, "db.cove.internal", "AAAA", links={"db": "10.213.0.9"})).answer == []
    assert (await world(OPEN_NETWORK, "x.cove.internal")).rcode() == Rcode.NXDOMAIN
    assert world.asked == []


async def test_known_resolvers_are_refused_where_names_are_the_rule() -> None:
    world = World()
    world.zone["dns.google"] = [a("dns.google", "11.8.8.8")]
    assert (await world(allow("api.example", "*"), "dns.google")).rcode() == Rcode.NXDOMAIN
    assert addresses(await world(allow("dns.google"), "dns.google")) == ["11.8.8.8"]
    assert addresses(await world(OPEN_NETWORK, "dns.google")) == ["11.8.8.8"]


async def test_dry_run_lets_through_and_says_so() -> None:
    world = World()
    world.zone["evil.example"] = [a("evil.example", "11.0.0.6")]
    assert addresses(await world(allow("api.example", dry=True), "evil.example")) == ["11.0.0.6"]
    assert all(refusal.dry_run for refusal in world.refusals)
    assert world.refusals


async def test_the_same_question_goes_out_once() -> None:
    world = World()
    world.gate = asyncio.Event()
    world.zone["a.example"] = [a("a.example", "11.0.0.1", ttl=0)]
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(world(OPEN_NETWORK, "a.example")) for _ in range(20)]
        await asyncio.sleep(0)
        world.gate.set()
    assert all(addresses(task.result()) == ["11.0.0.1"] for task in waiting)
    assert len(world.asked) == 1
    world.now += 2
    await world(OPEN_NETWORK, "a.example")
    assert len(world.asked) == 2


async def test_more_questions_than_fit_fail_at_once() -> None:
    world = World()
    world.gate = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(world(OPEN_NETWORK, f"n{at}.example")) for at in range(IN_FLIGHT)]
        await asyncio.sleep(0.01)
        assert (await world(OPEN_NETWORK, "one-more.example")).rcode() == Rcode.SERVFAIL
        world.gate.set()
    assert all(task.result().rcode() == Rcode.NXDOMAIN for task in waiting)


async def test_the_cache_is_bounded() -> None:
    world = World()
    for at in range(CACHE_ENTRIES + 50):
        await world(OPEN_NETWORK, f"n{at}.example")
    assert len(world.resolver._boxes["b1"].entries) == CACHE_ENTRIES


async def test_a_silent_name_server_is_asked_once_a_second() -> None:
    world = World()
    for _ in range(3):
        assert (await world(OPEN_NETWORK, "silent.example")).rcode() == Rcode.SERVFAIL
    assert len(world.asked) == 1


async def test_an_address_is_learned_again_only_when_half_of_its_time_is_over() -> None:
    world = World()
    world.zone["a.example"] = [a("a.example", "11.0.0.1", ttl=10)]
    policy = allow("a.example")
    for _ in range(3):
        await world(policy, "a.example")
        world.now += 20
    assert len(world.learned) == 1
    world.now += 20
    await world(policy, "a.example")
    assert len(world.learned) == 2
    world.resolver.forget("b1")
    await world(policy, "a.example")
    assert len(world.learned) == 3


async def test_noise_gets_an_error_or_nothing() -> None:
    world = World()
    endpoint = Endpoint(box="b1", address="10.213.0.7", index=7, policy=OPEN_NETWORK)
    assert await world.resolver.answer(endpoint, b"") is None
    answer = await world.resolver.answer(endpoint, b"\0\1\1\0\0\2\0\0\0\0\0\0")
    assert answer is not None
    assert answer[3] & 0xF == Rcode.FORMERR


@pytest.mark.parametrize("name", ["0x7f.1", "2130706433", "0177.0.0.1", "1.2.3.4", "a..b", "-a.example"])
async def test_what_is_no_host_name_is_refused(name: str) -> None:
    world = World()
    try:
        answer = await world(OPEN_NETWORK, name)
    except dns.exception.DNSException:
        return
    assert answer.rcode() == Rcode.NXDOMAIN
    assert world.asked == []
