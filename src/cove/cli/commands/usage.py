"""`cove usage`: what was used, and what it costs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from cove.cli.failures import usage
from cove.cli.session import Session
from cove.cli.terminal import clean, put, size, table
from cove.cli.tree import verb

if TYPE_CHECKING:
    from cove.sdk.account_models import Bill, UsageLine

AMOUNTS: Final = ("running_s", "paused_s", "vcpu_s", "gib_s", "cpu_s", "sent_bytes", "received_bytes", "cost")
GROUPS: Final = ("project", "key", "sandbox", "day", "hour")
FIELDS: Final = ("at", "project", "key", "sandbox", "name", "started_at", "ended_at", "sandboxes", *AMOUNTS)
BILL: Final = ("memory_peak_bytes", "disk_bytes")
"""What a sandbox's own bill has besides."""


@verb("usage", fields=(*FIELDS, *BILL))
@click.argument("box", required=False)
@click.option("--by", "groups", multiple=True, type=click.Choice(GROUPS), help="One line for each. Up to three times.")
@click.option("--from", "since", metavar="WHEN", help="From this day or time on: 2026-11-01.")
@click.option("--to", "until", metavar="WHEN", help="Up to this day or time, which is not included.")
@click.option("--project", metavar="PROJECT", help="Of this project. Default: your own, for an admin all.")
@click.option("--key", metavar="ID", help="Of sandboxes that this key made.")
def usage_command(session: Session, *, box: str | None, groups: tuple[str, ...], **filters: str | None) -> None:
    """Add up what sandboxes used and what it costs; with BOX, show all that one used, also an ended one by its id."""
    if box is not None:
        if groups or any(filters.values()):
            raise usage("a sandbox's bill takes no filters", "cove usage BOX")
        _show(session, session.on_box(box, session.client.account.bill))
        return
    lines = list(session.client.account.usage(group_by=groups, **filters))
    for line in lines:
        session.emit(wire(line))
    if session.json:
        return
    head = [*(group.upper() for group in groups), "SANDBOXES", "RUNNING", "VCPU", "GIB", "CPU", "TRAFFIC", "COST"]
    rows = [[*(_group(line, group) for group in groups), *_amounts(line)] for line in lines]
    put(table(head, rows, lambda _column, _cell: None))


def wire(line: Any) -> dict[str, Any]:
    """A line as JSON has it: money as text, what it was not grouped by left out."""
    found = {name: value for name, value in asdict(line).items() if value is not None or name == "ended_at"}
    if found.get("sandbox") is None:
        found.pop("ended_at", None)
    return {**found, "cost": f"{found['cost']:f}"}


def _group(line: UsageLine, group: str) -> str:
    if line.at is not None and group in {"day", "hour"}:
        return f"{line.at:%Y-%m-%d}" if group == "day" else f"{line.at:%Y-%m-%d %H:%M}"
    if group == "sandbox":
        return f"{line.sandbox} {line.name or ''}".rstrip()
    return str(getattr(line, group))


def _amounts(line: UsageLine) -> tuple[str, ...]:
    seconds = (line.running_s, line.vcpu_s, line.gib_s, line.cpu_s)
    traffic = size(line.sent_bytes + line.received_bytes)
    return (str(line.sandboxes), *(f"{value:.1f}s" for value in seconds), traffic, f"{line.cost:.4f}")


def _show(session: Session, bill: Bill) -> None:
    session.emit(wire(bill))
    if session.json:
        return
    shown = {
        "SANDBOX": f"{bill.sandbox} {bill.name}",
        "KEY": bill.key,
        "RUNNING": f"{bill.running_s:.1f}s",
        "PAUSED": f"{bill.paused_s:.1f}s",
        "VCPU": f"{bill.vcpu_s:.1f}s",
        "GIB": f"{bill.gib_s:.1f}s",
        "CPU": f"{bill.cpu_s:.1f}s",
        "MEMORY PEAK": size(bill.memory_peak_bytes),
        "DISK": size(bill.disk_bytes),
        "SENT": size(bill.sent_bytes),
        "RECEIVED": size(bill.received_bytes),
        "COST": f"{bill.cost:f}",
    }
    width = max(map(len, shown))
    for name, value in shown.items():
        put(f"{name.ljust(width)}  {clean(value)}")
