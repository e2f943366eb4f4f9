"""The codec: golden vectors, any split of the bytes, garbage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.agentlink.frames import FROM_AGENT, HEADER, MAX_PAYLOAD_BYTES, Decoder, Frame, Kind, encode
from cove.model.errors import AgentViolation

VECTORS = json.loads((Path(__file__).parents[3] / "agent" / "testdata" / "frames.json").read_text())

frames = st.sampled_from(sorted(FROM_AGENT)).flatmap(
    lambda kind: st.builds(
        Frame,
        st.just(Kind(kind)),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=min(FROM_AGENT[kind], 300)),
    )
)


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda v: v["name"])
def test_golden_frames_are_written_and_read_as_the_agent_does(vector: dict[str, Any]) -> None:
    payload, frame = bytes.fromhex(vector["payload"]), bytes.fromhex(vector["frame"])
    assert encode(Kind(vector["kind"]), vector["channel"], payload) == frame
    if vector["from"] == "agent":
        assert Decoder().feed(frame) == [(vector["kind"], vector["channel"], payload)]


@pytest.mark.parametrize("vector", [v for v in VECTORS["invalid"] if v["from"] == "agent"], ids=lambda v: v["name"])
def test_golden_breaches_are_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(AgentViolation):
        Decoder().feed(bytes.fromhex(vector["frame"]))


@given(st.lists(frames, max_size=8), st.lists(st.integers(1, 50), min_size=1))
def test_any_split_of_the_bytes_gives_the_same_frames(sent: list[Frame], sizes: list[int]) -> None:
    stream = b"".join(encode(*frame) for frame in sent)
    decoder, got, at, turn = Decoder(), [], 0, 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        got += decoder.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert got == sent
    assert decoder.is_between_frames


@given(st.binary(max_size=2000))
def test_garbage_raises_a_violation_or_nothing(garbage: bytes) -> None:
    decoder = Decoder()
    try:
        for frame in decoder.feed(garbage):
            assert len(frame.payload) <= FROM_AGENT[frame.kind]
    except AgentViolation:
        pass


def test_an_oversize_length_is_refused_before_its_payload_is_awaited() -> None:
    with pytest.raises(AgentViolation):
        Decoder().feed(HEADER.pack(MAX_PAYLOAD_BYTES + 1, Kind.DATA, 1))


def test_the_largest_frames_pass_and_the_buffer_shrinks_afterwards() -> None:
    decoder, frame = Decoder(), encode(Kind.DATA, 1, bytes(MAX_PAYLOAD_BYTES))
    assert [len(f.payload) for f in decoder.feed(frame * 3)] == [MAX_PAYLOAD_BYTES] * 3
    decoder.relax()
    assert len(decoder.space()) == 64 * 1024


def test_a_half_frame_survives_relaxing() -> None:
    decoder, frame = Decoder(), encode(Kind.DATA, 1, b"x" * 100_000)
    assert decoder.feed(frame[:90_000]) == []
    decoder.relax()
    assert decoder.feed(frame[90_000:])[0].payload == b"x" * 100_000


def test_a_payload_over_the_limit_is_never_sent() -> None:
    with pytest.raises(ValueError, match="payload"):
        encode(Kind.DATA, 1, bytes(MAX_PAYLOAD_BYTES + 1))
