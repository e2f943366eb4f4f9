"""What goes over the wire about sandboxes' networks and profiles: frozen structs, nothing else. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Action = Literal["allow", "deny"]
Mode = Literal["none", "open", "policy"]
Protocol = Literal["tcp", "udp", "icmp"]
Port = Annotated[int, Meta(ge=1, le=65535)]
Ports = Annotated[str, Meta(pattern="^[0-9]{1,5}-[0-9]{1,5}$", description="A range, both included: 8000-8010.")]
Target = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=600,
        description="203.0.113.0/24, 203.0.113.7, host.example, *.host.example (not the apex), * or re:PATTERN (RE2).",
    ),
]
ProfileName = Annotated[str, Meta(min_length=1, max_length=63)]
MANY = 256


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule; the first that matches decides. `ports` empty: all; `protocol` null: all."""

    action: Action
    target: Target
    ports: Annotated[tuple[Port | Ports, ...], Meta(max_length=32)] = ()
    protocol: Protocol | None = None


Rules = Annotated[tuple[Rule, ...], Meta(max_length=MANY)]


class Wish(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a sandbox shall reach. Nothing given: no network. `profile`: its rules stand behind those given here.

    `mode` null: `policy` where there are rules, a default or a profile. `default` null: the profile's, else deny.
    `dry_run`: what the rules refuse is recorded and let through. `links`: sandboxes of the same project, by name.
    `bandwidth_mbps`: MiB per second in each direction; `connections_per_s`: new ones.
    """

    mode: Mode | None = None
    profile: ProfileName | None = None
    rules: Rules = ()
    default: Action | None = None
    dry_run: bool = False
    links: Annotated[tuple[Annotated[str, Meta(max_length=63)], ...], Meta(max_length=32)] = ()
    bandwidth_mbps: Annotated[float, Meta(ge=0.01, le=1048576)] | None = None
    connections_per_s: Annotated[int, Meta(ge=1, le=100000)] | None = None


Given = str | Wish
"""A word for short: `none`, `open`, or a profile's name."""


class Network(Struct, frozen=True, kw_only=True):
    """A sandbox's network now. `policy` can be sent back as it is; `address` null: it has no interface.

    `links`: the addresses by name; null: leads nowhere at the moment.
    """

    sandbox: str
    policy: Wish
    address: str | None
    links: dict[str, str | None]
    sent_bytes: int
    received_bytes: int


class Refusal(Struct, frozen=True, kw_only=True):
    """Something that was tried and refused (`dry_run`: would have been), the repeats counted."""

    at: str
    layer: str
    name: str | None
    address: str | None
    port: int
    protocol: str
    rule: str
    count: int
    dry_run: bool


class RefusalList(Struct, frozen=True):
    """The last ones, newest first."""

    refusals: tuple[Refusal, ...]


class Ask(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A connection that might be made. `host`: a name or an address."""

    host: Annotated[str, Meta(min_length=1, max_length=300)]
    port: Annotated[int, Meta(ge=1, le=65535)] = 443
    protocol: Protocol = "tcp"


class Step(Struct, frozen=True, kw_only=True):
    """One thing that is looked at: `dns`, `link`, `packet`, or `name` (TLS server name, HTTP Host)."""

    step: str
    action: Action
    rule: str
    address: str | None


class Explanation(Struct, frozen=True, kw_only=True):
    """What would happen, and which rule says so. `addresses` null: the name was not asked for.

    `let_through`: refused by the rules, and let through because of the dry run.
    """

    action: Action
    rule: str
    let_through: bool
    addresses: tuple[str, ...] | None
    steps: tuple[Step, ...]


class ProfileWish(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A profile to be. `registries`: clients of the server's machine whose registries of packages it allows too."""

    description: Annotated[str, Meta(max_length=200)] = ""
    mode: Literal["open", "policy"] = "policy"
    rules: Rules = ()
    default: Action = "deny"
    registries: tuple[Literal["pip", "npm", "apt"], ...] = ()


class Profile(Struct, frozen=True, kw_only=True):
    """A policy with a name. `rules`: those of the registries among them. `changed`: it is not as it came with Cove."""

    name: str
    description: str
    mode: Mode
    rules: tuple[Rule, ...]
    default: Action
    registries: tuple[str, ...]
    builtin: bool
    changed: bool


class ProfileList(Struct, frozen=True):
    """Those that come with Cove, then the operator's."""

    profiles: tuple[Profile, ...]


class Default(Struct, frozen=True, kw_only=True):
    """What a project's sandboxes get when they ask for no network; null: none."""

    network: Wish | None
