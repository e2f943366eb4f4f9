"""`python -m cove.engine.attacks` with one layer of the sandbox taken away: `weakened.py LAYER ARGUMENT...`.

The product has no option for this: the layer is patched out of a process of the tests.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from cove.engine import ids, seccomp
from cove.engine.attacks import run
from cove.engine.network import baseline, router
from cove.engine.oci import bundle

Config = dict[str, Any]


def without_seccomp(config: Config) -> None:
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}


def with_all_capabilities(config: Config) -> None:
    names = ["SYS_ADMIN", "SYS_PTRACE", "MKNOD", "NET_ADMIN", "NET_RAW", "DAC_READ_SEARCH", "SYS_MODULE", "SYS_RAWIO"]
    more = [*bundle.CAPABILITIES, *(f"CAP_{name}" for name in names)]
    config["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), more)


def with_masked_paths_open(config: Config) -> None:
    config["linux"]["maskedPaths"] = []
    config["linux"]["readonlyPaths"] = []


def in_the_hosts_network(config: Config) -> None:
    kinds = config["linux"]["namespaces"]
    config["linux"]["namespaces"] = [kind for kind in kinds if kind["type"] != "network"]
    config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "sysfs"]


def without_limits(config: Config) -> None:
    for limit in ("memory", "pids"):
        del config["linux"]["resources"][limit]


def with_new_privileges(config: Config) -> None:
    config["process"]["noNewPrivileges"] = False


CONFIG: dict[str, Callable[[Config], None]] = {
    "seccomp": without_seccomp,
    "capabilities": with_all_capabilities,
    "masks": with_masked_paths_open,
    "network": in_the_hosts_network,
    "limits": without_limits,
    "privileges": with_new_privileges,
}


RULES = {
    "closed": "        ip daddr @closed meta mark set @CLOSED\n",
    "senders": "        iifname . ip saddr != @bound drop\n",
}
"""Lines of the router's rules."""


def main() -> int:
    layer = sys.argv.pop(1)
    if layer == "users":
        ids.choose = lambda *_, **__: ids.IdsChoice(ids=ids.Ids.HOST)
    elif layer in RULES:
        assert RULES[layer] in baseline._RULES, "the rules read otherwise by now"
        baseline._RULES = baseline._RULES.replace(RULES[layer], "")  # type: ignore[misc]
        # The kernel's own check of senders stands behind ours.
        router._SYSCTLS = {name: "0" if "rp_filter" in name else value for name, value in router._SYSCTLS.items()}  # type: ignore[misc]
    else:
        build, weaken = bundle.build, CONFIG[layer]

        def weakened(*arguments: Any, **named: Any) -> Config:
            config = build(*arguments, **named)
            weaken(config)
            return config

        bundle.build = weakened
    assert seccomp.NAME
    return run.main()


if __name__ == "__main__":
    sys.exit(main())
