"""Where a proxied connection may go, and the way there: judged by name and port, dialled at the address we resolved.

The address that a client chose counts only where no name is known, or where the rules allow it by itself. Every
connection is kept in a list of its sandbox, with what it was judged by: `recheck` judges again after a change and cuts.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from cove.engine.network.port import Endpoint, Endpoints
from cove.engine.network.relay import Wire
from cove.engine.network.resolver import LINK_SUFFIX, Judges, Resolver, other_resolver
from cove.engine.network.upstream_dns import NoAnswer, Sockets
from cove.model.hostname import canonical_host
from cove.model.network import Protocol, ProxyWords, Refusal, Verdict, Visit
from cove.model.policy import Decision, Destination, decide, guarded

log = logging.getLogger(__name__)

DIAL_S: Final = 10.0
"""For one address to take a connection."""

_ADDRESSES: Final = 3
"""Addresses of a name that are tried, one after the other."""

PATH_CHARS: Final = 1024
"""As much of a path is told."""

_LAYER: Final = "proxy"


class Refused(Exception):
    """The policy forbids it; recorded. `words`: the rule, for the sandbox to see."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words


class Unreachable(Exception):
    """It is allowed, and not there. The text may be shown to the sandbox."""


class Asked(Struct, frozen=True, kw_only=True):
    """What a client wants: a name, an address, or a name that it believes at an address. `name` is canonical."""

    name: str | None
    address: str | None
    port: int

    def __str__(self) -> str:
        return f"{self.name or self.address}:{self.port}"


class Route(Struct, frozen=True, kw_only=True):
    """Addresses that may be dialled, and all that must be allowed for as long as the connection lasts."""

    asked: Asked
    addresses: tuple[str, ...]
    by_address: bool = False
    """It is allowed by its address; the name has only not forbidden it."""

    def destinations(self, address: str) -> tuple[Destination, ...]:
        """What is judged when `address` was dialled."""
        names = {self.asked.name, None} if self.by_address else {self.asked.name}
        return tuple(_tcp(name, address, self.asked.port) for name in names)


class Flow:
    """A connection under way. `destinations` change where a client goes on to another host on the same connection."""

    def __init__(self, near: Wire) -> None:
        self.near = near
        self.far: Wire | None = None
        self.destinations: tuple[Destination, ...] = ()

    def cut(self) -> None:
        """End both sides at once."""
        self.near.reset()
        if self.far is not None:
            self.far.reset()


def parse_authority(text: str, default_port: int) -> Asked:
    """`HOST`, `HOST:PORT` or an IPv4 address instead of the host, read in one way only. Raises: ValueError."""
    host, has_port, port_text = text.partition(":")
    port = default_port
    if has_port:
        if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5):  # noqa: PLR2004 - digits of a port
            raise ValueError("no port")
        port = int(port_text)
    if not 0 < port <= 0xFFFF:  # noqa: PLR2004 - ports end there
        raise ValueError("no port")
    try:
        return Asked(name=None, address=str(ipaddress.IPv4Address(host)), port=port)
    except ValueError:
        return Asked(name=canonical_host(host), address=None, port=port)


class Seen:
    """Something that a client asks for, until it is known what becomes of it: then it is told, once, if it is to be."""

    def __init__(self, tell: Callable[[Visit], None] | None, visit: Visit) -> None:
        self._tell = tell
        self._visit = visit
        self._since = time.monotonic()

    def passes(self) -> None:
        """It is answered, or its tunnel stands."""
        self._done(is_allowed=True)

    def refused(self) -> None:
        """It may not."""
        self._done(is_allowed=False)

    def _done(self, *, is_allowed: bool) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            spent = (time.monotonic() - self._since) * 1000
            tell(replace(self._visit, is_allowed=is_allowed, duration_ms=spent))


class Exits:
    """Judges and dials for both proxies. `outside`: where connections are made from."""

    def __init__(self, endpoints: Endpoints, resolver: Resolver, judges: Judges, outside: Sockets) -> None:
        self.endpoints = endpoints
        self._resolver = resolver
        self._judges = judges
        self._outside = outside
        self._flows: dict[str, set[Flow]] = {}

    async def route(self, box: str, asked: Asked) -> Route:
        """Where `asked` may lead for a sandbox by what holds for it now. Raises: Refused, Unreachable."""
        endpoint = self._endpoint(box)
        if asked.name is None:
            self._judge(endpoint, asked, _tcp(None, asked.address, asked.port))
            return Route(asked=asked, addresses=(asked.address or "",))
        if asked.name.endswith(LINK_SUFFIX):
            raise self._refused(endpoint, asked, "links: other sandboxes are reached directly, not through a proxy")
        decision = self._resolver.decision_on(endpoint.policy, asked.name)
        if decision.is_allowed or endpoint.policy.dry_run:
            return await self._by_name(endpoint, asked, decision)
        if asked.address is None or not self._is_allowed_both_ways(endpoint, asked):
            raise self._refused(endpoint, asked, decision.rule)
        return Route(asked=asked, addresses=(asked.address,), by_address=True)

    async def dial(self, box: str, flow: Flow, route: Route) -> Wire:
        """Connect to the first address of `route` that answers; the flow is judged by it from here on.

        Raises: Unreachable, Refused (the policy has changed meanwhile).
        """
        why = "it has no address"
        for address in route.addresses[:_ADDRESSES]:
            try:
                async with asyncio.timeout(DIAL_S):
                    far = await self._connect(address, route.asked.port)
            except OSError as error:  # a TimeoutError is one
                why = error.strerror or "it does not answer"
                continue
            flow.destinations = route.destinations(address)
            flow.far = far
            endpoint = self._endpoint(box)
            if not all(self._passes(endpoint, there) for there in flow.destinations):
                raise self._refused(endpoint, route.asked, "the policy changed meanwhile")
            return far
        raise Unreachable(f"{route.asked} cannot be reached: {why}")

    def begin(self, box: str, asked: Asked, method: str, path: str | None = None) -> Seen:
        """Somebody asks for `asked`. What comes of it is told where the sandbox's policy says so."""
        endpoint = self.endpoints.by_box(box)
        visit = Visit(
            sandbox=box, method=method, host=asked.name or asked.address or "", port=asked.port,
            path=None if path is None else path[:PATH_CHARS], is_allowed=False, at=time.time(), duration_ms=0.0,
        )  # fmt: skip
        return Seen(self._judges.visited if endpoint is not None and endpoint.policy.record else None, visit)

    async def enter(self, box: str, flow: Flow, asked: Asked, method: str) -> Wire:
        """Judge and dial at once, for a connection of which no more is seen. Raises: Refused, Unreachable."""
        seen = self.begin(box, asked, method)
        try:
            far = await self.dial(box, flow, await self.route(box, asked))
        except Refused:
            seen.refused()
            raise
        seen.passes()
        return far

    def words(self, box: str) -> ProxyWords | None:
        """What a sandbox's HTTP clients are told, None: our own words."""
        endpoint = self.endpoints.by_box(box)
        return None if endpoint is None else endpoint.policy.words

    def check_name(self, box: str, name: str, flow: Flow) -> None:
        """A name turned up on a connection that is dialled already: it has to be allowed at that address too.

        Raises: Refused.
        """
        endpoint = self._endpoint(box)
        there = flow.destinations[0]
        decision = self._resolver.decision_on(endpoint.policy, name)
        asked = Asked(name=name, address=there.address, port=there.port)
        named = _tcp(name, there.address, there.port)
        if not decision.is_allowed and not endpoint.policy.dry_run and there.name is not None:
            raise self._refused(endpoint, asked, decision.rule)
        self._judge(endpoint, asked, named)
        flow.destinations = (*flow.destinations, named)

    @contextmanager
    def flow(self, box: str, near: Wire) -> Generator[Flow]:
        """Within, the connection is listed, so that a change of the policy cuts it."""
        flow = Flow(near)
        flows = self._flows.setdefault(box, set())
        flows.add(flow)
        try:
            yield flow
        finally:
            flows.discard(flow)
            if not flows:
                self._flows.pop(box, None)
            if flow.far is not None:
                flow.far.reset()  # nothing, where it was closed before

    def recheck(self, box: str) -> None:
        """Cut the connections of a sandbox that what holds for it now does not allow."""
        endpoint = self.endpoints.by_box(box)
        for flow in tuple(self._flows.get(box, ())):
            if endpoint is None or not all(self._passes(endpoint, there) for there in flow.destinations):
                flow.cut()

    def refuse(self, box: str, asked: Asked, words: str) -> Refused:
        """Record that something was refused for another reason than a rule; returns what to raise."""
        return self._refused(self._endpoint(box), asked, words, dry_run=False)

    async def _by_name(self, endpoint: Endpoint, asked: Asked, decision: Decision) -> Route:
        name = asked.name or ""
        try:
            found = await self._resolver.resolve(endpoint, name)
        except NoAnswer as error:
            raise Unreachable(f"{name} could not be resolved") from error
        if not found.addresses and found.blocked:
            raise self._refused(endpoint, asked, found.blocked)
        if not decision.is_allowed:
            self._note(endpoint, asked, decision.rule, dry_run=True)
        decisions = {one: self._decide(endpoint, _tcp(name, one, asked.port)) for one in found.addresses}
        good = [address for address, judged in decisions.items() if self._may_pass(endpoint, judged)]
        if decisions and not good:
            raise self._refused(endpoint, asked, next(iter(decisions.values())).rule)
        if not good:
            raise Unreachable(f"{name} has no address")
        if asked.address in good:  # what the client found is as good as what we found
            good.sort(key=lambda one: one != asked.address)
        return Route(asked=asked, addresses=tuple(good))

    def _is_allowed_both_ways(self, endpoint: Endpoint, asked: Asked) -> bool:
        route = Route(asked=asked, addresses=(), by_address=True)
        return all(self._decide(endpoint, there).is_allowed for there in route.destinations(asked.address or ""))

    def _judge(self, endpoint: Endpoint, asked: Asked, destination: Destination) -> None:
        decision = self._decide(endpoint, destination)
        if decision.is_allowed:
            return
        if not self._may_pass(endpoint, decision):
            raise self._refused(endpoint, asked, decision.rule)
        self._note(endpoint, asked, decision.rule, dry_run=True)

    def _passes(self, endpoint: Endpoint, destination: Destination) -> bool:
        return self._may_pass(endpoint, self._decide(endpoint, destination))

    def _decide(self, endpoint: Endpoint, destination: Destination) -> Decision:
        words = guarded(endpoint.policy, destination)
        if words is None and destination.name is not None:
            words = other_resolver(endpoint.policy, destination.name)
        if words is not None:
            return Decision(verdict=Verdict.DENY, rule=words)
        return decide(endpoint.policy, destination, self._judges.closed())

    @staticmethod
    def _may_pass(endpoint: Endpoint, decision: Decision) -> bool:
        return decision.verdict is Verdict.ALLOW or (endpoint.policy.dry_run and not decision.is_closed)

    def _endpoint(self, box: str) -> Endpoint:
        endpoint = self.endpoints.by_box(box)
        if endpoint is None:
            raise Unreachable("the sandbox has left the network")
        return endpoint

    async def _connect(self, address: str, port: int) -> Wire:
        loop = asyncio.get_running_loop()
        sock = await self._outside.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, (address, port))
            _, wire = await loop.create_connection(Wire, sock=sock)
        except BaseException:
            sock.close()
            raise
        return wire

    def _refused(self, endpoint: Endpoint, asked: Asked, words: str, *, dry_run: bool = False) -> Refused:
        self._note(endpoint, asked, words, dry_run=dry_run)
        return Refused(words)

    def _note(self, endpoint: Endpoint, asked: Asked, words: str, *, dry_run: bool) -> None:
        self._judges.report(
            Refusal(
                sandbox=endpoint.box, layer=_LAYER, name=asked.name, address=asked.address, port=asked.port,
                protocol="tcp", rule=words, at=time.time(), dry_run=dry_run,
            )
        )  # fmt: skip


def _tcp(name: str | None, address: str | None, port: int) -> Destination:
    return Destination(name=name, address=address, port=port, protocol=Protocol.TCP)
