"""Sessions over HTTP: what stays between two runs, whose turn it is, which ids there are, and how they end."""

# ruff: noqa: ANN001, ANN201, ANN202 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest

pytestmark = pytest.mark.real

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
LIMIT_S = 30.0


def until(fact):
    """Wait for something, as long as a loaded machine may take."""
    deadline = time.monotonic() + LIMIT_S
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_files_and_background_processes_stay_and_variables_do_not(mine):
    mine.run("echo kept > /sandbox/a; echo t > /tmp/b; x=42; sleep 300 & echo $! > /sandbox/pid", session="s")
    found = mine.run('cat /sandbox/a /tmp/b; echo "x=$x"; kill -0 $(cat /sandbox/pid) && echo alive', session="s")
    assert found["stdout"] == "kept\nt\nx=\nalive"


def test_runs_without_a_session_share_nothing(mine):
    mine.run("echo secret > /sandbox/a")
    assert mine.run("ls -A /sandbox")["stdout"] == ""
    assert mine.sessions() == {}


def test_an_empty_session_id_is_no_session(mine):
    assert mine.execute("true", session="").status_code == 200
    assert mine.sessions() == {}


def test_sessions_are_listed_in_the_order_in_which_they_were_made(mine):
    for name in ("b", "a", "c"):
        mine.run("true", session=name)
    mine.run("true", session="b")
    answer = mine.http.get("/sessions")
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert list(found) == ["sessions"]
    assert [one["id"] for one in found["sessions"]] == ["b", "a", "c"]
    assert all(list(one) == ["id", "isActive", "lastAccessedAt"] for one in found["sessions"])
    assert all(ISO.fullmatch(one["lastAccessedAt"]) and one["isActive"] is False for one in found["sessions"])


def test_a_run_moves_the_time_of_last_access_and_a_list_does_not(mine):
    mine.run("true", session="s")
    before = mine.sessions()["s"]["lastAccessedAt"]
    assert mine.sessions()["s"]["lastAccessedAt"] == before
    time.sleep(0.005)
    mine.run("true", session="s")
    assert mine.sessions()["s"]["lastAccessedAt"] > before


def test_a_session_is_active_during_a_run_only(mine):
    with ThreadPoolExecutor() as pool:
        running = pool.submit(mine.run, "until [ -e /sandbox/go ]; do sleep 0.05; done", session="s")
        until(lambda: mine.sessions().get("s", {}).get("isActive"))
        until(lambda: put(mine, "s", "/sandbox/go").status_code == 200)
        assert running.result(LIMIT_S)["exitCode"] == 0
    until(lambda: not mine.sessions()["s"]["isActive"])


def put(caller, session, path):
    return caller.http.post("/file", json={"sessionId": session, "path": path, "content": ""})


def test_runs_of_a_session_wait_for_each_other(mine):
    mine.run("true", session="s")
    code = "[ ! -e /sandbox/in ] || echo two; touch /sandbox/in; sleep 0.1; rm /sandbox/in; echo x >> /sandbox/n"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: mine.run(code, session="s")["stdout"], range(8)))
    assert found == [""] * 8
    assert mine.run("wc -l < /sandbox/n", session="s")["stdout"] == "8"


def test_parallel_first_runs_make_one_sandbox(mine):
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda n: mine.run(f"echo {n} >> /sandbox/n", session="s"), range(6)))
    assert len({one["containerId"] for one in found}) == 1
    assert mine.run("wc -l < /sandbox/n", session="s")["stdout"] == "6"


def test_sessions_do_not_wait_for_each_other(mine):
    together = threading.Barrier(2, timeout=LIMIT_S)

    def one(session):
        mine.run("true", session=session)
        together.wait()
        return mine.run("for i in 1 2 3 4 5 6 7 8 9; do [ -e /sandbox/go ] && exit; sleep 0.1; done; exit 3",
                        session=session)  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        assert [found["exitCode"] for found in pool.map(one, ("a", "b"))] == [3, 3]


def test_options_count_once(mine):
    mine.run("true", session="s", options={"secrets": {"TOKEN": "first-secret"}, "maxOutputSize": 5})
    found = mine.run("echo $TOKEN; echo 123456789", session="s", options={"secrets": {"TOKEN": "second"}})
    assert found["stdout"].startswith("***\n1")
    assert found["truncated"]


def test_another_runtime_is_refused_with_the_originals_text(mine):
    mine.run("true", session="s")
    answer = mine.execute("1", runtime="python", session="s")
    assert answer.status_code == 500
    assert answer.json() == {
        "error": 'Cannot switch runtime from "bash" to "python". Each persistent container supports a single runtime. '
        "Create a new Isol8 instance for a different runtime."
    }


def test_a_refused_first_run_still_lists_the_session(mine):
    answer = mine.execute("true", session="s", workdir="/etc")
    assert (answer.status_code, answer.json()) == (500, {"error": "Working directory must be inside /sandbox"})
    assert list(mine.sessions()) == ["s"]
    assert mine.run("echo fine", session="s")["stdout"] == "fine"


@pytest.mark.parametrize("session", ["a/b", "a%2Fb", "my s/1", "ä€", "a..b", "%", "a?b#c", "x" * 1000, " "])
def test_ids_are_any_text(mine, session):
    mine.run("echo here > /sandbox/f", session=session)
    assert list(mine.sessions()) == [session]
    assert mine.run("cat f", session=session)["stdout"] == "here"
    answer = mine.http.delete(f"/session/{quote(session, safe='')}")
    assert (answer.status_code, answer.json()) == (200, {"ok": True})
    assert mine.sessions() == {}


def test_a_slash_in_a_path_is_no_part_of_an_id(mine):
    mine.run("true", session="a/b")
    answer = mine.http.delete("/session/a/b")
    assert (answer.status_code, answer.text) == (404, "404 Not Found")
    assert "a/b" in mine.sessions()


def test_an_id_that_is_too_long_is_refused(mine):
    assert mine.execute("true", session="x" * 1025).status_code in {400, 500}
    assert mine.sessions() == {}


def test_deleting_is_ok_whatever_there_was_and_the_same_id_is_fresh(mine):
    assert mine.http.delete("/session/none").json() == {"ok": True}
    first = mine.run("touch /sandbox/a", session="s")
    assert mine.http.delete("/session/s").json() == {"ok": True}
    found = mine.run("ls -A /sandbox", session="s")
    assert "a" not in found["stdout"].split()
    assert found["containerId"] != first["containerId"]


def test_deleting_ends_a_run_with_137(mine):
    with ThreadPoolExecutor() as pool:
        running = pool.submit(mine.run, "touch /sandbox/on; sleep 300", session="s")
        until(lambda: mine.http.get("/file", params={"sessionId": "s", "path": "on"}).status_code == 200)
        assert mine.http.delete("/session/s").json() == {"ok": True}
        found = running.result(LIMIT_S)
    assert found["exitCode"] == 137
    assert "containerId" not in found
    assert mine.sessions() == {}


def test_another_project_has_sessions_of_its_own(mine, theirs):
    mine.run("echo mine > /sandbox/f", session="s")
    assert theirs.sessions() == {}
    assert theirs.http.get("/file", params={"sessionId": "s", "path": "f"}).status_code == 404
    assert theirs.http.delete("/session/s").json() == {"ok": True}
    theirs.run("echo theirs > /sandbox/f", session="s")
    assert mine.run("cat f", session="s")["stdout"] == "mine"


def test_a_sessions_sandbox_is_one_of_the_native_api(server, isol8):
    session = "native-view"
    isol8.run("echo hello > /sandbox/f", session=session)
    found = server.client.get("/sandboxes", params={"metadata.session": session}).json()["sandboxes"]
    assert len(found) == 1
    answer = server.client.get(f"/sandboxes/{found[0]['id']}/files/content", params={"path": "/sandbox/f"})
    assert answer.text == "hello\n"
    assert server.client.delete(f"/sandboxes/{found[0]['id']}").status_code in {200, 204}
    assert session not in isol8.sessions(), "its sandbox ended, so it did"
