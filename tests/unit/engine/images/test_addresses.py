"""Which registries and addresses a pull may touch."""

from __future__ import annotations

import pytest

from cove.engine.images.addresses import RegistryRules, split_host
from cove.model.closed import is_special
from cove.model.errors import Forbidden


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192", "198.18.0.1", "224.0.0.1", "240.0.0.1",
        "255.255.255.255", "168.63.129.16", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254",
        "ff02::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1",
        "2002:7f00:1::", "2001:0:1::1", "2001:db8::1", "nonsense", "", "127.1", "0x7f000001",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_special(address: str) -> None:
    assert is_special(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"])
def test_a_public_address_is_open(address: str) -> None:
    assert not is_special(address)


def test_by_default_any_registry_is_allowed_and_no_closed_address() -> None:
    rules = RegistryRules(("*",), ())
    rules.check("ghcr.io")
    rules.check("127.0.0.1:5000")  # the name is fine, its address is refused when it is dialled
    assert rules.may_dial("ghcr.io", 443, "8.8.8.8")
    assert not rules.may_dial("ghcr.io", 443, "10.0.0.1")
    assert not rules.may_dial("127.0.0.1", 5000, "127.0.0.1")


def test_a_list_excludes_all_others() -> None:
    rules = RegistryRules(("ghcr.io", "*.example.com", "own.example:5000"), ())
    for allowed in ("ghcr.io", "GHCR.IO", "ghcr.io:443", "a.example.com", "a.b.example.com:99", "own.example:5000"):
        rules.check(allowed)
    for refused in ("docker.io", "example.com", "notexample.com", "ghcr.io.evil.example", "own.example", "x.ghcr.io"):
        with pytest.raises(Forbidden):
            rules.check(refused)


def test_a_host_listed_by_name_may_have_a_closed_address_but_a_pattern_does_not_name_it() -> None:
    rules = RegistryRules(("*", "own.example:5000", "*.inside.example"), ())
    assert rules.may_dial("own.example", 5000, "10.1.2.3")
    assert not rules.may_dial("own.example", 5001, "10.1.2.3")
    assert not rules.may_dial("a.inside.example", 443, "10.1.2.3")


def test_plain_http_is_for_listed_hosts_only() -> None:
    rules = RegistryRules(("*",), ("own.example:5000",))
    assert rules.is_plain("own.example", 5000)
    assert not rules.is_plain("own.example", 80)
    assert not rules.is_plain("ghcr.io", 80)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("host", ("host", 443)),
        ("Host:5000", ("host", 5000)),
        ("[::1]:5000", ("::1", 5000)),
        ("[::1]", ("::1", 443)),
    ],
)
def test_a_host_is_split(text: str, parts: tuple[str, int]) -> None:
    assert split_host(text, 443) == parts
