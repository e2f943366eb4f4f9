"""What a sandbox may reach: policies, their rules, and what is told about refusals. Frozen values, no I/O.

A policy is an ordered list of rules, the first that matches decides, else its default. What is closed to every sandbox
(metadata addresses, the host, private ranges, other sandboxes) is closed before any rule is asked, and only the
operator's settings open it. How a rule matches: `model/policy.py`; the words: docs/guides/network.md.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from msgspec import Struct


class NetworkMode(StrEnum):
    """`none`: no way out at all. `open`: the internet, but nothing that is closed. `policy`: as the rules say."""

    NONE = "none"
    OPEN = "open"
    POLICY = "policy"


class Verdict(StrEnum):
    """What a rule says of what it matches."""

    ALLOW = "allow"
    DENY = "deny"


class Protocol(StrEnum):
    """Of the packets inside IPv4."""

    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"


class PortRange(Struct, frozen=True):
    """Ports `first` to `last`, both included."""

    first: int
    last: int


class NetworkRule(Struct, frozen=True, kw_only=True):
    """One rule, its target in canonical form (`model/policy.canonical_target`).

    `target`: a CIDR (`203.0.113.7/32`), `host.example`, `*.host.example` (any depth of subdomain, not the apex), `*`
    (everything), or `re:PATTERN` (RE2, over a whole host name).

    `ports` empty: all; `protocol` None: all.
    """

    verdict: Verdict
    target: str
    ports: tuple[PortRange, ...] = ()
    protocol: Protocol | None = None


class ProxyWords(Struct, frozen=True, kw_only=True):
    """What an HTTP client is told by the explicit proxy, for callers whose programs know other words than ours.

    `{asked}` stands for `request to HOST` or `CONNECT to HOST`, `{there}` for `HOST:PORT`.
    """

    refused: str
    unreachable: str


class NetworkPolicy(Struct, frozen=True, kw_only=True):
    """What one sandbox may reach. `rules` and `default` count in the mode `policy` only.

    `dry_run`: what the rules would refuse is recorded and let through (what is closed stays closed). `profile`: the
    name of the profile it was made from. `links`: names of sandboxes of the same project that it may reach.
    `bandwidth_bps`: bytes per second in each direction; `connections_per_s`: new connections; None: not limited.

    `record`: what is asked of the proxies is kept, too, where it is allowed (`Visit`). `words`: None: ours.

    `broker` is set by `core/credentials.py` and by no caller, whatever the mode: the sandbox has credentials, so it
    reaches the broker at the router. With the mode `none` that is all: the resolver and the proxies refuse it.
    """

    mode: NetworkMode = NetworkMode.NONE
    rules: tuple[NetworkRule, ...] = ()
    default: Verdict = Verdict.DENY
    dry_run: bool = False
    profile: str | None = None
    links: tuple[str, ...] = ()
    bandwidth_bps: int | None = None
    connections_per_s: int | None = None
    broker: bool = False
    record: bool = False
    words: ProxyWords | None = None

    @property
    def is_connected(self) -> bool:
        """Whether it needs an interface at all."""
        return self.mode is not NetworkMode.NONE or bool(self.links) or self.broker

    @property
    def word(self) -> str:
        """What the view of a sandbox's isolation says: `none`, `open` or `policy`."""
        limited = self.is_connected and self.mode is NetworkMode.NONE
        return NetworkMode.POLICY.value if limited else self.mode.value


class NetworkRequest(Struct, frozen=True, kw_only=True):
    """What a caller asks for; `core/networkrules.py` makes the policy of it. Targets of rules in any form.

    `mode` None: as the rest says. `profile`: its rules stand behind the caller's own. `default` None: the profile's,
    else deny. The rest as in `NetworkPolicy`.
    """

    mode: NetworkMode | None = None
    profile: str | None = None
    rules: tuple[NetworkRule, ...] = ()
    default: Verdict | None = None
    dry_run: bool = False
    links: tuple[str, ...] = ()
    bandwidth_bps: int | None = None
    connections_per_s: int | None = None
    record: bool = False
    words: ProxyWords | None = None


class NetworkProfile(Struct, frozen=True, kw_only=True):
    """A policy with a name, for every project of the server. `mode` OPEN or POLICY.

    `registries`: clients of the machine (`pip`, `npm`, `apt`) whose registries it allows too; which hosts those are is
    asked when it is used. `is_builtin`: comes with Cove; `is_changed`: the operator made or changed it.
    """

    name: str
    description: str = ""
    mode: NetworkMode = NetworkMode.POLICY
    rules: tuple[NetworkRule, ...] = ()
    default: Verdict = Verdict.DENY
    registries: tuple[str, ...] = ()
    is_builtin: bool = False
    is_changed: bool = False


NO_NETWORK: Final = NetworkPolicy()
OPEN_NETWORK: Final = NetworkPolicy(mode=NetworkMode.OPEN)


class Refusal(Struct, frozen=True, kw_only=True):
    """Something that a sandbox tried to reach and did not (or, `dry_run`, would not have). Repeats are one, `count`.

    `layer`: `packet`, `dns`, `proxy` or `broker`. `name` is canonical, None: none was seen. `rule`: the words of
    `Decision.rule`. `port` 0: none (DNS, ICMP).
    """

    sandbox: str
    layer: str
    name: str | None
    address: str | None
    port: int
    protocol: str
    rule: str
    at: float
    count: int = 1
    dry_run: bool = False


class Visit(Struct, frozen=True, kw_only=True):
    """Something that a sandbox asked of a proxy or of the resolver by a name, where its policy says `record`.

    `method`: of HTTP; `CONNECT` for a tunnel and for TLS, whose path nobody sees (None); `TCP` for something else, by
    its address; `DNS` for a name that may not be asked for. `at`: when it was asked. `duration_ms`: until the answer
    began, the tunnel stood, or it was refused.
    """

    sandbox: str
    method: str
    host: str
    port: int
    path: str | None
    is_allowed: bool
    at: float
    duration_ms: float


class NetworkUse(Struct, frozen=True, kw_only=True):
    """Bytes that left a sandbox and came to it over its interface, since it was attached."""

    sent_bytes: int = 0
    received_bytes: int = 0
