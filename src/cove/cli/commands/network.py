"""`cove network`: what sandboxes may reach, what was refused, and why."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cove.cli.failures import usage
from cove.cli.networking import network_of, network_options
from cove.cli.options import box_argument
from cove.cli.session import Session
from cove.cli.terminal import clean, put, size, table
from cove.cli.tree import noun, verb
from cove.sdk import network_calls

if TYPE_CHECKING:
    from cove.sdk.network_calls import NetworkInfo

FIELDS = ("sandbox", "policy", "address", "links", "sent_bytes", "received_bytes")
REFUSAL_FIELDS = ("at", "layer", "name", "address", "port", "protocol", "rule", "count", "dry_run")
WHY_FIELDS = ("action", "rule", "let_through", "addresses", "steps")
PROFILE_FIELDS = ("name", "description", "mode", "rules", "default", "registries", "builtin", "changed")


@verb("show", fields=FIELDS)
@box_argument()
def show_command(session: Session, *, box: str) -> None:
    """Show what a sandbox may reach, its address and its bytes."""
    _told(session, session.on_box(box, lambda ref: session.client.call(network_calls.network(ref))))


@verb("set", fields=FIELDS)
@box_argument()
@network_options
@click.option("--dry-run", is_flag=True, help="Record what the rules refuse, and let it through.")
@click.option("--bandwidth", metavar="SIZE", help="Bytes per second in each direction: 10m.")
@click.option("--connections", type=int, metavar="N", help="New connections per second.")
@click.option("--from", "source", metavar="FILE", help="The whole policy as JSON, as the API has it; -: from stdin.")
def set_command(  # noqa: PLR0913 - one keyword for each option
    session: Session,
    *,
    box: str,
    network: str | None,
    allow: tuple[str, ...],
    deny: tuple[str, ...],
    link: tuple[str, ...],
    dry_run: bool,
    bandwidth: str | None,
    connections: int | None,
    source: str | None,
) -> None:
    """Let a sandbox reach something else, all of it: what is not said is gone.

    cove network set BOX --allow api.example.com:443 --allow '*.example.org'

    It holds at once, and flows that it refuses are cut.
    """
    given = network_of(network, allow, deny, link)
    if (source is None) == (given is None):
        raise usage("say what it may reach: --network WORD, --allow RULE, --link BOX, or --from FILE", "--network none")
    policy = network_calls.policy_of(_read(source) if source is not None else given or {}, bandwidth=bandwidth)
    if dry_run:
        policy["dry_run"] = True
    if connections is not None:
        policy["connections_per_s"] = connections
    _told(session, session.on_box(box, lambda ref: session.client.call(network_calls.set_network(ref, policy))))


def _read(source: str) -> dict[str, Any]:
    import json

    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        found: Any = json.loads(text)
    except (OSError, ValueError) as error:
        raise usage(f"--from: {clean(source)} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise usage(f"--from: {clean(source)} is no policy: it has to be an object")
    return found  # pyright: ignore[reportUnknownVariableType]


@verb("allow", fields=FIELDS)
@box_argument()
@click.argument("rule", nargs=-1, required=True)
def allow_command(session: Session, *, box: str, rule: tuple[str, ...]) -> None:
    """Put rules that allow in front of a sandbox's own: cove network allow BOX api.example.com:443."""
    _put_first(session, box, [network_calls.rule_of(one) for one in rule], default="deny")


@verb("deny", fields=FIELDS)
@box_argument()
@click.argument("rule", nargs=-1, required=True)
def deny_command(session: Session, *, box: str, rule: tuple[str, ...]) -> None:
    """Put rules that refuse in front of a sandbox's own: cove network deny BOX '*.example.com'."""
    _put_first(session, box, [network_calls.rule_of(one, "deny") for one in rule], default="allow")


def _put_first(session: Session, box: str, rules: list[dict[str, Any]], *, default: str) -> None:
    """An open network with exceptions is a policy whose default allows."""

    def put_first(ref: str) -> NetworkInfo:
        policy = dict(session.client.call(network_calls.network(ref)).policy)
        mode = policy.pop("mode", None)
        if mode != "policy":
            if mode == "none" and default == "allow":
                raise usage("this sandbox has no network: there is nothing to refuse", "cove network show BOX")
            policy["default"] = "allow" if mode == "open" else "deny"
        policy["rules"] = [*rules, *policy.get("rules", ())]
        return session.client.call(network_calls.set_network(ref, policy))

    _told(session, session.on_box(box, put_first))


@verb("why", fields=WHY_FIELDS)
@box_argument()
@click.argument("host")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: 443, or what stands behind HOST:.")
@click.option("--protocol", type=click.Choice(["tcp", "udp", "icmp"]), default="tcp", show_default=True)
def why_command(session: Session, *, box: str, host: str, port: int | None, protocol: str) -> None:
    """Say what would become of a connection, and which rule says so. None is made.

    cove network why BOX api.example.com:443
    """
    name, number = _host_port(host, port)
    said = session.on_box(box, lambda ref: session.client.call(network_calls.why(ref, name, number, protocol)))
    action = "allowed" if said.allowed else "let through by the dry run" if said.let_through else "refused"
    session.emit(said.raw, f"{action}: {clean(said.rule)}")
    if session.json:
        return
    for step in said.steps:
        at = f" ({clean(step['address'])})" if step.get("address") else ""
        session.talk(f"  {clean(step.get('step')):<6} {clean(step.get('action')):<5} {clean(step.get('rule'))}{at}")
    if not said.allowed and "mode none" not in said.rule and not said.rule.startswith(("closed", "names", "link")):
        session.talk(f"Let it through: cove network allow {clean(box)} {clean(name)}:{number}")


def _host_port(host: str, port: int | None) -> tuple[str, int]:
    """Split `HOST:PORT`. Raises: Failure."""
    name, colon, number = host.rpartition(":")
    if not colon or ":" in name:
        return host, port or 443
    if port is not None or not (number.isascii() and number.isdigit()):
        raise usage(f'"{clean(host)}" is no HOST:PORT, or the port is given twice', "cove network why BOX HOST:443")
    return name, int(number)


@verb("refusals", fields=REFUSAL_FIELDS)
@box_argument()
def refusals_command(session: Session, *, box: str) -> None:
    """List what a sandbox tried to reach and did not, newest first."""
    found = session.on_box(box, lambda ref: session.client.call(network_calls.refusals(ref)))
    for one in found:
        session.emit(one.raw)
    if session.json:
        return
    if not found:
        session.talk("Nothing was refused.")
        return
    rows = [
        (
            f"{one.at:%H:%M:%S}" if one.at else "-",
            clean(one.host or "-"),
            clean(one.address or "-"),
            f"{one.port}/{clean(one.protocol)}" if one.port else clean(one.protocol),
            str(one.count),
            clean(one.layer),
            clean(one.rule) + (" (let through)" if one.dry_run else ""),
        )
        for one in found
    ]
    put(table(("AT", "HOST", "ADDRESS", "PORT", "TIMES", "BY", "RULE"), rows, lambda _column, _cell: None))


@verb("default", fields=("network",))
@click.argument("project", default="default")
@network_options
def default_command(  # noqa: PLR0913 - one keyword for each option
    session: Session,
    *,
    project: str,
    network: str | None,
    allow: tuple[str, ...],
    deny: tuple[str, ...],
    link: tuple[str, ...],
) -> None:
    """Show or choose what a project's sandboxes reach that ask for nothing.

    cove network default PROJECT --network packages · cove network default PROJECT --network none
    """
    given = network_of(network, allow, deny, link)
    profiles = session.client.network_profiles
    found = profiles.default(project) if given is None else profiles.set_default(given, project)
    session.emit({"network": found})
    if not session.json:
        put("\n".join(_policy_lines(found or {"mode": "none"})))


@verb("ls", fields=PROFILE_FIELDS)
def profiles_ls_command(session: Session) -> None:
    """List network profiles."""
    found = session.client.network_profiles.list()
    for one in found:
        session.emit(one.raw)
    if not session.json:
        rows = [
            (clean(one.name), "open" if one.mode == "open" else f"{len(one.rules)} rules", clean(one.description))
            for one in found
        ]
        put(table(("NAME", "REACHES", "DESCRIPTION"), rows, lambda _column, _cell: None))


@verb("show", fields=PROFILE_FIELDS)
@click.argument("profile")
def profiles_show_command(session: Session, *, profile: str) -> None:
    """Show a profile's rules, those of this server's registries among them."""
    found = session.client.network_profiles.get(profile)
    session.emit(found.raw, "\n".join(_policy_lines(found.raw)))


@verb("set", fields=PROFILE_FIELDS)
@click.argument("profile")
@click.option("--allow", multiple=True, metavar="RULE", help="May be repeated.")
@click.option("--deny", multiple=True, metavar="RULE", help="Before all that is allowed. May be repeated.")
@click.option("--default", type=click.Choice(["allow", "deny"]), default="deny", show_default=True)
@click.option("--registries", metavar="NAMES", default="", help="Also what these use here: pip,npm,apt.")
@click.option("--description", metavar="TEXT", default="", help="For people.")
def profiles_set_command(  # noqa: PLR0913 - one keyword for each option
    session: Session,
    *,
    profile: str,
    allow: tuple[str, ...],
    deny: tuple[str, ...],
    default: str,
    registries: str,
    description: str,
) -> None:
    """Make or change a profile, all of it; live sandboxes keep what they have."""
    made = session.client.network_profiles.set(
        profile,
        rules=[*(network_calls.rule_of(one, "deny") for one in deny), *(network_calls.rule_of(one) for one in allow)],
        default=default,
        registries=[name for name in (part.strip() for part in registries.split(",")) if name],
        description=description,
    )
    session.emit(made.raw, clean(made.name))


@verb("rm", fields=("name",))
@click.argument("profile")
def profiles_rm_command(session: Session, *, profile: str) -> None:
    """Remove a profile; one that comes with Cove is again as it came."""
    session.client.network_profiles.remove(profile)
    session.emit({"name": profile})
    session.talk(f"Removed {clean(profile)}.")


def _told(session: Session, info: NetworkInfo) -> None:
    lines = _policy_lines(info.policy)
    for name, address in info.links.items():
        lines.append(f"link      {clean(name)}.cove.internal  {clean(address or 'has no network now')}")
    if info.address:
        lines.append(f"address   {clean(info.address)}, {size(info.sent_bytes)} out, {size(info.received_bytes)} in")
    session.emit(info.raw, "\n".join(lines))


def _policy_lines(policy: dict[str, Any]) -> list[str]:
    """A policy for people, its rules numbered as refusals name them."""
    said = any(policy.get(name) for name in ("rules", "default", "profile"))
    mode = str(policy.get("mode") or ("policy" if said else "none"))
    profile = f" (profile {clean(policy['profile'])})" if policy.get("profile") else ""
    lines = [f"mode      {clean(mode)}{profile}{', dry run' if policy.get('dry_run') else ''}"]
    if mode == "policy":
        lines += [f"rule {at:<4} {_rule_text(rule)}" for at, rule in enumerate(policy.get("rules") or (), 1)]
        lines.append(f"default   {clean(policy.get('default') or ('of the profile' if profile else 'deny'))}")
    if policy.get("bandwidth_mbps"):
        lines.append(f"bandwidth {policy['bandwidth_mbps']:g} MiB/s in each direction")
    if policy.get("connections_per_s"):
        lines.append(f"new       {policy['connections_per_s']} connections/s")
    return lines


def _rule_text(rule: dict[str, Any]) -> str:
    ports: Sequence[Any] = rule.get("ports") or ()
    text = f"{rule.get('action')} {rule.get('target')}" + (":" if ports else "") + ",".join(map(str, ports))
    return clean(text + (f"/{rule['protocol']}" if rule.get("protocol") else ""))


_PROFILES = noun(
    "profiles",
    "Policies with a name, for every project of the server.",
    profiles_ls_command,
    profiles_show_command,
    profiles_set_command,
    profiles_rm_command,
)

network_command = noun(
    "network",
    "What sandboxes may reach: rules, refusals, reasons.",
    show_command,
    set_command,
    allow_command,
    deny_command,
    why_command,
    refusals_command,
    default_command,
    _PROFILES,
)
