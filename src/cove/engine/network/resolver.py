"""What a sandbox is told of names: each question judged by its policy, each answer too, before any of it is passed on.

A name that the policy does not allow never leaves (a question is a message to whoever runs the zone). No name on the
way of an answer (CNAME) may be denied by name, and addresses that are closed or that no rule could allow are left out:
an answer that points inwards (rebinding) brings nothing. Addresses that a name opens are opened in the kernel
(`Learner`) before the sandbox hears of them.

The cache is each sandbox's own: none learns from timing what another asked, none pushes another's answers out.
Who listens on the socket: `dns_server.py`. Who asks the operator's name servers: `upstream_dns.py`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

from msgspec import Struct
from msgspec.structs import replace

from cove.engine.network.dnswire import (
    Answer,
    Kind,
    Malformed,
    Query,
    Rcode,
    Record,
    build_answer,
    build_refusal,
    parse_query,
)
from cove.engine.network.doh import is_doh
from cove.engine.network.port import Endpoint
from cove.engine.network.upstream_dns import NoAnswer
from cove.model.hostname import canonical_host
from cove.model.network import NetworkMode, NetworkPolicy, Refusal, Verdict, Visit
from cove.model.policy import ClosedRanges, Decision, could_allow, is_name_target, names_matter, rule_matches

LINK_SUFFIX: Final = ".cove.internal"
"""`NAME.cove.internal` is the sandbox NAME that the policy links to. Such names never leave."""

LEARNED_S: Final = 60
"""For so long at least an address stays open that a name brought, however short the TTL: clients keep addresses."""

CACHE_ENTRIES: Final = 256
IN_FLIGHT: Final = 64
"""Questions of one sandbox that wait for a name server at a time; one more fails at once."""

_ADDRESSES: Final = 32
_LEARNED: Final = 1024
_CHAIN: Final = 12
_TTL_MAX_S: Final = 300
_CACHE_MIN_S: Final = 1.0
"""Answers with TTL 0 and failures are kept for so long: the same question, asked by many at once, goes out once."""

_LINK_TTL_S: Final = 5
_PASSED: Final = frozenset((2, 5, 6, 12, 15, 16, 33, 44, 52, 64, 65, 257))
"""What is passed on besides A where names are not the rule: NS, CNAME, SOA, PTR, MX, TXT, SRV, SSHFP, TLSA, SVCB, HTTPS
and CAA. Where they are, only addresses: a TXT record is a way in, and an HTTPS record one around the check of names."""


class Learner(Protocol):
    """The packet filter, as far as it takes addresses that names brought."""

    async def learn(self, index: int, name: str, address: str, seconds: float) -> bool:
        """An answer for `name` brought `address`: what the sandbox's policy says of `name` holds for it so long.

        False: no such sandbox. Raises: EngineFailure.
        """
        ...


class AsksUpstream(Protocol):
    """Something that asks name servers (`upstream_dns.Upstream`)."""

    async def ask(self, name: str, kind: int) -> Answer:
        """Raises: NoAnswer."""
        ...


Report = Callable[[Refusal], None]


class Judges(Struct, frozen=True, kw_only=True):
    """What is asked besides the policy, and who is told. `closed` is asked for anew at each use."""

    closed: Callable[[], ClosedRanges]
    learner: Learner
    report: Report
    visited: Callable[[Visit], None] = lambda _: None


class Resolved(Struct, frozen=True, kw_only=True):
    """What one sandbox may know of one name. `blocked`: the words of what left all or part of it out."""

    rcode: int = Rcode.NOERROR
    records: tuple[Record, ...] = ()
    blocked: str = ""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Those that may be handed out and dialled, as far as the port allows."""
        return tuple(str(ipaddress.IPv4Address(record.data)) for record in self.records if record.kind == Kind.A)


class _Entry:
    """One question of one sandbox: its answer while that holds, and the lock of who is asking for it now."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.answer: Answer | None = None
        self.until = 0.0


class _Box:
    """What is kept of one sandbox."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, int], _Entry] = {}
        self.in_flight = 0
        self.learned: dict[tuple[str, str], float] = {}

    def make_room(self) -> None:
        """Before another entry: the oldest that nobody is asking for goes."""
        if len(self.entries) >= CACHE_ENTRIES:
            idle = next((key for key, entry in self.entries.items() if not entry.lock.locked()), None)
            if idle is not None:
                del self.entries[idle]

    def note_learned(self, name: str, address: str, until: float) -> None:
        """The packet filter knows that `name` led to `address`."""
        if len(self.learned) >= _LEARNED:
            del self.learned[next(iter(self.learned))]
        self.learned[name, address] = until


class Resolver:
    """Answers for all sandboxes. Its state is per box: `forget` when one leaves."""

    def __init__(
        self,
        upstream: AsksUpstream,
        judges: Judges,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstream = upstream
        self._learner = judges.learner
        self._closed = judges.closed
        self._report = judges.report
        self._visited = judges.visited
        self._clock = clock
        self._boxes: dict[str, _Box] = {}

    def forget(self, box: str) -> None:
        """It left, or its rules were made anew: nothing of it is cached or counts as learned."""
        self._boxes.pop(box, None)

    async def answer(self, endpoint: Endpoint, message: bytes, *, limit: int = 0) -> bytes | None:
        """The answer to a client's message, None: it deserves none. `limit` 0: what its query says fits UDP.

        Waits for upstreams, a few seconds at most. Raises: EngineFailure (the packet filter failed).
        """
        try:
            query = parse_query(message)
        except Malformed:
            return build_refusal(message, Rcode.FORMERR)
        found = await self._answer(endpoint, query)
        return build_answer(query, found.rcode, found.records, limit=limit or query.payload, blocked=found.blocked)

    async def resolve(self, endpoint: Endpoint, name: str) -> Resolved:
        """The addresses of `name` (canonical) under the sandbox's policy, for who dials in its stead.

        Whether it may be asked for is for the caller to know (`decision_on`); the packet filter is not told.

        Raises: NoAnswer (also: too many of its questions wait).
        """
        return await self._look_up(endpoint, name, Kind.A)

    def decision_on(self, policy: NetworkPolicy, name: str, kind: int = Kind.A) -> Decision:
        """Whether `name` may be asked for at all. Nothing is recorded, and no dry run looked at."""
        words = other_resolver(policy, name)
        if kind == Kind.PTR and (address := _reversed_address(name)) is not None:
            words = self._closed().why(address)
        return could_allow(policy, name) if words is None else Decision(verdict=Verdict.DENY, rule=words)

    def _refusal_of(self, endpoint: Endpoint, name: str, kind: int) -> str | None:
        """The rule for which `name` may not be asked for, None: it may. Recorded; with dry-run only recorded."""
        decision = self.decision_on(endpoint.policy, name, kind)
        if decision.is_allowed:
            return None
        self._note(endpoint, name, None, decision.rule, dry_run=endpoint.policy.dry_run)
        if endpoint.policy.dry_run:
            return None
        if endpoint.policy.record and kind == Kind.A:
            self._visited(_unanswered(endpoint.box, name))
        return decision.rule

    async def _answer(self, endpoint: Endpoint, query: Query) -> Resolved:
        try:
            name = canonical_host(query.name)
        except ValueError:
            return Resolved(rcode=Rcode.NXDOMAIN, blocked="no host name")
        if name.endswith(LINK_SUFFIX):
            return self._link(endpoint, name, query.kind)
        refused = self._refusal_of(endpoint, name, query.kind)
        if refused is not None:
            return Resolved(rcode=Rcode.NXDOMAIN, blocked=refused)
        if query.kind != Kind.A and (query.kind not in _PASSED or names_matter(endpoint.policy)):
            return Resolved()  # IPv6 is closed inside, and so is what could lead around the check of names
        with suppress(NoAnswer):
            found = await self._look_up(endpoint, name, query.kind)
            if query.kind == Kind.A:
                await self._open(endpoint, name, found)
            return found
        return Resolved(rcode=Rcode.SERVFAIL)

    def _link(self, endpoint: Endpoint, name: str, kind: int) -> Resolved:
        address = {link.lower(): where for link, where in endpoint.links.items()}.get(name.removesuffix(LINK_SUFFIX))
        if address is None:
            return Resolved(rcode=Rcode.NXDOMAIN, blocked="no link of that name")
        if kind != Kind.A:
            return Resolved()
        data = ipaddress.IPv4Address(address).packed
        return Resolved(records=(Record(name=name, kind=Kind.A, ttl=_LINK_TTL_S, data=data),))

    async def _look_up(self, endpoint: Endpoint, name: str, kind: int) -> Resolved:
        """Ask, follow where the answer leads, and leave out what the sandbox may not know. Raises: NoAnswer."""
        chain: list[Record] = []
        owner = name
        answer = await self._ask(endpoint, owner, kind)
        for _ in range(_CHAIN):
            step = _alias(answer, owner) if kind != Kind.CNAME else None
            if step is None:
                found = [record for record in answer.records if record.kind == kind and record.name == owner]
                return self._judged(endpoint, name, (*chain, *found), answer.rcode)
            if _is_denied_by_name(endpoint.policy, step.target):
                words = f"a name that leads to {step.target}, which a rule denies"
                self._note(endpoint, name, None, words, dry_run=endpoint.policy.dry_run)
                if not endpoint.policy.dry_run:
                    return Resolved(rcode=Rcode.NXDOMAIN, blocked=words)
            chain.append(step)
            owner = step.target
            if answer.rcode == Rcode.NOERROR and not any(record.name == owner for record in answer.records):
                answer = await self._ask(endpoint, owner, kind)  # the name server did not follow it itself
        raise NoAnswer("a chain of names that is too long")

    def _judged(self, endpoint: Endpoint, name: str, records: Sequence[Record], rcode: int) -> Resolved:
        """The records without addresses that are closed to the sandbox, or that no rule could allow under `name`."""
        policy = endpoint.policy
        kept: list[Record] = []
        blocked = ""
        for record in records[: _CHAIN + _ADDRESSES]:
            if record.kind == Kind.A:
                address = str(ipaddress.IPv4Address(record.data))
                decision = could_allow(policy, name, address, self._closed())
                if not decision.is_allowed:
                    is_dry = policy.dry_run and not decision.is_closed
                    self._note(endpoint, name, address, decision.rule, dry_run=is_dry)
                    if not is_dry:
                        blocked = decision.rule
                        continue
            kept.append(record)
        return Resolved(rcode=rcode, records=tuple(kept), blocked=blocked)

    async def _ask(self, endpoint: Endpoint, name: str, kind: int) -> Answer:
        """The name servers' answer, or the one that the sandbox got before. Raises: NoAnswer."""
        box = self._box(endpoint)
        entry = box.entries.get((name, kind))
        if entry is None:
            box.make_room()
            entry = box.entries[name, kind] = _Entry()
        if entry.until <= self._clock():
            if box.in_flight >= IN_FLIGHT:
                raise NoAnswer("too many questions at a time")
            box.in_flight += 1
            try:
                async with entry.lock:
                    if entry.until <= self._clock():
                        await self._renew(entry, name, kind)
            finally:
                box.in_flight -= 1
        if entry.answer is None:
            raise NoAnswer("no answer a moment ago")
        return _aged(entry.answer, entry.until - self._clock())

    async def _renew(self, entry: _Entry, name: str, kind: int) -> None:
        entry.answer = None
        try:
            entry.answer = await self._upstream.ask(name, kind)
        finally:
            ttl = min((record.ttl for record in entry.answer.records), default=0) if entry.answer else 0
            entry.until = self._clock() + max(_CACHE_MIN_S, min(ttl, _TTL_MAX_S))

    async def _open(self, endpoint: Endpoint, name: str, found: Resolved) -> None:
        """Tell the packet filter where `name` led. Raises: EngineFailure."""
        box = self._boxes.get(endpoint.box) or _Box()  # it may have left while its question waited
        now = self._clock()
        seconds = max((LEARNED_S, *(record.ttl for record in found.records)))
        for address in found.addresses:
            if box.learned.get((name, address), 0.0) >= now + seconds:
                continue
            # Twice as long as promised, so that only every second question of a busy client costs a change.
            if await self._learner.learn(endpoint.index, name, address, 2.0 * seconds):
                box.note_learned(name, address, now + 2 * seconds)

    def _box(self, endpoint: Endpoint) -> _Box:
        return self._boxes.setdefault(endpoint.box, _Box())

    def _note(self, endpoint: Endpoint, name: str, address: str | None, words: str, *, dry_run: bool) -> None:
        self._report(
            Refusal(
                sandbox=endpoint.box, layer="dns", name=name, address=address, port=0, protocol="udp",
                rule=words, at=time.time(), dry_run=dry_run,
            )
        )  # fmt: skip


def _unanswered(box: str, name: str) -> Visit:
    return Visit(
        sandbox=box, method="DNS", host=name, port=0, path=None, is_allowed=False, at=time.time(), duration_ms=0.0
    )


def other_resolver(policy: NetworkPolicy, name: str) -> str | None:
    """Why this is a way around the names that the policy allows: a known resolver over HTTPS that no rule names."""
    if names_matter(policy) and is_doh(name) and not any(rule.target == name for rule in policy.rules):
        return "names: a resolver over HTTPS, where names are the rule"
    return None


def _is_denied_by_name(policy: NetworkPolicy, name: str) -> bool:
    """Whether the first rule for names that matches `name` denies all of it: one that another name must not lead to.

    A default, or a rule for everything, is none: an allowed name may be served from anywhere.
    """
    if policy.mode is not NetworkMode.POLICY:
        return False
    for rule in policy.rules:
        if is_name_target(rule.target) and rule_matches(rule, name, None):
            if rule.verdict is Verdict.ALLOW:
                return False
            if not rule.ports and rule.protocol is None:
                return True
    return False


def _alias(answer: Answer, owner: str) -> Record | None:
    return next((record for record in answer.records if record.kind == Kind.CNAME and record.name == owner), None)


def _aged(answer: Answer, left_s: float) -> Answer:
    """With no TTL longer than the answer is kept."""
    left = max(0, math.ceil(left_s))
    records = tuple(record if record.ttl <= left else replace(record, ttl=left) for record in answer.records)
    return replace(answer, records=records)


def _reversed_address(name: str) -> str | None:
    """The IPv4 address that a reverse name asks about."""
    labels = name.removesuffix(".in-addr.arpa").split(".")
    if not name.endswith(".in-addr.arpa") or len(labels) != 4:  # noqa: PLR2004 - numbers of an address
        return None
    try:
        return str(ipaddress.IPv4Address(".".join(reversed(labels))))
    except ValueError:
        return None
