"""Directories as tar streams, and what a hostile one can do to this machine: nothing outside of its directory."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.sdk.errors import BadAnswer
from cove.sdk.tars import MAX_HEADER_BYTES, Tally, Unpacker, checked_path, packed, stays_inside
from cove.sdk.tree_models import TreeCopy

NAMES = st.text("ab./\n\u202e", max_size=12)


def unpack(data: bytes, at: Path, *, step: int = 1000, max_bytes: int | None = None) -> TreeCopy:
    """Unpack with pieces that end anywhere."""
    unpacker = Unpacker(str(at), max_bytes)
    try:
        for start in range(0, len(data), step):
            unpacker.feed(data[start : start + step])
        return unpacker.close()
    finally:
        unpacker.drop()


def archive(*members: tuple[str, bytes, str], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of (name, type, content or target)."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as tar:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.mode = kind, 0o7777
            data = content.encode() if kind == tarfile.REGTYPE else b""
            member.size, member.linkname = len(data), "" if data else content
            tar.addfile(member, io.BytesIO(data))
    return made.getvalue()


FILE, DIR, LINK, HARD = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def test_a_directory_comes_back_as_it_was(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "a").write_bytes(os.urandom(300_000))
    (source / "sub" / ("long" * 50)).write_text("x")
    (source / "sub" / "line\nbreak é").write_text("")
    (source / "a").chmod(0o750)
    os.utime(source / "a", (1_000_000_000, 1_000_000_000))
    (source / "inward").symlink_to("sub/empty")
    (source / "outward").symlink_to("/etc/passwd")
    (source / "sub" / "up").symlink_to("../../elsewhere")
    os.mkfifo(source / "pipe")
    tally = Tally()
    data = b"".join(packed(str(source), tally))
    assert tally.done() == TreeCopy(files=4, bytes=300_001, skipped=3)
    for step in (1, 511, 512, 513, 1_000_000) if len(data) < 400_000 else (512, 1_000_000):
        back = tmp_path / f"back{step}"
        assert unpack(data, back, step=step) == TreeCopy(files=4, bytes=300_001, skipped=0)
        assert (back / "a").read_bytes() == (source / "a").read_bytes()
        assert ((back / "a").stat().st_mode & 0o7777, (back / "a").stat().st_mtime) == (0o750, 1_000_000_000)
        assert str((back / "inward").readlink()) == "sub/empty"
        assert sorted(path.name for path in back.rglob("*")) == sorted(
            ["a", "empty", "inward", "line\nbreak é", "long" * 50, "sub"]
        )
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert len(tar.getnames()) == 6


@pytest.mark.parametrize(
    "members",
    [
        [("/etc/evil", FILE, "x")],
        [("../evil", FILE, "x")],
        [("a/../../evil", FILE, "x")],
        [("..", DIR, "")],
        [("h", HARD, "/etc/passwd")],
        [("h", HARD, "../secret")],
    ],
)
def test_a_name_that_leads_out_is_refused(tmp_path: Path, members: list[tuple[str, bytes, str]]) -> None:
    (tmp_path / "secret").write_text("s")
    with pytest.raises(BadAnswer):
        unpack(archive(*members), tmp_path / "in")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "secret"]


@pytest.mark.parametrize("target", ["/etc", "..", "../x", "d/../..", "d/../../../x"])
def test_an_outward_link_is_left_out(tmp_path: Path, target: str) -> None:
    assert unpack(archive(("l", LINK, target)), tmp_path / "in").skipped == 1
    assert list((tmp_path / "in").iterdir()) == []


def test_devices_and_fifos_are_left_out(tmp_path: Path) -> None:
    kinds = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z")
    data = archive(*((f"m{number}", kind, "") for number, kind in enumerate(kinds)))
    assert unpack(data, tmp_path / "in").skipped == len(kinds)
    assert list((tmp_path / "in").iterdir()) == []


def test_nothing_is_written_through_a_link_whoever_made_it(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "in"
    outside.mkdir()
    inside.mkdir()
    (outside / "f").write_text("old")
    (inside / "d").symlink_to(outside)
    (inside / "l").symlink_to(outside / "f")
    os.link(outside / "f", inside / "h")
    with pytest.raises(OSError, match=r"d|directory|links"):
        unpack(archive(("d/x", FILE, "new")), inside)
    with pytest.raises(OSError, match=r"d|directory|links"):
        unpack(archive(("made", DIR, ""), ("s", LINK, "made"), ("s/x", FILE, "new")), inside)
    unpack(archive(("l", FILE, "new"), ("h", FILE, "new")), inside)
    assert (outside / "f").read_text() == "old"
    assert [path.name for path in outside.iterdir()] == ["f"]
    assert (inside / "l").read_text() == (inside / "h").read_text() == "new"


def test_special_bits_are_dropped_and_directories_stay_usable(tmp_path: Path) -> None:
    unpack(archive(("d", DIR, ""), ("d/f", FILE, "x"), ("d/h", HARD, "d/f"), ("d/f", FILE, "y")), tmp_path / "in")
    assert (tmp_path / "in/d/f").stat().st_mode & 0o7777 == 0o777
    assert (tmp_path / "in/d").stat().st_mode & 0o7777 == 0o777
    assert (tmp_path / "in/d/h").read_text() == "x"  # the second file took its name, not its content


def test_sizes_that_lie_are_found_out(tmp_path: Path) -> None:
    whole = archive(("a", FILE, "x" * 5000))
    for cut in (100, 512, 3000, len(whole) - 10_200):
        with pytest.raises(BadAnswer):
            unpack(whole[:cut], tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []
    giant = tarfile.TarInfo("giant")
    giant.size = 2**62
    with pytest.raises(OSError, match="no room"):
        unpack(giant.tobuf(tarfile.GNU_FORMAT), tmp_path / "in")
    with pytest.raises(OSError, match="more than 4000"):
        unpack(whole, tmp_path / "in", max_bytes=4000)
    for data in (b"hello" * 1000, b"\xff" * 2048):
        with pytest.raises(BadAnswer):
            unpack(data, tmp_path / "in")


def test_a_header_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, MAX_HEADER_BYTES + 1
    long_name = tarfile.TarInfo("x")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 2**40
    tracemalloc.start()
    with pytest.raises(BadAnswer):
        unpack(header.tobuf(tarfile.PAX_FORMAT), tmp_path / "in")
    with pytest.raises(BadAnswer):  # such as this one are not even passed over
        unpack(long_name.tobuf(tarfile.GNU_FORMAT), tmp_path / "in")
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "records",
    [
        b"5 a=\n",
        b"99 path=x\n",
        b"x path=y\n",
        b"0 path=y\n",
        b"11 path=abc",
        b"12 size=-500\n",
        b"14 size=9\xc2\xb2999\n",
    ],
)
def test_records_that_lie_are_refused(tmp_path: Path, records: bytes) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, len(records)
    data = (
        header.tobuf(tarfile.USTAR_FORMAT)
        + records.ljust(512, b"\0")
        + archive(("a", FILE, "x"), form=tarfile.USTAR_FORMAT)
    )
    if records == b"5 a=\n":
        assert unpack(data, tmp_path / "in").files == 1
    else:
        with pytest.raises(BadAnswer):
            unpack(data, tmp_path / "in")


@given(NAMES)
def test_a_path_is_below_the_target_or_refused(name: str) -> None:
    try:
        path = checked_path(name)
    except BadAnswer:
        assert name.startswith("/") or ".." in name.split("/")
        return
    assert os.path.normpath(f"/top/{path}") == os.path.normpath(f"/top/{name}")
    assert f"/top/{path}/".startswith("/top/")
    assert ".." not in path.split("/")


@given(st.integers(0, 3), st.lists(st.sampled_from(["..", ".", "", "a", "b"]), max_size=6))
def test_a_link_that_stays_inside_does(depth: int, parts: list[str]) -> None:
    name, target = "/".join(["d"] * depth + ["link"]), "/".join(parts)
    if stays_inside(name, target):
        landed = os.path.normpath(f"/top/{name.rpartition('/')[0]}/{target}")
        assert not target.startswith("/")
        assert landed == "/top" or landed.startswith("/top/")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000), st.integers(1, 700))
def test_any_bytes_end_in_an_error_or_in_files_below(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, step: int
) -> None:
    at = tmp_path_factory.mktemp("any") / "in"
    with contextlib.suppress(BadAnswer, OSError):
        unpack(archive(("d/a", FILE, "x"))[:512] + data, at, step=step)
    assert {path.name for path in at.parent.iterdir()} == {"in"}
