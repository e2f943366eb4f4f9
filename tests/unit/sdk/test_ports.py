"""Ports in the SDK: requests as data, answers as values, and which may be sent twice."""

from __future__ import annotations

import json

import pytest

from cove.sdk import ports
from cove.sdk.transport import Call, Retry

REF = "sb_0000000000000000"
WIRE = {
    "port": 8000,
    "access": "token",
    "url": "http://8000-sb-0.localhost/",
    "path": "/p/",
    "listening": None,
    "address": None,
    "host_port": None,
    "token": "ct_x",
    "of_a_newer_server": 1,
}


def read(call: Call[ports.Port], **wire: object) -> ports.Port:
    return call.parse(json.loads(json.dumps({**WIRE, **wire})))


def test_requests_go_to_the_port() -> None:
    assert (ports.ports(REF).method, ports.ports(REF).path) == ("GET", f"/api/v1/sandboxes/{REF}/ports")
    for call in (ports.port(REF, 8000), ports.expose(REF, 8000, "public"), ports.unexpose(REF, 8000)):
        assert call.path == f"/api/v1/sandboxes/{REF}/ports/8000"


def test_a_token_is_never_asked_for_twice() -> None:
    assert ports.expose(REF, 1, "token").retry is Retry.NEVER
    assert ports.expose(REF, 1, "public").retry is ports.unexpose(REF, 1).retry is Retry.LOST


def test_a_link_has_the_token_where_it_is_known() -> None:
    made = read(ports.expose(REF, 8000, "token"))
    assert made.link == "http://8000-sb-0.localhost/?cove_token=ct_x"
    assert read(ports.port(REF, 8000), token=None).link == made.url
    assert "ct_x" not in made.url + repr(made)


def test_a_list_is_a_list_of_ports() -> None:
    assert [one.port for one in ports.ports(REF).parse({"ports": [WIRE, WIRE]})] == [8000, 8000]


def test_a_port_that_is_no_number_is_refused_here() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        ports.port(REF, "80/../x")  # type: ignore[arg-type]
