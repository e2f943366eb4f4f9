"""Where installs in sandboxes go: as the machine's own clients, without what is the operator's alone."""

# ruff: noqa: ANN001 - fixtures are typed where they are defined

from __future__ import annotations

import asyncio

import pytest

from cove.core.packageindexes import AGE_S, PackageIndexes
from cove.model.network import NetworkMode, NetworkRequest, NetworkRule, Verdict

PIP, NPM = "http://packages.example:3141/simple/", "https://modules.example/"


class Machine:
    """Its clients' answers, and how often they were asked."""

    def __init__(self, **answers: tuple[str, ...]) -> None:
        self.answers = answers
        self.asked = 0

    async def __call__(self) -> dict[str, tuple[str, ...]]:
        self.asked += 1
        await asyncio.sleep(0)
        return self.answers


async def test_installs_are_told_what_the_machines_clients_say(clock) -> None:
    async with asyncio.TaskGroup() as tasks:
        indexes = PackageIndexes(clock, tasks, ask=Machine(pip=(PIP,), npm=(NPM,)))
        assert await indexes.env() == {
            "PIP_INDEX_URL": PIP,
            "PIP_TRUSTED_HOST": "packages.example:3141",
            "NPM_CONFIG_REGISTRY": NPM,
        }


@pytest.mark.parametrize(
    "url", ["https://user:secret@packages.example/simple", "file:///srv/wheels", "nonsense", "//x"]
)
async def test_what_is_the_operators_own_stays_outside(clock, url) -> None:
    async with asyncio.TaskGroup() as tasks:
        indexes = PackageIndexes(clock, tasks, ask=Machine(pip=(url,)))
        assert await indexes.env() == {}


async def test_rules_let_the_indexes_pass_behind_the_callers_own(clock) -> None:
    denied = NetworkRule(verdict=Verdict.DENY, target="packages.example")
    async with asyncio.TaskGroup() as tasks:
        indexes = PackageIndexes(clock, tasks, ask=Machine(pip=(PIP,), npm=(NPM,)))
        opened = await indexes.opened(NetworkRequest(mode=NetworkMode.POLICY, rules=(denied,)))
        assert opened is not None
        assert [(rule.verdict, rule.target, rule.ports[0].first if rule.ports else None) for rule in opened.rules] == [
            (Verdict.DENY, "packages.example", None),
            (Verdict.ALLOW, "packages.example", 3141),
            (Verdict.ALLOW, "modules.example", 443),
        ]


@pytest.mark.parametrize("mode", [None, NetworkMode.NONE, NetworkMode.OPEN])
async def test_a_network_without_rules_stays_as_it_is(clock, mode) -> None:
    network = None if mode is None else NetworkRequest(mode=mode)
    async with asyncio.TaskGroup() as tasks:
        machine = Machine(pip=(PIP,))
        assert await PackageIndexes(clock, tasks, ask=machine).opened(network) == network
        assert machine.asked == 0


async def test_the_machine_is_asked_once_and_again_behind_a_later_use(clock, eventually) -> None:
    machine = Machine(pip=(PIP,))
    async with asyncio.TaskGroup() as tasks:
        indexes = PackageIndexes(clock, tasks, ask=machine)
        await asyncio.gather(*(indexes.env() for _ in range(5)))
        assert machine.asked == 1
        clock.advance(AGE_S + 1)
        machine.answers = {"pip": ("https://other.example/simple",)}
        assert (await indexes.env())["PIP_INDEX_URL"] == PIP
        await eventually(lambda: machine.asked == 2)
    assert (await indexes.env())["PIP_INDEX_URL"] == "https://other.example/simple"
