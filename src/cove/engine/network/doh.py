"""Names under which public resolvers answer over HTTPS, TLS or QUIC: a way around the names that a policy allows.

Data, not a wall: a resolver that nobody knows is a host like any other, and reached only where a rule allows it. To add
one, add its name; what lies below it is meant too.
"""

from __future__ import annotations

from typing import Final

_HOSTS: Final = frozenset(
    (
        "1dot1dot1dot1.cloudflare-dns.com", "adblock.doh.mullvad.net", "adguard-dns.com", "all.dns.mullvad.net",
        "anycast.dns.nextdns.io", "base.dns.mullvad.net", "chrome.cloudflare-dns.com", "cloudflare-dns.com",
        "cloudflare-gateway.com", "controld.com", "dns-family.adguard.com", "dns-unfiltered.adguard.com",
        "dns.adguard.com", "dns.adguard-dns.com", "dns.alidns.com", "dns.digitale-gesellschaft.ch", "dns.google",
        "dns.google.com", "dns.mullvad.net", "dns.nextdns.io", "dns.quad9.net", "dns.sb", "dns.switch.ch",
        "dns.twnic.tw", "dns0.eu", "dns10.quad9.net", "dns11.quad9.net", "dns64.dns.google", "dns9.quad9.net",
        "dnsforge.de", "dnspod.cn", "doh.applied-privacy.net", "doh.cleanbrowsing.org", "doh.dns.apple.com",
        "doh.dns.sb", "doh.ffmuc.net", "doh.libredns.gr", "doh.mullvad.net", "doh.opendns.com", "doh.pub",
        "doh.sandbox.opendns.com", "doh.tiar.app", "doh.xfinity.com", "doh.umbrella.com", "doh.360.cn", "dot.pub",
        "family.cloudflare-dns.com", "freedns.controld.com", "mask-api.icloud.com", "mask-h2.icloud.com",
        "mask.icloud.com", "mozilla.cloudflare-dns.com", "nextdns.io", "one.one.one.one", "odoh.cloudflare-dns.com",
        "ordns.he.net", "private.canadianshield.cira.ca", "security.cloudflare-dns.com", "unfiltered.adguard-dns.com",
        "use-application-dns.net", "wikimedia-dns.org", "x.dns.controld.com",
    )
)  # fmt: skip
"""One is no resolver: browsers ask for `use-application-dns.net`, and without it keep to the network's resolver."""


def is_doh(name: str) -> bool:
    """Whether `name` (canonical) or one above it is a known resolver."""
    while name:
        if name in _HOSTS:
            return True
        name = name.partition(".")[2]
    return False
