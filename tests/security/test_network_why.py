"""What `why` says beforehand is what then happens: the explanation, the rules in the kernel and the proxies agree."""

from __future__ import annotations

import pytest

from network_lab_support import OPEN, Lab, policy
from world_support import API, EVIL, GOOD, METADATA, OTHER, OUTSIDE, PRIVATE

pytestmark = pytest.mark.real

POLICIES = {
    "open": OPEN,
    "names": policy("good.example", "*.good.example:443", "tcp/other.example:9999"),
    "ranges": policy(f"{GOOD}/32:80,9999", "11.0.0.8/30:443", deny=(f"{API}/32",)),
    "mixed": policy("*:80,443,8000-9999", "evil.example", deny=("*.good.example", f"{OTHER}/32", "evil.example:80")),
    "denied": policy(deny=("evil.example", "udp/*", f"{API}/32:9999"), default="allow"),
}
HOSTS = (
    GOOD, API, EVIL, OTHER, METADATA[0], PRIVATE[1], OUTSIDE,
    "good.example", "api.good.example", "deep.api.good.example", "evil.example", "other.example", "private.example",
    "metadata.example", "fronted.example",
)  # fmt: skip
"""Addresses first: once a name has brought one, what holds for the name holds for it."""
PORTS = (80, 443, 9999)

ATTEMPT = """
    def works(host, port):
        found = resolve(host) if not host[0].isdigit() else [host]
        if not found:
            return False
        if port == 80:
            return isinstance(http(found[0], host, limit=3), dict)
        if port == 443:
            return isinstance(tls(found[0], None if host[0].isdigit() else host, limit=3), dict)
        return echoed(found[0], port, 3) == "open"
    for host in HOSTS:
        for port in PORTS:
            say("%s %d" % (host, port), works(host, port))
"""


@pytest.mark.parametrize("name", POLICIES)
def test_why_says_what_happens(lab: Lab, name: str) -> None:
    box = lab.box(POLICIES[name])
    happened = lab.inside(box, f"HOSTS, PORTS = {HOSTS!r}, {PORTS!r}\n" + _dedented(ATTEMPT))
    said: dict[str, bool] = {}
    words: dict[str, str] = {}
    for host in HOSTS:
        for port in PORTS:
            answer = lab.client.post(f"/sandboxes/{box}/network/why", json={"host": host, "port": port})
            assert answer.status_code == 200, answer.text
            said[f"{host} {port}"] = answer.json()["action"] == "allow"
            words[f"{host} {port}"] = answer.json()["rule"]
    wrong = {key: (said[key], happened[key], words[key]) for key in said if said[key] != happened[key]}
    assert not wrong, "said, happened, and the rule that was named"
    assert any(happened.values()), happened
    assert not all(happened.values())


def _dedented(text: str) -> str:
    return "\n".join(line[4:] for line in text.splitlines())
