# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.dialects.native import wire
from cove.edge.decode import body_decoder, query_decoder
from cove.edge.download import parse_range
from cove.edge.errors import Malformed, RangeUnsatisfiable

BODY = body_decoder(wire.Create)
QUERY = query_decoder(wire.SandboxQuery)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_malformed(data):
    for decode in (BODY, QUERY):
        with contextlib.suppress(Malformed):
            decode(data)


def test_a_query_collects_repeated_and_keyed_parameters():
    found = QUERY(b"state=running&state=paused&metadata.a=1&metadata.b%20c=%C3%A9+x&limit=7")
    assert (found.state, found.metadata, found.limit) == (("running", "paused"), {"a": "1", "b c": "é x"}, 7)


@pytest.mark.parametrize(
    ("query", "field"),
    [(b"x=1", "x"), (b"limit=a", "limit"), (b"limit=1&limit=1", "limit"), (b"metadata=1", "metadata")],
)
def test_what_is_wrong_is_named(query, field):
    with pytest.raises(Malformed) as caught:
        QUERY(query)
    assert caught.value.field == field


def test_a_field_name_of_any_length_makes_a_short_error():
    with pytest.raises(Malformed) as caught:
        BODY(b'{"' + b"x" * 100_000 + b'":1}')
    assert len(caught.value.public) < 200


@given(st.text("bytes=0123456789-, ", max_size=30), st.integers(0, 100))
def test_a_range_lies_inside_the_file(header, size):
    with contextlib.suppress(RangeUnsatisfiable):
        span = parse_range(header, size)
        if span is not None:
            assert span.length > 0
            assert 0 <= span.offset < span.offset + span.length <= size
