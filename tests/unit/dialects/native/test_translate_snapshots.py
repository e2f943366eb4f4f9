"""Snapshots between the wire and the core: what is not named stays open, whatever the rest says."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from cove.dialects.native import translate_snapshots as translate
from cove.dialects.native import wire_snapshots as wire
from cove.edge.decode import body_decoder
from cove.edge.errors import Malformed
from cove.model.errors import NotFound
from cove.model.sandbox import MIB, IdleAction
from cove.model.snapshot import RestoreSpec

decode_fork = body_decoder(wire.Fork)
GIVEN: dict[str, tuple[st.SearchStrategy[Any], str]] = {
    "memory": (st.none() | st.booleans(), "memory"),
    "env": (st.dictionaries(st.text("AB_", min_size=1), st.text()), "env"),
    "metadata": (st.dictionaries(st.text("ab", min_size=1), st.text()), "metadata"),
    "cpus": (st.floats(0.05, 64), "cpus"),
    "memory_mib": (st.integers(32, 1 << 20), "memory_bytes"),
    "disk_mib": (st.integers(16, 1 << 20), "disk_bytes"),
    "pids": (st.integers(16, 65536), "pids"),
    "timeout_s": (st.none() | st.floats(1, 1e8), "timeout_s"),
    "idle_timeout_s": (st.none() | st.floats(1, 1e8), "idle_timeout_s"),
    "idle_action": (st.sampled_from([one.value for one in IdleAction]), "idle_action"),
    "timeout_counts": (st.sampled_from(["always", "running"]), "timeout_counts"),
    "auto_resume": (st.booleans(), "auto_resume"),
    "inherit_credentials": (st.booleans(), "inherit_credentials"),
}
bodies = st.fixed_dictionaries({}, optional={name: values for name, (values, _) in GIVEN.items()})


@given(bodies)
def test_a_body_says_what_it_names_and_nothing_else(body: dict[str, Any]) -> None:
    found = translate.restore_of(decode_fork(msgspec.json.encode(body)))
    nothing = RestoreSpec()
    for name, (_, field) in GIVEN.items():
        if name not in body:
            assert getattr(found, field) == getattr(nothing, field), name
        elif name.endswith("_mib"):
            assert getattr(found, field) == body[name] * MIB
        else:
            assert getattr(found, field) == body[name]


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*GIVEN, "name", "count", "network", "credentials", "other"]), json, max_size=4))
def test_any_body_is_understood_or_refused_by_name(body: dict[str, Any]) -> None:
    refused: Malformed | None = None
    try:
        found = decode_fork(msgspec.json.encode(body))
    except Malformed as error:
        refused = error
    else:
        assert 1 <= found.count <= 100
        translate.restore_of(found)
    assert refused is None or refused.field is None or refused.field.split(".")[0] in {*body, ""}


@pytest.mark.parametrize(
    "text", ["0123456789abcdef", "sn_", "sn_0123456789ABCDEF", "sb_0123456789abcdef", "", "a/b", "é"]
)
def test_only_our_forms_name_a_snapshot(text: str) -> None:
    with pytest.raises(NotFound) as caught:
        translate.snapshot_ref(text)
    assert caught.value.field == "snapshot"


def test_an_id_comes_back_as_it_went() -> None:
    assert translate.snapshot_ref(translate.snapshot_id("0123456789abcdef")) == "0123456789abcdef"
    assert translate.snapshot_ref("before") == "before"


def test_a_change_tells_nothing_from_none() -> None:
    decode = body_decoder(wire.UpdateSnapshot)
    assert translate.change_of(decode(b"{}")).tags is UNSET
    assert translate.change_of(decode(b'{"tags":{"a":null}}')).tags == {"a": None}
