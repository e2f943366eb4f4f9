"""The router: a network namespace of the server's own, through which all packets of its sandboxes pass.

It is kept by a bind in the instance's mount namespace, so it outlives the server with every interface and rule in it:
while no server runs, sandboxes go on under the rules that held last. It is gone with the mount namespace.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Final

from cove.engine.network import netns, rtnetlink
from cove.engine.network.netns import NetNs, Places
from cove.engine.network.rtnetlink import Link, RtNetlink
from cove.engine.network.topology import ROUTER_ADDRESS, NetworkConfig, index_of_link

log = logging.getLogger(__name__)

_SYSCTLS: Final = {
    "ipv4/ip_forward": "1",
    # A packet whose answer would leave by another interface is dropped: besides the rules, the kernel's own check.
    "ipv4/conf/all/rp_filter": "1",
    "ipv4/conf/default/rp_filter": "1",
    "ipv4/conf/all/accept_redirects": "0",
    "ipv4/conf/default/accept_redirects": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    "ipv4/conf/all/accept_source_route": "0",
    "ipv4/conf/default/accept_source_route": "0",
    # An address is told of only over the interface that asks for it and has it.
    "ipv4/conf/all/arp_ignore": "1",
    "ipv4/conf/default/arp_ignore": "1",
    "ipv6/conf/all/disable_ipv6": "1",
    "ipv6/conf/default/disable_ipv6": "1",
    # The kernel's five days would let one sandbox fill the table with flows that nobody uses.
    "netfilter/nf_conntrack_tcp_timeout_established": "86400",
}


class Router:
    """The router's namespace, entered. `links` are those that it had when it was opened.

    `work` is the thread that makes boxes' interfaces, `slow` the one that takes them away, which takes 20 ms each.
    """

    def __init__(self, places: Places, work: NetNs, slow: NetNs) -> None:
        self.places = places
        self.work = work
        self.slow = slow

    @property
    def foreign(self) -> frozenset[int]:
        """Inodes of the namespaces that are no box's."""
        known = {self.places.router.inode, self.places.outside.inode}
        for process in ("self", "1"):
            with contextlib.suppress(OSError):
                known.add(Path(f"/proc/{process}/ns/net").stat().st_ino)
        return frozenset(known)

    def close(self) -> None:
        """End its threads; the namespace goes on."""
        for space in (self.slow, self.work, self.places.router, self.places.outside):
            space.close()


def open_router(config: NetworkConfig) -> Router:
    """Enter the router's namespace, making it first where there is none. Blocks for some milliseconds.

    Raises: OSError, EngineFailure.
    """
    opened: list[NetNs] = []
    try:
        netns.keep(config.router_file)
        opened.append(NetNs(config.outside, "outside"))
        opened += [NetNs(config.router_file, name) for name in ("router", "boxes", "ended")]
    except BaseException:
        for space in opened:
            space.close()
        raise
    outside, router, work, slow = opened
    return Router(Places(router=router, outside=outside), work, slow)


def settle() -> None:
    """Give the namespace of the calling thread the router's settings. Again: nothing changes. Raises: OSError."""
    for name, value in _SYSCTLS.items():
        write_sysctl(name, value)
    with RtNetlink() as kernel:
        # On the loopback too, so that what listens may start before there is any box.
        kernel.change(rtnetlink.set_up(1), rtnetlink.new_address(1, ROUTER_ADDRESS, is_link=True))


def write_sysctl(name: str, value: str) -> None:
    """Set net.`name` for the namespace of the calling thread. One that this kernel lacks is none. Raises: OSError."""
    path = Path("/proc/sys/net") / name
    if path.exists() and path.read_text().strip() != value:
        path.write_text(value)


def box_links() -> dict[int, Link]:
    """The boxes' interfaces in the namespace of the calling thread, by the boxes' numbers. Raises: OSError."""
    with RtNetlink() as kernel:
        found = {index_of_link(link.name): link for link in kernel.links()}
    return {index: link for index, link in found.items() if index is not None}
