"""Group D, changes: no moment without the policy, at start, restart and update; flows end with their rule (case 60)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import pytest

from network_lab_support import NONE, OPEN, Lab, policy
from tests_support import SOAK
from world_support import API, EVIL, GOOD, OTHER

pytestmark = pytest.mark.real

HAMMER = f"""
    count = 0
    end = time.monotonic() + SECONDS
    def hammer(address, port):
        global count
        while time.monotonic() < end:
            tcp(address, port, 0.2)
            udp(address, port, b"hammer", limit=0.01)
            count += 1
    threads = [threading.Thread(target=hammer, args=({EVIL!r}, 9999)) for _ in range(3)]
    threads.append(threading.Thread(target=hammer, args=("10.0.0.5", 9999)))
    [t.start() for t in threads]
    [t.join() for t in threads]
    say("count", count)
"""
"""Knocks all the time where it is never allowed to."""


def hammer(seconds: float) -> str:
    return HAMMER.replace("SECONDS", str(seconds))


def test_60_a_change_leaves_no_moment_open(lab: Lab, driver: str) -> None:
    rounds = 60 if SOAK else 15
    one, two = policy(f"{GOOD}/32"), policy(f"{API}/32", "*.wild.example")
    box = lab.box(one, driver)
    command = lab.start(box, hammer(60 if SOAK else 2))
    for _ in range(rounds):
        lab.set(box, two)
        assert lab.client.get(f"/sandboxes/{box}/network").status_code == 200
        lab.set(box, NONE)
        lab.set(box, one)
    told = lab.end(box, command, 120)
    assert told["count"] > 5
    assert not lab.world.seen_at(EVIL)
    assert not lab.world.seen_at("10.0.0.5")
    assert lab.inside(box, f"say('good', echoed({GOOD!r}))")["good"] == "open"


def test_60_control_the_hammer_gets_through_where_it_may(lab: Lab, driver: str) -> None:
    box = lab.box(OPEN, driver)
    lab.end(box, lab.start(box, hammer(0.5)))
    assert lab.world.seen_at(EVIL)


def test_60_what_holds_after_a_change_holds_for_flows_that_were_open(lab: Lab, driver: str) -> None:
    wide = policy(f"{GOOD}/32", f"{API}/32", "other.example")
    box = lab.box(wide, driver)
    command = lab.start(
        box,
        f"""
        flows = {{"stays": socket.create_connection(({API!r}, 9999))}}
        flows["goes"] = socket.create_connection(({GOOD!r}, 9999))
        named = resolve("other.example")[0]
        flows["named"] = socket.create_connection((named, 9999))
        flows["checked"] = socket.create_connection((named, 80))
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.connect(({GOOD!r}, 9999))
        datagrams.settimeout(0.2)
        ended = {{}}
        open("/tmp/flowing", "w").close()
        end = time.monotonic() + 40
        while time.monotonic() < end and len(ended) < 4:
            for name, flow in flows.items():
                if name in ended:
                    continue
                flow.settimeout(1)
                try:
                    if name == "checked":
                        flow.sendall(b"GET / HTTP/1.1\\r\\nHost: other.example\\r\\n\\r\\n")
                    else:
                        flow.sendall(b"x")
                    if not flow.recv(65536):
                        raise ConnectionResetError(errno.ECONNRESET, "")
                except OSError as error:
                    ended[name] = [word_of(error), time.time()]
            try:
                datagrams.send(b"x")
                datagrams.recv(10)
            except OSError as error:
                ended.setdefault("datagrams", [word_of(error), time.time()])
            time.sleep(0.05)
        say("ended", ended)
        """,
    )
    lab.until(lambda: lab.client.get(f"/sandboxes/{box}/files", params={"path": "/tmp/flowing"}).status_code == 200)
    time.sleep(0.3)
    lab.set(box, policy(f"{API}/32"))
    changed = time.time()
    ended = lab.end(box, command)["ended"]
    assert sorted(ended) == ["checked", "datagrams", "goes", "named"], ended
    assert all(when - changed < 15 for _, when in ended.values()), (changed, ended)


def test_60_a_new_sandbox_is_closed_before_its_first_command(lab: Lab, driver: str) -> None:
    """Pool members wait with everything closed; what runs first already has the policy, also the strictest."""
    boxes = [lab.box(policy(f"{GOOD}/32:9999"), driver) for _ in range(3)]
    for box in boxes:
        told = lab.inside(box, f"say('evil', tcp({EVIL!r}, 9999)); say('good', echoed({GOOD!r}))")
        assert told["evil"] != "open"
        assert told["good"] == "open"
    assert not lab.world.seen_at(EVIL)


@pytest.fixture(scope="module")
def mortal(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A server to be killed, in the same world."""
    server = session_lab.world.server(tmp_path_factory.mktemp("mortal"), COVE_POOL_SIZE="1")
    server.start()
    lab = Lab(server, session_lab.world)
    yield lab
    if server.process is not None and server.process.poll() is not None:
        server.start()
    lab.close()
    server.down()
    assert not server.run_dir.exists()
    shutil.rmtree(server.data_dir, ignore_errors=True)


@pytest.mark.timeout(300)
def test_60_a_killed_server_leaves_everything_closed_and_its_restart_too(mortal: Lab) -> None:
    boxes = {
        driver: (mortal.box(policy(f"{GOOD}/32", "other.example"), driver), mortal.box(NONE, driver))
        for driver in ("runc", "crun", "gvisor")
    }
    commands = [(box, mortal.start(box, hammer(5))) for pair in boxes.values() for box in pair]
    time.sleep(0.5)
    for _ in range(3 if SOAK else 1):
        mortal.server.kill()
        time.sleep(1.0)
        assert mortal.world.outside.command("ip", "-4", "addr"), "the world outlives the server"
        mortal.server.start()
    for box, command in commands:
        assert mortal.end(box, command, 60)["count"] > 5
    assert not mortal.world.seen_at(EVIL)
    assert not mortal.world.seen_at("10.0.0.5")
    for ruled, none in boxes.values():
        told = mortal.inside(
            ruled,
            f"""
            say("good", echoed({GOOD!r}))
            say("named", http((resolve("other.example") or ["none"])[0], "other.example"))
            say("evil", tcp({EVIL!r}, 9999))
            """,
        )
        assert told["good"] == "open"
        assert told["named"]["at"] == OTHER, told
        assert told["evil"] != "open"
        assert mortal.inside(none, f"say('good', tcp({GOOD!r}, 9999))")["good"] != "open"


def test_60_policies_survive_a_restart_as_they_were(mortal: Lab) -> None:
    box = mortal.box(policy("good.example"))
    mortal.set(box, policy("other.example"))
    before = mortal.client.get(f"/sandboxes/{box}/network").json()["policy"]
    mortal.server.kill()
    mortal.server.start()
    assert mortal.client.get(f"/sandboxes/{box}/network").json()["policy"] == before
    told = mortal.inside(box, "say('good', resolve('good.example')); say('other', resolve('other.example'))")
    assert told == {"good": [], "other": [OTHER]}
