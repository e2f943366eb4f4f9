"""What sandboxes may reach: asking for it, changing it live, and saying why. What rules mean: `model/policy.py`."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from cove.core.access import may_see, require
from cove.core.audit import Audit
from cove.core.directory import Directory
from cove.core.links import Links
from cove.core.networkprofiles import NetworkProfiles
from cove.core.networkrules import checked_request, policy_of, request_of
from cove.core.networkwhy import Explanation, Question, explain
from cove.core.refusals import Refusals
from cove.core.validation import check_count
from cove.core.visits import Visits
from cove.engine.network.flatten import flatten
from cove.engine.network.port import Network
from cove.engine.network.resolver import LINK_SUFFIX
from cove.engine.supervisor import Supervisor
from cove.model.access import Principal, Scope
from cove.model.audit import AuditValue
from cove.model.closed import ClosedRanges
from cove.model.errors import BadRequest, CoveError, NotFound
from cove.model.hostname import canonical_host
from cove.model.network import (
    NO_NETWORK,
    NetworkMode,
    NetworkPolicy,
    NetworkRequest,
    NetworkUse,
    Protocol,
    Refusal,
    Visit,
)
from cove.model.policy import could_allow
from cove.model.sandbox import Sandbox
from cove.model.state import FINAL
from cove.store.store import Store

FEW_RULES: Final = 16
"""More may be more than the packet filter's form of a policy can hold, and take 60 ms to be brought into it."""


class NetworkState(Struct, frozen=True, kw_only=True):
    """A sandbox's network now. `address` empty: it has no interface. `links`: addresses, None: leads nowhere yet."""

    sandbox: str
    policy: NetworkPolicy
    address: str = ""
    links: dict[str, str | None]
    use: NetworkUse = NetworkUse()


class Networks:
    """Every operation on sandboxes' networks."""

    def __init__(  # noqa: PLR0913 - made once, by the facade
        self,
        directory: Directory,
        *,
        store: Store,
        audit: Audit,
        profiles: NetworkProfiles,
        links: Links,
        refusals: Refusals,
        visits: Visits,
        network: Network | None,
        closed: Callable[[], ClosedRanges],
    ) -> None:
        self.profiles = profiles
        self.links = links
        self._directory = directory
        self._store = store
        self._audit = audit
        self._refusals = refusals
        self._visits = visits
        self._network = network
        self._closed = closed

    async def resolve(
        self, project: str, request: NetworkRequest | None, *, otherwise: NetworkPolicy = NO_NETWORK
    ) -> NetworkPolicy:
        """What a new sandbox gets: as asked, else its project's default, else `otherwise`.

        Raises: BadRequest, TooLarge.
        """
        if request is None:
            found = self._store.projects.get(project)
            request = None if found is None else found.network
        if request is None:
            return otherwise
        return await self._policy(project, request)

    async def renew(self, project: str, policy: NetworkPolicy) -> NetworkPolicy:
        """A policy that once held, for another sandbox, by what is closed and linked now. Raises: BadRequest, TooLarge.

        Its profile's rules are those that it had then: they are among its own.
        """
        try:
            found = await self._policy(project, replace(request_of(policy), profile=None))
        except BadRequest as error:
            said = f"the network policy that it had cannot hold any more: {error.public}; ask for another"
            raise type(error)(said, field=error.field, internal=error.internal) from error
        return replace(found, profile=policy.profile)

    def started(self, sandbox: Sandbox) -> None:
        """It runs: links to its name lead to it now."""
        self.links.moved(sandbox.project, sandbox.name)

    def ended(self, sandbox: Sandbox) -> None:
        """It does not any more."""
        self._refusals.forget(sandbox)
        self._visits.forget(sandbox.id)
        self.links.moved(sandbox.project, sandbox.name)

    async def get(self, who: Principal, ref: str) -> NetworkState:
        """A sandbox's network. Raises: Forbidden, NotFound."""
        require(who, Scope.READ)
        sandbox = self._directory.known(who, ref)
        if sandbox.state in FINAL:
            return NetworkState(sandbox=sandbox.id, policy=sandbox.network, links={})
        return await self._state(self._directory.live(who, ref))

    async def set(self, who: Principal, ref: str, request: NetworkRequest) -> NetworkState:
        """Let another policy hold; it does when this returns, and flows that it refuses are cut.

        Raises: Forbidden, NotFound, Gone, BadRequest, TooLarge, Unsupported, EngineFailure; all is as before then.
        """
        require(who, Scope.CREATE)
        self._audit.check()
        supervisor = self._directory.live(who, ref)
        sandbox = supervisor.sandbox
        policy = await self._policy(sandbox.project, request, own_name=sandbox.name)
        await supervisor.change(lambda one: replace(one, network=replace(policy, broker=one.network.broker)))
        self.links.moved(sandbox.project, supervisor.sandbox.name)
        return await self._state(supervisor)

    def refusals(self, who: Principal, ref: str) -> list[Refusal]:
        """What a live sandbox tried to reach and did not, newest first. Raises: Forbidden, NotFound, Gone."""
        require(who, Scope.READ)
        return self._refusals.recent(self._directory.live(who, ref).sandbox.id)

    def visits(self, who: Principal, ref: str) -> list[Visit]:
        """What a live sandbox whose policy says `record` asked for by name, oldest first.

        Raises: Forbidden, NotFound, Gone.
        """
        require(who, Scope.READ)
        return self._visits.recent(self._directory.live(who, ref).sandbox.id)

    def visits_of(self, sandbox_id: str) -> list[Visit]:
        """The same, for the server's own work: no caller has asked."""
        return self._visits.recent(sandbox_id)

    async def why(self, who: Principal, ref: str, host: str, port: int, protocol: Protocol) -> Explanation:
        """What would become of a connection, and which rule says so. None is made; a name may be asked of DNS.

        Raises: Forbidden, NotFound, Gone, BadRequest.
        """
        require(who, Scope.READ)
        supervisor = self._directory.live(who, ref)
        sandbox = supervisor.sandbox
        if protocol is Protocol.ICMP:
            port = 0
        else:
            check_count(port, (1, 65535), "port")
        name, address = _parsed(host)
        question = Question(
            policy=sandbox.network,
            name=name,
            address=address,
            port=port,
            protocol=protocol,
            links=self.links.of(sandbox),
            closed=self._closed(),
        )
        addresses = None if name is None else await self._look_up(sandbox, name)
        return explain(question, addresses)

    def default(self, who: Principal, project: str) -> NetworkRequest | None:
        """What a project's sandboxes get when they ask for none. Raises: Forbidden, NotFound."""
        require(who, Scope.READ)
        found = self._store.projects.get(project) if may_see(who, project) else None
        if found is None:
            raise NotFound("no such project", field="project")
        return found.network

    async def set_default(self, who: Principal, project: str, request: NetworkRequest | None) -> None:
        """Choose it, for sandboxes made from now on; None: no network. Raises: Forbidden, NotFound, BadRequest."""
        require(who, Scope.ADMIN)
        if request is not None:
            if request.links:
                raise BadRequest("links are between sandboxes: a project's default has none", field="network.links")
            request = checked_request(request, self._closed())
            await self._policy(project, request)
        if not await self._store.networks.set_default(project, request):
            raise NotFound("no such project", field="project")
        data: dict[str, AuditValue] = {"change": "default"}
        if request is not None:
            data |= {"mode": request.mode, "profile": request.profile, "rules": len(request.rules)}
        await self._audit.kept(self._audit.note("network.changed", project=project, sandbox=None, data=data, who=who))

    async def _policy(self, project: str, request: NetworkRequest, *, own_name: str | None = None) -> NetworkPolicy:
        checked = checked_request(request, self._closed())
        profile = None if checked.profile is None else await self.profiles.find(checked.profile)
        policy = policy_of(checked, profile)
        if len(policy.rules) > FEW_RULES:
            # It is kept for the packet filter, which needs it next: here for its refusal, and off the loop.
            await asyncio.to_thread(flatten, policy)
        self.links.check(project, policy, own_name=own_name)
        return policy

    async def _state(self, supervisor: Supervisor) -> NetworkState:
        sandbox = supervisor.sandbox
        found = self.links.of(sandbox)
        return NetworkState(
            sandbox=sandbox.id,
            policy=sandbox.network,
            address=supervisor.address,
            links={name: found.get(name) for name in sandbox.network.links},
            use=await supervisor.network_use(),
        )

    async def _look_up(self, sandbox: Sandbox, name: str) -> tuple[str, ...] | None:
        """The addresses of a name that may be resolved at all; None: nobody was asked, or nobody answered."""
        is_open = sandbox.network.mode is not NetworkMode.NONE and could_allow(sandbox.network, name).is_allowed
        if self._network is None or not is_open or name.endswith(LINK_SUFFIX):
            return None
        try:
            return await self._network.look_up(sandbox.id, name)
        except CoveError:
            return None


def _parsed(host: str) -> tuple[str | None, str | None]:
    """A name, or an address. Raises: BadRequest."""
    host = host.strip()
    try:
        return None, str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return canonical_host(host), None
    except ValueError as error:
        raise BadRequest(f"host: {error}", field="host") from error
