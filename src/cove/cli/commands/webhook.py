"""`cove webhook`: be told of events by signed POSTs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from cove.cli.session import Session
from cove.cli.terminal import clean, put, table
from cove.cli.tree import noun, verb

if TYPE_CHECKING:
    from cove.sdk.webhook_calls import Webhook

FIELDS: Final = (
    "id", "project", "url", "events", "created_at", "delivered_at", "failing_since", "failure", "disabled_at",
)  # fmt: skip


def _wire(hook: Webhook, *extra: str) -> dict[str, Any]:
    return {name: getattr(hook, name) for name in (*FIELDS, *extra)}


@verb("create", fields=(*FIELDS, "secret"))
@click.argument("url")
@click.option("--event", "events", multiple=True, metavar="PREFIX", help="Events that begin so. Default: sandbox.")
@click.option("--project", metavar="PROJECT", help="The project it is for. Default: your own.")
def create_command(session: Session, *, url: str, events: tuple[str, ...], project: str | None) -> None:
    """Tell URL of what happens from now on, and print the secret that signs it.

    cove webhook create https://ci.example.com/cove --event sandbox. --event exec.exit

    The secret is shown only now. What is sent: docs/guides/audit.md.
    """
    hook = session.client.webhooks.create(url, events=events or None, project=project)
    session.emit(_wire(hook, "secret"), clean(hook.secret or ""))
    session.talk(f"How it goes: cove webhook ls   Remove it: cove webhook rm {clean(hook.id)}")


@verb("ls", fields=FIELDS)
def ls_command(session: Session) -> None:
    """List webhooks and how they go."""
    hooks = session.client.webhooks.list()
    for hook in hooks:
        session.emit(_wire(hook))
    if session.json:
        return
    rows = [(hook.id, hook.project, hook.url, " ".join(hook.events), _state(hook)) for hook in hooks]
    put(table(("ID", "PROJECT", "URL", "EVENTS", "STATE"), rows, lambda _column, _cell: None))


def _state(hook: Webhook) -> str:
    if hook.disabled_at is not None:
        return f"disabled: {hook.failure}"
    if hook.failing_since is not None:
        return f"failing: {hook.failure}"
    return "new" if hook.delivered_at is None else "good"


@verb("rm", fields=("id",))
@click.argument("webhook")
def rm_command(session: Session, *, webhook: str) -> None:
    """Remove a webhook, by its id."""
    session.client.webhooks.remove(webhook)
    session.emit({"id": webhook})
    session.talk(f"{clean(webhook)} is told nothing more.")


webhook_command = noun("webhook", "Signed POSTs that tell of events.", create_command, ls_command, rm_command)
