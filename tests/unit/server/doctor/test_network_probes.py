"""What the doctor reads in the machine's own packet rules."""

from __future__ import annotations

import pytest

from cove.server.doctor.network_probes import stopping_chains

FOREIGN = """
table ip filter {
	chain INPUT {
		type filter hook input priority filter; policy drop;
	}
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		oifname "docker0" accept
	}
}
"""


def test_a_chain_that_drops_what_is_forwarded_is_named() -> None:
    assert stopping_chains(FOREIGN) == ["chain FORWARD of table filter"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        FOREIGN.replace("hook forward", "hook output"),
        FOREIGN.replace('"docker0"', '"cv-*"'),
        FOREIGN.replace("policy drop", "policy accept"),
        FOREIGN.replace("table ip filter", "table ip cove_forwarding"),
    ],
)
def test_other_chains_are_none_of_our_business(text: str) -> None:
    assert stopping_chains(text) == []
