"""The rules of the router that hold for every sandbox, as text: said once at the start, in one transaction.

A packet of a sandbox passes, in this order: `raw` (its interface and source address belong together), connection
tracking (which puts fragments together first), `judge` (what is new is decided once and marked: closed ranges before
anything else, then the sandbox's own chain), `to_proxy` (marked to be checked by name), `forward` or `input` (what the
mark says). What is established passes without being asked again; `conntrack.py` ends what must not go on.

A connection is marked with the epoch of the sandbox that began it, a number that no other has: a sandbox that is gone
takes its flows with it at once, and who gets its address later inherits none.

Text of a later start replaces the base chains and leaves the sandboxes' own chains, sets and flows alone: there is no
moment without rules. Nothing here grows with the number of sandboxes; all that does is in sets with hashed keys, so a
packet costs the same among five hundred.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from cove.engine.network import conntrack, nft
from cove.engine.network.steps import Action, Code
from cove.model.closed import ClosedRanges

TABLE: Final = "cove1"
"""Its number is that of the layout of its sets: change it with them, and a start replaces the whole table."""
GATEWAY: Final = "169.254.1.1"
DNS_PORT: Final = 53
PROXY_PORT: Final = 3128
TRANSPARENT_PORT: Final = 3129
BROKER_PORT: Final = 3130
LOG_GROUP: Final = 1
INTERFACES: Final = "sv"
"""What the router's ends of the sandboxes' interfaces are called, before their number."""

BASE_CODES: Final = 0xF000
"""From here on the lower half of a mark says why a base rule decided; what the bits are: `boxrules.py`."""

BOUND: Final = "bound"
DEFAULTS: Final = "defaults"
EPOCHS: Final = "epochs"
CURRENT: Final = "current"
APPLIED: Final = "applied"
LINKS: Final = "links"
SERVED: Final = "served"
"""Which ports of the gateway a sandbox has: by address and port."""
LEARNED: Final = "learned"
BOXES: Final = "boxes"

_logger = logging.getLogger(__name__)
_PROC: Final = Path("/proc/sys/net")
_SYSCTLS: Final = {
    "ipv4/icmp_ratelimit": "0",
    "ipv4/icmp_msgs_per_sec": "100000",
    "ipv4/icmp_msgs_burst": "10000",
    "netfilter/nf_conntrack_tcp_loose": "1",
}
_CONNTRACK_SHARE: Final = 16
_CONNECTIONS: Final = 4096
_FEWEST_CONNECTIONS: Final = 256
_SNAPSHOT: Final = 64
"""Bytes of a refused packet that we look at: both headers."""
_CHAINS: Final = (
    "raw", "raw_output", "judge", "to_proxy", "forward", "input", "postrouting", "admit", "watch", "record", "refuse",
    "too_fast", "too_many",
)  # fmt: skip

_DECLARED: Final = """
table ip @TABLE {
    set bound { type ifname . ipv4_addr; }
    set links { type ipv4_addr . ipv4_addr; }
    set served { type ipv4_addr . inet_service; }
    map learned { type ipv4_addr . ipv4_addr . mark : mark; size 1048576; flags timeout; }
    map defaults { type ipv4_addr : mark; }
    map epochs { type ipv4_addr : mark; }
    set current { type ipv4_addr . mark; }
    set applied { type ipv4_addr . mark . mark . mark . mark; }
    set closed { type ipv4_addr; flags interval; }
    set opened { type ipv4_addr . inet_service; flags interval; }
    map boxes { type ipv4_addr : verdict; }
    set tracked { type ipv4_addr; size 65536; flags dynamic; }
    set first_rate { type ipv4_addr; size 65536; flags dynamic,timeout; timeout 1m; }
    set resolver_rate { type ipv4_addr; size 65536; flags dynamic,timeout; timeout 1m; }
    set refusal_rate { type ipv4_addr; size 65536; flags dynamic,timeout; timeout 1m; }
    set record_rate { type ipv4_addr; size 65536; flags dynamic,timeout; timeout 1m; }
    chain raw { type filter hook prerouting priority raw; policy accept; }
    chain raw_output { type filter hook output priority raw; policy accept; }
    chain judge { type filter hook prerouting priority mangle; policy accept; }
    chain to_proxy { type nat hook prerouting priority dstnat; policy accept; }
    chain forward { type filter hook forward priority filter; policy drop; }
    chain input { type filter hook input priority filter; policy drop; }
    chain postrouting { type nat hook postrouting priority srcnat; policy accept; }
    chain admit { }
    chain watch { }
    chain record { }
    chain refuse { }
    chain too_fast { }
    chain too_many { }
}
"""

_RULES: Final = """
table ip @TABLE {
    chain raw {
        iifname != "sv*" accept
        iifname . ip saddr != @bound drop
        ip hdrlength != 5 drop
        ip daddr @GATEWAY udp dport 53 notrack
    }
    chain raw_output {
        ip saddr @GATEWAY udp sport 53 notrack
    }
    chain judge {
        ct state vmap { established : accept, related : accept, untracked : accept, invalid : drop }
        iifname != "sv*" accept
        ip daddr @GATEWAY accept
        meta l4proto != { tcp, udp, icmp } meta mark set @PROTOCOL accept
        meta l4proto icmp icmp type != echo-request meta mark set @PROTOCOL accept
        ip saddr . ip daddr @links meta mark set @LINK accept
        meta l4proto { tcp, udp } th dport 53 meta mark set @DNS accept
        ip daddr @closed meta mark set @CLOSED
        meta mark @CLOSED meta l4proto { tcp, udp } ip daddr . th dport @opened meta mark set 0
        meta mark != 0 accept
        ip saddr vmap @boxes
        meta mark 0 meta mark set ip saddr map @defaults
        meta mark & 0x20000000 != 0 meta l4proto { tcp, udp } th dport 853 meta mark set @TLS accept
        meta mark & 0x40000000 != 0 tcp dport { 80, 443 } meta mark set meta mark & 0x00ffffff | @CHECK accept
        meta mark & 0x40000000 != 0 udp dport 443 meta mark set @QUIC accept
        meta mark & 0x80000000 != 0 meta mark set ip saddr . ip daddr . meta mark map @learned
    }
    chain to_proxy {
        iifname "sv*" meta l4proto tcp meta mark & 0x0f000000 == @CHECK redirect to :3129
    }
    chain forward {
        ct state { established, related } ct original ip saddr . ct mark @current accept
        iifname != "sv*" drop
        ct state != new goto refuse
        meta mark & 0x0f000000 vmap { @ACCEPT : goto admit, @WATCH : goto watch }
        goto refuse
    }
    chain input {
        iifname "lo" accept
        ct state { established, related } ct original ip saddr . ct mark @current accept
        iifname != "sv*" drop
        ip daddr @GATEWAY udp dport 53 \\
update @resolver_rate { ip saddr limit rate over 500/second burst 1000 packets } drop
        ip daddr @GATEWAY udp dport 53 ip saddr . udp dport @served accept
        ct state != new goto refuse
        ip daddr @GATEWAY tcp dport { 53, 3128, 3130 } ip saddr . tcp dport @served goto admit
        ip daddr @GATEWAY tcp dport 3129 ct status dnat goto admit
        meta mark set @CLOSED
        goto refuse
    }
    chain postrouting {
        oifname != "sv*" ip saddr @RANGE masquerade
    }
    chain admit {
        ct mark set ip saddr map @epochs
        ct status confirmed accept
        update @first_rate { ip saddr limit rate over 2000/second burst 4000 packets } goto too_fast
        add @tracked { ip saddr ct count over @CONNECTIONS } goto too_many
        accept
    }
    chain watch {
        jump record
        goto admit
    }
    chain record {
        update @record_rate { ip saddr limit rate 100/second burst 200 packets } \\
limit rate 2000/second burst 4000 packets \\
log group @GROUP snaplen @SNAPSHOT queue-threshold 16
    }
    chain refuse {
        update @refusal_rate { ip saddr limit rate over 1000/second burst 2000 packets } drop
        jump record
        meta l4proto tcp reject with tcp reset
        meta l4proto udp reject with icmp port-unreachable
        reject with icmp admin-prohibited
    }
    chain too_fast {
        meta mark set @RATE
        goto refuse
    }
    chain too_many {
        meta mark set @MANY
        goto refuse
    }
}
"""

_SIX: Final = """
table ip6 @TABLE {
    chain closed_in { type filter hook prerouting priority raw; policy drop; }
    chain closed_out { type filter hook output priority raw; policy drop; }
}
"""


class Baseline(Struct, frozen=True, kw_only=True):
    """What the text depends on. `addresses`: the range of this server's sandboxes, a CIDR."""

    addresses: str
    closed: ClosedRanges
    connections: int = _CONNECTIONS


def install(baseline: Baseline) -> None:
    """Make these rules hold in the namespace of the calling thread. Raises: OSError.

    A table of another layout goes in the same transaction, its sandboxes' chains with it: they are closed until applied
    again.
    """
    _settle_sysctls()
    context = nft.NfTables()
    try:
        listed = context.run("list tables").splitlines()
        old = [line.removeprefix("table ") for line in listed if _is_of_other_layout(line)]
        drops = "".join(f"delete table {name}\n" for name in old)
        six = _SIX.replace("@TABLE", TABLE) if (_PROC / "ipv6").is_dir() else ""
        try:
            context.run(drops + text_of(baseline) + six)
        except OSError as error:
            # Somebody changed our table, or half of it is gone: start from nothing, closed.
            _logger.warning("the router's rules are made anew: %s", error)
            context.run(drops + f"table ip {TABLE}\ndelete table ip {TABLE}\n" + text_of(baseline) + six)
    finally:
        context.close()


def text_of(baseline: Baseline) -> str:
    """All base rules of IPv4."""
    flushes = "".join(f"flush chain ip {TABLE} {chain}\n" for chain in _CHAINS)
    rules = _RULES.replace("@CONNECTIONS", str(baseline.connections)).replace("@RANGE", baseline.addresses)
    rules = rules.replace("@GATEWAY", GATEWAY).replace("@GROUP", str(LOG_GROUP)).replace("@SNAPSHOT", str(_SNAPSHOT))
    for word, value in _marks():
        rules = rules.replace(word, f"0x{value:08x}")
    return (_DECLARED + flushes + rules).replace("@TABLE", TABLE) + closed_text(baseline.closed)


def closed_text(closed: ClosedRanges) -> str:
    """What puts these ranges in the place of the closed ones before."""
    spans = ", ".join(f"{_address(span.first)}-{_address(span.last)}" for span in closed.spans)
    opened = ", ".join(
        f"{_address(span.first)}-{_address(span.last)} . {port}" for span in closed.spans for port in span.open_ports
    )
    text = f"flush set ip {TABLE} closed\nflush set ip {TABLE} opened\n"
    if spans:
        text += f"add element ip {TABLE} closed {{ {spans} }}\n"
    if opened:
        text += f"add element ip {TABLE} opened {{ {opened} }}\n"
    return text


def connections_cap() -> int:
    """How many connections one sandbox may have: a part of what the machine can track, so that none takes it all."""
    try:
        most = int((_PROC / "netfilter/nf_conntrack_max").read_text())
    except (OSError, ValueError):
        return _FEWEST_CONNECTIONS
    return max(_FEWEST_CONNECTIONS, min(_CONNECTIONS, most // _CONNTRACK_SHARE))


def is_crowded() -> bool:
    """Whether so many flows are tracked here that those of ended sandboxes should not wait for their time."""
    return conntrack.count() > connections_cap()


def _marks() -> Iterator[tuple[str, int]]:
    for code in (Code.PROTOCOL, Code.DNS, Code.CLOSED, Code.RATE):
        yield f"@{code.name}", _mark(Action.REFUSE, code)
    yield "@TLS", _mark(Action.REFUSE, Code.DNS_OVER_TLS)
    yield "@QUIC", _mark(Action.REFUSE, Code.QUIC)
    yield "@MANY", _mark(Action.REFUSE, Code.CONNECTIONS)
    yield "@LINK", _mark(Action.ACCEPT, Code.LINK)
    for action in (Action.CHECK, Action.ACCEPT, Action.WATCH):
        yield f"@{action.name}", action << 24


def _mark(action: Action, code: Code) -> int:
    return action << 24 | BASE_CODES + code - Code.DEFAULT


def _is_of_other_layout(line: str) -> bool:
    family, _, name = line.removeprefix("table ").partition(" ")
    return family in {"ip", "ip6"} and name.startswith("cove") and name != TABLE


def _settle_sysctls() -> None:
    """Let every refusal be told: the kernel's own limits are one a second for an address, and 1000 for all together.

    The rules have a limit for each sandbox, so that no one takes the others' part.
    """
    for name, value in _SYSCTLS.items():
        try:
            (_PROC / name).write_text(value)
        except FileNotFoundError:
            continue  # an older kernel has it for the whole machine only
        except OSError as error:
            _logger.warning("cannot set net/%s in the router: %s", name, error.strerror)


def _address(number: int) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(number)
