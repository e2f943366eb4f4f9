# ruff: noqa: ANN001 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cove.core.access import LOCAL
from cove.core.facade import Core
from cove.core.secrets import Secrets, new_master_key
from cove.core.services.catalogue import ServiceSpec, builtin
from cove.model.access import FULL, Principal, Scope
from cove.model.audit import AuditFilter
from cove.model.closed import ClosedRanges
from cove.model.credentials import PROJECT, CredentialWish, EndpointRule, Secret
from cove.model.errors import (
    BadRequest,
    Conflict,
    EngineFailure,
    Forbidden,
    Gone,
    IdempotencyConflict,
    NotFound,
    TooLarge,
    Unsupported,
)
from cove.model.network import NetworkMode
from cove.model.request import Idempotency
from cove.model.sandbox import Sandbox, SandboxSpec
from cove.model.snapshot import RestoreSpec, SnapshotSpec

KEY = "sk-live-0123456789-abcdefghij"
ALICE = Principal(key_id="k1", name="ci", project="alice", scopes=FULL - {Scope.ADMIN})
BOB = Principal(key_id="k2", name="ci", project="bob", scopes=FULL - {Scope.ADMIN})
RULES = (EndpointRule(methods=("POST",), paths=("/v1/chat",)),)


class Connected:
    """A network, as far as credentials look at it."""

    missing: tuple[str, ...] = ()
    closed = ClosedRanges()


@pytest.fixture
def secrets() -> Secrets:
    return Secrets((new_master_key(),), lambda _ring: None)


@pytest.fixture
async def core(opened, secrets) -> AsyncIterator[Core]:
    async with opened(network=Connected(), secrets=secrets) as one:
        await one.projects.create(LOCAL, "alice")
        await one.projects.create(LOCAL, "bob")
        yield one


def wish(key: str | None = KEY, rules: tuple[EndpointRule, ...] = ()) -> CredentialWish:
    return CredentialWish(key=None if key is None else Secret(key), endpoints=rules)


async def made(core: Core, who: Principal = ALICE, **credentials: CredentialWish) -> Sandbox:
    return await core.sandboxes.create(who, SandboxSpec(credentials=credentials))


def key_of(core: Core, sandbox: Sandbox, service: str = "openai") -> str | None:
    grant = core.credentials.grant(sandbox.id, service)
    return None if grant is None else grant.key.reveal()


async def test_a_sandbox_gets_a_placeholder_and_the_broker_the_key(core, driver) -> None:
    box = await made(core, openai=wish(), anthropic=wish("sk-ant-1"))
    env = driver.boxes[box.id].agent.claimed[0]
    assert env["OPENAI_API_KEY"] == "sk-cove-proxy-managed"
    assert env["OPENAI_BASE_URL"] == "http://169.254.1.1:3130/proxy/openai"
    assert env["ANTHROPIC_API_KEY"] == "sk-ant-cove-proxy-managed"
    assert KEY not in str(env)
    grant = core.credentials.grant(box.id, "openai")
    assert grant is not None
    assert (grant.header[0], grant.header[1].reveal()) == (b"authorization", f"Bearer {KEY}")
    assert KEY not in repr(grant)
    assert core.credentials.grant(box.id, "anthropic").header[1].reveal() == "sk-ant-1"
    assert core.credentials.grant(box.id, "github") is None
    assert core.credentials.services_of(box.id) == ("anthropic", "openai")
    assert box.network.mode is NetworkMode.NONE
    assert box.network.broker
    assert driver.boxes[box.id].network.broker


async def test_a_copy_has_no_key_of_its_source_unless_it_is_asked_for(core) -> None:
    box = await made(core, openai=wish(rules=RULES), github=wish("ghp-1"))
    snapshot = await core.snapshots.create(ALICE, box.id, SnapshotSpec())
    (plain,) = await core.snapshots.fork(ALICE, box.id, RestoreSpec())
    restored = await core.snapshots.restore(ALICE, snapshot.id, RestoreSpec())
    for one in (plain, restored):
        assert core.credentials.held(ALICE, one.id) == []
        assert core.credentials.grant(one.id, "openai") is None
        assert not one.network.broker
    spec = RestoreSpec(inherit_credentials=True, credentials={"github": wish("ghp-2")})
    (heir,) = await core.snapshots.fork(ALICE, box.id, spec)
    assert (key_of(core, heir), key_of(core, heir, "github")) == (KEY, "ghp-2")
    assert core.credentials.held(ALICE, heir.id)[1].credential.endpoints == RULES
    assert heir.network.broker
    await core.credentials.remove(ALICE, box.id, "openai")
    assert key_of(core, heir) == KEY, "it is its own by now"
    entries = (await core.trail.page(ALICE, AuditFilter(sandbox=heir.id), limit=100)).entries
    told = [line.data for line in entries if line.event == "credential.changed"]
    assert [(data["service"], data["action"], data["key"]) for data in told] == [("openai", "inherited", "own")]
    assert KEY not in repr(entries)
    await core.sandboxes.destroy(ALICE, box.id)
    with pytest.raises(Conflict, match="has ended, and they with it"):
        await core.snapshots.restore(ALICE, snapshot.id, RestoreSpec(inherit_credentials=True))


async def test_the_callers_own_environment_wins(core, driver) -> None:
    spec = SandboxSpec(
        credentials={"openai": wish()}, env={"OPENAI_API_KEY": "mine"}, placeholder="isorun-proxy-managed"
    )
    box = await core.sandboxes.create(ALICE, spec)
    assert driver.boxes[box.id].agent.claimed[0]["OPENAI_API_KEY"] == "mine"
    spec = SandboxSpec(credentials={"openai": wish()}, placeholder="isorun-proxy-managed")
    box = await core.sandboxes.create(ALICE, spec)
    assert driver.boxes[box.id].agent.claimed[0]["OPENAI_API_KEY"] == "sk-isorun-proxy-managed"


async def test_the_key_is_in_no_record_no_view_and_no_file(core, tmp_path) -> None:
    spec = SandboxSpec(credentials={"openai": wish()})
    idempotency = Idempotency(key="k", body_sha256="ab" * 32)
    box = await core.sandboxes.create(ALICE, spec, idempotency=idempotency)
    await core.credentials.set_shared(ALICE, "github", key=Secret(KEY + "-shared"))
    held = core.credentials.held(ALICE, box.id)
    assert KEY not in repr((box, spec, held, core.credentials.shared(ALICE)))
    await core.audit.drain()
    entries = core.audit._rows.window("alice", AuditFilter(), first=0, end=100, limit=100)
    assert {"credential.changed", "sandbox.created"} <= {entry.event for entry in entries}
    assert KEY not in repr(entries)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert KEY.encode() not in content, path
            assert idempotency.body_sha256.encode() not in content, "a hash of the key would help to guess it"


async def test_the_same_create_again_is_the_same_sandbox_and_another_key_another_request(core) -> None:
    spec = SandboxSpec(credentials={"openai": wish()})
    first = await core.sandboxes.create(ALICE, spec, idempotency=Idempotency(key="k", body_sha256="a" * 64))
    again = await core.sandboxes.create(ALICE, spec, idempotency=Idempotency(key="k", body_sha256="a" * 64))
    assert first.id == again.id
    with pytest.raises(IdempotencyConflict):
        await core.sandboxes.create(ALICE, spec, idempotency=Idempotency(key="k", body_sha256="b" * 64))


@pytest.mark.parametrize(
    ("credentials", "error", "field"),
    [
        ({"nobody": wish()}, NotFound, "service"),
        ({"openai": wish(None)}, NotFound, "credentials"),
        ({"openai": wish("")}, BadRequest, "key"),
        ({"openai": wish("a\r\nX-Evil: 1")}, BadRequest, "key"),
        ({"openai": wish("a\n")}, BadRequest, "key"),
        ({"openai": wish(" a")}, BadRequest, "key"),
        ({"openai": wish("é")}, BadRequest, "key"),
        ({"openai": wish("a" * 9000)}, BadRequest, "key"),
        ({"openai": wish(KEY, (EndpointRule(paths=("x",)),))}, BadRequest, "endpoints"),
        ({"openai": wish(KEY, (EndpointRule(),) * 65)}, TooLarge, "endpoints"),
        ({f"s{n}": wish() for n in range(33)}, TooLarge, "credentials"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_made(core, driver, credentials, error, field) -> None:
    with pytest.raises(error) as raised:
        await made(core, **credentials)
    assert raised.value.field == field
    for one in credentials.values():
        text = "" if one.key is None else one.key.reveal()
        assert not text.strip() or text not in f"{raised.value.public}{raised.value.internal}"
    assert driver.boxes == {}
    assert core.sandboxes.list(ALICE).sandboxes == ()


async def test_without_a_network_there_are_none(opened) -> None:
    async with opened() as core:
        with pytest.raises(Unsupported) as raised:
            await core.sandboxes.create(LOCAL, SandboxSpec(credentials={"openai": wish()}))
        assert raised.value.field == "credentials"
        assert (await core.sandboxes.create(LOCAL, SandboxSpec())).network.broker is False


async def test_set_rotate_and_remove_hold_for_the_next_request(core, driver) -> None:
    cut: list[tuple[str | None, str | None]] = []
    core.credentials.on_change = lambda sandbox, service: cut.append((sandbox, service))
    box = await core.sandboxes.create(ALICE, SandboxSpec())
    assert not box.network.broker
    held = await core.credentials.set(ALICE, box.name, "openai", key=Secret("one"))
    assert held.credential.created_at == held.credential.changed_at
    assert core.sandboxes.get(ALICE, box.id).network.broker
    assert driver.boxes[box.id].network.broker, "the way is open before the credential is there"
    assert key_of(core, box) == "one"
    await core.credentials.set(ALICE, box.id, "openai", key=Secret("two"))
    assert key_of(core, box) == "two"
    assert cut == [], "another key lets what is under way end by itself"
    await core.credentials.set(ALICE, box.id, "openai", endpoints=RULES)
    assert key_of(core, box) == "two"
    assert core.credentials.grant(box.id, "openai").rules == (RULES, ())
    assert cut == [(box.id, "openai")]
    await core.credentials.set(ALICE, box.id, "github", key=Secret("gh"))
    await core.credentials.remove(ALICE, box.id, "openai")
    assert cut == [(box.id, "openai")] * 2
    assert key_of(core, box) is None
    assert core.sandboxes.get(ALICE, box.id).network.broker
    await core.credentials.remove(ALICE, box.id, "openai")
    await core.credentials.remove(ALICE, box.id, "github")
    assert not core.sandboxes.get(ALICE, box.id).network.broker, "with the last one the way is closed"
    assert not driver.boxes[box.id].network.broker
    assert core.credentials.held(ALICE, box.id) == []


async def test_a_projects_key_is_used_by_name_and_as_it_is_at_the_time(core) -> None:
    cut: list[tuple[str | None, str | None]] = []
    await core.credentials.set_shared(ALICE, "github", key=Secret("one"))
    box = await made(core, github=wish(None, RULES))
    core.credentials.on_change = lambda sandbox, service: cut.append((sandbox, service))
    assert key_of(core, box, "github") == "one"
    await core.credentials.set_shared(ALICE, "github", key=Secret("two"))
    assert key_of(core, box, "github") == "two"
    shared = (EndpointRule(methods=("GET",)),)
    await core.credentials.set_shared(ALICE, "github", endpoints=shared)
    assert core.credentials.grant(box.id, "github").rules == (RULES, shared)
    assert cut == [(box.id, "github")]
    await core.credentials.set(ALICE, box.id, "github", key=Secret("own"))
    assert key_of(core, box, "github") == "own"
    assert core.credentials.grant(box.id, "github").rules == (RULES, ()), "the project's rules are of its own key"
    await core.credentials.set(ALICE, box.id, "github", key=None)
    assert key_of(core, box, "github") == "two"
    await core.credentials.remove_shared(ALICE, "github")
    assert key_of(core, box, "github") is None
    assert cut[-1] == (box.id, "github")
    with pytest.raises(NotFound):
        await core.credentials.set(ALICE, box.id, "github", key=None)
    with pytest.raises(BadRequest):
        await core.credentials.set_shared(ALICE, "github", endpoints=shared)


async def test_nobody_gets_at_another_projects(core) -> None:
    box = await made(core, openai=wish())
    await core.credentials.set_shared(ALICE, "github", key=Secret("gh"))
    for call in (
        core.credentials.set(BOB, box.id, "openai", key=Secret("x")),
        core.credentials.remove(BOB, box.id, "openai"),
        core.credentials.set_shared(BOB, "github", key=Secret("x"), project="alice"),
        core.credentials.remove_shared(BOB, "github", project="alice"),
    ):
        with pytest.raises(NotFound):
            await call
    with pytest.raises(NotFound):
        core.credentials.held(BOB, box.id)
    with pytest.raises(NotFound):
        core.credentials.shared(BOB, "alice")
    with pytest.raises(NotFound):
        await made(core, BOB, github=wish(None))
    assert core.credentials.shared(BOB) == []
    assert key_of(core, box) == KEY


@pytest.mark.parametrize("scopes", [(Scope.READ, Scope.EXEC, Scope.FILES), (Scope.CREATE,)])
async def test_scopes(core, scopes) -> None:
    box = await made(core, openai=wish())
    who = Principal(key_id="k", name="k", project="alice", scopes=frozenset(scopes))
    calls = {
        Scope.CREATE: (
            lambda: core.credentials.set(who, box.id, "openai", key=Secret("x")),
            lambda: core.credentials.remove(who, box.id, "openai"),
        ),
        Scope.KEYS: (
            lambda: core.credentials.set_shared(who, "openai", key=Secret("x")),
            lambda: core.credentials.remove_shared(who, "openai"),
        ),
        Scope.ADMIN: (
            lambda: core.credentials.rekey(who),
            lambda: core.services.put(who, "mine", ServiceSpec(upstream="https://a.example")),
            lambda: core.services.remove(who, "mine"),
        ),
    }
    for scope in calls.keys() - set(scopes):
        for call in calls[scope]:
            with pytest.raises(Forbidden):
                await call()
    if Scope.READ not in scopes:
        for look in (lambda: core.credentials.held(who, box.id), lambda: core.credentials.shared(who)):
            with pytest.raises(Forbidden):
                look()


async def test_with_the_sandbox_its_credentials_end(core, tmp_path) -> None:
    cut: list[tuple[str | None, str | None]] = []
    box = await made(core, openai=wish())
    core.credentials.on_change = lambda sandbox, service: cut.append((sandbox, service))
    await core.sandboxes.destroy(ALICE, box.id)
    assert (box.id, None) in cut
    assert core.credentials.grant(box.id, "openai") is None
    assert core.credentials.held(ALICE, box.id) == []
    with pytest.raises(Gone):
        await core.credentials.set(ALICE, box.id, "openai", key=Secret("x"))


async def test_they_outlive_the_server_and_nothing_opens_them_without_its_key(opened, secrets, caplog) -> None:
    async with opened(network=Connected(), secrets=secrets) as core:
        box = await core.sandboxes.create(LOCAL, SandboxSpec(credentials={"openai": wish()}))
    async with opened(network=Connected(), secrets=secrets) as core:
        assert key_of(core, box) == KEY
        assert "cannot be read" not in caplog.text
    async with opened(network=Connected()) as core:
        assert "1 credentials cannot be read" in caplog.text
        with pytest.raises(EngineFailure, match="set it again"):
            core.credentials.grant(box.id, "openai")
        await core.credentials.set(LOCAL, box.id, "openai", key=Secret("new"))
        assert key_of(core, box) == "new"


async def test_a_new_master_key_opens_all_and_the_old_one_nothing(core, secrets) -> None:
    box = await made(core, openai=wish(), github=wish("gh"))
    await core.credentials.set_shared(ALICE, "google", key=Secret("go"))
    before = {one.service: one.sealed for one in core.credentials._store.credentials.sealed()}
    assert await core.credentials.rekey(LOCAL) == 3
    assert key_of(core, box) == KEY
    assert key_of(core, box, "github") == "gh"
    after = core.credentials._store.credentials.sealed()
    assert all(secrets.is_current(one.sealed or "") for one in after)
    for one in before.values():
        assert not secrets.can_open(one or "")


async def test_creates_beside_a_rotation_lose_no_key(core) -> None:
    async with asyncio.TaskGroup() as tasks:
        making = [tasks.create_task(made(core, openai=wish(f"sk-{n}"))) for n in range(20)]
        for _ in range(3):
            await core.credentials.rekey(LOCAL)
    for n, task in enumerate(making):
        assert key_of(core, task.result()) == f"sk-{n}"


async def test_a_row_that_was_copied_to_another_sandbox_opens_nothing(core) -> None:
    rich, poor = await made(core, openai=wish()), await made(core, openai=wish("own"))
    rows = core.credentials._store.credentials
    stolen = rows.get(rich.id, "alice", "openai").sealed
    await rows.reseal(lambda one: stolen if one.sandbox == poor.id else None)
    with pytest.raises(EngineFailure):
        core.credentials.grant(poor.id, "openai")


async def test_what_a_fork_gets_is_sealed_for_it(core) -> None:
    await core.credentials.set_shared(ALICE, "github", key=Secret("gh"))
    source = await made(core, openai=wish(KEY, RULES), github=wish(None))
    heir = await made(core)
    rows = core.credentials.inherited(source, heir)
    assert {(one.sandbox, one.service, one.sealed is None) for one in rows} == {
        (heir.id, "openai", False),
        (heir.id, "github", True),
    }
    for one in rows:
        assert await core.credentials._store.credentials.save(one)
    assert key_of(core, heir) == KEY
    assert core.credentials.grant(heir.id, "openai").rules[0] == RULES


async def test_thirty_two_are_enough(core) -> None:
    for n in range(33):
        await core.services.put(LOCAL, f"s{n}", ServiceSpec(upstream=f"https://s{n}.example"))
    box = await core.sandboxes.create(ALICE, SandboxSpec())
    for n in range(32):
        await core.credentials.set(ALICE, box.id, f"s{n}", key=Secret("x"))
        await core.credentials.set_shared(ALICE, f"s{n}", key=Secret("x"))
    with pytest.raises(TooLarge):
        await core.credentials.set(ALICE, box.id, "s32", key=Secret("x"))
    with pytest.raises(TooLarge):
        await core.credentials.set_shared(ALICE, "s32", key=Secret("x"))
    await core.credentials.set(ALICE, box.id, "s31", key=Secret("y"))


def test_the_catalogue() -> None:
    found = builtin()
    assert set(found) == {"openai", "anthropic", "google", "github", "huggingface"}
    hosts = {name: one.host for name, one in found.items()}
    assert hosts == {
        "openai": "api.openai.com",
        "anthropic": "api.anthropic.com",
        "google": "generativelanguage.googleapis.com",
        "github": "api.github.com",
        "huggingface": "api-inference.huggingface.co",
    }
    headers = {name: (one.header.lower(), one.value) for name, one in found.items()}
    assert headers["anthropic"] == ("x-api-key", "{key}")
    assert headers["google"] == ("x-goog-api-key", "{key}")
    assert {headers[name] for name in ("openai", "github", "huggingface")} == {("authorization", "Bearer {key}")}
    env = {name: value for one in found.values() for name, value in one.environment("isorun-proxy-managed").items()}
    assert env["OPENAI_API_KEY"] == "sk-isorun-proxy-managed"
    assert env["ANTHROPIC_API_KEY"] == "sk-ant-isorun-proxy-managed"
    for name in ("GOOGLE_API_KEY", "GITHUB_TOKEN", "HUGGINGFACE_TOKEN"):
        assert env[name] == "isorun-proxy-managed"
    for name, service in (
        ("OPENAI_BASE_URL", "openai"),
        ("ANTHROPIC_BASE_URL", "anthropic"),
        ("GOOGLE_BASE_URL", "google"),
        ("GITHUB_API_URL", "github"),
        ("HUGGINGFACE_BASE_URL", "huggingface"),
    ):
        assert env[name] == f"http://169.254.1.1:3130/proxy/{service}"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (ServiceSpec(upstream="http://a.example"), "upstream"),
        (ServiceSpec(upstream="https://"), "upstream"),
        (ServiceSpec(upstream="https://10.0.0.1"), "upstream"),
        (ServiceSpec(upstream="https://[::1]"), "upstream"),
        (ServiceSpec(upstream="https://0x7f.1"), "upstream"),
        (ServiceSpec(upstream="https://user:pw@a.example"), "upstream"),
        (ServiceSpec(upstream="https://a.example?x=1"), "upstream"),
        (ServiceSpec(upstream="https://a.example#x"), "upstream"),
        (ServiceSpec(upstream="https://a.example:99999"), "upstream"),
        (ServiceSpec(upstream="https://a.example:0"), "upstream"),
        (ServiceSpec(upstream="https://a.example/a/../b"), "upstream"),
        (ServiceSpec(upstream="https://a.example/*"), "upstream"),
        (ServiceSpec(upstream="https://a.example", prefix="v1"), "prefix"),
        (ServiceSpec(upstream="https://a.example", header="Host"), "header"),
        (ServiceSpec(upstream="https://a.example", header="Content-Length"), "header"),
        (ServiceSpec(upstream="https://a.example", header="X Y"), "header"),
        (ServiceSpec(upstream="https://a.example", header="X:\r\n"), "header"),
        (ServiceSpec(upstream="https://a.example", value="Bearer"), "value"),
        (ServiceSpec(upstream="https://a.example", value="{key}{key}"), "value"),
        (ServiceSpec(upstream="https://a.example", value="{key}\r\nX: y"), "value"),
        (ServiceSpec(upstream="https://a.example", strip_headers=("a b",)), "strip_headers"),
        (ServiceSpec(upstream="https://a.example", strip_query=("a=b",)), "strip_query"),
        (ServiceSpec(upstream="https://a.example", env={"A B": "x"}), "env"),
        (ServiceSpec(upstream="https://a.example", env={f"A{n}": "x" for n in range(17)}), "env"),
    ],
)
async def test_a_service_that_cannot_be_is_refused(core, spec, field) -> None:
    with pytest.raises(BadRequest) as raised:
        await core.services.put(LOCAL, "mine", spec)
    assert raised.value.field == field


async def test_the_operators_services_come_first_and_the_catalogue_is_back(core) -> None:
    cut: list[tuple[str | None, str | None]] = []
    core.credentials.on_change = lambda sandbox, service: cut.append((sandbox, service))
    spec = ServiceSpec(
        upstream="https://LLM.corp.example:8443/v2/", header="Api-Key", value="{key}", env={"U": "{url}"}
    )
    made_one = await core.services.put(LOCAL, "openai", spec)
    assert (made_one.host, made_one.port, made_one.prefix) == ("llm.corp.example", 8443, "/v2")
    assert made_one.upstream == "https://llm.corp.example:8443/v2"
    assert core.services.get("openai").host == "llm.corp.example"
    assert not made_one.is_builtin
    assert cut == [(None, "openai")]
    assert [one.name for one in core.services.list(ALICE)] == sorted(builtin())
    await core.services.remove(LOCAL, "openai")
    assert core.services.get("openai").host == "api.openai.com"
    with pytest.raises(NotFound):
        await core.services.remove(LOCAL, "openai")
    for name in ("", "A", "a b", "-a", "a" * 40, "../x"):
        with pytest.raises(BadRequest):
            await core.services.put(LOCAL, name, spec)


async def test_a_credential_whose_service_is_gone_opens_nothing(core) -> None:
    await core.services.put(LOCAL, "mine", ServiceSpec(upstream="https://a.example"))
    box = await made(core, mine=wish())
    assert key_of(core, box, "mine") == KEY
    await core.services.remove(LOCAL, "mine")
    assert key_of(core, box, "mine") is None
    assert core.credentials.held(ALICE, box.id)[0].service is None


async def test_rows_of_a_project_are_no_sandboxs(core) -> None:
    await core.credentials.set_shared(ALICE, "openai", key=Secret(KEY))
    assert core.credentials.grant(PROJECT, "openai") is None


@pytest.mark.parametrize("rules_first", [True, False])
async def test_changes_at_the_same_time_undo_none_of_each_other(core, *, rules_first: bool) -> None:
    box = await made(core, openai=wish("sk-old"))
    await core.credentials.set_shared(ALICE, "openai", key=Secret("sk-shared-old"))
    both = [
        core.credentials.set(ALICE, box.id, "openai", endpoints=RULES),
        core.credentials.set(ALICE, box.id, "openai", key=Secret("sk-new")),
    ]
    shared = [
        core.credentials.set_shared(ALICE, "openai", endpoints=RULES),
        core.credentials.set_shared(ALICE, "openai", key=Secret("sk-shared-new")),
    ]
    await asyncio.gather(*(both if rules_first else both[::-1]), *(shared if rules_first else shared[::-1]))
    grant = core.credentials.grant(box.id, "openai")
    assert grant is not None
    assert (grant.key.reveal(), grant.rules[0]) == ("sk-new", RULES)
    await core.credentials.set(ALICE, box.id, "openai", key=None)
    grant = core.credentials.grant(box.id, "openai")
    assert grant is not None
    assert (grant.key.reveal(), grant.rules[1]) == ("sk-shared-new", RULES)


async def test_a_key_that_was_taken_away_does_not_come_back_with_new_rules(core) -> None:
    box = await made(core, openai=wish("sk-revoked"))
    set_, removed = await asyncio.gather(
        core.credentials.set(ALICE, box.id, "openai", endpoints=RULES),
        core.credentials.remove(ALICE, box.id, "openai"),
        return_exceptions=True,
    )
    assert removed is None
    assert isinstance(set_, NotFound) or key_of(core, box) is None
    assert key_of(core, box) is None


async def test_new_rules_during_a_rotation_lose_no_key(core) -> None:
    box = await made(core, openai=wish())
    await asyncio.gather(
        core.credentials.set(ALICE, box.id, "openai", endpoints=RULES),
        core.credentials.rekey(LOCAL),
        core.credentials.set(ALICE, box.id, "openai", endpoints=()),
    )
    assert key_of(core, box) == KEY


async def test_there_is_room_for_no_more_than_the_most_at_once(core, monkeypatch) -> None:
    monkeypatch.setattr("cove.core.credentials.MOST", 2)
    box = await made(core)
    names = ("openai", "anthropic", "google", "github")
    done = await asyncio.gather(
        *(core.credentials.set(ALICE, box.id, name, key=Secret("sk-1")) for name in names), return_exceptions=True
    )
    assert sum(isinstance(one, TooLarge) for one in done) == 2
    assert len(core.credentials.services_of(box.id)) == 2


async def test_changes_are_on_record_before_they_are_answered(core) -> None:
    box = await made(core)
    await core.credentials.set(ALICE, box.id, "openai", key=Secret(KEY))
    assert (await core.trail.page(ALICE, AuditFilter(event="credential."))).entries[-1].data["action"] == "set"
    await core.credentials.remove(ALICE, box.id, "openai")
    assert (await core.trail.page(ALICE, AuditFilter(event="credential."))).entries[-1].data["action"] == "removed"


@pytest.mark.parametrize("late", range(6))
async def test_one_that_comes_while_the_last_one_goes_keeps_the_way(core, driver, late) -> None:
    box = await made(core, openai=wish())

    async def remove() -> None:
        for _ in range(late):
            await asyncio.sleep(0)
        await core.credentials.remove(ALICE, box.id, "openai")

    await asyncio.gather(remove(), core.credentials.set(ALICE, box.id, "anthropic", key=Secret("sk-2")))
    assert key_of(core, box, "anthropic") == "sk-2"
    assert core.sandboxes.get(ALICE, box.id).network.broker
    assert driver.boxes[box.id].network.broker
