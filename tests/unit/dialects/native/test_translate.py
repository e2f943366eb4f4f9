# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import pytest

from cove.dialects.native import translate, wire
from cove.edge.errors import Malformed
from cove.model.errors import NotFound
from cove.model.execs import Chunk, Ended, ExecExit, Gap, Paused, Stream, Why
from cove.model.files import FileInfo, FileKind


@pytest.mark.parametrize("text", ["0123456789abcdef", "sb_", "sb_0123456789ABCDEF", "a_b", "", "a/b", "..", "é"])
def test_only_our_forms_name_a_sandbox(text):
    with pytest.raises(NotFound):
        translate.sandbox_ref(text)


def test_an_id_comes_back_as_it_went():
    assert translate.sandbox_ref(translate.sandbox_id("0123456789abcdef")) == "0123456789abcdef"
    assert translate.sandbox_ref("brave-otter") == "brave-otter"


def test_characters_cut_by_chunks_are_put_together_per_stream():
    euro = "€".encode()
    events = [
        Chunk(Stream.STDOUT, euro[:1]),
        Chunk(Stream.STDERR, b"\xff"),
        Chunk(Stream.STDOUT, euro[1:]),
        Gap(3),
        Ended(exit=ExecExit(code=0, why=Why.EXITED), cursor=9),
    ]
    found = translate.output_view(events, "utf-8", 0)
    assert "".join(one.data for one in found.chunks if one.stream == "stdout") == "€"
    assert (found.lost_bytes, found.cursor, found.ended) == (3, 9, True)
    assert translate.output_view([Paused(4)], "utf-8", 0).cursor == 4


def test_half_a_character_at_the_end_is_shown():
    encode = translate.event_encoder("utf-8")
    assert encode(Chunk(Stream.STDOUT, b"\xe2")) == b""
    assert "\ufffd".encode() in encode(Ended(exit=ExecExit(code=0, why=Why.EXITED)))


@pytest.mark.parametrize("mtime", [-1e18, 0.0, 1e18])
def test_a_files_time_is_any_number(mtime):
    info = FileInfo(path="/a", name="a", kind=FileKind.FILE, size=0, mode=0o7, uid=0, gid=0, mtime=mtime)
    assert translate.file_view(info).mtime.endswith("Z")
    assert translate.file_view(info).mode == "0007"


def test_bad_base64_names_stdin():
    with pytest.raises(Malformed) as caught:
        translate.exec_of(wire.Exec(command="cat", stdin="?", encoding="base64"))
    assert caught.value.field == "stdin"
