"""Group E where it meets the network: projects, links, what an ended sandbox leaves, names that attack readers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from network_lab_support import NONE, OPEN, Lab, assert_refused, policy
from tests_support import RunningServer
from world_support import EVIL, GOOD, World

pytestmark = pytest.mark.real

SCOPES = ["read", "create", "exec", "files", "destroy"]


@pytest.fixture(scope="module")
def small_lab(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A server with so few addresses that they are soon given again."""
    parent = tmp_path_factory.mktemp("server")
    server = world.server(parent, COVE_NETWORK_RANGE="10.214.0.0/28", COVE_POOL_SIZE="1")
    server.start()
    made = Lab(server, world)
    yield made
    made.close()
    server.down()
    shutil.rmtree(server.data_dir, ignore_errors=True)


@pytest.fixture
def lab(small_lab: Lab) -> Iterator[Lab]:
    """Its sandboxes go with each test."""
    yield small_lab
    small_lab.drop()


@pytest.fixture(scope="module")
def stranger(small_lab: Lab) -> Iterator[httpx2.Client]:
    """Another project's key."""
    small_lab.client.post("/projects", json={"id": "strangers"})
    made = small_lab.client.post("/keys", json={"name": "stranger", "project": "strangers", "scopes": SCOPES})
    assert made.status_code == 201, made.text
    with small_lab.server.client() as client:
        client.headers["Authorization"] = f"Bearer {made.json()['key']}"
        yield client


def test_62_a_policy_of_another_project_is_neither_read_nor_changed(lab: Lab, stranger: httpx2.Client) -> None:
    box = lab.box(policy("good.example"))
    before = lab.client.get(f"/sandboxes/{box}/network").json()
    tries = {
        "read": stranger.get(f"/sandboxes/{box}/network"),
        "change": stranger.put(f"/sandboxes/{box}/network", json=OPEN),
        "why": stranger.post(f"/sandboxes/{box}/network/why", json={"host": "good.example", "port": 443}),
        "refusals": stranger.get(f"/sandboxes/{box}/network/refusals"),
        "audit": stranger.get(f"/sandboxes/{box}/audit"),
        "credentials": stranger.get(f"/sandboxes/{box}/credentials"),
        "usage": stranger.get(f"/sandboxes/{box}/usage"),
    }
    unknown = stranger.get("/sandboxes/sb-0000000000000000/network")
    assert {name: answer.status_code for name, answer in tries.items()} == dict.fromkeys(tries, 404)
    assert unknown.status_code == 404
    assert "good.example" not in "".join(answer.text for answer in tries.values())
    after = lab.client.get(f"/sandboxes/{box}/network").json()
    assert after["policy"] == before["policy"]


def test_62_links_lead_to_sandboxes_of_the_same_project_only(lab: Lab, stranger: httpx2.Client) -> None:
    lab.box(OPEN, name="db")
    linked = {"mode": "none", "links": ["db"]}
    answers = {
        "a name of another project": stranger.post("/sandboxes", json={"network": linked}),
        "a name of nobody": stranger.post("/sandboxes", json={"network": {"mode": "none", "links": ["nobody"]}}),
    }
    by_own = lab.client.post("/sandboxes", json={"network": linked})
    assert by_own.status_code == 201, by_own.text
    lab.client.delete(f"/sandboxes/{by_own.json()['id']}")
    statuses = {answer.status_code for answer in answers.values()}
    for answer in answers.values():
        if answer.status_code == 201:
            stranger.delete(f"/sandboxes/{answer.json()['id']}")
    assert len(statuses) == 1, "the answers tell whether another project has a sandbox of that name"
    texts = {answer.text.replace("nobody", "db") for answer in answers.values() if answer.status_code != 201}
    assert all("request" in text or len(texts) <= 1 for text in texts), texts


def test_62_the_same_name_in_two_projects_is_two_sandboxes(lab: Lab, stranger: httpx2.Client) -> None:
    own = lab.box(OPEN, name="cache")
    theirs = stranger.post("/sandboxes", json={"network": OPEN, "name": "cache"}).json()["id"]
    linked = stranger.post("/sandboxes", json={"network": {"mode": "none", "links": ["cache"]}}).json()["id"]
    try:
        body = {"command": ["python3", "-"], "stdin": lab.text("say('at', resolve('cache.cove.internal'))")}
        told = stranger.post(f"/sandboxes/{linked}/exec", json=body).json()["stdout"]
        assert lab.facts(theirs)["address"] in told
        assert lab.facts(own)["address"] not in told
    finally:
        for box in (linked, theirs):
            stranger.delete(f"/sandboxes/{box}")


def test_69_an_address_that_is_given_again_brings_nothing_along(lab: Lab) -> None:
    """Rules, learned names, flows and links of an ended sandbox are not its successor's."""
    target = lab.box(OPEN, name="successor")
    watcher = lab.box({"mode": "none", "links": ["successor"]})
    address = lab.facts(target)["address"]
    assert lab.inside(target, f"resolve('good.example'); say('good', echoed({GOOD!r}))")["good"] == "open"
    lab.client.delete(f"/sandboxes/{target}")

    def heir() -> str | None:
        made = lab.box(policy(f"{EVIL}/32"))
        if lab.facts(made)["address"] == address:
            return made
        lab.client.delete(f"/sandboxes/{made}")
        return None

    box = lab.until(heir, 30)
    lab.start(box, "s = socket.create_server(('0.0.0.0', 8000)); s.accept(); time.sleep(5)")
    lab.until(lambda: lab.inside(box, "say('up', tcp('127.0.0.1', 8000))")["up"] == "open")
    attempt = f"say('the old address', tcp({address!r}, 8000)); say('name', resolve('successor.cove.internal'))"
    told = lab.inside(watcher, attempt)
    assert told.pop("name") == []
    assert_refused(told)
    told = lab.inside(box, f"say('learned', echoed({GOOD!r})); say('control', echoed({EVIL!r}))")
    assert told.pop("control") == "open"
    assert_refused(told)


def test_73_names_that_carry_escape_sequences_are_shown_as_text(lab: Lab, tmp_path: Path) -> None:
    box = lab.box(policy("good.example"))
    lab.inside(
        box,
        f"""
        for name in ("\\x1b[2J\\x1b]0;owned\\x07.example", "<script>alert(1)</script>.example", "a\\rb\\nc.example",
                     "\\u202egnp.example".encode().decode("latin-1"), "ok-name.example"):
            ask(name, limit=1)
            http({GOOD!r}, name)
            tls({GOOD!r}, "ok-sni.example")
        """,
    )
    lab.until(lambda: len(lab.refusals(box)) >= 2)
    listed = lab.client.get(f"/sandboxes/{box}/network/refusals")
    assert listed.headers["content-type"].startswith("application/json")
    assert not any(ord(letter) < 32 for row in listed.json()["refusals"] for letter in str(row["name"])), listed.text
    shown = cove(lab.server, tmp_path, "network", "refusals", box)
    audited = cove(lab.server, tmp_path, "audit", "show", box)
    for text in (shown, audited):
        assert not set(text) & {"\x1b", "\x07", "\r", "\u202e"}, repr(text)
    assert "ok-name.example" in shown


def cove(server: RunningServer, home: Path, *argv: str) -> str:
    """What the command prints."""
    program = Path(sys.executable).with_name("cove")
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "COVE_URL": server.url, "COVE_API_KEY": server.key}
    done = subprocess.run([program, *argv], capture_output=True, text=True, check=False, timeout=60, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_none_of_a_tenants_ways_opens_what_is_closed(lab: Lab, stranger: httpx2.Client) -> None:
    """Rules, profiles, code and image addresses, webhooks: only the operator's settings open closed ranges."""
    box = lab.box(NONE)
    closed = ("169.254.169.254", "10.0.0.5", "127.0.0.1", "metadata.example", "private.example")
    answers: dict[str, Any] = {}
    for host in closed:
        answers[f"webhook {host}"] = stranger.post(
            "/webhooks", json={"url": f"https://{host}/x", "events": ["sandbox.created"]}
        )
        answers[f"image {host}"] = stranger.post("/images/pull", json={"image": f"{host}/library/x:1"})
    for name, answer in answers.items():
        assert answer.status_code != 500, (name, answer.text)
    for mode in ("own rule", "profile"):
        body = policy("169.254.169.254/32") if mode == "own rule" else {"profile": "no-such-profile"}
        assert lab.client.put(f"/sandboxes/{box}/network", json=body).status_code in {400, 404, 422}, mode
    assert stranger.put("/network-profiles/mine", json=policy("10.0.0.0/8")).status_code in {400, 403, 404, 405, 422}
    assert not [one for one in lab.world.seen if one.at in {"169.254.169.254", "10.0.0.5"}]
