"""`cove quota`: how much projects and keys may use, and what they do."""

from __future__ import annotations

from dataclasses import asdict, replace
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final

import click

from cove.cli.failures import usage
from cove.cli.session import Session
from cove.cli.terminal import put, table
from cove.cli.tree import noun, verb

if TYPE_CHECKING:
    from cove.sdk.account_models import Quota, QuotaInfo

FIELDS: Final = ("subject", "id", "quota", "used")
NONE: Final = "none"


def _wire(info: QuotaInfo) -> dict[str, Any]:
    limits, used = asdict(info.quota), asdict(info.used)
    if info.quota.budget is not None:
        limits["budget"] = f"{info.quota.budget:f}"
    used["spent"] = f"{info.used.spent:f}"
    return {"subject": info.subject, "id": info.id, "quota": limits, "used": used}


@verb("show", fields=FIELDS)
@click.option("--project", metavar="PROJECT", help="Of this project.")
@click.option("--key", metavar="ID", help="Of this key.")
def show_command(session: Session, *, project: str | None, key: str | None) -> None:
    """Show limits beside what is used. Default: all that limits you."""
    account = session.client.account
    found = account.quotas() if project is None and key is None else [account.quota(project=project, key=key)]
    for one in found:
        session.emit(_wire(one))
    if not session.json:
        put(
            table(
                ("OF", "WHAT", "USED", "LIMIT"),
                [row for one in found for row in _rows(one)],
                lambda _column, _cell: None,
            )
        )


def _rows(info: QuotaInfo) -> list[tuple[str, ...]]:
    limits, used = info.quota, info.used
    whose = f"{info.subject} {info.id}"
    shown: list[tuple[str, object, object]] = [
        ("sandboxes", used.sandboxes, limits.sandboxes),
        ("cpus", f"{used.cpus:g}", None if limits.cpus is None else f"{limits.cpus:g}"),
        ("memory", f"{used.memory_mib} MiB", None if limits.memory_mib is None else f"{limits.memory_mib} MiB"),
        ("disk", f"{used.disk_mib} MiB", None if limits.disk_mib is None else f"{limits.disk_mib} MiB"),
    ]
    if info.subject == "project":
        shown += [("snapshots", used.snapshots, limits.snapshots), ("host ports", used.host_ports, limits.host_ports)]
    shown.append(("requests per minute", "", limits.requests_per_minute))
    per = "" if limits.budget_period == "total" else f" per {limits.budget_period}"
    budget = None if limits.budget is None else f"{limits.budget:f}{per}, then {limits.budget_action}"
    shown.append(("budget", f"{used.spent:.4f}", budget))
    return [(whose, what, str(use), "-" if limit is None else str(limit)) for what, use, limit in shown]


@verb("set", fields=FIELDS)
@click.option("--project", metavar="PROJECT", help="The project it is for.")
@click.option("--key", metavar="ID", help="Or the key, by its id.")
@click.option("--sandboxes", metavar="N", help="Sandboxes at a time. `none`, here and below: not limited.")
@click.option("--cpus", metavar="N", help="Cores of all of them together.")
@click.option("--memory", metavar="SIZE", help="Memory of all of them together: 512M, 4G.")
@click.option("--disk", metavar="SIZE", help="Disk of all of them together.")
@click.option("--host-ports", metavar="N", help="Ports of the host that lead to them (projects only).")
@click.option("--snapshots", metavar="N", help="Snapshots (projects only).")
@click.option("--rpm", metavar="N", help="Requests per minute.")
@click.option("--budget", metavar="MONEY[/PERIOD]", help="What may be spent per day, month or in total: 50/month.")
@click.option("--then", type=click.Choice(("refuse", "pause", "stop")), help="What happens to what runs then.")
def set_command(session: Session, *, project: str | None, key: str | None, **given: str | None) -> None:
    """Change limits of a project or a key; what is not named stays. For admins."""
    if (project is None) == (key is None):
        raise usage("name a project or a key", "cove quota set --project default --sandboxes 10")
    account = session.client.account
    before = account.quota(project=project, key=key).quota
    after = account.set_quota(_changed(before, given), project=project, key=key)
    session.emit(_wire(after), after.id)


def _changed(quota: Quota, given: dict[str, str | None]) -> Quota:
    from cove.sdk.units import parse_mib

    changes: dict[str, Any] = {}
    for option, field in (
        ("sandboxes", "sandboxes"),
        ("host_ports", "host_ports"),
        ("snapshots", "snapshots"),
        ("rpm", "requests_per_minute"),
    ):
        if (text := given[option]) is not None:
            changes[field] = None if text == NONE else _number(text, option, int)
    if (text := given["cpus"]) is not None:
        changes["cpus"] = None if text == NONE else _number(text, "cpus", float)
    for option in ("memory", "disk"):
        if (text := given[option]) is not None:
            changes[f"{option}_mib"] = None if text == NONE else parse_mib(text, option)
    if (text := given["budget"]) is not None:
        changes |= _budget(text)
    if given["then"] is not None:
        changes["budget_action"] = given["then"]
    return replace(quota, **changes)


def _number(text: str, option: str, kind: type[float]) -> float:
    try:
        return kind(text)
    except ValueError:
        raise usage(f"--{option.replace('_', '-')}: {text!r} is no number; `none` takes the limit away", "") from None


def _budget(text: str) -> dict[str, Any]:
    amount, slash, period = text.partition("/")
    if amount == NONE:
        return {"budget": None}
    if slash and period not in {"day", "month", "total"}:
        raise usage("--budget: the period is day, month or total", "cove quota set --project default --budget 50/month")
    try:
        return {"budget": Decimal(amount), **({"budget_period": period} if slash else {})}
    except InvalidOperation:
        raise usage(f"--budget: {amount!r} is no amount of money", "cove quota set --key ID --budget 5/day") from None


quota_command = noun("quota", "How much projects and keys may use.", show_command, set_command)
