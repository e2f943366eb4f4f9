"""Usage, quotas and rate limits over the wire."""

# ruff: noqa: ANN001, ANN003, ANN201, ANN202 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import httpx2
import pytest
from tests.dialects.conftest import started

SMALL = {"memory_mib": 32, "disk_mib": 16, "cpus": 0.1}


@pytest.fixture(scope="module")
def server():
    with started() as running:
        yield running


@pytest.fixture
def project(server):
    """A project of its own, and a client with a key of it."""
    name = f"q{time.monotonic_ns()}"
    assert server.client.post("/projects", json={"id": name}).status_code == 201
    with client_of(server, project=name) as one:
        yield one
        for sandbox in one.get("/sandboxes").json()["sandboxes"]:
            one.delete(f"/sandboxes/{sandbox['id']}")


@contextlib.contextmanager
def client_of(server, maker=None, **body):
    scopes = ["read", "create", "exec", "files", "destroy", "keys"]
    made = (maker or server.client).post("/keys", json={"name": "k", "scopes": scopes, **body})
    assert made.status_code == 201, made.text
    key = made.json()
    head = {"Authorization": f"Bearer {key['key']}"}
    with httpx2.Client(base_url=f"{server.url}/api/v1", headers=head, timeout=60) as one:
        one.key_id, one.project = key["id"], key["project"]  # type: ignore[attr-defined]
        yield one


def put_quota(server, project, **limits):
    answer = server.client.put(f"/projects/{project.project}/quota", json=limits)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_quota_is_put_whole_and_shown_with_its_use(server, project):
    limits = {"sandboxes": 3, "cpus": 1.5, "memory_mib": 64, "budget": "12.5", "budget_period": "day"}
    state = put_quota(server, project, **limits, budget_action="pause")
    assert (state["subject"], state["id"]) == ("project", project.project)
    everything = dict.fromkeys(("disk_mib", "snapshots", "host_ports", "requests_per_minute"))
    assert state["quota"] == {**everything, **limits, "budget_action": "pause"}
    made = project.post("/sandboxes", json=SMALL)
    assert made.status_code == 201
    seen = project.get(f"/projects/{project.project}/quota").json()
    used = seen["used"]
    assert (used["sandboxes"], used["cpus"], used["memory_mib"], used["disk_mib"]) == (1, 0.1, 32, 16)
    assert used["spent_since"].endswith("T00:00:00.000Z")
    both = project.get("/quota").json()["quotas"]
    assert [(one["subject"], one["id"]) for one in both] == [("project", project.project), ("key", project.key_id)]
    assert put_quota(server, project)["quota"]["cpus"] is None


def test_each_thing_that_runs_out_says_so(server, project):
    put_quota(server, project, sandboxes=1)
    assert project.post("/sandboxes", json=SMALL).status_code == 201
    refused = project.post("/sandboxes", json=SMALL)
    said = refused.json()
    assert (refused.status_code, said["code"], said["field"], said["limit"], said["used"]) == (
        429, "quota-exceeded", "sandboxes", 1, 1,
    )  # fmt: skip
    assert "retry-after" not in refused.headers
    put_quota(server, project, memory_mib=64)
    said = project.post("/sandboxes", json={**SMALL, "memory_mib": 48}).json()
    assert (said["code"], said["field"], said["limit"], said["used"]) == ("quota-exceeded", "memory_mib", 64, 32)
    too_much = project.post("/sandboxes", json={**SMALL, "memory_mib": 100})
    assert (too_much.status_code, too_much.json()["code"]) == (403, "quota-too-small")
    put_quota(server, project, budget=0)
    broke = project.post("/sandboxes", json=SMALL)
    assert (broke.status_code, broke.json()["code"], broke.json()["field"]) == (402, "budget-exceeded", "budget")
    assert int(broke.headers["retry-after"]) > 0


def test_the_last_place_is_given_once(server, project):
    """Case 66: many creates at once over the wire; 101 at 100 with sandboxes that are only records is a unit test."""
    put_quota(server, project, sandboxes=5)
    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(lambda _: project.post("/sandboxes", json=SMALL).status_code, range(16)))
    assert sorted(done) == [201] * 5 + [429] * 11


def test_a_change_of_limits_counts(server, project):
    put_quota(server, project, cpus=0.5)
    one = project.post("/sandboxes", json=SMALL).json()["id"]
    assert project.patch(f"/sandboxes/{one}", json={"cpus": 0.4}).status_code == 200
    project.post("/sandboxes", json=SMALL)
    refused = project.patch(f"/sandboxes/{one}", json={"cpus": 0.5})
    assert (refused.status_code, refused.json()["field"], refused.json()["used"]) == (429, "cpus", 0.5)


def test_ports_of_the_host_are_counted_by_project(server, project):
    put_quota(server, project, host_ports=1)
    one = project.post("/sandboxes", json=SMALL).json()["id"]
    assert project.put(f"/sandboxes/{one}/ports/8000", json={"host_port": True}).status_code == 200
    refused = project.put(f"/sandboxes/{one}/ports/8001", json={"host_port": True})
    assert (refused.status_code, refused.json()["field"]) == (429, "host_ports")
    assert project.put(f"/sandboxes/{one}/ports/8000", json={"host_port": False}).status_code == 200
    assert project.put(f"/sandboxes/{one}/ports/8001", json={"host_port": True}).status_code == 200


def test_a_key_gives_no_more_than_it_has(server, project):
    server.client.put(f"/keys/{project.key_id}/quota", json={"sandboxes": 1})
    refused = project.post("/keys", json={"name": "c", "quota": {"sandboxes": 2}})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    with client_of(server, project, quota={"sandboxes": 1}) as child, client_of(server, project) as other:
        assert child.post("/sandboxes", json=SMALL).status_code == 201
        assert other.post("/sandboxes", json=SMALL).json()["code"] == "quota-exceeded"
        assert [one["id"] for one in child.get("/quota").json()["quotas"]] == [
            project.project, child.key_id, project.key_id,
        ]  # fmt: skip


def test_only_admins_set_quotas_and_nobody_sees_anothers(server, project):
    for path in (f"/projects/{project.project}/quota", f"/keys/{project.key_id}/quota"):
        assert project.put(path, json={}).status_code == 403
        assert project.get(path).status_code == 200
    for path in ("/projects/default/quota", "/keys/00000000/quota", "/projects/%00/quota", "/keys/..%2f/quota"):
        assert project.get(path).status_code == 404, path
    assert server.client.put("/projects/nowhere/quota", json={}).status_code == 404
    assert server.client.put("/keys/00000000/quota", json={}).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        b'{"sandboxes":-1}',
        b'{"sandboxes":9223372036854775808}',
        b'{"sandboxes":1e400}',
        b'{"sandboxes":true}',
        b'{"sandboxes":1.5}',
        b'{"cpus":NaN}',
        b'{"cpus":1e400}',
        b'{"cpus":-1}',
        b'{"budget":"NaN"}',
        b'{"budget":"Infinity"}',
        b'{"budget":-1}',
        b'{"budget":1e999999999}',
        b'{"budget":1e-999999999}',
        b'{"budget":"1e999999999999999999999"}',
        b'{"budget":9223372036854775808}',
        b'{"budget":"' + b"9" * 100_000 + b'"}',
        b'{"budget_period":"year"}',
        b'{"requests_per_minute":0}',
        b'{"cpu":1}',
        b"[" * 100_000,
        b'{"sandboxes":' + b"[" * 100_000,
    ],
)
def test_absurd_quotas_are_refused_at_once(server, project, body):
    begun = time.monotonic()
    answer = server.client.put(f"/projects/{project.project}/quota", content=body)
    assert answer.status_code == 400, answer.text
    assert time.monotonic() - begun < 20
    assert project.get("/quota").json()["quotas"][0]["quota"]["sandboxes"] is None


def test_usage_adds_up_and_is_shown_in_three_forms(server, project):
    ids = [project.post("/sandboxes", json={**SMALL, "cpus": cpus}).json()["id"] for cpus in (0.5, 1.0)]
    time.sleep(0.3)
    project.delete(f"/sandboxes/{ids[0]}")
    project.delete(f"/sandboxes/{ids[1]}")
    total = project.get("/usage").json()["usage"]
    assert len(total) == 1
    lines = project.get("/usage", params={"group_by": ["sandbox", "key"]}).json()["usage"]
    assert {line["sandbox"] for line in lines} == set(ids)
    assert {line["key"] for line in lines} == {project.key_id}
    assert sum(Decimal(line["cost"]) for line in lines) == Decimal(total[0]["cost"]) > 0
    bills = {one: project.get(f"/sandboxes/{one}/usage").json() for one in ids}
    for line in lines:
        bill = bills[line["sandbox"]]
        assert {name: line[name] for name in ("cost", "vcpu_s", "running_s", "name", "ended_at")} == {
            name: bill[name] for name in ("cost", "vcpu_s", "running_s", "name", "ended_at")
        }
        assert bill["running_s"] >= 0.3
        assert bill["ended_at"] is not None
        limit = 0.5 if line["sandbox"] == ids[0] else 1.0
        assert line["vcpu_s"] == pytest.approx(limit * line["running_s"], abs=1e-6)
    table = project.get("/usage", params={"group_by": "sandbox", "format": "csv", "limit": 1})
    assert table.headers["content-type"].startswith("text/csv")
    assert [row["sandboxes"] for row in csv.DictReader(io.StringIO(table.text))] == ["1"]
    more = project.get(
        "/usage",
        params={"group_by": "sandbox", "format": "ndjson", "limit": 1, "cursor": table.headers["next-cursor"]},
    )
    assert len([json.loads(line) for line in more.text.splitlines()]) == 1
    assert "next-cursor" not in more.headers
    assert project.get("/usage", params={"from": "2999-01-01"}).json()["usage"][0]["sandboxes"] == 0
    assert project.get("/usage", params={"group_by": "day", "to": "2000-01-01"}).json()["usage"] == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"from": "yesterday"}, "from"),
        ({"to": "9" * 39}, "to"),
        ({"group_by": "colour"}, "group_by"),
        ({"group_by": ["day", "day"]}, "group_by"),
        ({"group_by": ["day", "key", "hour", "project"]}, "group_by"),
        ({"cursor": "-1"}, "cursor"),
        ({"cursor": "1 OR 1"}, "cursor"),
        ({"cursor": "9999999"}, "cursor"),
        ({"limit": "0"}, "limit"),
        ({"sandbox": "by-name"}, "sandbox"),
        ({"format": "xml"}, "format"),
        ({"unknown": "1"}, "unknown"),
    ],
)
def test_absurd_questions_are_refused(server, project, query, field):
    answer = project.get("/usage", params=query)
    assert (answer.status_code, answer.json()["field"]) == (400, field)


def test_usage_of_others_is_not_seen(server, project):
    box = server.sandbox()["id"]
    assert project.get(f"/sandboxes/{box}/usage").status_code == 404
    assert project.get("/usage", params={"project": "default"}).status_code == 404
    assert project.get("/usage", params={"sandbox": box}).json()["usage"][0]["sandboxes"] == 0
    lines = project.get("/usage", params={"group_by": ["project", "key", "sandbox"]}).json()["usage"]
    assert {line["project"] for line in lines} <= {project.project}
    assert box in {
        line["sandbox"] for line in server.client.get("/usage", params={"group_by": "sandbox"}).json()["usage"]
    }


@pytest.fixture(scope="module")
def strict():
    """A server that limits requests."""
    with started(COVE_REQUESTS_PER_MINUTE="600", COVE_REQUEST_BURST="20") as running:
        yield running


@pytest.fixture(scope="module")
def guarded():
    """A server that takes few failed logins. Each test comes from an address of its own."""
    with started(COVE_FAILED_LOGINS_PER_MINUTE="6") as running:
        yield running


def test_answers_say_what_is_left_and_then_429(strict):
    with client_of(strict, strict.operator) as one:
        seen = []
        answers = [one.get("/images") for _ in range(40)]
        while answers[-1].status_code != 429 and len(answers) < 1000:  # a slow machine's tokens come back meanwhile
            answers.append(one.get("/images"))
        for answer in answers:
            assert answer.headers["ratelimit-limit"] == "600"
            seen.append((answer.status_code, int(answer.headers["ratelimit-remaining"])))
        assert seen[0] == (200, 19)
        lefts = [left for status, left in seen if status == 200]
        assert all(later >= earlier - 1 for earlier, later in itertools.pairwise(lefts)), "each takes one; time gives"
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        assert refused[0].json()["code"] == "rate-limited"
        assert refused[0].headers["retry-after"] == "1"
        assert int(refused[0].headers["ratelimit-reset"]) <= 2
        # Nothing but another key has tokens of its own: not a header, not a body, not another way to send the key.
        tricks = [
            {"X-Forwarded-For": "198.51.100.9"},
            {"X-Real-IP": "198.51.100.9"},
            {"Forwarded": "for=198.51.100.9"},
            {"X-Request-Id": "other"},
            {"Cove-Version": "2"},
        ]
        for head in tricks * 20:
            if one.get("/images", headers=head).status_code == 429:
                break
        else:
            raise AssertionError("a header got around the limit")
    with client_of(strict, strict.operator) as other:
        assert other.get("/images").headers["ratelimit-remaining"] == "19"
    assert "ratelimit-limit" not in strict.operator.get("/images").headers


def test_a_stream_counts_once(strict):
    with client_of(strict, strict.operator) as one:
        box = one.post("/sandboxes", json=SMALL).json()["id"]
        body = {"command": "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.02; done"}
        with one.stream("POST", f"/sandboxes/{box}/exec/stream", json=body) as answer:
            left = int(answer.headers["ratelimit-remaining"])
            assert sum(line.startswith("event: stdout") for line in answer.iter_lines()) >= 1
        assert int(one.get("/images").headers["ratelimit-remaining"]) in range(left - 1, 20)
        one.delete(f"/sandboxes/{box}")


def test_a_key_that_is_made_shares_what_its_maker_may_ask(strict):
    with client_of(strict, strict.operator) as one:
        strict.operator.put(f"/keys/{one.key_id}/quota", json={"requests_per_minute": 10})
        with client_of(strict, one) as child:
            done = [child.get("/images").status_code for _ in range(12)]
        assert done.count(200) in {8, 9}
        assert one.get("/images").status_code == 429


def come_from(server, address, **head):
    """A client of an address of its own: all of 127.0.0.0/8 is this machine."""
    transport = httpx2.HTTPTransport(local_address=address)
    return httpx2.Client(base_url=f"{server.url}/api/v1", headers=head, transport=transport, timeout=60)


def key_of(server):
    return server.operator.post("/keys", json={"name": "k"}).json()["key"]


TRICKS = [
    {},
    {"X-Forwarded-For": "198.51.100.{n}"},
    {"X-Real-IP": "198.51.100.{n}", "Forwarded": "for=198.51.100.{n}", "True-Client-IP": "198.51.100.{n}"},
    {"X-API-Key": "guess-{n}"},
    {"Authorization": "Bearer cove_0000000{n}_x"},
]


@pytest.mark.parametrize("number", range(len(TRICKS)))
def test_failed_logins_are_counted_whatever_the_headers_say(guarded, number):
    """Case 67. The server is not behind a proxy, so no header names another address."""
    known, fresh, address = key_of(guarded), key_of(guarded), f"127.0.1.{number}"
    with come_from(guarded, address) as one:

        def ask(head):
            answer = one.get("/images", headers=head)
            return answer.status_code, answer.json().get("detail")

        assert ask({"X-API-Key": known})[0] == 200
        sent = [
            {name: value.replace("{n}", str(attempt)) for name, value in TRICKS[number].items()}
            for attempt in range(12)
        ]
        assert [ask(head)[0] for head in sent] == [401] * 6 + [429] * 6
        assert ask({"X-API-Key": known})[0] == 200, "who came from there before still comes in"
        assert ask({"X-API-Key": fresh}) == ask({"X-API-Key": "wrong"}), "a right guess looks like a wrong one"
    with come_from(guarded, "127.0.2.1") as other:
        assert other.get("/images", headers={"X-API-Key": fresh}).status_code == 200


def test_a_port_is_no_way_around(guarded):
    known, fresh = key_of(guarded), key_of(guarded)
    with come_from(guarded, "127.0.3.1") as one:
        box = guarded.operator.post("/sandboxes", json=SMALL).json()["id"]

        def ask(key):
            return one.get(f"/sandboxes/{box}/ports/8000/http/", headers={"X-API-Key": key}).status_code

        assert ask(known) == 502
        assert [ask(str(number)) for number in range(10)] == [401] * 10
        assert ask(fresh) == 401, "an address that guessed too often gets in by no new key"
        assert ask(known) == 502
        assert one.get("/images", headers={"X-API-Key": fresh}).status_code == 200, "guesses at ports count apart"
        guarded.operator.delete(f"/sandboxes/{box}")


def test_behind_a_proxy_the_last_hop_counts():
    with started(COVE_BEHIND_PROXY="1", COVE_FAILED_LOGINS_PER_MINUTE="5") as one:

        def ask(forwarded: str) -> int:
            return httpx2.get(f"{one.url}/api/v1/images", headers={"X-Forwarded-For": forwarded}).status_code

        assert [ask(f"198.51.100.{number}, 203.0.113.5") for number in range(7)] == [401] * 5 + [429] * 2
        assert ask("203.0.113.5, 203.0.113.6") == 401
        assert [ask(f"2001:db8::{number}") for number in range(7)] == [401] * 5 + [429] * 2


def test_a_revoked_key_is_refused_at_once_by_every_connection(server):
    """Case 63: nothing keeps what a key may do. Two connections, many requests, one moment."""
    with client_of(server) as one:
        assert one.get("/sandboxes").status_code == 200
        stop = threading.Event()
        statuses: list[int] = []

        def hammer() -> None:
            with httpx2.Client(base_url=one.base_url, headers=one.headers) as other:
                while not stop.is_set():
                    statuses.append(other.get("/sandboxes").status_code)

        thread = threading.Thread(target=hammer)
        thread.start()
        time.sleep(0.1)
        assert server.client.delete(f"/keys/{one.key_id}").status_code == 204
        assert one.get("/sandboxes").status_code == 401
        stop.set()
        thread.join()
        assert statuses == sorted(statuses), "200 and then 401, never back"


def test_metrics_count_without_naming_anybody(server, project):
    put_quota(server, project, sandboxes=0)
    project.post("/sandboxes", json=SMALL)
    text = httpx2.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {server.key}"}).text
    assert 'cove_quota_refused_total{field="sandboxes"}' in text
    for name in ("cove_usage_cost_total", "cove_usage_vcpu_seconds_total", "cove_logins_failed_total", "cove_quotas"):
        assert f"\n{name}" in text
    assert project.project not in text
    assert project.key_id not in text
