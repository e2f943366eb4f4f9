"""What this machine lacks for connecting sandboxes, found out by trying it in a namespace that is thrown away."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cove.engine import kernel
from cove.engine.network import nft
from cove.engine.network import rtnetlink as rt
from cove.engine.network.rtnetlink import End, RtNetlink
from cove.engine.network.topology import NetworkConfig

_LIMIT_S: Final = 60.0

_RULES: Final = """
table inet probe {
  set addresses { type ipv4_addr . inet_proto . inet_service; flags interval, timeout; }
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    ip daddr . meta l4proto . th dport @addresses accept
    limit rate 10/second log group 1
    reject with icmp admin-prohibited
  }
}
table ip probe_nat {
  chain prerouting { type nat hook prerouting priority dstnat; tcp dport 80 redirect to :3129; }
  chain postrouting { type nat hook postrouting priority srcnat; masquerade; }
}
"""


def probe(config: NetworkConfig) -> tuple[str, ...]:
    """One sentence for each thing that is missing; empty: sandboxes can be connected. Blocks for some milliseconds."""
    if config.is_off:
        return ("the operator switched it off (COVE_NETWORK)",)
    if config.outside is not None and not kernel.is_namespace_file(config.outside):
        return (f"COVE_NETWORK_OUTSIDE: no network namespace is at {config.outside}",)
    found: list[str] = []
    # A thread of its own, which ends with the namespace it made.
    thread = threading.Thread(target=_try_all, args=(found,), name="cove-net-probe", daemon=True)
    thread.start()
    thread.join(_LIMIT_S)
    if thread.is_alive():
        return ("the kernel did not answer when its network was tried",)
    return tuple(found)


def _try_all(found: list[str]) -> None:
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("no network namespaces (CAP_SYS_ADMIN)", lambda: kernel.unshare(kernel.CLONE_NEWNET)),
        ("the settings of a network namespace cannot be written", _write),
        ("no virtual interfaces (the kernel's veth)", _pair),
        ("no packet rules (libnftables and the kernel's nf_tables)", lambda: nft.run_once(_RULES)),
    )
    for what, step in steps:
        try:
            step()
        except OSError as error:
            found.append(f"{what}: {error}")
            return


def _write() -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _pair() -> None:
    with RtNetlink() as netlink:
        netlink.change(rt.new_pair(End(name="sv1", index=1001), End(name="eth0", index=1002, is_up=False)))
        netlink.change(rt.limit_rate(1001, 1_000_000, 65536, 65536))
