"""What an execution gets of what it asked for: lowered, refused, or as it is; and how many run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.core.executionpolicy import ExecutionPolicy, Turns, bounded, network_word
from cove.model.errors import CapacityExceeded, Forbidden, Unsupported
from cove.model.execution import ExecutionSettings, Seccomp
from cove.model.network import NetworkMode, NetworkRequest

POLICY = ExecutionPolicy(
    most_cpus=1.0,
    most_memory_bytes=1000,
    most_pids=10,
    most_disk_bytes=500,
    most_timeout_s=5.0,
    most_output_bytes=100,
)
SIZE = st.integers(1, 10**6)


@given(
    cpus=st.floats(0.01, 100), memory=SIZE, pids=SIZE, scratch=SIZE, tmp=SIZE, timeout=st.floats(0, 1e6), output=SIZE
)
def test_nothing_is_ever_more_than_the_operator_gives_or_than_was_asked_for(  # noqa: PLR0913, PLR0917 - one per size
    cpus: float, memory: int, pids: int, scratch: int, tmp: int, timeout: float, output: int
) -> None:
    asked = ExecutionSettings(
        cpus=cpus,
        memory_bytes=memory,
        pids=pids,
        scratch_bytes=scratch,
        tmp_bytes=tmp,
        timeout_s=timeout,
        output_limit_bytes=output,
    )
    got = bounded(asked, POLICY)
    pairs = (
        (got.cpus, cpus, 1.0),
        (got.memory_bytes, memory, 1000),
        (got.pids, pids, 10),
        (got.scratch_bytes, scratch, 500),
        (got.tmp_bytes, tmp, 500),
        (got.timeout_s, timeout, 5.0),
        (got.output_limit_bytes, output, 100),
    )
    assert all(has == min(wanted, most) for has, wanted, most in pairs)
    assert bounded(got, POLICY) == got, "asked again it is the same"


def test_without_limits_all_is_as_asked_for() -> None:
    asked = ExecutionSettings(cpus=64, memory_bytes=2**40, pids=10**6, image="any", secrets={"A": "b"})
    assert bounded(asked, ExecutionPolicy()) == asked


@pytest.mark.parametrize(
    ("network", "word"),
    [
        (None, "none"),
        (NetworkRequest(mode=NetworkMode.NONE), "none"),
        (NetworkRequest(mode=NetworkMode.OPEN), "open"),
        (NetworkRequest(mode=NetworkMode.POLICY), "filtered"),
        (NetworkRequest(profile="packages"), "filtered"),
    ],
)
def test_a_network_is_one_of_three_and_refused_where_it_is_not_given(network: NetworkRequest | None, word: str) -> None:
    assert network_word(network) == word
    asked = ExecutionSettings(network=network)
    assert bounded(asked, ExecutionPolicy(networks=(word,))) == asked
    others = tuple(one for one in ("none", "filtered", "open") if one != word)
    with pytest.raises(Forbidden):
        bounded(asked, ExecutionPolicy(networks=others))


@pytest.mark.parametrize(("image", "fits"), [("base", True), ("python-x", True), ("Base", False), ("node", False)])
def test_an_image_fits_a_pattern_or_is_refused(image: str, *, fits: bool) -> None:
    policy = ExecutionPolicy(images=("base", "python*"))
    if fits:
        bounded(ExecutionSettings(image=image), policy)
    else:
        with pytest.raises(Forbidden):
            bounded(ExecutionSettings(image=image), policy)


def test_the_runtimes_own_image_needs_no_pattern() -> None:
    bounded(ExecutionSettings(), ExecutionPolicy(images=("base",)))


def test_a_profile_of_the_caller_is_refused_and_its_name_cut() -> None:
    asked = ExecutionSettings(seccomp=Seccomp.CUSTOM, seccomp_profile="/x" * 1000)
    with pytest.raises(Unsupported) as caught:
        bounded(asked, ExecutionPolicy())
    assert len(caught.value.public) < 400


def test_turns_are_counted_by_project_and_given_back() -> None:
    turns = Turns(1)
    with turns.turn("a"), turns.turn("b"):
        with pytest.raises(CapacityExceeded) as caught, turns.turn("a"):
            pass
        assert caught.value.retry_after_s == 1
    with turns.turn("a"):
        pass
