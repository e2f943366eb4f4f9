# ruff: noqa: ANN001, ANN003, ANN201 - fixtures and stand-ins are typed where they are defined
"""Background commands in full: waiting for output, following from any point, input that is not read, typed ends."""

from __future__ import annotations

import json
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest


def start(server, box, command, **more):
    made = server.client.post(f"/sandboxes/{box}/commands", json={"command": command, **more})
    assert made.status_code == 201, made.text
    return f"/sandboxes/{box}/commands/{made.json()['id']}"


def follow(server, path, cursor=0, **headers):
    """Every event as (id, name, data), to the end of the stream."""
    with server.client.stream(
        "GET", f"{path}/output", params={"cursor": cursor, "follow": "true"}, headers=headers
    ) as answer:
        assert answer.status_code == 200, answer.read()
        text = "".join(answer.iter_text())
    found = []
    for one in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in one.splitlines() if not line.startswith(":"))
        if lines:
            found.append((int(lines.get("id", -1)), lines["event"], json.loads(lines["data"])))
    return found


def test_a_page_waits_for_the_first_byte(server, box):
    path = start(server, box, "sleep 0.4; echo late; sleep 60")
    before = time.monotonic()
    page = server.client.get(f"{path}/output", params={"wait_s": 40}).json()
    assert 0.2 < time.monotonic() - before < 30
    assert (page["chunks"], page["cursor"], page["ended"]) == ([{"stream": "stdout", "data": "late\n"}], 5, False)
    before = time.monotonic()
    empty = server.client.get(f"{path}/output", params={"cursor": 5, "wait_s": 0.3}).json()
    assert 0.3 <= time.monotonic() - before < 30
    assert (empty["chunks"], empty["cursor"], empty["ended"]) == ([], 5, False)
    assert server.client.get(f"{path}/output", params={"wait_s": -1}).json()["field"] == "wait_s"
    server.client.delete(path)


def test_a_page_that_waits_is_answered_by_the_end(server, box):
    path = start(server, box, "sleep 0.3; exit 4")
    page = server.client.get(f"{path}/output", params={"wait_s": 30}).json()
    assert (page["chunks"], page["ended"], page["exit"]["exit_code"]) == ([], True, 4)


def test_every_event_has_its_cursor_and_a_stream_goes_on_there(server, box):
    path = start(server, box, "printf one; sleep 0.2; printf 'caf\\303'; sleep 0.2; printf '\\251!'; exit 3")
    found = follow(server, path)
    assert [name for _, name, _ in found] == ["stdout", "stdout", "stdout", "exit"]
    assert [id_ for id_, _, _ in found] == [3, 6, 9, 9]  # a cut character comes again, whole
    assert found[-1][2]["cursor"] == 9
    again = follow(server, path, **{"Last-Event-ID": "6"})
    assert [(id_, data.get("data")) for id_, _, data in again] == [(9, "é!"), (9, None)]
    assert [name for _, name, _ in follow(server, path, cursor=9)] == ["exit"]
    for bad in ("x", "-1", "9" * 30):
        answer = server.client.get(f"{path}/output", headers={"Last-Event-ID": bad})
        assert (answer.status_code, answer.json()["field"]) == (400, "Last-Event-ID"), bad
    assert server.client.get(f"{path}/output", params={"cursor": 10}).status_code == 400


def test_many_followers_of_one_command_see_the_same(server, box):
    path = start(server, box, "for i in $(seq 200); do echo $i; done; sleep 0.3; echo end")
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(follow(server, path))) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    texts = {"".join(data["data"] for _, name, data in found if name == "stdout") for found in seen}
    assert texts == {"".join(f"{i}\n" for i in range(1, 201)) + "end\n"}
    assert [found[-1][1] for found in seen] == ["exit"] * 4


def raw_stdin(server, path, head):
    """A POST to the command's stdin, by hand, with its head sent."""
    where = urlsplit(server.url)
    sock = socket.create_connection((where.hostname, where.port), timeout=60)
    lines = (
        f"POST /api/v1{path}/stdin HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {server.key}",
        head,
        "",
        "",
    )
    sock.sendall("\r\n".join(lines).encode())
    return sock


@pytest.mark.parametrize("size", [2000, 1_100_000])
def test_a_writer_that_leaves_ends_although_the_command_reads_nothing(server, box, size):
    # 2000 bytes wait in the sandbox; of 1 100 000 the last wait in the server, with the connection not read from.
    path = start(server, box, ["sleep", "60"], stdin_open=True)
    server.client.post(f"{path}/stdin", content=bytes(65536))  # the pipe is full now
    sock = raw_stdin(server, path, f"Content-Length: {size}")
    sock.settimeout(0.5)
    try:
        sock.sendall(bytes(size))
        assert sock.recv(1) == b"", "it was answered although nothing was read"
    except TimeoutError:
        pass
    sock.close()
    deadline = time.monotonic() + 60
    # A writer with nothing to write is let in as soon as the one before it is gone; until then it gets 409.
    while server.client.post(f"{path}/stdin", content=b"").status_code != 200:
        assert time.monotonic() < deadline, "somebody still writes"
        time.sleep(0.1)
    server.client.delete(path)


def test_input_may_come_slowly_and_arrives_at_once(server, box):
    path = start(server, box, "while read x; do echo got $x; done", stdin_open=True)
    sock = raw_stdin(server, f"{path}", "Transfer-Encoding: chunked")
    for n in (1, 2, 3):
        sock.sendall(b"2\r\n%d\n\r\n" % n)
        page = server.client.get(f"{path}/output", params={"cursor": (n - 1) * 6, "wait_s": 10}).json()
        assert page["chunks"] == [{"stream": "stdout", "data": f"got {n}\n"}]
    sock.sendall(b"0\r\n\r\n")
    answer = b""
    while b'{"written":6}' not in answer:  # head and body may come apart
        piece = sock.recv(65536)
        assert piece, answer
        answer += piece
    sock.close()
    server.client.delete(path)


def test_a_stream_ends_with_the_sandbox(server):
    box = server.sandbox()["id"]
    path = start(server, box, "echo hi; sleep 60")
    found = []
    thread = threading.Thread(target=lambda: found.extend(follow(server, path)))
    thread.start()
    time.sleep(0.5)
    server.client.delete(f"/sandboxes/{box}")
    thread.join(60)
    assert not thread.is_alive()
    assert [name for _, name, _ in found] == ["stdout", "exit"]
    assert found[-1][2]["why"] == "sandbox-gone"


def test_waits_end_with_the_sandbox(server):
    box = server.sandbox()["id"]
    path = start(server, box, ["sleep", "60"])
    answers = []
    calls = (
        lambda: server.client.post(f"{path}/wait", json={}),
        lambda: server.client.get(f"{path}/output", params={"wait_s": 60}),
    )
    threads = [threading.Thread(target=lambda call=call: answers.append(call())) for call in calls]
    for one in threads:
        one.start()
    time.sleep(0.5)
    server.client.delete(f"/sandboxes/{box}")
    for one in threads:
        one.join(60)
    # A page of output is a result also when the sandbox ends under it; a wait has nothing to tell.
    assert {one.json().get("code") or one.json()["exit"]["why"] for one in answers} == {"sandbox-gone"}
