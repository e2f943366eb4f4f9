"""What of criu's images is written anew, and the wire format that they are in."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.engine.checkpoints import criuimages
from cove.engine.checkpoints.criuimages import Damaged, lay, user_namespace, uts_namespace
from cove.engine.checkpoints.protobuf import Malformed, bytes_of, field, fields, number_of

# Written by criu 4.2.1 for a sandbox whose ids start at 2705326080 and that is called h.
USERNS = bytes.fromhex("19435654064947551c0000000a0c0800108080808a0718808004120c0800108080808a0718808004")
UTSNS = bytes.fromhex("19435654033247540b0000000a01681206286e6f6e6529")


def made(tmp_path: Path, **files: bytes) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    for name, content in {"userns-14": USERNS, "utsns-12": UTSNS, "inventory": b"i", **files}.items():
        (source / f"{name}.img").write_bytes(content)
    return source


def test_images_are_byte_for_byte_what_criu_writes() -> None:
    assert uts_namespace("h") == UTSNS
    extent = bytes_of(USERNS[12:], 1)
    assert user_namespace(number_of(extent, 2), 65536) == USERNS


@given(base=st.integers(0, 2**32 - 1), size=st.integers(1, 2**32 - 1))
def test_the_range_of_ids_comes_back_as_it_was_written(base: int, size: int) -> None:
    image = user_namespace(base, size)
    (length,) = struct.unpack_from("<I", image, 8)
    assert length == len(image) - 12
    for number in (1, 2):
        extent = bytes_of(image[12:], number)
        assert [number_of(extent, one) for one in (1, 2, 3)] == [0, base, size]


def test_only_what_is_this_boxs_own_is_laid_over_the_images(tmp_path: Path) -> None:
    source = made(tmp_path)
    (source / "inventory.img").chmod(0o600)
    lay(source, tmp_path / "own", base=65536, size=65536, hostname="otter")
    assert {path.name for path in (tmp_path / "own").iterdir()} == {"userns-14.img", "utsns-12.img"}
    assert b"otter" in (tmp_path / "own" / "utsns-12.img").read_bytes()
    assert (source / "utsns-12.img").read_bytes() == UTSNS
    assert (source / "inventory.img").stat().st_mode & 0o777 == 0o644  # criu opens it as root of the box


@pytest.mark.parametrize("kind", ["link", "directory", "strange name", "two hosts", "no ids", "other kind"])
def test_what_is_no_set_of_images_is_refused(tmp_path: Path, kind: str) -> None:
    source = made(tmp_path)
    if kind == "link":
        (source / "core-1.img").symlink_to("/etc/passwd")
    elif kind == "directory":
        (source / "core-1.img").mkdir()
    elif kind == "strange name":
        (source / "Core 1").touch()
    elif kind == "two hosts":
        (source / "utsns-13.img").write_bytes(UTSNS)
    elif kind == "no ids":
        (source / "userns-14.img").unlink()
    else:
        (source / "userns-14.img").write_bytes(UTSNS)
    with pytest.raises(Damaged):
        lay(source, tmp_path / "own", base=65536, size=65536, hostname="otter")


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 2**64 - 1) | st.binary(max_size=300))))
def test_fields_come_back_as_they_were_written(message: list[tuple[int, int | bytes]]) -> None:
    assert list(fields(b"".join(field(number, value) for number, value in message))) == message


@given(st.binary(max_size=200))
def test_hostile_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert sum(1 for _ in fields(data)) <= len(data)


def test_a_field_that_is_longer_than_its_message_is_refused() -> None:
    with pytest.raises(Malformed):
        list(fields(b"\x0a\xff\xff\xff\xff\x0f" + b"x" * 10))


def test_heads_are_those_of_the_kinds() -> None:
    assert criuimages.user_namespace(0, 1)[:8] == USERNS[:8]
