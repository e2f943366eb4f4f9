"""Group D, names that are spoken: SNI, Host and address that disagree, smuggling, proxies (cases 53, 57)."""

from __future__ import annotations

from typing import Final

import pytest

from network_lab_support import OPEN, Lab, assert_refused, policy
from world_support import API, EVIL, GOOD, OTHER, OUTSIDE, PRIVATE

pytestmark = pytest.mark.real

NAMED = policy("good.example:80,443", "*.wild.example:80,443")
REGEX = policy("re:good[.]example:80,443")


def evil_words(lab: Lab) -> list[str]:
    """What arrived anywhere and asked for something that is not allowed."""
    lines = [line.lower() for one in lab.world.seen for head in one.heads for line in head.split("\r\n")]
    names = [one.sni or "" for one in lab.world.seen]
    asked = [line for line in lines if line.startswith("host") or " http/1." in line]
    return [text for text in [*asked, *names] if "evil" in text or "smuggled" in text]


def test_53_the_name_that_is_spoken_decides_and_its_own_address_is_dialled(lab: Lab, driver: str) -> None:
    box = lab.box(NAMED, driver)
    told = lab.inside(
        box,
        f"""
        say("control tls", tls({GOOD!r}, "good.example"))
        say("control http", http({GOOD!r}, "good.example"))
        say("good's SNI at evil's address", tls({EVIL!r}, "good.example"))
        say("good's Host at evil's address", http({EVIL!r}, "good.example"))
        say("good's SNI at a private address", tls({PRIVATE[0]!r}, "good.example"))
        say("evil's SNI at good's address", tls({GOOD!r}, "evil.example"))
        say("evil's Host at good's address", http({GOOD!r}, "evil.example"))
        say("a neighbour at good's address", tls({GOOD!r}, "fronted.example"))
        say("no SNI", tls({GOOD!r}, None))
        say("no Host", talk({GOOD!r}, 80, b"GET / HTTP/1.0\\r\\n\\r\\n"))
        say("no HTTP", talk({GOOD!r}, 80, b"SSH-2.0-x\\r\\n"))
        say("no TLS", talk({GOOD!r}, 443, b"hello\\r\\n\\r\\n"))
        say("HTTP at the port of TLS", http({GOOD!r}, "evil.example", port=443))
        say("TLS at the port of HTTP", tls({GOOD!r}, "evil.example", port=80))
        say("an address for a name", http({GOOD!r}, {GOOD!r}))
        say("an address as SNI", tls({GOOD!r}, {GOOD!r}))
        """,
    )
    assert told.pop("control tls")["at"] == GOOD
    assert told.pop("control http")["at"] == GOOD
    for key in ("good's SNI at evil's address", "good's Host at evil's address"):
        answer = told.pop(key)
        assert not isinstance(answer, dict) or answer["at"] == GOOD, (key, answer)
    assert not [key for key, answer in told.items() if isinstance(answer, dict)], told
    assert not [key for key, answer in told.items() if "of-this-host" in str(answer)], told
    assert not evil_words(lab)
    assert {one.at for one in lab.world.seen} == {GOOD}


def test_53_an_address_rule_needs_no_name(lab: Lab) -> None:
    box = lab.box(policy(f"{API}/32"))
    told = lab.inside(
        box,
        f"say('tls', tls({API!r}, None)); say('http', http({API!r})); say('other', tls({GOOD!r}, 'api.good.example'))",
    )
    assert (told["tls"]["at"], told["http"]["at"]) == (API, API)
    assert not isinstance(told["other"], dict)


SMUGGLED: Final = {
    "two lengths": "POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 5\r\nContent-Length: 60\r\n\r\nhello"
    "GET /smuggled HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "length and chunks": "POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 60\r\n"
    "Transfer-Encoding: chunked\r\n\r\n"
    "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "chunked in disguise": "POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 4\r\n"
    "Transfer-Encoding : chunked\r\n\r\n"
    "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "xchunked": "POST / HTTP/1.1\r\nHost: good.example\r\nTransfer-Encoding: xchunked\r\n\r\n"
    "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "two hosts": "GET / HTTP/1.1\r\nHost: good.example\r\nHost: evil.example\r\n\r\n",
    "two hosts, other case": "GET / HTTP/1.1\r\nhost: good.example\r\nHOST: evil.example\r\n\r\n",
    "host in a fold": "GET / HTTP/1.1\r\nHost: good.example\r\nX: y\r\n Host: evil.example\r\n\r\n",
    "folded host": "GET / HTTP/1.1\r\nHost:\r\n evil.example\r\n\r\n",
    "space before the colon": "GET / HTTP/1.1\r\nHost : evil.example\r\nHost: good.example\r\n\r\n",
    "bare line feeds": "GET / HTTP/1.1\nHost: evil.example\n\nGET / HTTP/1.1\r\nHost: good.example\r\n\r\n",
    "bare carriage return": "GET / HTTP/1.1\r\nX: a\rHost: evil.example\r\nHost: good.example\r\n\r\n",
    "nul": "GET / HTTP/1.1\r\nHost: good.example\0.evil.example\r\n\r\n",
    "nul, evil first": "GET / HTTP/1.1\r\nHost: evil.example\0.good.example\r\n\r\n",
    "userinfo": "GET / HTTP/1.1\r\nHost: good.example@evil.example\r\n\r\n",
    "absolute": "GET http://evil.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
    "absolute, other way": "GET http://good.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "absolute with userinfo": "GET http://good.example@evil.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
    "connect": f"CONNECT {EVIL}:443 HTTP/1.1\r\nHost: good.example\r\n\r\n",
    "the second request": "GET / HTTP/1.1\r\nHost: good.example\r\n\r\n"
    "GET /smuggled HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "the second after a body": "POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 5\r\n\r\nhello"
    "GET /smuggled HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "the second after chunks": "POST / HTTP/1.1\r\nHost: good.example\r\nTransfer-Encoding: chunked\r\n\r\n"
    "5;x=y\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "upgrade that is none": "GET / HTTP/1.1\r\nHost: good.example\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
    "GET /smuggled HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "an unfinished head": "GET / HTTP/1.1\r\nHost: good.example\r\nX: " + "a" * 200_000,
    "another port": "GET / HTTP/1.1\r\nHost: evil.example:80\r\n\r\n",
    "a dot and capitals": "GET / HTTP/1.1\r\nHost: EVIL.example.\r\n\r\n",
}


def test_57_requests_that_two_readers_would_read_differently(lab: Lab, driver: str) -> None:
    box = lab.box(NAMED, driver)
    told = lab.inside(
        box,
        f"""
        for name, text in {SMUGGLED!r}.items():
            say(name, talk({GOOD!r}, 80, text.encode("latin-1"))[:300])
        say("control", talk({GOOD!r}, 80, b"GET /1 HTTP/1.1\\r\\nHost: good.example\\r\\n\\r\\n"
                            b"GET /2 HTTP/1.1\\r\\nHost: GOOD.example.:80\\r\\nConnection: close\\r\\n\\r\\n"))
        """,
        timeout_s=120,
    )
    assert "/1" in told["control"]
    assert "/2" in told["control"], "a second good request did not pass: nothing was proved of the second evil ones"
    assert not evil_words(lab)
    assert {one.at for one in lab.world.seen} == {GOOD}
    assert not [name for name, said in told.items() if said == "slow"], told


def test_57_a_redirect_to_something_closed_leads_nowhere(lab: Lab, driver: str) -> None:
    box = lab.box(OPEN, driver)
    told = lab.inside(
        box,
        f"""
        import urllib.error, urllib.request
        for target in ("http://169.254.169.254/x", "http://{PRIVATE[0]}/x", "http://{OUTSIDE}:7777/x",
                       "http://metadata.example/x", "http://other.example/control"):
            try:
                with urllib.request.urlopen("http://good.example/redirect?to=" + target, timeout=4) as answer:
                    say(target, json.loads(answer.read())["at"])
            except (OSError, urllib.error.URLError) as error:
                say(target, "refused")
        """,
    )
    assert told.pop("http://other.example/control") == OTHER
    assert set(told.values()) == {"refused"}, told
    assert {one.at for one in lab.world.seen} == {GOOD, OTHER}


TUNNELS: Final = (
    f"{EVIL}:443",
    f"{PRIVATE[0]}:443",
    "169.254.169.254:80",
    "2852039166:80",
    "0xa9fea9fe:80",
    "[::ffff:169.254.169.254]:80",
    "[fd00:ec2::254]:80",
    "127.0.0.1:3128",
    "169.254.1.1:3129",
    "localhost:7777",
    f"{OUTSIDE}:7777",
    "evil.example:443",
    "good.example:22",
    "good.example:9999",
    "good.example\0.evil.example:443",
    "evil.example\0.good.example:443",
    "evil.example%00.good.example:443",
    "good.example@evil.example:443",
    "good.example:443@evil.example:443",
    "evil.example#good.example:443",
    "xgood.example:443",
    "good-example:443",
    "good.example.evil.example:443",
    "good.example:",
    "good.example:99999",
    ":443",
    "*",
)


def test_57_the_explicit_proxy_opens_no_tunnel_that_the_policy_does_not(lab: Lab, driver: str) -> None:
    box = lab.box(REGEX, driver)
    told = lab.inside(
        box,
        f"""
        def tunnel(target):
            request = "CONNECT %s HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n" % (target, target)
            return talk("169.254.1.1", 3128, request.encode("latin-1")).split("\\r\\n")[0]
        def through(target, sni):
            with socket.create_connection(("169.254.1.1", 3128), LIMIT) as raw:
                raw.sendall(("CONNECT %s HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n" % (target, target)).encode())
                if b" 200 " not in raw.recv(4096):
                    return "refused"
                try:
                    with ssl.create_default_context(cadata=CA).wrap_socket(raw, server_hostname=sni) as s:
                        s.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
                        return json.loads(s.recv(65536).split(b"\\r\\n\\r\\n", 1)[1])["at"]
                except OSError:
                    return "refused"
        say("control", through("good.example:443", "good.example"))
        say("another SNI in the tunnel", through("good.example:443", "evil.example"))
        def forward(url):
            request = "GET %s HTTP/1.1\\r\\nHost: good.example\\r\\n\\r\\n" % url
            return talk("169.254.1.1", 3128, request.encode())
        say("forward evil", forward("http://evil.example/"))
        say("forward metadata", forward("http://169.254.169.254/"))
        say("forward", forward("http://good.example/"))
        say("tunnels", {{target: tunnel(target) for target in {TUNNELS!r}}})
        """,
        timeout_s=120,
    )
    assert told["control"] == GOOD
    assert '"at": "11.0.0.10"' in told["forward"], told
    assert told["another SNI in the tunnel"] == "refused"
    for key in ("forward evil", "forward metadata"):
        assert "of-this-host" not in told[key], told[key]
    opened = {target: said for target, said in told["tunnels"].items() if " 200" in said}
    assert not opened
    assert "slow" not in told["tunnels"].values(), told["tunnels"]
    assert not evil_words(lab)
    assert {one.at for one in lab.world.seen} == {GOOD}


@pytest.mark.parametrize("network", [OPEN, policy(deny=("evil.example",), default="allow")], ids=["open", "denied"])
def test_50_the_proxies_lead_nowhere_that_is_closed(lab: Lab, network: dict[str, object]) -> None:
    """They dial from where the machine's own addresses are: only the closed ranges stand between."""
    victim, box = lab.box(OPEN), lab.box(network)
    other = lab.facts(victim)["address"]
    closed = [
        f"{address}:{port}"
        for address in (
            "127.0.0.1",
            "0.0.0.0",  # noqa: S104 - dialled, it is the loopback
            OUTSIDE,
            PRIVATE[0],
            "169.254.169.254",
            "169.254.1.1",
            "169.254.64.1",
            other,
        )
        for port in (80, 7777, 3129, lab.server.port)
    ]
    names = ("loopback.example", "private.example", "host.example", "metadata.example", "mapped.example", "localhost")
    told = lab.inside(
        box,
        f"""
        def tunnel(target):
            request = "CONNECT %s HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n" % (target, target)
            return talk("169.254.1.1", 3128, request.encode()).split("\\r\\n")[0]
        say("control", tunnel("{GOOD}:9999"))
        say("tunnels", {{target: tunnel(target) for target in {closed!r}}})
        say("named", {{name: tunnel(name + ":80") for name in {names!r}}})
        say("spoken", {{name: str(http({OTHER!r}, name)) for name in {names!r} + ("127.0.0.1", "10.0.0.5")}})
        say("spoken in TLS", {{name: str(tls({OTHER!r}, name)) for name in {names!r}}})
        """,
        timeout_s=120,
    )
    assert " 200" in told.pop("control")
    opened = {key: said for group in ("tunnels", "named") for key, said in told[group].items() if " 200" in said}
    assert not opened
    assert {one.at for one in lab.world.seen} <= {GOOD, OTHER}


def test_57_without_the_explicit_proxy_a_pattern_lets_nothing_through(lab: Lab) -> None:
    box = lab.box(REGEX)
    told = lab.inside(box, f"say('echo', echoed({EVIL!r})); say('http', http({EVIL!r}, 'xgood.example'))")
    assert_refused(told)


def test_57_many_connections_of_one_sandbox_leave_room_for_others(lab: Lab) -> None:
    greedy, other = lab.box(NAMED), lab.box(NAMED)
    lab.start(
        greedy,
        f"""
        held = []
        for _ in range(3000):
            try:
                s = socket.create_connection(({GOOD!r}, 80), 1)
                s.sendall(b"GET / HTTP/1.1\\r\\n")
                held.append(s)
            except OSError:
                time.sleep(0.01)
        time.sleep(20)
        """,
    )
    told = lab.inside(other, f"time.sleep(1.5); say('control', timed(http, {GOOD!r}, 'good.example'))")
    answer, seconds = told["control"]
    assert answer["at"] == GOOD
    assert seconds < 3
