"""Whether sandboxes can be connected here: what the kernel gives, and what else on the machine would stop packets.

Of the server's own network namespace; who has COVE_NETWORK_OUTSIDE looks there himself. Changes nothing.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from cove.engine.network import nft
from cove.engine.network.probe import probe
from cove.engine.network.topology import OUTSIDE_PREFIX, NetworkConfig
from cove.engine.network.upstream_dns import name_servers
from cove.server.doctor.report import Line, ok, warn
from cove.server.doctor.trial import attempt
from cove.server.setup.settings import SetupSettings

_FINE: Final = "made interfaces and packet rules in a namespace"
_OURS: Final = "cove_"
_LIMIT_S: Final = 10.0
_LEAST_FLOWS: Final = 65536
_CURE: Final = (
    f"let Cove's interfaces through there: iptables -I FORWARD -i {OUTSIDE_PREFIX}+ -j ACCEPT; iptables -I FORWARD "
    f"-o {OUTSIDE_PREFIX}+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT (or as your firewall says it)"
)


def probe_network(settings: SetupSettings) -> Line:
    """Namespaces, interfaces and packet rules, tried out in a namespace that is thrown away."""
    config = NetworkConfig(instance="doctor", run_dir=settings.run_dir / "doctor")
    tried = attempt(lambda: "; ".join(probe(config)) or _FINE)
    if not tried.worked or tried.text != _FINE:
        return warn(
            "network",
            tried.text,
            cost="sandboxes cannot be connected; all else works",
            cure="apt-get install libnftables1, and a kernel with veth and nf_tables",
        )
    return ok("network", tried.text)


def probe_forwarding(_settings: SetupSettings) -> Line:
    """Whether packets of sandboxes would get past the machine's own rules, and how many flows it can follow."""
    stopping = [*stopping_chains(_ruleset()), *_stopping_legacy()]
    if stopping:
        return warn(
            "forwarding",
            f"the machine drops forwarded packets ({', '.join(stopping)})",
            cost="connected sandboxes reach nothing but what is checked by name on the ports 80 and 443",
            cure=_CURE,
        )
    flows = int(_read("/proc/sys/net/netfilter/nf_conntrack_max") or _LEAST_FLOWS)
    if flows < _LEAST_FLOWS:
        return warn(
            "forwarding",
            f"the kernel follows {flows} connections",
            cost="many busy sandboxes together run out of them",
            cure=f"sysctl -w net.netfilter.nf_conntrack_max={4 * _LEAST_FLOWS}",
        )
    is_on = _read("/proc/sys/net/ipv4/ip_forward") == "1"
    return ok("forwarding", "on" if is_on else "off: Cove switches it on for its sandboxes alone")


def probe_resolvers(_settings: SetupSettings) -> Line:
    """Whom names of sandboxes are asked for."""
    servers = name_servers((), None)
    if not servers:
        return warn(
            "resolvers",
            "/etc/resolv.conf names none",
            cost="connected sandboxes resolve no names",
            cure="set COVE_NETWORK_RESOLVERS",
        )
    return ok("resolvers", ", ".join(server.address for server in servers))


def stopping_chains(ruleset: str) -> list[str]:
    """The chains of others, in what `nft list ruleset` prints, that drop forwarded packets and know no interface of us.

    Only a chain's policy is looked at: a single rule may be meant for something else.
    """
    found: list[str] = []
    table = chain = ""
    is_stopping = False
    for line in ruleset.splitlines():
        words = line.split()
        if words[:1] == ["table"]:
            table = words[2]
        elif words[:1] == ["chain"]:
            chain, is_stopping = words[1], False
        elif "hook forward" in line and "policy drop" in line:
            is_stopping = not table.startswith(_OURS)
        elif f'"{OUTSIDE_PREFIX}' in line:
            is_stopping = False
        elif words == ["}"] and chain:
            found += [f"chain {chain} of table {table}"] if is_stopping else []
            chain, is_stopping = "", False
    return found


def _ruleset() -> str:
    try:
        return nft.run_once("list ruleset")
    except OSError:
        return ""


def _stopping_legacy() -> list[str]:
    """The older iptables has a table beside nftables, which only its own program shows."""
    program = shutil.which("iptables-legacy")
    if program is None or "filter" not in _read("/proc/net/ip_tables_names").split():
        return []
    done = subprocess.run([program, "-S", "FORWARD"], capture_output=True, text=True, check=False, timeout=_LIMIT_S)
    drops = "-P FORWARD DROP" in done.stdout and OUTSIDE_PREFIX not in done.stdout
    return ["chain FORWARD of iptables-legacy"] if drops else []


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""
