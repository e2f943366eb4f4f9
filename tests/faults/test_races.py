"""Things that happen at the same time: ends under work of every kind, deaths on the shelf, crowds, repeats."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx2
import pytest

from tests_support import SOAK, Footprint, NewServer, RunningServer
from waiting_support import until

pytestmark = pytest.mark.real
ROUNDS = 20 if SOAK else 4
PROMPT_S = 15.0
"""An end under work is told by then. It takes milliseconds; a busy machine takes longer, a hang takes minutes."""


def create(client: httpx2.Client, **wishes: object) -> str:
    answer = client.post("/sandboxes", json=wishes)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def said(client: httpx2.Client, box: str, command: str) -> str:
    answer = client.post(f"/sandboxes/{box}/exec", json={"command": command})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["stdout"])


def end(client: httpx2.Client, box: str) -> None:
    answer = client.delete(f"/sandboxes/{box}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["state"] == "terminated"


def exists(client: httpx2.Client, box: str, path: str) -> bool:
    return client.get(f"/sandboxes/{box}/files", params={"path": path}).status_code == 200


# Pool members.


def ready(client: httpx2.Client) -> int:
    pool = client.get("/server").json()["capacity"]["pool"]
    return int(pool["base"])


def inits(server: RunningServer) -> list[int]:
    return [json.loads(file.read_bytes())["init_pid"] for file in (server.run_dir / "sb").glob("*/box.json")]


def test_pool_members_that_die_on_the_shelf_fail_no_create(new_server: NewServer) -> None:
    server = new_server()
    size = int(server.env["COVE_POOL_SIZE"])
    with server.client() as client, ThreadPoolExecutor(size * 2) as threads:
        until(lambda: ready(client) == size, "the pool does not fill")
        for pid in inits(server):
            os.kill(pid, 9)
        boxes = list(threads.map(lambda _: create(client), range(size * 2)))
        assert len(set(boxes)) == size * 2
        assert list(threads.map(lambda box: said(client, box, "echo fine"), boxes)) == ["fine\n"] * size * 2
        list(threads.map(lambda box: end(client, box), boxes))
        until(lambda: ready(client) == size, "the pool does not fill again", 60)
    Footprint.of(server).assert_only_pool(server)


# Ends under work.


@pytest.fixture
def cold(new_server: NewServer) -> RunningServer:
    """A server without a warm pool: each create is long enough to be met in the middle, and nothing may be left."""
    return new_server(COVE_POOL_SIZE="0")


def test_a_destroy_during_a_create_ends_both_well(cold: RunningServer) -> None:
    with cold.client() as client, ThreadPoolExecutor(1) as threads:
        for number in range(ROUNDS * 2):
            name = f"early-{number}"
            creating = threads.submit(client.post, "/sandboxes", json={"name": name})
            until(lambda name=name: client.get(f"/sandboxes/{name}").status_code == 200, "it does not appear")
            ended = client.delete(f"/sandboxes/{name}")
            made = creating.result(PROMPT_S)
            assert ended.status_code == 200, ended.text
            assert ended.json()["state"] == "terminated"
            assert made.status_code in {201, 409, 410}, made.text
            assert client.get(f"/sandboxes/{name}").status_code == 404, "its name is still taken"
        assert client.get("/sandboxes").json()["sandboxes"] == []
    Footprint.of(cold).assert_only_pool(cold)


def test_a_client_that_leaves_during_a_create_leaves_no_half_of_a_sandbox(cold: RunningServer) -> None:
    with cold.client() as client:
        for number in range(ROUNDS):
            with pytest.raises(httpx2.TimeoutException):
                client.post("/sandboxes", json={"name": f"left-{number}"}, timeout=httpx2.Timeout(10, read=0.01))

        def settled() -> bool:
            return all(one["state"] == "running" for one in client.get("/sandboxes").json()["sandboxes"])

        until(settled, "a create hangs")
        for one in client.get("/sandboxes").json()["sandboxes"]:
            assert said(client, one["id"], "echo whole") == "whole\n"
            end(client, one["id"])
    Footprint.of(cold).assert_only_pool(cold)


@pytest.fixture
def busy(cold: RunningServer) -> Iterator[tuple[RunningServer, httpx2.Client, str, ThreadPoolExecutor]]:
    """A sandbox that the test ends in mid-work, with threads for that work; afterwards nothing of it is left."""
    with cold.client() as client, ThreadPoolExecutor(8) as threads:
        yield cold, client, create(client), threads
    Footprint.of(cold).assert_only_pool(cold)


Busy = tuple[RunningServer, httpx2.Client, str, ThreadPoolExecutor]


def test_a_destroy_during_an_exec_gives_it_a_reason(busy: Busy) -> None:
    _, client, box, threads = busy
    running = [
        threads.submit(client.post, f"/sandboxes/{box}/exec", json={"command": f"touch /root/up-{n}; exec sleep 300"})
        for n in range(3)
    ]
    until(lambda: all(exists(client, box, f"/root/up-{n}") for n in range(3)), "the commands do not start")
    end(client, box)
    for one in running:
        answer = one.result(PROMPT_S)
        assert answer.status_code == 200, answer.text
        assert answer.json()["why"] in {"sandbox-gone", "killed"}, answer.text
        assert answer.json()["exit_code"] != 0
    assert client.post(f"/sandboxes/{box}/exec", json={"command": "true"}).status_code == 410


def test_a_destroy_during_streams_and_waits_ends_them_with_a_reason(busy: Busy) -> None:
    server, client, box, threads = busy
    talking = {"command": "while :; do echo tick; sleep 0.01; done"}
    command = client.post(f"/sandboxes/{box}/commands", json=talking).json()["id"]
    ticks = threading.Barrier(3, timeout=PROMPT_S)

    def follow(method: str, path: str, body: object) -> list[str]:
        """The names of all events, to the end of the stream."""
        names: list[str] = []
        with server.client() as own, own.stream(method, path, json=body) as stream:
            assert stream.status_code == 200
            for line in stream.iter_lines():
                if line.startswith("event: "):
                    names.append(line.removeprefix("event: "))
                    if names.count("stdout") == 1 and names[-1] == "stdout":
                        ticks.wait()
                elif names and names[-1] == "exit" and line.startswith("data: "):
                    assert json.loads(line.removeprefix("data: "))["why"] in {"sandbox-gone", "killed"}, line
        return names

    streams: list[Future[list[str]]] = [
        threads.submit(follow, "POST", f"/sandboxes/{box}/exec/stream", talking),
        threads.submit(follow, "GET", f"/sandboxes/{box}/commands/{command}/output?follow=true", None),
    ]
    waiting = threads.submit(client.post, f"/sandboxes/{box}/commands/{command}/wait", json={"timeout_s": None})
    ticks.wait()
    end(client, box)
    for one in streams:
        assert one.result(PROMPT_S)[-1] in {"exit", "error"}
    answer = waiting.result(PROMPT_S)
    assert answer.status_code in {200, 410, 502}, answer.text
    if answer.status_code == 200:
        assert answer.json()["running"] is False


def test_a_destroy_during_an_upload_fails_the_upload(busy: Busy) -> None:
    _, client, box, threads = busy
    half, is_ended = threading.Event(), threading.Event()

    def body() -> Iterator[bytes]:
        for number in range(100):
            if number == 50:
                half.set()
                is_ended.wait(PROMPT_S)
            yield bytes(1 << 20)

    def upload() -> int | None:
        """The status; None: the connection was closed in the middle of the body, which is as clear."""
        path = f"/sandboxes/{box}/files/content"
        try:
            answer = client.put(path, params={"path": "/root/big"}, content=body())
        except (httpx2.NetworkError, httpx2.ProtocolError):
            return None
        assert answer.json()["code"] in {"sandbox-gone", "gone"}, answer.text
        return answer.status_code

    uploading = threads.submit(upload)
    assert half.wait(PROMPT_S)
    end(client, box)
    is_ended.set()
    assert uploading.result(PROMPT_S) in {None, 410, 502}


def test_a_destroy_during_a_download_cuts_it_short(busy: Busy) -> None:
    server, client, box, threads = busy
    size = 100 << 20
    assert said(client, box, f"head -c {size} /dev/zero > /root/big; stat -c %s /root/big") == f"{size}\n"
    came: list[int] = []
    first, is_ended = threading.Event(), threading.Event()

    def download() -> None:
        path = f"/sandboxes/{box}/files/content"
        with server.client() as own, own.stream("GET", path, params={"path": "/root/big"}) as answer:
            assert int(answer.headers["content-length"]) == size
            for piece in answer.iter_raw(1 << 16):
                came.append(len(piece))
                first.set()
                is_ended.wait(PROMPT_S)

    downloading = threads.submit(download)
    assert first.wait(PROMPT_S)
    end(client, box)
    is_ended.set()
    # Cut, so that nobody takes a part for the whole; and cut by the server, not given up by us.
    with pytest.raises((httpx2.NetworkError, httpx2.ProtocolError)):
        downloading.result(PROMPT_S)
    assert 0 < sum(came) < size


def test_many_destroys_of_one_sandbox_give_one_answer(busy: Busy) -> None:
    _, client, box, threads = busy
    answers = list(threads.map(lambda _: client.delete(f"/sandboxes/{box}"), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["ended_at"] for answer in answers}) == 1


# Crowds.


@pytest.mark.timeout(300)
def test_of_101_creates_at_once_exactly_as_many_succeed_as_there_are_places(new_server: NewServer) -> None:
    places = 100 if SOAK else 12
    server = new_server(COVE_MAX_SANDBOXES=str(places))
    start = threading.Barrier(101)

    def one(_: int) -> httpx2.Response:
        with server.client() as own:
            start.wait()
            return own.post("/sandboxes", json={"memory_mib": 64})

    with ThreadPoolExecutor(101) as threads:
        answers = list(threads.map(one, range(101)))
    made = [answer.json()["id"] for answer in answers if answer.status_code == 201]
    refused = [answer for answer in answers if answer.status_code != 201]
    assert len(set(made)) == len(made) == places, {answer.status_code for answer in answers}
    assert {answer.status_code for answer in refused} == {503}
    assert {answer.json()["code"] for answer in refused} == {"capacity"}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    with server.client() as client, ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda box: said(client, box, "echo fine"), made)) == ["fine\n"] * places
        end(client, made[0])
        assert client.post("/sandboxes", json={"name": "next"}).status_code == 201, "a place that is free is free"
        assert client.post("/sandboxes", json={}).status_code == 503
        list(threads.map(lambda box: end(client, box), [*made[1:], "next"]))
    Footprint.of(server).assert_only_pool(server)


# Repeated requests.


def keyed(client: httpx2.Client, key: str, body: object) -> httpx2.Response:
    return client.post("/sandboxes", json=body, headers={"Idempotency-Key": key})


@pytest.mark.parametrize("pool", ["0", "4"], ids=["cold", "warm"])
def test_one_key_makes_one_sandbox_however_often_and_through_a_crash(new_server: NewServer, pool: str) -> None:
    server = new_server(COVE_POOL_SIZE=pool)
    body = {"metadata": {"order": "7"}}
    start = threading.Barrier(10)

    def one(_: int) -> httpx2.Response:
        with server.client() as own:
            start.wait()
            return keyed(own, "order-7", body)

    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(one, range(10)))
    assert {answer.status_code for answer in answers} == {201}, [answer.text for answer in answers]
    (box,) = {answer.json()["id"] for answer in answers}
    with server.client() as client:
        assert len(client.get("/sandboxes").json()["sandboxes"]) == 1
        other = keyed(client, "order-7", {"metadata": {"order": "8"}})
        assert (other.status_code, other.json()["code"]) == (409, "idempotency-conflict"), other.text
    server.kill()
    server.start()
    with server.client() as client:
        again = keyed(client, "order-7", body)
        assert (again.status_code, again.json()["id"]) == (201, box), again.text
        assert keyed(client, "order-7", {}).status_code == 409
        assert said(client, box, "echo same") == "same\n"
        assert len(client.get("/sandboxes").json()["sandboxes"]) == 1
        end(client, box)
        # The request was answered once; that its sandbox has ended since makes it no new request.
        late = keyed(client, "order-7", body)
        assert late.status_code == 201, late.text
        assert (late.json()["id"], late.json()["state"]) == (box, "terminated")
    Footprint.of(server).assert_only_pool(server)


@pytest.mark.timeout(300)
def test_a_create_whose_answer_a_crash_ate_is_made_once_on_retry(new_server: NewServer) -> None:
    """The client of a killed server does not know whether its create was heard: the same key settles it."""
    server = new_server(COVE_POOL_SIZE="0")
    for number in range(ROUNDS):
        with server.client(timeout=60) as client, ThreadPoolExecutor(4) as threads:
            asked = [threads.submit(attempt, client, f"eaten-{number}-{n}") for n in range(4)]
            time.sleep(0.04 * (number % 4))
            server.kill()
            told = [one.result(PROMPT_S) for one in asked]
        server.start()
        with server.client() as client:
            boxes = [keyed(client, f"eaten-{number}-{n}", {}) for n in range(4)]
            for before, now in zip(told, boxes, strict=True):
                assert now.status_code == 201, now.text
                assert before in {None, now.json()["id"]}
                assert said(client, now.json()["id"], "echo here") == "here\n"
            listed = {one["id"] for one in client.get("/sandboxes").json()["sandboxes"]}
            assert listed == {now.json()["id"] for now in boxes}
            for box in listed:
                end(client, box)
    Footprint.of(server).assert_only_pool(server)


def attempt(client: httpx2.Client, key: str) -> str | None:
    """The sandbox's id; None: no answer."""
    try:
        answer = keyed(client, key, {})
    except httpx2.TransportError:
        return None
    return str(answer.json()["id"]) if answer.status_code == 201 else None


# Ends of the server in mid-work.


@pytest.mark.timeout(300)
def test_a_crash_between_pause_and_resume_leaves_a_sandbox_that_works(new_server: NewServer) -> None:
    """Intent is written before the deed: whichever of the two the crash hits, the restart makes both agree."""
    server = new_server()
    with server.client() as client:
        box = create(client, idle_timeout_s=None)
        said(client, box, "echo kept > /root/f")
    for number in range(ROUNDS * 2):
        turned = threading.Event()

        def turn(turned: threading.Event = turned) -> None:
            with server.client(timeout=60) as own:
                while True:
                    own.post(f"/sandboxes/{box}/pause")
                    turned.set()
                    own.post(f"/sandboxes/{box}/resume")

        with ThreadPoolExecutor(1) as threads:
            turning = threads.submit(turn)
            assert turned.wait(PROMPT_S)
            time.sleep(0.0007 * number)  # any moment will do, so each round takes another
            server.kill()
            with pytest.raises(httpx2.TransportError):
                turning.result(PROMPT_S)
        server.start()
        with server.client() as client:
            assert client.get(f"/sandboxes/{box}").json()["state"] in {"running", "paused"}
            assert said(client, box, "cat /root/f") == "kept\n"
    with server.client() as client:
        end(client, box)
    Footprint.of(server).assert_only_pool(server)


@pytest.mark.timeout(300)
def test_a_crash_during_destroys_ends_each_sandbox_once_and_for_all(new_server: NewServer) -> None:
    server = new_server()
    for number in range(ROUNDS):
        with server.client(timeout=60) as client, ThreadPoolExecutor(4) as threads:
            boxes = [create(client) for _ in range(4)]
            ending = [threads.submit(attempt_end, client, box) for box in boxes]
            time.sleep(0.004 * number)
            server.kill()
            told = [one.result(PROMPT_S) for one in ending]
        server.start()
        with server.client() as client:
            for box, was_told in zip(boxes, told, strict=True):
                state = client.get(f"/sandboxes/{box}").json()["state"]
                if was_told or state == "terminated":
                    assert state == "terminated"
                else:
                    # The request was never heard, so the sandbox lives on, whole.
                    assert said(client, box, "echo whole") == "whole\n"
                end(client, box)
    Footprint.of(server).assert_only_pool(server)


def attempt_end(client: httpx2.Client, box: str) -> bool:
    """Whether the server said that it has ended."""
    try:
        return client.delete(f"/sandboxes/{box}").status_code == 200
    except httpx2.TransportError:
        return False


def test_a_polite_stop_tells_those_who_wait_and_ends_nothing_in_the_background(new_server: NewServer) -> None:
    server = new_server()
    with server.client() as client, ThreadPoolExecutor(4) as threads:
        box = create(client)
        command = client.post(f"/sandboxes/{box}/commands", json={"command": "exec sleep 300"}).json()["id"]
        waiting = threads.submit(client.post, f"/sandboxes/{box}/exec", json={"command": "touch /root/up; sleep 300"})
        following = threads.submit(client.get, f"/sandboxes/{box}/commands/{command}/output?follow=true")
        until(lambda: exists(client, box, "/root/up"), "the command does not start")
        server.stop()
        answer = waiting.result(PROMPT_S)
        assert (answer.status_code, answer.json()["code"]) == (503, "server-stopping"), answer.text
        assert int(answer.headers["retry-after"]) > 0
        followed = following.result(PROMPT_S)
        # A stream that had nothing to say yet may still get a status of its own.
        assert followed.status_code == 503 or followed.text.rstrip().splitlines()[-2] == "event: error", followed.text
        assert "server-stopping" in followed.text
    server.start()
    with server.client() as client:
        assert client.get(f"/sandboxes/{box}/commands/{command}").json()["running"] is True
        end(client, box)
    Footprint.of(server).assert_only_pool(server)
