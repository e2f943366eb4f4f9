"""Which sandboxes reach which others of their project: names in a policy, made into addresses while both live.

A link is one way: its holder opens connections, answers come back. The other needs an interface of its own, so a
network that is not `none`; until it has one the link leads nowhere. Whoever gets, loses or changes a name or an address
is told of here, and the holders' rules are applied again.
"""

from __future__ import annotations

from cove.core.directory import Directory
from cove.engine.supervisors import Supervisors
from cove.model.errors import BadRequest
from cove.model.network import NetworkPolicy
from cove.model.sandbox import Sandbox


class Links:
    """Every link of this server."""

    def __init__(self, directory: Directory, supervisors: Supervisors) -> None:
        self._directory = directory
        self._supervisors = supervisors

    def of(self, sandbox: Sandbox) -> dict[str, str]:
        """The addresses, by name, that a sandbox's links have now. Names without one are left out."""
        found = {name: self._address(sandbox, name) for name in sandbox.network.links}
        return {name: address for name, address in found.items() if address}

    def check(self, project: str, policy: NetworkPolicy, *, own_name: str | None = None) -> None:
        """Raises: BadRequest for a name that no unended sandbox of the project has, and for the sandbox's own."""
        for name in policy.links:
            if name == own_name:
                raise BadRequest("a sandbox needs no link to itself", field="network.links")
            if self._directory.holder(project, name) is None:
                raise BadRequest(f"links: there is no sandbox {name} in this project", field="network.links")

    def moved(self, project: str, *names: str) -> None:
        """Another sandbox has one of these names now, or another address."""
        for supervisor in tuple(self._supervisors.all()):
            sandbox = supervisor.sandbox
            if sandbox.project == project and not set(names).isdisjoint(sandbox.network.links):
                supervisor.connect_soon()

    def all_moved(self) -> None:
        """Anyone may have another address: after a start."""
        for supervisor in tuple(self._supervisors.all()):
            if supervisor.sandbox.network.links:
                supervisor.connect_soon()

    def _address(self, sandbox: Sandbox, name: str) -> str:
        holder = self._directory.holder(sandbox.project, name)
        supervisor = None if holder in {None, sandbox.id} else self._supervisors.get(holder or "")
        return "" if supervisor is None else supervisor.address
