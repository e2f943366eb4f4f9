"""Which addresses the namespace has that we are in: what `model/closed.py` calls the server's own. Reads /proc only."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc/thread-self/net")
"""Of the thread's namespace, not of the process's: ask in the thread that lives there (`NetNs.run`)."""

_LEAF: Final = re.compile(r"\|-- (\d+\.\d+\.\d+\.\d+)")
_ALIAS: Final = re.compile(r"/(\d+) \w+ LOCAL")
_WHOLE: Final = "32"
_USUAL: Final = ("Main:", "Local:")


def own_addresses(proc: Path = _PROC) -> frozenset[str]:
    """Every IPv4 and IPv6 address of this namespace, loopback aside. Blocks for about a tenth of a millisecond.

    IPv4 from the kernel's table of local routes, which has what secondary addresses and `ip route add local` bring too:
    of a whole range, that is a CIDR. Raises: OSError.
    """
    found = set(_local((proc / "fib_trie").read_text(encoding="ascii")))
    six = proc / "if_inet6"
    if six.exists():  # not there where IPv6 is off
        for line in six.read_text(encoding="ascii").splitlines():
            found.add(str(ipaddress.IPv6Address(int(line.split()[0], 16))))
    return frozenset(one for one in found if not ipaddress.ip_network(one).is_loopback)


def _local(text: str) -> Iterator[str]:
    """Each leaf is an address, then a line for each route to it.

    Ranges of the usual tables only: those of others catch packets of some mark (TPROXY), whosever addresses they are.
    """
    table, address = "", ""
    for line in text.splitlines():
        if not line.startswith(" "):
            table = line
        elif leaf := _LEAF.search(line):
            address = leaf[1]
        elif alias := _ALIAS.search(line):
            if alias[1] == _WHOLE:
                yield address
            elif table in _USUAL:
                yield f"{address}/{alias[1]}"
