"""What sandboxes may reach, from the core: creates, live changes, links, projects' defaults, profiles, refusals."""

# ruff: noqa: ANN001, ANN003, ANN201, ANN202 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import pytest

from cove.core.access import LOCAL
from cove.model.access import FULL, Principal, Scope
from cove.model.audit import SERVER_PROJECT, AuditFilter
from cove.model.closed import ClosedRanges
from cove.model.errors import (
    BadRequest,
    Conflict,
    EngineFailure,
    Forbidden,
    Gone,
    NotFound,
    Unsupported,
)
from cove.model.network import (
    NO_NETWORK,
    OPEN_NETWORK,
    NetworkMode,
    NetworkPolicy,
    NetworkProfile,
    NetworkRequest,
    NetworkRule,
    PortRange,
    Protocol,
    Refusal,
    Verdict,
)
from cove.model.sandbox import SandboxSpec
from cove.model.state import State

OPEN = NetworkRequest(mode=NetworkMode.OPEN)
RULE = NetworkRule(verdict=Verdict.ALLOW, target="a.example")
NAMES = NetworkRequest(rules=(RULE,))


def principal(project: str = "default", *scopes: Scope) -> Principal:
    return Principal(key_id="k", name="k", project=project, scopes=frozenset(scopes) or FULL - {Scope.ADMIN})


class StubNetwork:
    """What the core sees of the network: addresses of names, and what it is told."""

    def __init__(self) -> None:
        self.closed = ClosedRanges(inside=["10.213.0.0/16"])
        self.missing: tuple[str, ...] = ()
        self.names: dict[str, tuple[str, ...]] = {}
        self.asked: list[str] = []
        self.on_refusal = None

    async def look_up(self, box: str, name: str) -> tuple[str, ...]:
        del box
        self.asked.append(name)
        if name not in self.names:
            raise EngineFailure("nobody answered")
        return self.names[name]


@pytest.fixture
def network() -> StubNetwork:
    return StubNetwork()


@pytest.fixture
async def core(opened, network):
    async with opened(network=network) as one:

        async def registries():
            return {"pip": (NetworkRule(verdict=Verdict.ALLOW, target="packages.example"),)}

        one.networks.profiles._ask = registries
        yield one


async def made(core, name: str, request: NetworkRequest | None = None, who: Principal = LOCAL):
    return await core.sandboxes.create(who, SandboxSpec(name=name, network=request))


# Creates.


async def test_a_sandbox_gets_no_network_unless_it_asks(core, driver) -> None:
    sandbox = await made(core, "one")
    assert sandbox.network == NO_NETWORK
    assert driver.boxes[sandbox.id].calls == []


async def test_a_sandbox_starts_with_the_network_that_it_asks_for(core, driver) -> None:
    sandbox = await made(core, "one", NAMES)
    assert sandbox.network == NetworkPolicy(mode=NetworkMode.POLICY, rules=(RULE,))
    assert driver.boxes[sandbox.id].network == sandbox.network
    state = await core.networks.get(LOCAL, "one")
    assert (state.address, state.use.sent_bytes) == (driver.boxes[sandbox.id].facts.address, 3)


async def test_a_request_that_cannot_be_makes_nothing(core, driver) -> None:
    for request, field in (
        (NetworkRequest(rules=(NetworkRule(verdict=Verdict.ALLOW, target="10.0.0.1"),)), "network.rules"),
        (NetworkRequest(profile="nope"), "network.profile"),
        (NetworkRequest(links=("nobody",)), "network.links"),
    ):
        with pytest.raises(BadRequest) as caught:
            await made(core, "one", request)
        assert caught.value.field == field
    assert driver.boxes == {}


async def test_rules_that_are_too_intricate_for_the_packet_filter_make_nothing(core, driver) -> None:
    rules = [
        NetworkRule(
            verdict=Verdict.ALLOW if at % 2 else Verdict.DENY,
            target=f"{11 + at % 80}.{at}.0.0/16" if at % 3 else f"h{at}.example",
            ports=tuple(PortRange(100 * nth + at, 100 * nth + at + 3) for nth in range(1, 9)),
        )
        for at in range(256)
    ]
    with pytest.raises(BadRequest, match="pieces") as caught:
        await made(core, "one", NetworkRequest(rules=tuple(rules)))
    assert caught.value.field == "network"
    assert driver.boxes == {}


async def test_a_driver_without_network_refuses_before_a_box_is_made(core, driver) -> None:
    driver.network_gaps = ("no veth",)
    with pytest.raises(Unsupported, match="no veth") as caught:
        await made(core, "one", OPEN)
    assert caught.value.field == "network"
    assert driver.boxes == {}
    await made(core, "one")


async def test_patterns_among_the_rules_point_programs_to_the_proxy(core, driver) -> None:
    sandbox = await made(core, "one", NetworkRequest(rules=(NetworkRule(verdict=Verdict.ALLOW, target="re:a.*"),)))
    env = driver.boxes[sandbox.id].agent.claimed[0]
    assert env["HTTPS_PROXY"] == env["http_proxy"] == "http://169.254.1.1:3128"
    assert "169.254.1.1" in env["NO_PROXY"]
    plain = await made(core, "two", NAMES)
    assert "HTTPS_PROXY" not in driver.boxes[plain.id].agent.claimed[0]


# Projects' defaults.


async def test_a_projects_default_is_for_those_who_ask_for_nothing(core) -> None:
    await core.networks.set_default(LOCAL, "default", NAMES)
    assert core.networks.default(principal(), "default") == NAMES
    assert (await made(core, "one")).network.rules == (RULE,)
    assert (await made(core, "two", NetworkRequest())).network == NO_NETWORK
    assert (await made(core, "three", OPEN)).network == OPEN_NETWORK
    await core.networks.set_default(LOCAL, "default", None)
    assert (await made(core, "four")).network == NO_NETWORK


async def test_a_default_is_an_admins_to_choose_and_its_projects_to_see(core) -> None:
    with pytest.raises(Forbidden):
        await core.networks.set_default(principal(), "default", NAMES)
    with pytest.raises(NotFound):
        await core.networks.set_default(LOCAL, "nope", NAMES)
    with pytest.raises(NotFound):
        core.networks.default(principal("other"), "default")
    for request in (NetworkRequest(links=("db",)), NetworkRequest(profile="nope")):
        with pytest.raises(BadRequest):
            await core.networks.set_default(LOCAL, "default", request)
    assert core.networks.default(LOCAL, "default") is None


# Live changes.


async def test_a_policy_is_changed_live_and_audited_with_its_row(core, driver, opened) -> None:
    sandbox = await made(core, "one")
    state = await core.networks.set(principal(), "one", NAMES)
    assert state.policy == driver.boxes[sandbox.id].network == core.sandboxes.get(LOCAL, "one").network
    assert state.address
    await core.networks.set(LOCAL, "one", NetworkRequest())
    assert driver.boxes[sandbox.id].network == NO_NETWORK
    lines = [one for one in entries(core, sandbox.id) if one.event == "network.changed"]
    assert [one.data["mode"] for one in lines] == ["policy", "none"]
    assert lines[0].data["rules"] == "allow a.example"


async def test_a_policy_that_the_machine_refuses_leaves_all_as_it_was(core, driver) -> None:
    sandbox = await made(core, "one", NAMES)
    box = driver.boxes[sandbox.id]
    box.refuse["set_network"] = EngineFailure("the machine refused")
    with pytest.raises(EngineFailure):
        await core.networks.set(LOCAL, "one", OPEN)
    assert core.sandboxes.get(LOCAL, "one").network.rules == box.network.rules == (RULE,)


async def test_a_change_keeps_the_broker_that_credentials_asked_for(core) -> None:
    sandbox = await made(core, "one")
    supervisor = core.networks._directory.live(LOCAL, sandbox.id)
    from msgspec.structs import replace

    await supervisor.change(lambda one: replace(one, network=replace(one.network, broker=True)))
    state = await core.networks.set(LOCAL, "one", NAMES)
    assert state.policy.broker


async def test_networks_are_guarded_by_project_scope_and_life(core) -> None:
    sandbox = await made(core, "one", OPEN)
    stranger, reader = principal("other"), principal("default", Scope.READ)
    for ref in (sandbox.id, "one"):
        with pytest.raises(NotFound):
            await core.networks.get(stranger, ref)
        with pytest.raises(NotFound):
            await core.networks.set(stranger, ref, OPEN)
        with pytest.raises(NotFound):
            core.networks.refusals(stranger, ref)
        with pytest.raises(NotFound):
            await core.networks.why(stranger, ref, "a.example", 443, Protocol.TCP)
    with pytest.raises(Forbidden):
        await core.networks.set(reader, "one", OPEN)
    await core.sandboxes.destroy(LOCAL, "one")
    assert (await core.networks.get(LOCAL, sandbox.id)).address == ""
    with pytest.raises(Gone):
        await core.networks.set(LOCAL, sandbox.id, OPEN)
    with pytest.raises(Gone):
        core.networks.refusals(LOCAL, sandbox.id)


async def test_after_a_restart_what_was_written_holds_again(opened, driver, network) -> None:
    async with opened(network=network) as core:
        db = await made(core, "db", OPEN)
        app = await made(core, "app", NetworkRequest(links=("db",)))
        for sandbox in (db, app):
            driver.boxes[sandbox.id].calls.clear()
        driver.boxes[app.id].links = {}
    async with opened(network=network) as core:
        assert core.reconciled.adopted == 2
        assert "set_network" in driver.boxes[db.id].calls
        assert driver.boxes[app.id].links == {"db": driver.boxes[db.id].facts.address}


# Links.


async def test_a_link_follows_its_name_through_ends_creates_and_renames(core, driver, eventually) -> None:
    from cove.model.request import SandboxChange

    first = await made(core, "db", OPEN)
    app = driver.boxes[(await made(core, "app", NetworkRequest(links=("db",)))).id]
    assert app.links == {"db": driver.boxes[first.id].facts.address}
    await core.sandboxes.destroy(LOCAL, "db")
    await eventually(lambda: app.links == {})
    assert (await core.networks.get(LOCAL, "app")).links == {"db": None}
    second = await made(core, "db", OPEN)
    await eventually(lambda: app.links == {"db": driver.boxes[second.id].facts.address})
    await core.sandboxes.update(LOCAL, "db", SandboxChange(name="old"))
    await eventually(lambda: app.links == {})
    third = await made(core, "other", OPEN)
    await core.sandboxes.update(LOCAL, "other", SandboxChange(name="db"))
    await eventually(lambda: app.links == {"db": driver.boxes[third.id].facts.address})


async def test_a_link_leads_somewhere_once_the_other_has_a_network(core, driver, eventually) -> None:
    db = await made(core, "db")
    app = driver.boxes[(await made(core, "app", NetworkRequest(links=("db",)))).id]
    assert app.links == {}
    await core.networks.set(LOCAL, "db", NetworkRequest(mode=NetworkMode.POLICY))
    await eventually(lambda: app.links == {"db": driver.boxes[db.id].facts.address})


async def test_links_stay_inside_a_project(core, driver) -> None:
    await core.projects.create(LOCAL, "other")
    await made(core, "db", OPEN, principal("other"))
    with pytest.raises(BadRequest, match="no sandbox db in this project"):
        await made(core, "app", NetworkRequest(links=("db",)))
    await made(core, "db", OPEN)
    app = await made(core, "app", NetworkRequest(links=("db",)))
    links = dict(driver.boxes[app.id].links)
    await core.sandboxes.destroy(LOCAL, core.sandboxes.get(principal("other"), "db").id)
    assert driver.boxes[app.id].links == links
    with pytest.raises(BadRequest, match="itself"):
        await core.networks.set(LOCAL, "app", NetworkRequest(links=("app",)))


# Profiles.


async def test_a_profile_is_used_by_name_with_the_registries_of_the_machines_clients(core) -> None:
    sandbox = await made(core, "one", NetworkRequest(profile="packages"))
    assert sandbox.network.profile == "packages"
    assert [rule.target for rule in sandbox.network.rules] == ["packages.example"]
    names = [one.name for one in await core.networks.profiles.list(principal())]
    assert names == [
        "unrestricted", "locked-down", "packages", "claude-code", "openai", "data-science", "web-dev",
    ]  # fmt: skip
    assert (await made(core, "two", NetworkRequest(profile="unrestricted"))).network.mode is NetworkMode.OPEN
    assert (await made(core, "three", NetworkRequest(profile="locked-down"))).network.rules == ()


async def test_registries_are_asked_once_and_renewed_behind_a_use_ten_minutes_later(core, clock, eventually) -> None:
    answers = [{"pip": ()}, {"pip": (RULE,)}]
    asked: list[int] = []

    async def ask():
        asked.append(1)
        return answers[min(len(asked), 2) - 1]

    profiles = core.networks.profiles
    profiles._ask = ask
    for _ in range(3):
        assert (await profiles.get(LOCAL, "packages")).rules == ()
    clock.advance(601)
    assert (await profiles.get(LOCAL, "packages")).rules == ()
    await eventually(lambda: len(asked) == 2)
    assert (await profiles.get(LOCAL, "packages")).rules == (RULE,)
    assert len(asked) == 2


async def test_an_operator_makes_changes_and_restores_profiles(core) -> None:
    profiles = core.networks.profiles
    await profiles.set(LOCAL, NetworkProfile(name="packages", rules=(RULE,)))
    changed = await profiles.get(LOCAL, "packages")
    assert (changed.rules, changed.is_builtin, changed.is_changed) == ((RULE,), True, True)
    await profiles.set(LOCAL, NetworkProfile(name="mine", rules=(RULE,)))
    assert [one.name for one in await profiles.list(LOCAL)][-1] == "mine"
    sandbox = await made(core, "one", NetworkRequest(profile="mine"))
    await profiles.remove(LOCAL, "mine")
    assert core.sandboxes.get(LOCAL, "one").network == sandbox.network, "a live sandbox keeps its policy"
    await profiles.remove(LOCAL, "packages")
    assert not (await profiles.get(LOCAL, "packages")).is_changed
    with pytest.raises(Conflict):
        await profiles.remove(LOCAL, "packages")
    with pytest.raises(NotFound):
        await profiles.remove(LOCAL, "mine")
    with pytest.raises(Forbidden):
        await profiles.set(principal(), NetworkProfile(name="mine"))
    with pytest.raises(Forbidden):
        await profiles.remove(principal(), "packages")


# Refusals.


def refusal(sandbox: str, port: int = 443, **fields) -> Refusal:
    base = {
        "layer": "packet",
        "name": None,
        "address": "8.8.8.8",
        "protocol": "tcp",
        "rule": "default: deny",
        "at": 1.0,
    }
    return Refusal(**base | fields, sandbox=sandbox, port=port)


def entries(core, sandbox: str):
    from cove.model.audit import AuditFilter

    return core.networks._store.audit.window("default", AuditFilter(sandbox=sandbox), first=0, end=10**9, limit=10_000)


async def test_refusals_are_kept_newest_first_and_their_repeats_counted(core, network) -> None:
    sandbox = await made(core, "one", NAMES)
    network.on_refusal(refusal(sandbox.id, 1))
    network.on_refusal(refusal(sandbox.id, 2, count=4))
    network.on_refusal(refusal(sandbox.id, 1, at=2.0))
    network.on_refusal(refusal("f" * 16))
    assert [(one.port, one.count, one.at) for one in core.networks.refusals(LOCAL, "one")] == [(1, 2, 2.0), (2, 4, 1.0)]
    for port in range(1000, 1500):
        network.on_refusal(refusal(sandbox.id, port))
    assert len(core.networks.refusals(LOCAL, "one")) == 200


async def test_a_refusal_is_a_line_of_the_audit_trail_once_a_minute_and_none_is_lost(
    core, network, clock, eventually
) -> None:
    sandbox = await made(core, "one", NAMES)
    network.on_refusal(refusal(sandbox.id, name="b.example"))
    for _ in range(5):
        network.on_refusal(refusal(sandbox.id, name="b.example"))
    clock.advance(61)
    network.on_refusal(refusal(sandbox.id, name="b.example"))
    network.on_refusal(refusal(sandbox.id, name="b.example", count=3))
    await core.sandboxes.destroy(LOCAL, "one")

    def told() -> list[int]:
        return [one.data["count"] for one in entries(core, sandbox.id) if one.event == "network.blocked"]

    await eventually(lambda: sum(told()) == 10)
    assert told() == [1, 6, 3]
    line = next(one for one in entries(core, sandbox.id) if one.event == "network.blocked")
    assert (line.data["host"], line.data["ip"], line.data["rule"]) == ("b.example", "8.8.8.8", "default: deny")


# Why.


async def test_why_asks_dns_only_where_the_policy_lets_the_name_be_resolved(core, network) -> None:
    await made(core, "one", NAMES)
    network.names["a.example"] = ("10.0.0.1",)
    said = await core.networks.why(LOCAL, "one", "A.Example.", 443, Protocol.TCP)
    assert (said.verdict, said.rule, said.addresses) == (Verdict.DENY, "closed: 10.0.0.0/8", ("10.0.0.1",))
    assert (await core.networks.why(LOCAL, "one", "b.example", 443, Protocol.TCP)).rule == "default: deny"
    assert network.asked == ["a.example"]
    network.names.clear()
    unknown = await core.networks.why(LOCAL, "one", "a.example", 443, Protocol.TCP)
    assert (unknown.verdict, unknown.addresses) == (Verdict.ALLOW, None)
    await made(core, "none")
    assert (await core.networks.why(LOCAL, "none", "a.example", 443, Protocol.TCP)).rule == "mode none"
    assert network.asked == ["a.example"] * 2


@pytest.mark.parametrize(
    ("host", "port", "field"),
    [("", 443, "host"), ("a b", 443, "host"), ("0x7f.1", 1, "host"), ("a.example", 0, "port")],
)
async def test_a_question_that_is_none_is_refused(core, host: str, port: int, field: str) -> None:
    await made(core, "one", NAMES)
    with pytest.raises(BadRequest) as caught:
        await core.networks.why(LOCAL, "one", host, port, Protocol.TCP)
    assert caught.value.field == field
    assert core.sandboxes.get(LOCAL, "one").state is State.RUNNING


async def test_a_default_and_a_profile_are_on_record_before_they_are_answered(core) -> None:
    await core.networks.set_default(LOCAL, "default", NAMES)
    (line,) = (await core.trail.page(LOCAL, AuditFilter(event="network."))).entries
    assert line.data["change"] == "default"
    await core.networks.profiles.set(LOCAL, NetworkProfile(name="mine", rules=(RULE,)))
    page = await core.trail.page(LOCAL, AuditFilter(event="network."), project=SERVER_PROJECT)
    assert [one.data["profile"] for one in page.entries] == ["mine"]
