"""What may come in a file, without running anything: manifests, parts, layers. Property tests with hostile input."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cove.engine.checkpoints.manifest import Damaged, sign_body, verify, verify_body
from cove.engine.checkpoints.model import CheckpointFacts
from cove.engine.checkpoints.transfer import check_facts
from cove.engine.confined import fetchlayer, keeplayer, splitsnapshot
from cove.engine.confined.fetchlayer import MOST_PIECES, number, parts_of, pieces_of
from cove.engine.confined.keeplayer import data_of, fewer
from cove.engine.confined.tarstream import REGULAR, Entry, LayerError, TarStream
from cove.model.errors import BadRequest
from cove.model.sandbox import Limits

KEY = b"k" * 32
GOOD = CheckpointFacts(
    driver="runc",
    has_memory=True,
    image="team/app:1",
    image_digest="sha256:" + "a" * 64,
    limits=Limits(cpus=0.5, memory_bytes=1, disk_bytes=1, pids=1),
    hostname="otter-1",
    agent_build="b252dfebbfea",
    engine={"criu": "4.2.1"},
    env={"A": "b=c"},
)


def stream(data: bytes) -> TarStream:
    return TarStream(io.BytesIO(data).read)


def entry(sparse: bytes | None, size: int) -> Entry:
    attributes = {} if sparse is None else {b"cove.sparse": sparse}
    return Entry(REGULAR, b"./f", b"", size, 0o644, 0, 0, 0, attributes)


@given(st.binary(max_size=3000))
@example(b"")
@example(bytes(1024))
def test_any_bytes_are_a_manifest_or_refused(data: bytes) -> None:
    with pytest.raises(LayerError):
        splitsnapshot.read_manifest(stream(data))


@given(st.binary(max_size=200))
def test_no_bytes_but_ours_are_verified(data: bytes) -> None:
    with pytest.raises(Damaged):
        verify_body(data, KEY, b"p")
    with pytest.raises(Damaged):
        verify(data, KEY)


@given(st.binary(max_size=200), st.integers(0, 5000), st.integers(0, 7))
def test_a_signature_is_of_these_bytes_for_this_purpose(body: bytes, at: int, bit: int) -> None:
    text = json.dumps(body.hex()).encode()
    signed = sign_body(text, KEY, b"p")
    assert verify_body(signed, KEY, b"p") == text
    for key, purpose in ((KEY, b"q"), (b"l" * 32, b"p")):
        with pytest.raises(Damaged):
            verify_body(signed, key, purpose)
    changed = bytearray(signed)
    changed[at % len(changed)] ^= 1 << bit
    try:
        assert verify_body(bytes(changed), KEY, b"p") == text  # a flip in what JSON does not mean
    except Damaged:
        return


@given(st.binary(max_size=300))
@example(b"./a/../b")
@example(b"/etc/passwd")
@example(b"./a//b")
@example(b".")
def test_a_path_leads_below_the_top_or_is_refused(name: bytes) -> None:
    try:
        parts = parts_of(name)
    except LayerError:
        return
    assert not any(part in {b"", b".", b".."} or b"/" in part or b"\0" in part for part in parts)


@given(
    st.binary(max_size=60) | st.from_regex(rb"[0-9]{1,3}(;[0-9]{1,3},[0-9]{1,3}){0,4}", fullmatch=True),
    st.integers(0, 500),
)
def test_holes_are_within_the_file_or_refused(sparse: bytes, size: int) -> None:
    try:
        whole, pieces = pieces_of(entry(sparse, size))
    except LayerError:
        return
    assert sum(length for _, length in pieces) == size
    end = 0
    for at, length in pieces:
        assert at >= end
        end = at + length
    assert end <= whole <= 2**63 - 1


def test_holes_without_end_are_refused() -> None:
    text = b"9;" + b";".join(b"%d,1" % at for at in range(MOST_PIECES + 2))
    with pytest.raises(LayerError, match="too many holes"):
        pieces_of(entry(text, MOST_PIECES + 2))
    with pytest.raises(LayerError):
        number(b"9" * 19)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**4)), max_size=300))
def test_joined_pieces_hold_all_the_data(raw: list[tuple[int, int]]) -> None:
    pieces: list[tuple[int, int]] = []
    at = 0
    for gap, length in raw:
        pieces.append((at + gap, length))
        at += gap + length
    before = keeplayer.MOST_PIECES
    keeplayer.MOST_PIECES = 8
    try:
        joined = fewer(pieces)
    finally:
        keeplayer.MOST_PIECES = before
    assert len(joined) <= 8 or len(joined) == len(pieces) <= 8
    for start, length in pieces:
        assert any(a <= start and start + length <= a + n for a, n in joined)


def test_a_file_of_holes_is_seen_as_such(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with path.open("wb") as file:
        file.seek(8 * 1024**2)
        file.write(b"x")
        file.truncate(64 * 1024**2)
    with path.open("rb") as file:
        pieces = list(data_of(file.fileno(), path.stat().st_size))
    assert sum(length for _, length in pieces) <= 64 * 1024
    assert any(at <= 8 * 1024**2 < at + length for at, length in pieces)


@pytest.mark.parametrize(
    "change",
    [
        {"driver": "../runc"},
        {"driver": ""},
        {"hostname": "-a"},
        {"hostname": "a" * 64},
        {"hostname": "a\n"},
        {"image": "a b"},
        {"image_digest": "x" * 300},
        {"agent_build": "b\0"},
        {"env": {"A=B": "c"}},
        {"env": {"": "c"}},
        {"env": {"A": "\0"}},
        {"workdir": "/a\0"},
        {"engine": {"a": "b" * 2000}},
        {"engine": {str(n): "" for n in range(100)}},
        {"limits": Limits(cpus=float("nan"), memory_bytes=1, disk_bytes=1, pids=1)},
        {"limits": Limits(cpus=1, memory_bytes=-1, disk_bytes=1, pids=1)},
        {"limits": Limits(cpus=1, memory_bytes=1, disk_bytes=2**60, pids=1)},
        {"processes": -1},
        {"why_no_memory": "x" * 2000},
    ],
    ids=str,
)
def test_facts_that_no_box_has_are_refused(change: dict[str, Any]) -> None:
    check_facts(GOOD)
    values: dict[str, Any] = {name: getattr(GOOD, name) for name in CheckpointFacts.__struct_fields__}
    with pytest.raises(BadRequest):
        check_facts(CheckpointFacts(**{**values, **change}))


def test_a_device_becomes_nothing_but_overlays_mark() -> None:
    """The numbers of a character device in an archive are never read; block devices are refused."""
    assert b"4" not in fetchlayer.SPECIAL_MODES
    member = tarfile.TarInfo("./sda")
    member.type, member.devmajor, member.devminor = tarfile.CHRTYPE, 8, 0
    found = next(stream(member.tobuf() + bytes(1024)).entries())
    assert found.kind in fetchlayer.SPECIAL_MODES
    assert not hasattr(found, "device")
    assert os.makedev(0, 0) == 0
