"""Files of sessions over HTTP: what is put is got, byte for byte, and what cannot be has the original's statuses."""

# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import base64
import hashlib
import os

import httpx2
import pytest

pytestmark = pytest.mark.real

MIB = 1024 * 1024


@pytest.fixture
def session(mine):
    mine.run("true", session="s")
    return "s"


def put(caller, session, path, data):
    content = base64.b64encode(data).decode()
    return caller.http.post("/file", json={"sessionId": session, "path": path, "content": content})


def get(caller, session, path):
    return caller.http.get("/file", params={"sessionId": session, "path": path})


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 15_000, 65_536, 65_537, MIB + 1])
def test_what_is_put_is_got(mine, session, size):
    data = os.urandom(size)
    answer = put(mine, session, "/sandbox/f", data)
    assert (answer.status_code, answer.json()) == (200, {"ok": True})
    answer = get(mine, session, "/sandbox/f")
    assert list(answer.json()) == ["content"]
    assert base64.b64decode(answer.json()["content"], validate=True) == data
    digest = hashlib.sha256(data).hexdigest()
    assert mine.run("sha256sum < /sandbox/f", session=session)["stdout"].split()[0] == digest


def test_48_mib_arrive_whole(mine, session):
    data = os.urandom(MIB) * 48
    assert put(mine, session, "/sandbox/big", data).json() == {"ok": True}
    assert base64.b64decode(get(mine, session, "/sandbox/big").json()["content"]) == data


def test_a_put_overwrites(mine, session):
    put(mine, session, "/sandbox/f", b"x" * 100)
    put(mine, session, "/sandbox/f", b"y")
    assert mine.run("cat f", session=session)["stdout"] == "y"


def test_a_put_file_is_the_programs_own(mine, session):
    put(mine, session, "/sandbox/f", b"1")
    assert mine.run("echo 2 >> f && cat f && stat -c %a f", session=session)["stdout"].splitlines()[-1] == "644"


@pytest.mark.parametrize("name", ["a b", "a'b", 'a"b', "a;b", "$HOME", "ä", "a\nb", "-rf"])
def test_names_are_taken_as_they_are(mine, session, name):
    put(mine, session, f"/sandbox/{name}", b"here")
    assert base64.b64decode(get(mine, session, f"/sandbox/{name}").json()["content"]) == b"here"


def test_a_relative_path_is_below_the_home(mine, session):
    put(mine, session, "f", b"here")
    assert mine.run("cat /sandbox/f", session=session)["stdout"] == "here"
    assert get(mine, session, "f").status_code == 200


def test_a_space_may_be_a_plus(mine, session):
    put(mine, session, "/sandbox/a b", b"here")
    assert mine.http.get("/file?sessionId=s&path=%2Fsandbox%2Fa+b").status_code == 200


@pytest.mark.parametrize("content", ["aGk", "aGk=", "aG k=", "-_8=", "+/8="])
def test_base64_is_read_as_the_originals_runtime_reads_it(mine, session, content):
    answer = mine.http.post("/file", json={"sessionId": session, "path": "f", "content": content})
    assert answer.json() == {"ok": True}
    assert base64.b64decode(get(mine, session, "f").json()["content"]) in {b"hi", b"\xfb\xff"}


@pytest.mark.parametrize("body", [{}, {"sessionId": "none", "path": "/x", "content": ""}, {"path": "/x"}])
def test_a_put_needs_a_session(mine, body):
    answer = mine.http.post("/file", json=body)
    assert (answer.status_code, answer.json()) == (404, {"error": "Session not found"})


def test_a_get_needs_a_session(mine):
    answer = get(mine, "none", "/x")
    assert (answer.status_code, answer.json()) == (404, {"error": "Session not found"})


@pytest.mark.parametrize("query", ["", "?sessionId=s", "?path=/x", "?sessionId=&path=/x", "?sessionId=s&path="])
def test_a_get_needs_both_parameters(mine, query):
    answer = mine.http.get(f"/file{query}")
    assert (answer.status_code, answer.json()) == (400, {"error": "Missing sessionId or path"})


@pytest.mark.parametrize("path", ["/sandbox/none", "/sandbox", "/etc/shadow/x"])
def test_what_cannot_be_read_fails_as_in_the_original(mine, session, path):
    answer = get(mine, session, path)
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    assert answer.headers["content-type"] == "text/plain; charset=UTF-8"


@pytest.mark.parametrize("path", ["/sandbox/none/f", "/sandbox", "/proc/f"])
def test_what_cannot_be_written_fails_as_in_the_original(mine, session, path):
    answer = put(mine, session, path, b"x")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")


def test_a_session_without_a_sandbox_has_no_files(mine):
    mine.execute("true", session="s", workdir="/etc")
    assert get(mine, "s", "/x").status_code == 500
    assert put(mine, "s", "/x", b"").status_code == 500


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'{"sessionId":5}', b'{"sessionId":"s","path":"f"}', b'{"sessionId":"s","path":"f","content":"*"}'],
)
def test_what_is_no_file_is_a_bad_request(mine, session, body):
    answer = mine.http.post("/file", content=body)
    assert answer.status_code == 400, "the original answers 500"
    assert list(answer.json()) == ["error"]


def test_a_body_past_the_limit_is_refused_without_a_word(mine, session):
    head = {"content-length": str(129 * MIB)}
    with httpx2.Client(base_url=mine.http.base_url, headers=mine.http.headers) as client:
        answer = client.post("/file", content=(b"x" * MIB for _ in range(129)), headers=head)
    assert (answer.status_code, answer.content) == (413, b"")
