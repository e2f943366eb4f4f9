"""The flows of a sandbox: read from connection tracking, and ended one by one. Calls for a thread in the router.

An ended flow's next packet counts as new: the rules refuse it as they would a first one, with a reset for TCP.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

from cove.engine.network import nfnetlink
from cove.engine.network.expressions import nested
from cove.engine.network.nfnetlink import CONNTRACK, Message
from cove.engine.network.rtnetlink import attribute, attributes

_GET: Final = 1
_DELETE: Final = 2
_TUPLE_ORIGINAL: Final = 1
_STATUS: Final = 3
_ID: Final = 12
_FILTER: Final = 25
_FILTER_SOURCE: Final = 1
_DESTINATION_CHANGED: Final = 1 << 5
"""IPS_DST_NAT: it was sent to the transparent proxy."""


_COUNT: Final = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_MANY: Final = 2**31


class Flow(Struct, frozen=True, kw_only=True):
    """One connection as its first packet had it. `protocol`: the number in IPv4; `port` 0: it has none."""

    source: bytes
    destination: bytes
    protocol: int
    port: int
    is_proxied: bool
    handle: bytes
    """What names it to the kernel."""


def parse(body: bytes) -> Flow | None:
    """One entry as a dump tells it; None: of another kind. Raises: ValueError where lengths do not fit."""
    found = dict(attributes(body))
    original = dict(attributes(found.get(_TUPLE_ORIGINAL, b"")))
    addresses = dict(attributes(original.get(1, b"")))
    protocol = dict(attributes(original.get(2, b"")))
    if len(addresses.get(1, b"")) != 4 or len(addresses.get(2, b"")) != 4 or 1 not in protocol:  # noqa: PLR2004 - IPv4
        return None
    handle = nested(_TUPLE_ORIGINAL, found[_TUPLE_ORIGINAL])
    if _ID in found:
        handle += attribute(_ID, found[_ID])
    return Flow(
        source=addresses[1],
        destination=addresses[2],
        protocol=protocol[1][0],
        port=int.from_bytes(protocol.get(3, b""), "big"),
        is_proxied=bool(int.from_bytes(found.get(_STATUS, b""), "big") & _DESTINATION_CHANGED),
        handle=handle,
    )


def count() -> int:
    """How many flows are tracked in the namespace of the calling thread; where that cannot be read, as if many."""
    try:
        return int(_COUNT.read_text())
    except (OSError, ValueError):
        return _MANY


def flows(channel: socket.socket, address: str | None) -> list[Flow]:
    """Those that the sandbox with this address began; None: all. Raises: OSError, ValueError."""
    if address is None:
        found = (parse(body) for body in nfnetlink.dump(channel, CONNTRACK, Message(_GET, b"")))
        return [flow for flow in found if flow is not None]
    source = socket.inet_aton(address)
    # The kernel looks through all entries of the machine, but tells only these (Linux 5.8 and later).
    wanted = nested(_TUPLE_ORIGINAL, nested(1, attribute(1, source)))
    wanted += nested(_FILTER, attribute(1, struct.pack("=I", _FILTER_SOURCE)), attribute(2, bytes(4)))
    found = (parse(body) for body in nfnetlink.dump(channel, CONNTRACK, Message(_GET, wanted)))
    return [flow for flow in found if flow is not None and flow.source == source]


def cut(address: str | None, should_go: Callable[[Flow], bool]) -> int:
    """End those flows of the sandbox, or of all. Returns how many. Raises: OSError, ValueError."""
    if not count():
        return 0  # reading all would cost 15 ms: the kernel walks through the whole machine's table
    with nfnetlink.connect() as channel:
        going = [flow for flow in flows(channel, address) if should_go(flow)]
        for flow in going:
            try:
                nfnetlink.ask(channel, CONNTRACK, Message(_DELETE, flow.handle))
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
    return len(going)
