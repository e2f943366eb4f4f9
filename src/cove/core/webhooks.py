"""Telling other systems of a project's events, by signed POSTs.

The audit trail is the outbox: a hook is a cursor on its project's chain, so nothing is stored twice, order and
durability are those of the trail, and after `kill -9` delivery goes on where it was (an event may come twice, with the
same id). What is sent is the event's word, ids that Cove made, and the time: nothing that a sandbox could write.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import random
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

from msgspec.structs import replace

from cove.core.access import require
from cove.core.audit import Audit
from cove.core.secrets import Secrets
from cove.engine.clock import Clock, sleep
from cove.engine.webpost import Poster, PostRefused
from cove.model.access import Principal, Scope
from cove.model.audit import AuditEntry, AuditFilter, AuditValue
from cove.model.auditchain import PREFIX, moment
from cove.model.closed import ClosedRanges
from cove.model.credentials import Secret
from cove.model.errors import BadRequest, Conflict, CoveError, Forbidden, NotFound
from cove.model.hostname import canonical_host
from cove.model.ids import new_core_id
from cove.model.webhooks import Webhook
from cove.store.store import Store

log = logging.getLogger(__name__)

HOOKS_PER_PROJECT: Final = 16
EVENTS_PER_HOOK: Final = 32
URL_CHARS: Final = 2048
GIVE_UP_S: Final = 24 * 3600.0
"""An event that cannot be delivered for so long disables its hook."""

FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 3600.0
WINDOW: Final = 256
PIECE: Final = 32
"""Lines read at a time, which takes 0.3 ms: most of them are wanted."""

DEFAULT_EVENTS: Final = ("sandbox.",)

_EVENT: Final = re.compile(r"[a-z_]{1,32}\.(?:[a-z_.-]{0,64})")
_PATH: Final = re.compile(r"[!-~]*")
_GOOD: Final = range(200, 300)


class Webhooks:
    """Every operation on webhooks."""

    def __init__(  # noqa: PLR0913 - made once, by the facade
        self,
        *,
        store: Store,
        secrets_at_rest: Secrets,
        audit: Audit,
        clock: Clock,
        post: Poster | None,
        closed: Callable[[], ClosedRanges],
        plain: bool,
    ) -> None:
        self._rows = store.webhooks
        self._trail = store.audit
        self._projects = store.projects
        self._secrets = secrets_at_rest
        self._audit = audit
        self._clock = clock
        self._post = post
        self._closed = closed
        self._plain = plain
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._adding = asyncio.Lock()
        secrets_at_rest.holders.append(lambda: store.webhooks.reseal(self._resealed))

    def _resealed(self, hook_id: str, sealed: str) -> str | None:
        """In the writer's thread."""
        return self._secrets.resealed(sealed, "webhook", hook_id)

    async def create(
        self, who: Principal, url: str, *, events: Sequence[str] = DEFAULT_EVENTS, project: str | None = None
    ) -> tuple[Webhook, str]:
        """Tell `url` of what happens from now on; the second value is the secret that signs, shown only here.

        Raises: Forbidden, BadRequest, NotFound (project), Conflict (16 are there), CapacityExceeded.
        """
        require(who, Scope.KEYS)
        self._audit.check()
        owner = self._project(who, project)
        host = self._check_url(url)
        wanted = _checked_events(events)
        secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        hook_id = new_core_id()[:12]
        async with self._adding:
            if len(self._rows.list(owner)) >= HOOKS_PER_PROJECT:
                raise Conflict(f"a project has at most {HOOKS_PER_PROJECT} webhooks")
            hook = Webhook(
                id=hook_id,
                project=owner,
                url=url,
                events=wanted,
                secret=self._secrets.seal(Secret(secret), "webhook", hook_id),
                created_at=self._clock.now(),
                seq=self._trail.chain(owner, None).link.seq - 1,
            )
            await self._rows.add(hook)
        self._begin(hook)
        await self._note("webhook.created", who, hook, {"host": host, "events": " ".join(wanted)})
        return hook, secret

    def list(self, who: Principal) -> list[Webhook]:
        """Those of the caller's project, for an admin all. Raises: Forbidden."""
        require(who, Scope.KEYS)
        return self._rows.list(None if who.can(Scope.ADMIN) else who.project)

    async def remove(self, who: Principal, hook_id: str) -> None:
        """Tell it nothing more. Raises: Forbidden, NotFound."""
        require(who, Scope.KEYS)
        hook = self._rows.get(hook_id)
        if hook is None or (hook.project != who.project and not who.can(Scope.ADMIN)):
            raise NotFound("no such webhook")
        await self._rows.remove(hook.id)
        task = self._tasks.pop(hook.id, None)
        if task is not None:
            task.cancel()
        await self._note("webhook.removed", who, hook, {})

    async def deliver_forever(self) -> None:
        """Deliver, until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for hook in self._rows.list(None):
                self._begin(hook)
            await asyncio.get_running_loop().create_future()

    def _begin(self, hook: Webhook) -> None:
        if self._group is not None and self._post is not None and hook.disabled_at is None:
            task = self._group.create_task(self._live(hook, self._post), name=f"webhook {hook.id}")
            self._tasks[hook.id] = task

    async def _live(self, hook: Webhook, post: Poster) -> None:
        """The task of one hook. A bug in it ends its deliveries until the next start, and nothing else."""
        try:
            await self._deliver(hook, post)
        except Exception:
            log.exception("webhook %s failed", hook.id)

    async def _deliver(self, hook: Webhook, post: Poster) -> None:
        retry_s = FIRST_RETRY_S
        while hook.disabled_at is None:
            entry, seen = self._next(hook)
            if entry is None:
                if seen == hook.seq:
                    await self._audit.news()
                hook = replace(hook, seq=seen)
                await asyncio.sleep(0)
                continue
            failure = await self._try(hook, entry, post)
            if failure is None:
                now = self._clock.now()
                hook = replace(hook, seq=entry.seq, delivered_at=now, failing_since=None, failure=None)
                retry_s = FIRST_RETRY_S
                await self._save(hook)
                continue
            hook = await self._failed(hook, failure)
            if hook.disabled_at is None:
                await sleep(self._clock, retry_s * random.uniform(0.8, 1.2))  # noqa: S311 - spreads retries, no secret
                retry_s = min(retry_s * 2, LONGEST_RETRY_S)

    def _next(self, hook: Webhook) -> tuple[AuditEntry | None, int]:
        """The next line that the hook wants, or None and the number up to which there is none."""
        end = min(self._trail.chain(hook.project, None).link.seq, hook.seq + 1 + WINDOW)
        found = self._trail.window(hook.project, AuditFilter(), first=hook.seq + 1, end=end, limit=PIECE)
        for entry in found:
            if hook.wants(entry.event):
                return entry, entry.seq
        return None, found[-1].seq if len(found) == PIECE else max(end - 1, hook.seq)

    async def _try(self, hook: Webhook, entry: AuditEntry, post: Poster) -> str | None:
        """Deliver one event; returns why it failed, in words of ours."""
        body = _body(entry)
        event_id = f"{entry.project}.{entry.seq}"
        stamp = str(int(self._clock.now()))
        try:
            row = self._rows.get(hook.id) or hook  # its secret may have been sealed anew
            secret = self._secrets.open(row.secret, "webhook", hook.id)
            headers = {
                "Content-Type": "application/json",
                "User-Agent": "cove",
                "webhook-id": event_id,
                "webhook-timestamp": stamp,
                "webhook-signature": signature(secret.reveal(), event_id, stamp, body),
            }
            status = await post(hook.url, headers, body)
        except PostRefused as refused:
            return str(refused)
        except TimeoutError:
            return "it did not answer in time"
        except OSError as error:
            return f"it could not be reached: {error.strerror or type(error).__name__}"
        except CoveError as error:
            return error.public
        return None if status in _GOOD else f"it answered {status}"

    async def _failed(self, hook: Webhook, failure: str) -> Webhook:
        now = self._clock.now()
        since = hook.failing_since or now
        hook = replace(hook, failing_since=since, failure=failure)
        if now - since >= GIVE_UP_S:
            hook = replace(hook, disabled_at=now)
            log.warning("webhook %s of project %s is disabled: %s", hook.id, hook.project, failure)
            data = {"webhook": hook.id, "why": failure}
            self._audit.note("webhook.disabled", project=hook.project, sandbox=None, data=data)
        await self._save(hook)
        return hook

    async def _save(self, hook: Webhook) -> None:
        try:
            await self._rows.note(hook)
        except CoveError as error:  # after a restart it is delivered once more
            log.warning("the state of webhook %s was not written: %s %s", hook.id, error, error.internal)

    async def _note(self, event: str, who: Principal, hook: Webhook, data: dict[str, AuditValue]) -> None:
        facts = {"webhook": hook.id, **data}
        ticket = self._audit.note(event, project=hook.project, sandbox=None, data=facts, who=who)
        await self._audit.kept(ticket)

    def _project(self, who: Principal, project: str | None) -> str:
        if project is None or project == who.project:
            return who.project
        if not who.can(Scope.ADMIN) or self._projects.get(project) is None:
            raise NotFound("no such project", field="project")
        return project

    def _check_url(self, url: str) -> str:
        """The host, if the address may be one. A name is checked again, with its address, at each delivery."""
        if len(url) > URL_CHARS:
            raise BadRequest(f"a URL has at most {URL_CHARS} characters", field="url")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise BadRequest(f"this is no URL: {error}", field="url") from error
        if parts.scheme not in {"https", "http"} or not host or _PATH.fullmatch(url) is None:
            raise BadRequest("a URL is https://HOST/PATH in visible ASCII", field="url")
        if parts.scheme == "http" and not self._plain:
            raise Forbidden("the operator of this server allows https only (COVE_WEBHOOK_PLAIN)", field="url")
        if parts.username is not None or parts.fragment or port == 0:
            raise BadRequest("a URL has no name, password or fragment", field="url")
        if host.replace(".", "").isdigit() or ":" in host:
            why = self._closed().why(host, port or (443 if parts.scheme == "https" else 80))
            if why is not None:
                raise Forbidden(f"this address may not be reached: {why}", field="url")
            return host
        try:
            return canonical_host(host)
        except ValueError as error:
            raise BadRequest(f"{error}", field="url") from error


def signature(secret: str, event_id: str, stamp: str, body: bytes) -> str:
    """`webhook-signature` as Standard Webhooks 1.0 has it."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    message = f"{event_id}.{stamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, message, "sha256")).decode()


def _body(entry: AuditEntry) -> bytes:
    """What is told of a line: its data stays here, for a sandbox wrote a part of it."""
    fields = {
        "type": entry.event,
        "timestamp": moment(entry.at),
        "data": {
            "project": entry.project,
            "sandbox": None if entry.sandbox is None else PREFIX + entry.sandbox,
            "seq": entry.seq,
        },
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def _checked_events(events: Sequence[str]) -> tuple[str, ...]:
    if not 0 < len(events) <= EVENTS_PER_HOOK:
        raise BadRequest(f"a webhook has 1-{EVENTS_PER_HOOK} events", field="events")
    for event in events:
        if _EVENT.fullmatch(event) is None:
            raise BadRequest("an event is a word and a dot, and perhaps more: `sandbox.`, `exec.exit`", field="events")
        if event.startswith("webhook."):
            raise BadRequest("webhooks are not told of webhooks", field="events")
    return tuple(dict.fromkeys(events))
