"""The tar reader: what Python's own writer makes comes out again, and any bytes end in an error or the end."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.engine.confined.tarstream import DIRECTORY, HARDLINK, REGULAR, SYMLINK, LayerError, TarStream


def stream(data: bytes) -> TarStream:
    return TarStream(io.BytesIO(data).read)


def made(form: int, *infos: tarfile.TarInfo, content: bytes = b"") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for info in infos:
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def info(name: str, kind: bytes = tarfile.REGTYPE, **facts: object) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type = kind
    for key, value in facts.items():
        setattr(found, key, value)
    return found


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_kinds_come_out_of_all_formats(form: int) -> None:
    data = made(
        form,
        info("a", mode=0o4751, uid=1, gid=2, mtime=5),
        info("d", tarfile.DIRTYPE),
        info("s", tarfile.SYMTYPE, linkname="../x"),
        info("h", tarfile.LNKTYPE, linkname="a"),
        content=b"hello",
    )
    tar = stream(data)
    found = []
    for entry in tar.entries():
        found.append((entry.kind, entry.name, entry.link))
        if entry.name == b"a":
            assert (entry.mode, entry.uid, entry.gid, entry.mtime_ns) == (0o4751, 1, 2, 5 * 10**9)
            assert tar.read(100) == b"hello"
    assert found == [(REGULAR, b"a", b""), (DIRECTORY, b"d/", b""), (SYMLINK, b"s", b"../x"), (HARDLINK, b"h", b"a")]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_strange_names_survive(form: int) -> None:
    names = ["x" * 250 + "/" + "y" * 250, "new\nline", "ä" * 120, "d/" * 1000 + "f"]
    found = [entry.name for entry in stream(made(form, *(info(name) for name in names))).entries()]
    assert found == [name.encode() for name in names]


def test_large_numbers_in_base_256_are_read() -> None:
    (entry,) = stream(made(tarfile.GNU_FORMAT, info("a", uid=2**40, gid=2**31, mtime=2**35))).entries()
    assert (entry.uid, entry.gid) == (2**40, 2**31)


def test_attributes_are_read_from_extended_headers() -> None:
    member = info("a")
    member.pax_headers = {"SCHILY.xattr.user.k": "v", "comment": "x"}
    (entry,) = stream(made(tarfile.PAX_FORMAT, member)).entries()
    assert entry.attributes == {b"user.k": b"v"}


def damaged(change: Callable[[bytearray], None]) -> bytes:
    data = bytearray(made(tarfile.USTAR_FORMAT, info("a"), content=b"hello"))
    change(data)
    return bytes(data)


def with_sum(data: bytearray) -> None:
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])


def huge(data: bytearray) -> None:
    data[156:157], data[124:136] = b"x", b"77777777777\0"
    with_sum(data)


def sparse(data: bytearray) -> None:
    data[156:157] = b"S"
    with_sum(data)


def negative(data: bytearray) -> None:
    data[124:136] = b"\xff" * 12
    with_sum(data)


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense" * 100,
        b"x" * 100,
        damaged(lambda data: data.__setitem__(0, 66)),
        damaged(lambda data: data.__delitem__(slice(513, None))),
        damaged(huge),
        damaged(sparse),
        damaged(negative),
    ],
)
def test_a_damaged_archive_is_an_error(data: bytes) -> None:
    with pytest.raises(LayerError):
        for _ in stream(data).entries():
            pass


@given(st.binary(max_size=2048), st.integers(0, 1600), st.binary(min_size=1, max_size=40))
def test_any_bytes_end_in_an_error_or_in_the_end(noise: bytes, at: int, patch: bytes) -> None:
    whole = bytearray(made(tarfile.PAX_FORMAT, info("a" * 120), info("b"), content=b"hello"))
    whole[at : at + len(patch)] = patch
    for data in (noise, bytes(whole)):
        try:
            for _ in stream(data).entries():
                pass
        except LayerError:
            continue
