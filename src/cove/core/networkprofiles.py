"""Network profiles: policies with a name, those that come with Cove and those of the operator.

A profile holds for what is made or changed after it: live sandboxes keep the policy they have. The registries of
packages that profiles allow are asked of the machine's own clients when they are needed, and ten minutes later again
behind the next use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cove.core.access import require
from cove.core.audit import Audit
from cove.core.networkrules import checked_profile
from cove.engine.clock import Clock
from cove.engine.network.registries import ask_registries
from cove.model.access import Principal, Scope
from cove.model.audit import SERVER_PROJECT
from cove.model.closed import ClosedRanges
from cove.model.errors import BadRequest, Conflict, NotFound, TooLarge
from cove.model.network import NetworkMode, NetworkProfile, NetworkRule, Verdict
from cove.store.networks import NetworkRows

REGISTRIES_S: Final = 600.0
"""How old an answer of the machine's clients may be."""

PROFILES: Final = 100
"""Most profiles of the operator's own."""

Registries = Mapping[str, tuple[NetworkRule, ...]]


class NetworkProfiles:
    """Every operation on profiles."""

    def __init__(  # noqa: PLR0913 - made once, by the facade
        self,
        rows: NetworkRows,
        audit: Audit,
        clock: Clock,
        closed: Callable[[], ClosedRanges],
        *,
        tasks: asyncio.TaskGroup,
        ask: Callable[[], Awaitable[Registries]] = ask_registries,
    ) -> None:
        self._rows = rows
        self._audit = audit
        self._clock = clock
        self._closed = closed
        self._tasks = tasks
        self._ask = ask
        self._asking = asyncio.Lock()
        self._registries: Registries | None = None
        self._asked_at = 0.0
        self._builtin = {one.name: one for one in builtin_profiles()}

    async def list(self, who: Principal) -> list[NetworkProfile]:
        """All of them, their registries' rules among their own; those of Cove first. Raises: Forbidden."""
        require(who, Scope.READ)
        return [await self._filled(one) for one in self._all().values()]

    async def get(self, who: Principal, name: str) -> NetworkProfile:
        """One, its registries' rules among its own. Raises: Forbidden, NotFound."""
        require(who, Scope.READ)
        found = self._all().get(name)
        if found is None:
            raise NotFound("no such network profile")
        return await self._filled(found)

    async def set(self, who: Principal, profile: NetworkProfile) -> NetworkProfile:
        """Make or change one. Raises: Forbidden, BadRequest, TooLarge."""
        require(who, Scope.ADMIN)
        wanted = replace(
            checked_profile(profile, self._closed()), is_changed=True, is_builtin=profile.name in self._builtin
        )
        if self._rows.profile(wanted.name) is None and len(self._rows.profiles()) >= PROFILES:
            raise TooLarge(f"there are {PROFILES} profiles, more is the limit", field="name")
        await self._rows.save_profile(wanted, at=self._clock.now())
        await self._note(who, wanted.name, "set")
        return await self._filled(wanted)

    async def remove(self, who: Principal, name: str) -> None:
        """Forget the operator's; one of Cove's is again as it came. Raises: Forbidden, NotFound, Conflict."""
        require(who, Scope.ADMIN)
        if await self._rows.remove_profile(name):
            await self._note(who, name, "removed")
        elif name in self._builtin:
            raise Conflict("this profile comes with Cove and is as it came; change it instead")
        else:
            raise NotFound("no such network profile")

    async def find(self, name: str) -> NetworkProfile:
        """For a policy that names it. Raises: BadRequest."""
        found = self._all().get(name)
        if found is None:
            raise BadRequest(
                f"no network profile {name[:64]!r}; there is: {', '.join(self._all())}", field="network.profile"
            )
        return await self._filled(found)

    def _all(self) -> dict[str, NetworkProfile]:
        return self._builtin | {one.name: one for one in self._rows.profiles()}

    async def _filled(self, profile: NetworkProfile) -> NetworkProfile:
        if not profile.registries:
            return profile
        registries = await self._asked()
        known = set(profile.rules)
        asked = [rule for name in profile.registries for rule in registries.get(name, ()) if rule not in known]
        return replace(profile, rules=(*profile.rules, *dict.fromkeys(asked)))

    async def _asked(self) -> Registries:
        """What the machine's clients say. The first who needs it waits for it (npm alone takes half a second)."""
        if self._registries is None:
            async with self._asking:
                if self._registries is None:
                    await self._ask_again()
        elif self._clock.monotonic() - self._asked_at > REGISTRIES_S and not self._asking.locked():
            self._tasks.create_task(self._renew())
        return self._registries or {}

    async def _renew(self) -> None:
        async with self._asking:
            if self._clock.monotonic() - self._asked_at > REGISTRIES_S:
                await self._ask_again()

    async def _ask_again(self) -> None:
        self._registries = await self._ask()
        self._asked_at = self._clock.monotonic()

    async def _note(self, who: Principal, name: str, change: str) -> None:
        data = {"profile": name, "change": change}
        ticket = self._audit.note("network.changed", project=SERVER_PROJECT, sandbox=None, data=data, who=who)
        await self._audit.kept(ticket)


class _Builtin(Struct, frozen=True, forbid_unknown_fields=True):
    """One table of `profiles/builtin.toml`."""

    description: str
    mode: NetworkMode = NetworkMode.POLICY
    allow: tuple[str, ...] = ()
    registries: tuple[str, ...] = ()


def builtin_profiles() -> list[NetworkProfile]:
    """Those that come with Cove, in the order of the file."""
    data = files("cove.core.profiles").joinpath("builtin.toml").read_bytes()
    return [_builtin(name, one) for name, one in msgspec.toml.decode(data, type=dict[str, _Builtin]).items()]


def _builtin(name: str, one: _Builtin) -> NetworkProfile:
    profile = NetworkProfile(
        name=name,
        description=one.description,
        mode=one.mode,
        rules=tuple(NetworkRule(verdict=Verdict.ALLOW, target=target) for target in one.allow),
        registries=one.registries,
        is_builtin=True,
    )
    return checked_profile(profile, ClosedRanges())
