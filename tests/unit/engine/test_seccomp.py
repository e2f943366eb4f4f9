"""The system-call profile against the table that was written apart from it; and the arithmetic of its masks."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from cove.engine import seccomp
from cove.engine.attacks import expected
from cove.engine.attacks.numbers import AARCH64, X86_64

BY_ARGUMENT = {case.call for own_kernel in (False, True) for case in expected.cases(own_kernel=own_kernel)}
DECIDED = {"clone", "clone3", "io_setup", "ioctl", "personality", "prlimit64", "setrlimit", "socket", "socketpair"}
"""Calls that are allowed or not by their arguments, or by whose kernel it is."""


@pytest.mark.parametrize("numbers", [X86_64, AARCH64], ids=["x86_64", "aarch64"])
def test_every_call_of_the_kernel_has_one_expectation(numbers: dict[str, int]) -> None:
    refused = [name for group in expected.REFUSED.values() for name in group]
    told = Counter([*refused, *expected.ALLOWED, *DECIDED, *expected.UNFILTERED])
    assert not [name for name, count in told.items() if count != 1]
    assert not sorted(set(numbers) - set(told))


def test_every_expectation_is_of_a_call_that_exists() -> None:
    known = set(X86_64) | set(AARCH64)
    told = {name for group in expected.REFUSED.values() for name in group} | set(expected.ALLOWED) | BY_ARGUMENT
    assert not sorted(told - known)


def test_each_machine_gives_a_number_to_one_call_only() -> None:
    for numbers in (X86_64, AARCH64):
        assert len(set(numbers.values())) == len(numbers)


@pytest.mark.parametrize(
    ("name", "x86_64", "aarch64"), [("execve", 59, 221), ("clone3", 435, 435), ("bpf", 321, 280), ("mseal", 462, 462)]
)
def test_numbers_are_those_of_the_kernels_headers(name: str, x86_64: int, aarch64: int) -> None:
    assert (X86_64[name], AARCH64[name]) == (x86_64, aarch64)


def test_a_call_added_to_the_profile_alone_is_noticed() -> None:
    assert sorted(seccomp.ALLOWED) == sorted(expected.ALLOWED)


@pytest.mark.parametrize("own_kernel", [False, True])
def test_nothing_beside_the_table_is_let_through(own_kernel: bool) -> None:  # noqa: FBT001 - a parameter
    for rule in seccomp.profile(own_kernel=own_kernel)["syscalls"]:
        if rule["action"] == "SCMP_ACT_ALLOW":
            assert set(rule["names"]) <= set(expected.ALLOWED) | DECIDED
            is_gvisors_own = own_kernel and set(rule["names"]) <= {"prlimit64", "setrlimit", "io_setup"}
            if set(rule["names"]) & DECIDED and not is_gvisors_own:
                assert rule["args"], rule


def _is_allowed(request: int) -> bool:
    rules: list[dict[str, Any]] = [r for r in seccomp.profile()["syscalls"] if r["names"] == ["ioctl"]]
    return any(request & arg["value"] == arg["valueTwo"] for rule in rules for arg in rule["args"])


def test_every_request_to_a_device_but_typing_into_a_terminal_is_allowed() -> None:
    typing = {0x5412, 0x541C}
    near = {request ^ (1 << bit) for request in typing for bit in range(32)}
    some = random.Random(1)  # noqa: S311 - any numbers will do
    for request in (*typing, *near, *range(0x5300, 0x5500), *(some.getrandbits(32) for _ in range(2000))):
        assert _is_allowed(request) is (request not in typing), hex(request)
        # The kernel reads 32 bits of the register; so must the filter.
        assert _is_allowed(request | 1 << 32) is (request not in typing), hex(request)
