"""Networks of real sandboxes, in a world of the test's own: what `why` says happens, links, restarts, proxies."""

# ruff: noqa: ANN001 - fixtures are typed where they are defined

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from cove.sdk.client import Client
from cove.sdk.sandbox import Sandbox
from tests_support import RunningServer
from waiting_support import until
from world_support import GOOD, World

pytestmark = pytest.mark.real

CONNECT = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5):
        print("open")
except OSError as error:
    print("refused", error)
"""


@pytest.fixture
def client(world_server: RunningServer) -> Iterator[Client]:
    with Client(f"unix:{world_server.socket}") as one:
        yield one
        for box in list(one.list()):
            box.destroy()


def fetch(box: Sandbox, url: str) -> bool:
    return box.run(["curl", "-sS", "-f", "-m", "5", "-o", "/dev/null", url]).ok


def opens(box: Sandbox, host: str, port: int) -> bool:
    return box.run(["python3", "-c", CONNECT, host, str(port)]).out.startswith("open")


def newcomers(client: Client) -> Iterator[Sandbox]:
    """One after the other, each gone before the next: addresses that nobody had since the start come in their order."""
    for _ in range(64):
        box = client.create(network="locked-down")
        yield box
        box.destroy()


def test_what_why_says_is_what_happens(client: Client, world: World) -> None:
    world.forget()
    rules = [
        "deny api.good.example",
        "deny 11.0.0.66",
        "allow good.example:80",
        "allow *.good.example",
        f"allow {GOOD}:9999",
    ]
    box = client.create(
        network=[*rules, "allow evil.example", "allow private.example", "allow metadata.google.internal"]
    )
    cases = [
        ("good.example", 80), ("good.example", 8080), ("api.good.example", 80), ("deep.api.good.example", 80),
        ("evil.example", 80), ("other.example", 80), ("private.example", 80), ("metadata.google.internal", 80),
        (GOOD, 9999), (GOOD, 8080), ("11.0.0.66", 80), ("169.254.169.254", 80), ("10.0.0.5", 80), ("8.8.8.8", 53),
        ("127.0.0.2", 80),
    ]  # fmt: skip
    for host, port in cases:
        said = box.network.why(host, port)
        url = f"http://{host}:{port}/"
        happened = opens(box, host, port) if host == GOOD else fetch(box, url)
        assert happened == said.allowed, f"{host}:{port}: {said.rule}"
    assert {step["rule"] for step in box.network.why("metadata.google.internal", 80).steps} == {
        "rule 8: allow metadata.google.internal",
        "closed: 169.254.169.254 (metadata)",
    }
    assert not world.seen_at("10.0.0.5")
    assert not world.seen_at("169.254.169.254")


def test_a_link_is_one_way_and_follows_its_name(client: Client) -> None:
    db = client.create(name="db", network="locked-down")
    db.start("exec python3 -m http.server 5432")
    app = client.create(name="app", network={"links": ["db"]})
    other = client.create(name="other", network="locked-down")
    url = "http://db.cove.internal:5432/"
    until(lambda: fetch(app, url), "the link leads to db")
    address = app.network.get().links["db"]
    assert address
    assert fetch(app, f"http://{address}:5432/")
    assert not fetch(other, f"http://{address}:5432/")
    assert not fetch(other, url)
    app.start("exec python3 -m http.server 5432")
    back = app.network.get().address
    assert back
    assert not fetch(db, f"http://{back}:5432/")
    db.destroy()
    until(lambda: app.network.get().links == {"db": None}, "the link leads nowhere")
    assert not fetch(app, f"http://{address}:5432/")
    again = client.create(name="db", network="locked-down")
    again.start("exec python3 -m http.server 5432")
    until(lambda: fetch(app, url), "the link leads to the next db")


def test_policies_and_links_outlive_the_server(client: Client, world_server: RunningServer) -> None:
    db = client.create(name="db", network="locked-down")
    db.start("exec python3 -m http.server 5432")
    app = client.create(name="app", network={"rules": ["allow good.example"], "links": ["db"]})
    until(lambda: fetch(app, "http://db.cove.internal:5432/"), "the link leads to db")
    before = app.network.get()
    world_server.kill()
    world_server.start()
    after = client.get("app").network.get()
    assert (after.policy, after.address, after.links) == (before.policy, before.address, before.links)
    assert after.sent_bytes >= before.sent_bytes > 0
    assert fetch(app, "http://good.example/")
    assert not fetch(app, "http://evil.example/")
    assert fetch(app, "http://db.cove.internal:5432/")


def test_a_link_to_one_that_died_while_no_server_ran_leads_to_nobody_who_gets_its_address(
    client: Client, world_server: RunningServer
) -> None:
    db = client.create(name="db", network="locked-down")
    app = client.create(name="app", network={"links": ["db"]})
    until(lambda: bool(app.network.get().links["db"]), "the link leads to db")
    address = app.network.get().links["db"]
    world_server.kill()
    facts = json.loads((world_server.run_dir / "sb" / db.id.removeprefix("sb_") / "box.json").read_text())
    os.kill(facts["init_pid"], signal.SIGKILL)
    world_server.start()
    assert client.get("app").network.get().links == {"db": None}
    heir = next(one for one in newcomers(client) if one.network.get().address == address)
    heir.start("exec python3 -m http.server 5432")
    until(lambda: heir.run("curl -sS -f -m 2 -o /dev/null http://127.0.0.1:5432/").ok, "the heir serves")
    assert not fetch(client.get("app"), f"http://{address}:5432/")


def test_patterns_hold_by_the_proxy_and_without_it(client: Client) -> None:
    box = client.create(network=["allow re:(api[.])?good[.]example"])
    assert box.run("echo $https_proxy").out == "http://169.254.1.1:3128\n"
    for environment in ("true", "unset http_proxy HTTP_PROXY https_proxy HTTPS_PROXY"):
        for host, expected in (("good.example", True), ("api.good.example", True), ("evil.example", False)):
            ran = box.run(f"{environment}; curl -sS -f -m 5 -o /dev/null http://{host}/")
            assert ran.ok == expected, (environment, host, ran.err)


def test_refusals_of_every_layer_come_to_the_audit_trail(client: Client, world_server: RunningServer) -> None:
    box = client.create(network=["allow good.example:80"])
    fetch(box, "http://evil.example/")
    fetch(box, "http://11.0.0.66/")
    fetch(box, "http://169.254.169.254/")
    until(lambda: {one.layer for one in box.network.refusals()} >= {"dns", "proxy", "packet"}, "all are told")
    with world_server.client() as http:
        path = f"/sandboxes/{box.id}/audit"
        until(lambda: {"dns", "proxy", "packet"} <= layers(http.get(path).json()), "all are in the trail")


def layers(page) -> set[str]:
    lines = page.get("entries") or page.get("lines") or []
    return {one["data"]["layer"] for one in lines if one["event"] == "network.blocked"}


def test_bytes_over_the_network_are_on_the_bill(client: Client) -> None:
    box = client.create(network=["allow good.example"])
    assert fetch(box, "http://good.example/")
    live = client.account.bill(box.id)
    assert live.sent_bytes > 0
    assert live.received_bytes > 0
    assert fetch(box, "http://good.example/")
    box.destroy()
    ended = client.account.bill(box.id)
    assert ended.sent_bytes > live.sent_bytes, "what was sent after the last look is not lost"
    assert ended.received_bytes > live.received_bytes
    used = box.refresh().usage
    assert (used.sent_bytes, used.received_bytes) == (ended.sent_bytes, ended.received_bytes)
