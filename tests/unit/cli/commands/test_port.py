"""`cove port`: what it prints and what it asks for."""

# ruff: noqa: ANN001 - fixtures are typed where they are defined
from __future__ import annotations

from typing import Any

PATH = "/sandboxes/brave-otter/ports"


def port(number: int, **facts: Any) -> dict[str, Any]:
    found = {"port": number, "access": "key", "host_port": None, "listening": True, "address": "127.0.0.1"}
    return found | {"url": f"http://{number}-sb-1.localhost:8080/", "path": f"/x/{number}/http/", **facts}


def test_ports_are_listed_with_what_listens(cove, stub) -> None:
    found = [port(80), port(81, listening=False, access="public"), port(82, listening=None, host_port=5432)]
    stub.extra["GET", PATH] = {"ports": found}
    rows = [line.split() for line in cove("port", "brave-otter").out.splitlines()]
    assert rows[1:] == [
        ["80", "127.0.0.1", "key", "-", "http://80-sb-1.localhost:8080/"],
        ["81", "no", "public", "-", "http://81-sb-1.localhost:8080/"],
        ["82", "paused", "key", "5432", "http://82-sb-1.localhost:8080/"],
    ]
    assert cove("port", "brave-otter", "--json", "port").objects == [{"port": 80}, {"port": 81}, {"port": 82}]
    stub.extra["GET", PATH] = {"ports": []}
    empty = cove("port", "brave-otter")
    assert (empty.out, empty.err) == ("", "Nothing listens in it, and nothing is exposed.\n")


def test_a_port_s_address_is_on_stdout_alone(cove, stub) -> None:
    stub.extra["GET", f"{PATH}/80"] = port(80, listening=False)
    ran = cove("port", "brave-otter", "80")
    assert ran.out == "http://80-sb-1.localhost:8080/\n"
    assert "Nothing listens" in ran.err


def test_a_new_token_is_in_the_link_and_not_in_the_talk(cove, stub) -> None:
    stub.extra["PUT", f"{PATH}/80"] = port(80, access="token", token="ct_secret")
    ran = cove("port", "brave-otter", "80", "--access", "token")
    assert ran.out == "http://80-sb-1.localhost:8080/?cove_token=ct_secret\n"
    assert "ct_secret" not in ran.err
    assert stub.seen[-1] == ("PUT", f"/api/v1{PATH}/80", {"access": "token"})


def test_closing_a_port_shows_how_it_is_then(cove, stub) -> None:
    stub.extra["DELETE", f"{PATH}/80"] = b""
    stub.extra["GET", f"{PATH}/80"] = port(80)
    assert cove("port", "brave-otter", "80", "--close").out == "http://80-sb-1.localhost:8080/\n"
    assert [method for method, *_ in stub.seen[-2:]] == ["DELETE", "GET"]


def test_what_cannot_be_meant_is_refused_before_it_is_sent(cove, stub) -> None:
    for words in (["--access", "public"], ["--close"], ["80", "--access", "key", "--close"], ["0"], ["80", "81"]):
        assert cove("port", "brave-otter", *words).code == 2
    assert stub.seen == []
