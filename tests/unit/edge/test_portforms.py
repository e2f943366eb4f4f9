"""Which port a path or a host name is for."""

from __future__ import annotations

import pytest

from cove.dialects.native.translate_ports import FORM, label_ref, port_of
from cove.edge.errors import Malformed, NoSuchRoute
from cove.edge.portforms import by_host, by_path
from cove.model.errors import NotFound

ID = "sb_0123456789abcdef"
PREFIX = f"/api/v1/sandboxes/{ID}/ports/8000/http".encode()


@pytest.mark.parametrize("rest", [b"/", b"/a//b/../%2e", b"/\n", b"/api/v1/sandboxes/x/ports/1/http/"])
def test_a_path_is_cut_at_its_first_prefix(rest: bytes) -> None:
    found = by_path(FORM, PREFIX + rest)
    assert found is not None
    assert (found.label, found.port, found.prefix, found.rest) == (ID, 8000, PREFIX, rest)


def test_the_prefix_alone_has_no_rest() -> None:
    found = by_path(FORM, PREFIX)
    assert found is not None
    assert found.rest is None


@pytest.mark.parametrize(
    "path",
    [PREFIX + b"x", PREFIX.replace(b"8000", b"8x"), PREFIX.replace(b"8000", b""), PREFIX.replace(b"sb_", b"sb%5f"),
     b"/" + PREFIX, PREFIX.replace(b"/http", b"/https")],
)  # fmt: skip
def test_what_only_resembles_a_prefix_is_none(path: bytes) -> None:
    assert by_path(FORM, path) is None


@pytest.mark.parametrize(
    ("host", "label", "port"),
    [
        (b"8000-sb-0123456789abcdef.example.com", "sb-0123456789abcdef", 8000),
        (b"8000-SB-0123456789ABCDEF.Example.COM:8443", "sb-0123456789abcdef", 8000),
        (b"1-brave-otter.example.com.", "brave-otter", 1),
    ],
)
def test_a_host_name_names_a_port(host: bytes, label: str, port: int) -> None:
    found = by_host(FORM, "example.com", host, b"//x")
    assert found is not None
    assert (found.label, found.port, found.prefix, found.rest) == (label, port, b"", b"//x")


@pytest.mark.parametrize(
    "host",
    [b"example.com", b"api.example.com", b"8000-x.example.org", b"8000-x.evil-example.com", b"x.8000-x.example.com",
     b"127.0.0.1:8080", b"[::1]:8080", b"", None, b"8000-x.example.com.evil.org"],
)  # fmt: skip
def test_other_host_names_are_the_api_s(host: bytes | None) -> None:
    assert by_host(FORM, "example.com", host, b"/") is None


@pytest.mark.parametrize("host", [b"8000.example.com", b"123456-x.example.com", b"8000-a_b.example.com"])
def test_a_host_name_that_begins_as_one_of_a_port_is_nobody_s(host: bytes) -> None:
    found = by_host(FORM, "example.com", host, b"/")
    assert found is not None
    with pytest.raises(NoSuchRoute):
        found.ref_of(found.label)


def test_labels_and_numbers() -> None:
    assert label_ref("sb-0123456789abcdef") == label_ref("0123456789abcdef") == "0123456789abcdef"
    assert label_ref("brave-otter") == "brave-otter"
    with pytest.raises(NotFound):
        label_ref("-x-")
    for text in ("0", "65536", "1e3", "²", "", "9" * 5000):
        with pytest.raises(Malformed, match="65535"):
            port_of(text)
