"""Which flows of a sandbox may go on under what holds now: a frozen copy, so that a thread may ask it. Pure."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from msgspec import Struct

from cove.engine.network.baseline import GATEWAY
from cove.engine.network.box import Box, Held
from cove.engine.network.boxrules import PROTOCOLS, mark_value, parse_mark
from cove.engine.network.conntrack import Flow
from cove.engine.network.flatten import Flat
from cove.engine.network.steps import Action, Packet, evaluate, name_targets, steps_of
from cove.model.closed import ClosedRanges
from cove.model.network import NO_NETWORK, NetworkPolicy
from cove.model.policy import Destination, guarded, matches_name


class Standing(Struct, frozen=True, kw_only=True):
    """What decides about the flows of one sandbox."""

    policy: NetworkPolicy
    flat: Flat
    generation: int
    links: frozenset[str]
    names: Mapping[int, tuple[str, ...]]
    """Those that brought an address, their time over or not: a flow outlives the answer that it began with."""
    held: Mapping[tuple[int, int], Held]
    closed: ClosedRanges

    def may_stay(self, flow: Flow) -> bool:
        """Whether a new one like it would be allowed; what goes through the proxy is the proxy's to judge by name."""
        address = socket.inet_ntoa(flow.destination)
        if address == GATEWAY or address in self.links:
            return True
        protocol = PROTOCOLS.get(flow.protocol)
        if protocol is None or self.closed.why(address, flow.port) is not None:
            return False
        # Ports that are closed whatever the policy is.
        if guarded(NO_NETWORK, Destination(name=None, address=address, port=flow.port, protocol=protocol)):
            return False
        number = int.from_bytes(flow.destination, "big")
        action = self._action(Packet(address=number, protocol=protocol, port=flow.port))
        if flow.is_proxied:
            return action is not Action.REFUSE
        return action in {Action.ACCEPT, Action.WATCH}

    def _action(self, packet: Packet) -> Action:
        names = self.names.get(packet.address, ())
        targets = {one for one in name_targets(self.policy) if any(matches_name(one, name) for name in names)}
        action = evaluate(steps_of(self.policy), packet, targets).action
        if action is Action.REFUSE:
            # After a restart the names are not known any more, but what they opened is.
            held = self.held.get((packet.address, mark_value(self.flat, self.flat.at(packet), self.generation)))
            action = action if held is None else parse_mark(held.mark)[0]
        return action


def standing_of(box: Box, closed: ClosedRanges) -> Standing:
    """As it is now."""
    return Standing(
        policy=box.policy,
        flat=box.flat,
        generation=box.generation,
        links=box.links,
        names={address: box.brought.names(address) for address in box.brought.addresses()},
        held=dict(box.held),
        closed=closed,
    )
