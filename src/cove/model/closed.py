"""Which addresses are closed to everything that works for a caller: sandboxes, pulls, webhooks. Pure.

Closed is all that is not the public internet, and this server itself. Only the operator's settings open a part, and
never by accident: a metadata address or one of the server's own needs to be listed by itself, whatever wider range was
opened; other sandboxes are reached by links only.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

_SPECIAL: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/3", "168.63.129.16/32", "::/8", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23",
        "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/9", "ff00::/8",
    )
)  # fmt: skip
"""IANA's special-purpose registries (RFC 6890 and later), multicast and reserved space, and one cloud's metadata
address that lies in public space. Ranges that carry an IPv4 address (mapped, 6to4, NAT64, Teredo) are closed whole."""

_SPECIAL_4: Final = tuple(net for net in _SPECIAL if isinstance(net, ipaddress.IPv4Network))
_SPECIAL_6: Final = tuple(net for net in _SPECIAL if isinstance(net, ipaddress.IPv6Network))

METADATA: Final = frozenset(
    {
        "169.254.169.254", "169.254.170.2", "169.254.170.23", "169.254.0.23", "169.254.42.42", "100.100.100.200",
        "168.63.129.16", "192.0.0.192",
    }
)  # fmt: skip
"""Where clouds answer with a machine's credentials: most of them; ECS and EKS tasks; Tencent; Scaleway; Alibaba;
Azure's wire server; Oracle's old one."""

_LAST: Final = 2**32 - 1
_PORTS: Final = 65535


class Opening(Struct, frozen=True):
    """A range that the operator opened. `port` None: all of its ports."""

    network: str
    port: int | None = None


class ClosedSpan(Struct, frozen=True):
    """IPv4 addresses `first` to `last` (numbers) that are closed but at `open_ports`. `words` name what closes them."""

    first: int
    last: int
    open_ports: tuple[int, ...]
    words: str


def parse_opening(text: str) -> Opening:
    """`CIDR`, `ADDRESS`, or either with `:PORT`; IPv4. Raises: ValueError."""
    network, has_port, port = text.strip().partition(":")
    if has_port and not (port.isascii() and port.isdigit() and 1 <= int(port) <= _PORTS):
        raise ValueError(f"{text}: after the colon stands a port, 1-{_PORTS}")
    return Opening(str(ipaddress.IPv4Network(network)), int(port) if has_port else None)


class ClosedRanges:
    """What is closed on this server, less what its operator opened. Immutable; made again when addresses change.

    Args:
        opened: the operator's list.
        own: addresses of the host, as text (IPv4 and IPv6), and ranges of IPv4 that are all its own.
        inside: ranges that sandboxes and their links to the host have, as CIDRs: nothing opens them.
    """

    def __init__(self, opened: Iterable[Opening] = (), *, own: Iterable[str] = (), inside: Iterable[str] = ()) -> None:
        self._opened = [(ipaddress.IPv4Network(one.network), one.port) for one in opened]
        self._inside = [ipaddress.IPv4Network(text) for text in inside]
        own = frozenset(own)
        self._own_ranges = sorted(ipaddress.IPv4Network(text) for text in own if "/" in text)
        own_addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in own if "/" not in text]
        self._own_6 = {one for one in own_addresses if isinstance(one, ipaddress.IPv6Address)}
        named = {ipaddress.IPv4Address(text): f"closed: {text} (metadata)" for text in METADATA}
        host = {one: f"closed: {one} (this server)" for one in own_addresses if isinstance(one, ipaddress.IPv4Address)}
        self._by_itself = named | host
        self.spans: tuple[ClosedSpan, ...] = tuple(self._sweep())
        """Disjoint and in order: what a packet filter is made from."""
        self._firsts = [span.first for span in self.spans]

    def why(self, address: str, port: int | None = None) -> str | None:
        """The words of what closes `address` (`closed: 169.254.0.0/16`), None: it is open, at `port` or at any port.

        What is no address is closed.
        """
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return "closed: no address"
        if isinstance(parsed, ipaddress.IPv6Address):
            return self._why_6(parsed)
        at = bisect_right(self._firsts, int(parsed)) - 1
        if at < 0 or int(parsed) > self.spans[at].last:
            return None
        span = self.spans[at]
        is_open = bool(span.open_ports) if port is None else port in span.open_ports
        return None if is_open else span.words

    def covers(self, network: str) -> str | None:
        """The words of what closes every address of an IPv4 `network`, at every port; None: something of it is open."""
        net = ipaddress.IPv4Network(network)
        first, last = int(net[0]), int(net[-1])
        at = bisect_right(self._firsts, first) - 1
        words: str | None = None
        for span in self.spans[max(at, 0) :]:
            if not span.first <= first <= span.last or span.open_ports:
                return None
            words = words or span.words
            if span.last >= last:
                return words
            first = span.last + 1
        return None

    def _why_6(self, address: ipaddress.IPv6Address) -> str | None:
        if address in self._own_6:
            return f"closed: {address} (this server)"
        return next((f"closed: {net}" for net in _SPECIAL_6 if address in net), None)

    def _sweep(self) -> Iterable[ClosedSpan]:
        """Cut the address space where anything begins or ends, ask each piece's first address, join equal pieces."""
        nets = [*_SPECIAL_4, *self._inside, *self._own_ranges, *(net for net, _ in self._opened)]
        nets += [ipaddress.IPv4Network(one) for one in self._by_itself]
        cuts = sorted({int(net[0]) for net in nets} | {int(net[-1]) + 1 for net in nets} | {0})
        held: ClosedSpan | None = None
        for first, last in zip(cuts, [cut - 1 for cut in cuts[1:]] + [_LAST], strict=True):
            span = self._piece(first, last) if first <= _LAST else None
            if held is not None and span is not None and _is_next(held, span):
                held = ClosedSpan(held.first, span.last, held.open_ports, held.words)
                continue
            if held is not None:
                yield held
            held = span
        if held is not None:
            yield held

    def _piece(self, first: int, last: int) -> ClosedSpan | None:
        address = ipaddress.IPv4Address(first)
        ports: tuple[int, ...] = ()
        inside = next((net for net in self._inside if address in net), None)
        if inside is not None:
            return ClosedSpan(first, last, (), f"closed: {inside} (sandboxes)")
        own = next((net for net in self._own_ranges if address in net), None)
        words = self._by_itself.get(address) or (f"closed: {own} (this server)" if own is not None else None)
        exact = words is not None
        if words is None:
            words = next((f"closed: {net}" for net in _SPECIAL_4 if address in net), None)
        if words is None:
            return None
        for net, port in self._opened:
            if address in net and (net.prefixlen == net.max_prefixlen or not exact):
                if port is None:
                    return None
                ports = (*ports, port)
        return ClosedSpan(first, last, tuple(sorted(set(ports))), words)


def is_special(address: str) -> bool:
    """Whether an address is outside the public internet. What is no address counts as such."""
    return _NOTHING_OPENED.why(address) is not None


def _is_next(one: ClosedSpan, other: ClosedSpan) -> bool:
    return one.last + 1 == other.first and (one.open_ports, one.words) == (other.open_ports, other.words)


_NOTHING_OPENED: Final = ClosedRanges()
