# ruff: noqa: ANN001, ANN003, ANN201, ANN202 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import itertools
import json
import threading
import time

import pytest

numbers = itertools.count()


@pytest.fixture
def run(server, box):
    def run(script):
        answer = server.client.post(f"/sandboxes/{box}/exec", json={"command": script}).json()
        assert answer["exit_code"] == 0, answer
        return answer["stdout"]

    return run


@pytest.fixture
def at(run):
    """A fresh directory in the box."""
    path = f"/tmp/watched-{next(numbers)}"
    run(f"mkdir -p {path}")
    yield path
    run(f"rm -rf {path}")


@pytest.fixture
def watch(server, box):
    made = []

    def watch(path, **more):
        answer = server.client.post(f"/sandboxes/{box}/watches", json={"path": path, **more})
        assert answer.status_code == 201, answer.text
        made.append(f"/sandboxes/{box}/watches/{answer.json()['id']}")
        assert answer.headers["location"] == f"/api/v1{made[-1]}"
        return made[-1]

    yield watch
    for one in made:
        server.client.delete(one)


def short(change, root):
    line = f"{change['kind']} {change['path'].removeprefix(root + '/')}"
    return line + (f" < {change['source'].removeprefix(root + '/')}" if "source" in change else "")


def read(server, path, cursor=0, **more):
    answer = server.client.get(f"{path}/events", params={"cursor": cursor, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events_of(answer):
    for one in "".join(answer.iter_text()).split("\n\n"):
        lines = dict(line.split(": ", 1) for line in one.splitlines() if not line.startswith(":"))
        if lines:
            yield int(lines.get("id", -1)), lines["event"], json.loads(lines["data"])


def test_changes_are_kept_and_read_from_a_cursor(server, run, at, watch):
    path = watch(at)
    run(f"cd {at}; mkdir d")
    assert [short(one, at) for one in read(server, path, wait_s=20)["events"]] == ["create d"]  # it is watched now
    run(f"cd {at}; echo x > d/f; chmod 600 d/f; mv d/f g; rm g")
    page = read(server, path)
    told = [short(one, at) for one in page["events"] if one["kind"] != "modify"]
    assert told == ["create d", "create d/f", "attributes d/f", "move g < d/f", "remove g"]
    assert [one["directory"] for one in page["events"]].count(True) == 1
    assert (page["lost_events"], page["ended"], page["cursor"]) == (0, None, len(page["events"]))
    first = read(server, path, limit=2)
    assert (len(first["events"]), first["cursor"]) == (2, 2)
    assert read(server, path, cursor=2)["events"] == page["events"][2:]
    view = server.client.get(path).json()
    assert (view["path"], view["recursive"], view["glob"], view["ended"]) == (at, True, None, None)
    assert view["cursor"] >= page["cursor"]
    assert set(view["kinds"]) == {"create", "modify", "attributes", "remove", "move"}
    listed = server.client.get(path.rsplit("/", 1)[0]).json()["watches"]
    assert view["id"] in [one["id"] for one in listed]


def test_a_page_waits_for_the_next_event(server, run, at, watch):
    path = watch(at, kinds=["create"], recursive=False)
    before = time.monotonic()
    assert read(server, path, wait_s=0.2)["events"] == []
    assert time.monotonic() - before >= 0.2
    timer = threading.Timer(0.3, lambda: run(f"echo > {at}/f"))
    timer.start()
    assert [short(one, at) for one in read(server, path, wait_s=20)["events"]] == ["create f"]
    timer.join()


def test_events_are_followed_to_the_end_and_the_stream_goes_on_from_an_id(server, run, at, watch):
    path = watch(f"{at}", glob="*.txt", kinds=["create", "remove"])
    found = []

    def follow(**headers):
        with server.client.stream("GET", f"{path}/events", params={"follow": "true"}, headers=headers) as answer:
            found.extend(events_of(answer))

    thread = threading.Thread(target=follow)
    thread.start()
    run(f"cd {at}; touch a.txt b.c; mkdir -p x/y; touch x/y/c.txt; rm a.txt; rm -r x; cd /; rm -r {at}")
    thread.join(60)
    assert not thread.is_alive()
    *changes, end = found
    assert [(id_, name, short(data, at)) for id_, name, data in changes] == [
        (1, "change", "create a.txt"),
        (2, "change", "create x/y/c.txt"),
        (3, "change", "remove a.txt"),
        (4, "change", "remove x/y/c.txt"),
    ]
    assert end == (4, "ended", {"why": "removed", "cursor": 4})
    found.clear()
    follow(**{"Last-Event-ID": "3"})
    assert [id_ for id_, _, _ in found] == [4, 4]
    assert read(server, path, cursor=4)["ended"] == "removed"
    assert server.client.get(path).json()["ended"] == "removed"


def test_what_is_no_longer_kept_is_counted(server, run, at, watch):
    path = watch(at, kinds=["create"], keep_events=16)
    run(f"cd {at}; for i in $(seq 100); do echo > $i; done")
    page = read(server, path, wait_s=5)
    assert page["lost_events"] + len(page["events"]) == page["cursor"] == 100
    assert page["events"][-1]["path"] == f"{at}/100"
    assert server.client.get(path).json()["oldest_cursor"] == 84


def test_names_of_any_bytes_are_told(server, run, at, watch):
    path = watch(at, kinds=["create"])
    run(f"cd {at}; touch 'a\nb' $(printf 'x\\377y') ' é\"'")
    assert sorted(one["path"].rsplit("/", 1)[1] for one in read(server, path)["events"]) == [' é"', "a\nb", "x�y"]


def test_a_bad_watch_is_refused_by_name(server, box, run, at):
    run(f"touch {at}/file")
    for body, field in (
        ({}, "path"),
        ({"path": "relative"}, "path"),
        ({"path": "/a/../b"}, "path"),
        ({"path": at, "kinds": ["overflow"]}, "kinds"),
        ({"path": at, "glob": ""}, "glob"),
        ({"path": at, "glob": "a\0"}, "glob"),
        ({"path": at, "keep_events": 15}, "keep_events"),
        ({"path": at, "recursive": 1}, "recursive"),
    ):
        answer = server.client.post(f"/sandboxes/{box}/watches", json=body)
        assert (answer.status_code, answer.json()["field"].split("[")[0]) == (400, field), (body, answer.text)
    for path, status, reason in ((f"{at}/no", 404, "not_found"), (f"{at}/file", 409, "not_directory")):
        answer = server.client.post(f"/sandboxes/{box}/watches", json={"path": path})
        assert (answer.status_code, answer.json()["reason"]) == (status, reason)


def test_a_watch_that_is_none_is_404(server, box, at, watch):
    for method, rest in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
        assert server.client.request(method, f"/sandboxes/{box}/watches/w000000000000{rest}").status_code == 404
        assert server.client.request(method, f"/sandboxes/{box}/watches/UP{rest}").status_code == 400
    path = watch(at)
    beyond = server.client.get(f"{path}/events", params={"cursor": 1})
    assert (beyond.status_code, beyond.json()["code"]) == (400, "bad-request")


def test_the_65th_watch_is_refused_until_one_is_stopped(server):
    box = server.sandbox()["id"]
    body = {"path": "/", "recursive": False}
    made = [server.client.post(f"/sandboxes/{box}/watches", json=body) for _ in range(65)]
    assert [one.status_code for one in made] == [201] * 64 + [409]
    assert server.client.delete(f"/sandboxes/{box}/watches/{made[5].json()['id']}").status_code == 204
    assert server.client.post(f"/sandboxes/{box}/watches", json=body).status_code == 201
    server.client.delete(f"/sandboxes/{box}")


@pytest.mark.parametrize("why", ["stopped", "sandbox-gone"])
def test_a_stream_ends_with_its_watch_and_with_its_sandbox(server, why):
    box = f"/sandboxes/{server.sandbox()['id']}"
    path = f"{box}/watches/{server.client.post(f'{box}/watches', json={'path': '/', 'recursive': False}).json()['id']}"
    found = []

    def follow():
        with server.client.stream("GET", f"{path}/events", params={"follow": "true"}) as answer:
            found.extend(events_of(answer))

    thread = threading.Thread(target=follow)
    thread.start()
    time.sleep(0.3)
    assert server.client.delete(path if why == "stopped" else box).status_code in {200, 204}
    thread.join(60)
    assert found[-1][1:] == ("ended", {"why": why, "cursor": found[-1][2]["cursor"]})
    server.client.delete(box)
