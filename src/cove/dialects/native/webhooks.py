"""Operations on webhooks."""

from __future__ import annotations

from typing import Final

from cove.dialects.native import wire_audit as wire
from cove.dialects.native.times import optional_timestamp, timestamp
from cove.edge.ops import Call, Json, Nothing, Op, Raw, empty
from cove.model.access import Scope
from cove.model.errors import Conflict, Forbidden, NotFound
from cove.model.webhooks import Webhook

TAG: Final = "Webhooks"


def view(hook: Webhook, secret: str | None = None) -> wire.Webhook:
    """A webhook as the wire has it; its secret only where it was made just now."""
    return wire.Webhook(
        id=hook.id,
        project=hook.project,
        url=hook.url,
        events=hook.events,
        created_at=timestamp(hook.created_at),
        delivered_at=optional_timestamp(hook.delivered_at),
        failing_since=optional_timestamp(hook.failing_since),
        failure=hook.failure,
        disabled_at=optional_timestamp(hook.disabled_at),
        secret=secret,
    )


async def create_webhook(call: Call[wire.NewWebhook, Nothing]) -> Json:
    """Make one."""
    body = call.body
    hook, secret = await call.core.webhooks.create(call.who, body.url, events=body.events, project=body.project)
    return Json(view(hook, secret), status=201)


async def list_webhooks(call: Call[None, Nothing]) -> Json:
    """All of the project."""
    return Json(wire.WebhookList(tuple(map(view, call.core.webhooks.list(call.who)))))


async def remove_webhook(call: Call[None, Nothing]) -> Raw:
    """End one."""
    await call.core.webhooks.remove(call.who, call.path["webhook"])
    return empty()


OPS: Final = (
    Op(
        method="POST",
        path="/webhooks",
        handler=create_webhook,
        summary="Be told of events by signed POSTs",
        description="Of what happens from now on. The secret that signs is in this answer only. https, no redirects, "
        "never into closed address ranges.",
        tag=TAG,
        body=wire.NewWebhook,
        answer=wire.Webhook,
        status=201,
        scopes=(Scope.KEYS,),
        errors=(NotFound, Forbidden, Conflict),
    ),
    Op(
        method="GET",
        path="/webhooks",
        handler=list_webhooks,
        summary="List webhooks and how they go",
        tag=TAG,
        answer=wire.WebhookList,
        scopes=(Scope.KEYS,),
    ),
    Op(
        method="DELETE",
        path="/webhooks/{webhook}",
        handler=remove_webhook,
        summary="Remove a webhook",
        tag=TAG,
        status=204,
        scopes=(Scope.KEYS,),
        errors=(NotFound,),
    ),
)
