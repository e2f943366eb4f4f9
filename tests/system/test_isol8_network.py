"""Networks of isol8's executions, in a world of the test's own: none, filtered, host; logs; packages; what stays."""

# ruff: noqa: ANN001, ANN201, ANN202, ANN003 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from index_support import HOST, MODULE, WHEEL, Index, serving_packages
from tests_support import RunningServer
from world_support import GOOD, World

pytestmark = pytest.mark.real

Run = Callable[..., dict[str, Any]]
CURL = "curl -sS -m 10 -w ' %{http_code}'"
NETS = "sed -n 's/^ *\\([a-z0-9]*\\):.*/\\1/p' /proc/net/dev | sort | xargs"
INDEX = "http://packages.example:3141"


@pytest.fixture(scope="module")
def machine(world: World, tmp_path_factory) -> Iterator[RunningServer]:
    """A server whose own pip and npm are configured for the world's index."""
    running = world.server(
        tmp_path_factory.mktemp("isol8"),
        COVE_POOL_SIZE="0",
        COVE_EXECUTION_READY="2",
        PIP_INDEX_URL=f"{INDEX}/simple/",
        NPM_CONFIG_REGISTRY=f"{INDEX}/",
    )
    running.start()
    yield running
    running.down()


@pytest.fixture(scope="module")
def run(machine) -> Iterator[Run]:
    head = {"Authorization": f"Bearer {machine.key}"}
    with httpx2.Client(base_url=f"{machine.url}/isol8", headers=head, timeout=180) as client:

        def run_it(code: str, *, runtime: str = "bash", session: str | None = None, **more):
            options = {name: more.pop(name) for name in ("network", "networkFilter", "logNetwork") if name in more}
            body = {"request": {"runtime": runtime, "code": code, **more}, "options": options, "sessionId": session}
            answer = client.post("/execute", json=body)
            assert answer.status_code == 200, answer.text
            found: dict[str, Any] = answer.json()
            return found

        yield run_it


@pytest.fixture(scope="module")
def index(world: World, tmp_path_factory) -> Iterator[Index]:
    with serving_packages(world, tmp_path_factory.mktemp("packages")) as served:
        yield served


def filtered(*whitelist: str, blacklist: tuple[str, ...] = (), log: bool = False) -> dict[str, Any]:
    lists = {"whitelist": list(whitelist), "blacklist": list(blacklist)}
    return {"network": "filtered", "networkFilter": lists, "logNetwork": log}


def logged(found: dict[str, Any]) -> list[tuple[str, str, str | None, str]]:
    return [(one["method"], one["host"], one["path"], one["action"]) for one in found.get("networkLogs", ())]


def test_none_has_no_interface(run, world):
    world.forget()
    found = run(f"{NETS}; {CURL} http://{GOOD}/; {CURL} http://good.example/")
    assert found["stdout"].split()[0] == "lo"
    assert "eth0" not in found["stdout"]
    assert found["exitCode"] != 0
    assert not world.seen
    assert not world.dns.asked_names()


def test_host_is_the_internet_and_not_the_hosts_namespace(run, world):
    found = run(f"{CURL} -o /dev/null http://good.example/; {CURL} http://127.0.0.1:7777/; echo; {NETS}",
                network="host")  # fmt: skip
    assert "200" in found["stdout"].split()
    assert "000" in found["stdout"].split(), "the host's loopback is not the sandbox's"
    assert found["stdout"].split()[-2:] == ["eth0", "lo"]
    world.forget()
    run(f"{CURL} http://169.254.169.254/; {CURL} http://10.0.0.5/", network="host")
    assert not world.seen_at("169.254.169.254")
    assert not world.seen_at("10.0.0.5"), "what is closed stays closed"


def test_a_whitelist_lets_pass_what_it_finds_and_says_the_originals_words(run, world):
    world.forget()
    found = run(f"{CURL} -o /dev/null http://api.good.example/; {CURL} http://evil.example/x", **filtered("good"))
    assert found["stdout"].split("\n")[0].strip().startswith("200")
    assert "isol8: request to evil.example blocked by network filter" in found["stdout"]
    assert found["stdout"].endswith("403")
    found = run(f"{CURL} https://evil.example/", **filtered("good"))
    assert "403" in found["stderr"] + found["stdout"]
    assert not world.seen_at("11.0.0.66")


def test_the_blacklist_goes_first_and_an_empty_whitelist_lets_all_pass(run):
    both = filtered("example", blacklist=("^evil",))
    assert run(f"{CURL} http://evil.example/", **both)["stdout"].endswith("403")
    assert run(f"{CURL} -o /dev/null http://good.example/", **both)["stdout"].strip() == "200"
    assert run(f"{CURL} -o /dev/null http://other.example/", **filtered())["stdout"].strip() == "200"


def test_ways_around_the_filter_are_closed(run, world):
    world.forget()
    code = f"""
    curl -sS -m 3 --noproxy '*' http://evil.example/
    curl -sS -m 3 --noproxy '*' --resolve evil.example:80:{GOOD} http://evil.example/
    curl -sS -m 3 --noproxy '*' -H 'Host: good.example' http://11.0.0.66/
    exec 3<>/dev/tcp/11.0.0.66/9999 && echo through
    env -u http_proxy -u HTTP_PROXY curl -sS -m 3 http://11.0.0.66:8080/
    """
    found = run(code, **filtered("^good[.]example$"))
    assert "through" not in found["stdout"]
    assert not world.seen_at("11.0.0.66")


def test_only_what_was_asked_to_be_logged_is(run):
    assert "networkLogs" not in run(f"{CURL} http://good.example/", **filtered("good"))
    assert "networkLogs" not in run("true", **filtered("good", log=True))


def test_the_log_has_each_request_with_method_host_path_and_outcome(run):
    before = datetime.now(UTC) - timedelta(seconds=1)
    code = f"{CURL} -d x http://good.example/a?b=1; {CURL} http://evil.example/c; {CURL} https://evil.example/"
    found = run(code, **filtered("good", log=True))
    assert logged(found) == [
        ("POST", "good.example", "/a?b=1", "ALLOW"),
        ("GET", "evil.example", "/c", "BLOCK"),
        ("CONNECT", "evil.example", None, "BLOCK"),
    ]
    assert all(list(one) == ["timestamp", "method", "host", "path", "action", "durationMs"]
               for one in found["networkLogs"])  # fmt: skip
    for one in found["networkLogs"]:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+]\d\d:\d\d", one["timestamp"])
        assert before <= datetime.fromisoformat(one["timestamp"]) <= datetime.now(UTC) + timedelta(seconds=1)
        assert isinstance(one["durationMs"], int)
        assert one["durationMs"] >= 0


def test_an_empty_filter_is_logged_too(run):
    found = run(f"{CURL} -o /dev/null http://other.example/x", **filtered(log=True))
    assert found["stdout"].strip() == "200"
    assert logged(found) == [("GET", "other.example", "/x", "ALLOW")]


def test_in_a_session_the_log_grows_from_its_start(run):
    wish = filtered("good", log=True)
    run(f"{CURL} http://good.example/1", session="log", **wish)
    found = run(f"{CURL} http://good.example/2", session="log")
    assert [path for _, _, path, _ in logged(found)] == ["/1", "/2"]


def test_a_refused_name_is_an_event_of_the_audit_trail(run, machine):
    found = run(f"{CURL} http://evil.example/", session="audited", **filtered("good"))
    assert found["stdout"].endswith("403")
    with machine.client() as native:
        lines = native.get("/audit", params={"event": "network.blocked", "limit": 100}).json()["lines"]
        assert "evil.example" in {line["data"]["host"] for line in lines}
        ended = native.get("/audit", params={"event": "execution.ended", "limit": 100}).json()["lines"]
    assert {"execution", "runtime", "code_sha256", "exit_code", "why"} <= set(ended[-1]["data"])


def test_pip_installs_in_a_filtered_sandbox_from_the_machines_index(run, index):
    found = run(f"import {WHEEL}; print({WHEEL}.tabulate([[1]]))", runtime="python", installPackages=[WHEEL],
                **filtered("good"))  # fmt: skip
    assert found["exitCode"] == 0, found
    assert any(path.startswith("/wheels/") for path in index.asked)


def test_npm_installs_in_a_filtered_sandbox_from_the_machines_index(run, index):
    code = f"import odd from '{MODULE}'; console.log(odd(3))"
    found = run(code, runtime="node", installPackages=[MODULE], **filtered("good"))
    assert found["stdout"] == "true", found
    assert f"/{MODULE}" in index.asked


def test_a_blacklist_closes_the_index_as_well(machine, index):
    index.asked.clear()
    head = {"Authorization": f"Bearer {machine.key}"}
    request = {"runtime": "python", "code": "1", "installPackages": [WHEEL]}
    options = filtered("good", blacklist=(HOST,))
    answer = httpx2.post(f"{machine.url}/isol8/execute", json={"request": request, "options": options},
                         headers=head, timeout=180)  # fmt: skip
    assert answer.status_code == 500
    assert answer.json()["error"].startswith("Package install failed (exit code 1): ")
    assert not index.asked


def test_nothing_of_one_call_is_there_for_the_next(run, world):
    """The successor on the same warm shelf: names that were looked up, files, processes, environment, secrets."""
    run(f"{CURL} http://good.example/; echo x > /tmp/left; (sleep 300 &) ; touch /dev/shm/left", **filtered("good"))
    world.forget()
    found = run("ls -A /tmp /dev/shm /sandbox; ps -ef | grep -c '[s]leep 300'; env; curl -sS -m 5 http://good.example/",
                **filtered("good"))  # fmt: skip
    assert "left" not in found["stdout"]
    assert "\n0\n" in found["stdout"]
    assert "good.example" in world.dns.asked_names(), "no answer was kept for it by another sandbox"
