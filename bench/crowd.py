"""The packet rules of many more sandboxes in the router of a server that runs: `bench.crowd PID INSTANCE COUNT RULES`.

They are put there by the code that puts all others (`engine/network/ruleset.py`), for addresses that no sandbox has.
Says `ready`, waits for the end of its input, and takes them away again.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from pathlib import Path

from cove.engine.network import baseline, nfnetlink
from cove.engine.network.netns import NetNs
from cove.engine.network.ruleset import Ruleset
from cove.engine.network.topology import DEFAULT_RANGE
from cove.model.closed import ClosedRanges
from cove.model.network import NetworkMode, NetworkPolicy, NetworkRule, Verdict

FIRST = 20_000
"""The number of the first of them: far from those that the server gives."""


def policy(number: int, rules: int) -> NetworkPolicy:
    """One of names, ranges and addresses, other than its neighbours'."""
    targets = (
        f"host{n}.box{number}.example" if n % 3 == 0 else f"{20 + n}.{number % 250}.{n}.0/24" for n in range(rules)
    )
    listed = tuple(NetworkRule(verdict=Verdict.ALLOW, target=target) for target in targets)
    return NetworkPolicy(mode=NetworkMode.POLICY, rules=listed)


async def main(pid: int, instance: str, count: int, rules: int) -> None:
    """All of it."""
    router = NetNs(Path(f"/proc/{pid}/root/run/cove/{instance}/router"), "crowd")
    base = baseline.Baseline(addresses=str(DEFAULT_RANGE), closed=ClosedRanges())
    channel = nfnetlink.prepare(await router.socket(socket.AF_NETLINK, socket.SOCK_RAW, nfnetlink.NETFILTER))
    ruleset = Ruleset(router, channel, base)
    indexes = range(FIRST, FIRST + count)
    times: list[float] = []
    for index in indexes:
        began = time.perf_counter()
        await ruleset.apply(index, str(DEFAULT_RANGE[index]), policy(index, rules), {})
        times.append(time.perf_counter() - began)
    print(f"ready {sorted(times)[len(times) // 2]}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for index in indexes:
        await ruleset.forget(index)
    channel.close()
    router.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
