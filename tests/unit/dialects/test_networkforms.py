"""The rule forms of other protocols: their documented examples, and their sentences against what comes out."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.core.networkrules import checked_request, policy_of
from cove.dialects.networkforms import from_isol8, from_isorun, from_opensandbox, to_isorun
from cove.model.closed import ClosedRanges
from cove.model.errors import BadRequest
from cove.model.network import NetworkMode, NetworkPolicy, NetworkProfile, NetworkRequest, Protocol, Verdict
from cove.model.policy import Destination, could_allow, decide

CLOSED = ClosedRanges()
TCP = Protocol.TCP


def compiled(request: NetworkRequest) -> NetworkPolicy:
    return policy_of(checked_request(request, CLOSED))


def allows(policy: NetworkPolicy, name: str | None, address: str | None, protocol: Protocol = TCP) -> bool:
    return decide(policy, Destination(name=name, address=address, port=443, protocol=protocol), CLOSED).is_allowed


# isorun: docs/protocols/isorun.md, section 10.


@pytest.mark.parametrize(
    ("deny", "allow", "name", "address", "expected"),
    [
        ([], [], "a.example", "8.8.8.8", True),
        (["0.0.0.0/0"], ["a.example"], "a.example", "8.8.8.8", True),
        (["0.0.0.0/0"], ["a.example"], "b.example", "8.8.8.8", False),
        (["0.0.0.0/0"], ["a.example"], None, "8.8.8.8", False),
        (["0.0.0.0/0"], [], "a.example", "8.8.8.8", False),
        (["::/0"], ["a.example"], "b.example", "8.8.8.8", False),
        (["*"], [], None, "8.8.8.8", False),
        (["a.example"], [], "a.example", "8.8.8.8", False),
        (["a.example"], [], "b.example", "8.8.8.8", True),
        (["8.8.8.0/24"], [], None, "8.8.8.8", False),
        (["8.8.8.0/24"], [], None, "9.9.9.9", True),
        (["8.8.8.8"], [], None, "8.8.8.8", False),
        ([], ["a.example"], "b.example", "8.8.8.8", False),
        (["a.example"], ["a.example"], "a.example", "8.8.8.8", False),
        (["b.a.example"], ["*.a.example"], "b.a.example", "8.8.8.8", False),
        (["b.a.example"], ["*.a.example"], "c.a.example", "8.8.8.8", True),
        (["0.0.0.0/0"], ["*.a.example"], "a.example", "8.8.8.8", False),
        (["0.0.0.0/0"], ["*.a.example"], "c.b.a.example", "8.8.8.8", True),
        (["a.example"], ["*"], "b.example", "8.8.8.8", True),
        (["0.0.0.0/0", "8.8.8.8"], ["0.0.0.0/0"], None, "8.8.8.8", False),
        (["0.0.0.0/0"], ["2606:4700::/32"], "a.example", "8.8.8.8", False),
        (["2606:4700::/32"], [], "a.example", "8.8.8.8", True),
        ([], ["::/0"], "a.example", "8.8.8.8", False),
        ([], [], None, "169.254.169.254", False),
        ([], [], "metadata.example", "10.0.0.1", False),
    ],
)
def test_isoruns_documented_cases(
    deny: list[str], allow: list[str], name: str | None, address: str, *, expected: bool
) -> None:
    policy = compiled(from_isorun(allow, deny))
    assert allows(policy, name, address) == expected
    if expected and name is not None:
        assert could_allow(policy, name).is_allowed, "names of an allow list resolve"


def test_isoruns_empty_lists_are_the_internet() -> None:
    assert from_isorun([], []) == NetworkRequest(mode=NetworkMode.OPEN)


@pytest.mark.parametrize("text", ["", "a b", "1.2.3.4:80", "300.1.1.1", "re:.*", "http://a.example"])
def test_a_bad_entry_is_refused_with_its_list_and_number(text: str) -> None:
    with pytest.raises(BadRequest, match=r"^entry 2: ") as caught:
        from_isorun(["a.example", text], [])
    assert caught.value.field == "network.allow"
    with pytest.raises(BadRequest) as caught:
        from_opensandbox([("allow", text)])
    assert caught.value.field == "networkPolicy.egress"


# isol8: docs/protocols/isol8.md, "network filtered".


@pytest.mark.parametrize(
    ("whitelist", "blacklist", "name", "expected"),
    [
        ([], [], "a.example", True),
        ([r"^api\.openai\.com$"], [], "api.openai.com", True),
        ([r"^api\.openai\.com$"], [], "xapi.openai.com", False),
        ([r"openai\.com"], [], "xapi.openai.com.evil.example", True),
        ([".*"], ["evil"], "not-evil.example", False),
        (["good"], ["evil"], "good.evil.example", False),
        ([], ["evil"], "good.example", True),
        ([], ["^evil"], "devil.example", True),
        (["^[[:alpha:]]+[.]example$"], [], "abc.example", True),
        (["^(a|b)\\.example$"], [], "b.example", True),
    ],
)
def test_isol8s_documented_cases(whitelist: list[str], blacklist: list[str], name: str, *, expected: bool) -> None:
    policy = compiled(from_isol8(whitelist, blacklist))
    assert allows(policy, name, "8.8.8.8") == expected
    assert not allows(policy, name, "8.8.8.8", Protocol.UDP)
    assert not allows(policy, None, "8.8.8.8", Protocol.ICMP)
    assert could_allow(policy, name).is_allowed == expected


def test_isol8s_pattern_that_is_an_address_holds_for_the_address() -> None:
    assert not allows(compiled(from_isol8([], [r"^8\.8\.8\.8$"])), None, "8.8.8.8")
    assert allows(compiled(from_isol8([r"8\.8\.8\.8"], [])), None, "8.8.8.8")
    assert not allows(compiled(from_isol8([r"8\.8\.8\.8"], [])), None, "8.8.8.9")


@pytest.mark.parametrize("pattern", ["(", "a" * 600, "x\ny"])
def test_isol8s_bad_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(BadRequest, match=r"^pattern 1: ") as caught:
        from_isol8([pattern], [])
    assert caught.value.field == "networkFilter"


# OpenSandbox: docs/protocols/opensandbox.md, section 3.


def test_opensandbox_denies_by_default_and_keeps_the_first_rule_of_a_target() -> None:
    assert not allows(compiled(from_opensandbox([])), "a.example", "8.8.8.8")
    assert allows(compiled(from_opensandbox([], "allow")), "a.example", "8.8.8.8")
    found = from_opensandbox(
        [("allow", "A.Example"), ("deny", "a.example."), ("deny", "*.a.example"), ("allow", "8.8.8.8")]
    )
    assert [f"{rule.verdict} {rule.target}" for rule in found.rules] == [
        "allow a.example", "deny *.a.example", "allow 8.8.8.8/32",
    ]  # fmt: skip
    policy = compiled(found)
    assert allows(policy, "a.example", "9.9.9.9")
    assert not allows(policy, "b.a.example", "9.9.9.9")
    assert allows(policy, None, "8.8.8.8")
    for words in (([("block", "a.example")],), ([], "maybe")):
        with pytest.raises(BadRequest, match="allow or deny"):
            from_opensandbox(*words)


# Their sentences, word by word, against what comes out.

NAMES = ["a.example", "b.a.example", "z.example"]
ADDRESSES = ["8.8.8.8", "8.8.9.9", "1.1.1.1"]
TARGETS = [
    "a.example", "A.EXAMPLE.", "*.a.example", "z.example", "8.8.8.8", "8.8.0.0/16", "8.8.8.8/16", "0.0.0.0/0", "*",
    "::/0", "2606::/16",
]  # fmt: skip
lists = st.lists(st.sampled_from(TARGETS), max_size=4)
names, addresses = st.sampled_from([None, *NAMES]), st.sampled_from(ADDRESSES)


def meets(target: str, name: str | None, address: str) -> bool:
    if target == "*":
        return True
    if ":" in target:
        return False
    if re.fullmatch(r"[0-9./]+", target):
        return ipaddress.ip_address(address) in ipaddress.ip_network(target, strict=False)
    target = target.lower().rstrip(".")
    return name is not None and (name.endswith(target[1:]) if target.startswith("*") else name == target)


@given(lists, lists, names, addresses)
def test_isoruns_sentence(allow: list[str], deny: list[str], name: str | None, address: str) -> None:
    every = {"0.0.0.0/0", "::/0", "*"}
    if any(meets(one, name, address) for one in deny if one not in every):
        expected = False
    elif any(meets(one, name, address) for one in allow):
        expected = True
    else:
        expected = not (every & set(deny) or allow)
    assert allows(compiled(from_isorun(allow, deny)), name, address) == expected


@given(
    st.lists(st.tuples(st.sampled_from(["allow", "deny"]), st.sampled_from(TARGETS)), max_size=5),
    st.sampled_from(["allow", "deny"]),
    names,
    addresses,
)
def test_opensandboxs_sentence(egress: list[tuple[str, str]], default: str, name: str | None, address: str) -> None:
    expected, seen = default, set()
    for action, target in egress:
        key = target.lower().rstrip(".")
        if key in seen:
            continue
        seen.add(key)
        if meets(target, name, address):
            expected = action
            break
    assert allows(compiled(from_opensandbox(egress, default)), name, address) == (expected == Verdict.ALLOW)


patterns = st.lists(st.sampled_from(["a", r"^a\.example$", "z", r"\.example$", "^b", "(a|z)[.]", "x+"]), max_size=3)


@given(patterns, patterns, st.sampled_from(NAMES))
def test_isol8s_sentence(whitelist: list[str], blacklist: list[str], name: str) -> None:
    expected = not any(re.search(one, name) for one in blacklist) and (
        not whitelist or any(re.search(one, name) for one in whitelist)
    )
    assert allows(compiled(from_isol8(whitelist, blacklist)), name, "8.8.8.8") == expected


@pytest.mark.parametrize(
    ("allow", "deny"),
    [
        ((), ("0.0.0.0/0",)),
        (("a.example", "10.0.0.0/8"), ("0.0.0.0/0",)),
        (("*.a.example",), ("x.a.example", "0.0.0.0/0")),
        ((), ("b.example",)),
    ],
)
def test_a_profile_in_isoruns_lists_means_the_same_again(allow: tuple[str, ...], deny: tuple[str, ...]) -> None:
    request = from_isorun(allow, deny)
    profile = NetworkProfile(name="one", rules=request.rules, default=request.default or Verdict.DENY)
    assert to_isorun(profile) == (allow, deny)
    assert to_isorun(NetworkProfile(name="one", mode=NetworkMode.OPEN)) == ((), ())
