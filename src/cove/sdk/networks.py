"""What a sandbox may reach, and the server's network profiles. The awaited twin is `aio/networks.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cove.sdk import network_calls
from cove.sdk.network_calls import Explanation, NetworkInfo, NetworkProfile, Policy, Refusal, Rules
from cove.sdk.units import Size

if TYPE_CHECKING:
    from cove.sdk.client import Client

__all__ = ["Explanation", "Network", "NetworkInfo", "NetworkProfile", "NetworkProfiles", "Refusal"]


class Network:
    """`box.network`: what a sandbox may reach. Changes hold at once, and flows that they refuse are cut."""

    def __init__(self, ref: str, client: Client) -> None:
        self._ref = ref
        self._client = client

    def get(self) -> NetworkInfo:
        """Return its policy, its address, the addresses of its links and its bytes."""
        return self._client.call(network_calls.network(self._ref))

    def set(self, policy: Policy, *, bandwidth: Size | None = None) -> NetworkInfo:
        """Let another policy hold, all of it: `"open"`, `"packages"`, `["api.example.com:443"]`, `{"rules": […]}`.

        `bandwidth`: bytes per second in each direction. Raises: BadRequest, Unsupported (no network here).
        """
        body = network_calls.policy_of(policy, bandwidth=bandwidth)
        return self._client.call(network_calls.set_network(self._ref, body))

    def why(self, host: str, port: int = 443, protocol: str = "tcp") -> Explanation:
        """Say what would become of a connection, and which rule says so. None is made."""
        return self._client.call(network_calls.why(self._ref, host, port, protocol))

    def refusals(self) -> list[Refusal]:
        """Return what it tried to reach and did not, newest first; older ones are in the audit trail."""
        return self._client.call(network_calls.refusals(self._ref))


class NetworkProfiles:
    """`client.network_profiles`: policies with a name, and what projects' sandboxes get unasked."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[NetworkProfile]:
        """Return those that come with Cove, then the operator's."""
        return self._client.call(network_calls.profiles())

    def get(self, name: str) -> NetworkProfile:
        """Return one. Raises: NotFound."""
        return self._client.call(network_calls.profile(name))

    def set(  # noqa: PLR0913 - one keyword for each property
        self,
        name: str,
        *,
        rules: Rules = (),
        default: str = "deny",
        registries: Sequence[str] = (),
        description: str = "",
        mode: str = "policy",
    ) -> NetworkProfile:
        """Make or change one, for what is made or changed afterwards. `registries`: of `pip`, `npm`, `apt`."""
        body = profile_body(rules, default=default, registries=registries, description=description, mode=mode)
        return self._client.call(network_calls.set_profile(name, body))

    def remove(self, name: str) -> None:
        """Forget one; one that comes with Cove is again as it came. Raises: NotFound, Conflict (it is as it came)."""
        self._client.call(network_calls.remove_profile(name))

    def default(self, project: str = "default") -> dict[str, Any] | None:
        """Return what a project's sandboxes get that ask for no network; None: none."""
        return self._client.call(network_calls.default(project))

    def set_default(self, policy: Policy | None, project: str = "default") -> dict[str, Any] | None:
        """Choose what a project's sandboxes get that ask for none, from now on; None: no network."""
        if policy is None:
            self._client.call(network_calls.remove_default(project))
            return None
        return self._client.call(network_calls.set_default(project, network_calls.policy_of(policy)))


def profile_body(
    rules: Rules, *, default: str, registries: Sequence[str], description: str, mode: str
) -> Mapping[str, Any]:
    """Return a profile as the API has it."""
    return {
        "description": description,
        "mode": mode,
        "rules": [network_calls.rule_of(rule) for rule in rules],
        "default": default,
        "registries": [*registries],
    }
