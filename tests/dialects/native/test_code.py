"""Code in contexts over the wire: plain Python and bash, which every image and machine of the tests has."""

# ruff: noqa: ANN001, ANN003, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import concurrent.futures
import json
import os
import pwd
import time

import httpx2
import pytest

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def where(server):
    return f"/sandboxes/{server.sandbox()['id']}"


def run(server, where, code, **more):
    answer = server.client.post(f"{where}/code", json={"code": code, **more}, timeout=LIMIT_S)
    assert answer.status_code == 200, answer.text
    return answer.json()


def until(fact):
    deadline = time.monotonic() + LIMIT_S
    while not (found := fact()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)
    return found


def events_of(text):
    parsed = []
    for one in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in one.splitlines() if not line.startswith(":"))
        if "event" in lines:
            parsed.append((lines["event"], json.loads(lines["data"])))
    return parsed


def main_text(found):
    return next(one["data"]["text/plain"] for one in found["results"] if one["main"])


@pytest.fixture
def context(server, where):
    made = server.client.post(f"{where}/contexts", json={"cwd": "/usr"}, timeout=LIMIT_S)
    assert made.status_code == 201, made.text
    found = made.json()
    assert made.headers["location"] == f"/api/v1{where}/contexts/{found['id']}"
    yield found["id"]
    server.client.delete(f"{where}/contexts/{found['id']}")


def is_busy(server, where, context):
    return server.client.get(f"{where}/contexts/{context}").json()["busy"]


def test_state_lasts_from_run_to_run(server, where):
    first = run(server, where, "x = 41")
    assert (first["context"], first["status"], first["results"]) == ("python", "ok", [])
    again = run(server, where, "x + 1")
    assert (main_text(again), again["count"], again["fresh"]) == ("42", first["count"] + 1, False)
    assert run(server, where, "x", language="py", context="python")["status"] == "ok"


def test_output_errors_and_environment(server, where, context):
    code = "import os, sys\nprint(os.environ['A'], os.getcwd())\nprint('e', file=sys.stderr)\n1/0"
    found = run(server, where, code, context=context, env={"A": "1 '\u00fc"})
    assert (found["stdout"], found["stderr"], found["status"]) == ("1 '\u00fc /usr\n", "e\n", "error")
    assert (found["error"]["name"], found["error"]["value"]) == ("ZeroDivisionError", "division by zero")
    assert any("1/0" in line for line in found["error"]["traceback"])
    assert main_text(run(server, where, "'A' in os.environ", context=context)) == "False"


def test_a_stream_is_told_in_order_and_ends_in_done(server, where, context):
    code = "import sys, time\nfor n in range(3):\n    print(n, flush=True)\nprint('e', file=sys.stderr, flush=True)\n7"
    answer = server.client.post(f"{where}/code/stream", json={"code": code, "context": context}, timeout=LIMIT_S)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    assert events[0] == ("started", {"context": context, "count": 1, "fresh": False})
    assert "".join(data["text"] for name, data in events if name == "stdout") == "0\n1\n2\n"
    names = [name for name, _ in events]
    assert (names[-3:], events[-2][1]["data"]["text/plain"]) == (["stderr", "result", "done"], "7")
    assert (events[-1][1]["status"], events[-1][1]["count"], events[-1][1]["detail"]) == ("ok", 1, None)
    assert events[-1][1]["duration_ms"] > 0


def test_runs_of_a_context_queue_in_order(server, where, context):
    run(server, where, "seen = []", context=context)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        code = "import time\nmine = len(seen)\ntime.sleep(0.01)\nseen.append(mine)"
        answers = list(pool.map(lambda _: run(server, where, code, context=context), range(8)))
    assert {one["status"] for one in answers} == {"ok"}
    assert main_text(run(server, where, "seen", context=context)) == str(list(range(8)))


def test_contexts_are_apart_listed_and_removed(server, where, context):
    run(server, where, "only_here = 1", context=context)
    assert run(server, where, "only_here")["error"]["name"] == "NameError"
    listed = {one["id"]: one for one in server.client.get(f"{where}/contexts").json()["contexts"]}
    facts = listed[context]
    assert (facts["language"], facts["alive"], facts["busy"], facts["runs"]) == ("python", True, False, 1)
    assert facts["cwd"].endswith("/usr")
    assert (facts["rich"], bool(facts["missing"])) in {(False, True), (True, False)}
    assert server.client.delete(f"{where}/contexts/{context}").status_code == 204
    assert server.client.get(f"{where}/contexts/{context}").status_code == 404
    gone = server.client.post(f"{where}/code", json={"code": "1", "context": context})
    assert (gone.status_code, gone.json()["code"]) == (404, "not-found")


def test_contexts_are_neither_commands_nor_shells(server, where, context):
    run(server, where, "true", language="bash")
    assert context not in str(server.client.get(f"{where}/commands").json())
    assert "k-" not in str(server.client.get(f"{where}/shells").json())
    for path in (f"commands/k-{context}", "shells/k-bash"):
        assert server.client.get(f"{where}/{path}").status_code == 404
        assert server.client.delete(f"{where}/{path}").status_code == 404


def test_a_time_limit_interrupts_and_state_stays(server, where, context):
    run(server, where, "kept = 5", context=context)
    found = run(server, where, "import time\ntime.sleep(600)", context=context, timeout_s=0.3)
    assert (found["status"], found["error"]["name"]) == ("timeout", "KeyboardInterrupt")
    assert main_text(run(server, where, "kept", context=context)) == "5"


def test_code_that_does_not_stop_loses_its_interpreter(server, where, context):
    stubborn = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nkept = 1\nwhile True: time.sleep(1)"
    found = run(server, where, stubborn, context=context, timeout_s=0.2)
    assert (found["status"], "killed" in found["detail"]) == ("timeout", True)
    after = run(server, where, "kept", context=context)
    assert (after["fresh"], after["error"]["name"]) == (True, "NameError")
    assert main_text(run(server, where, "import os; os.getcwd()", context=context)) == "'/usr'"


def test_an_interrupt_ends_a_run_and_keeps_state(server, where, context):
    idle = server.client.post(f"{where}/contexts/{context}/interrupt")
    assert (idle.status_code, idle.json()["code"]) == (409, "conflict")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        code = "kept = 6\nimport time\ntime.sleep(600)"
        under_way = pool.submit(run, server, where, code, context=context)
        until(lambda: is_busy(server, where, context))
        # The first may come before the code has begun.
        until(lambda: server.client.post(f"{where}/contexts/{context}/interrupt") and under_way.done())
        found = under_way.result(LIMIT_S)
    assert found["status"] == "interrupted"
    assert run(server, where, "1", context=context)["fresh"] is False


def test_a_client_that_leaves_interrupts_its_code(server, where, context):
    body = {"code": "import time\nprint('on', flush=True)\ntime.sleep(600)", "context": context}
    with server.client.stream("POST", f"{where}/code/stream", json=body, timeout=LIMIT_S) as answer:
        for piece in answer.iter_text():
            if "on" in piece:
                break
    until(lambda: not is_busy(server, where, context))
    after = run(server, where, "1", context=context)
    assert (after["fresh"], after["count"]) == (False, 2)


def test_a_kernel_that_dies_is_told_and_replaced(server, where, context):
    for code, detail in (("import os; os._exit(3)", "exit code 3"), ("os.kill(os.getpid(), 9)", "SIGKILL")):
        found = run(server, where, f"import os\n{code}", context=context)
        assert (found["status"], detail in found["detail"]) == ("kernel-died", True)
        until(lambda: not server.client.get(f"{where}/contexts/{context}").json()["alive"])
        assert run(server, where, "1", context=context)["fresh"] is True


def test_a_restart_kills_what_runs(server, where, context):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(run, server, where, "import time; kept = 1; time.sleep(600)", context=context)
        until(lambda: is_busy(server, where, context))
        again = server.client.post(f"{where}/contexts/{context}/restart", timeout=LIMIT_S)
        assert (again.status_code, again.json()["alive"], again.json()["runs"]) == (200, True, 0)
        assert under_way.result(LIMIT_S)["status"] == "kernel-died"
    after = run(server, where, "kept", context=context)
    assert (after["error"]["name"], after["count"]) == ("NameError", 1)


def test_bash_keeps_its_state(server, where):
    run(server, where, "cd /usr; x='a b'; f() { echo \"f $1\"; }", language="bash")
    found = run(server, where, 'pwd; f "$x"; echo "$A"; echo err >&2; (exit 7)', language="bash", env={"A": "it's"})
    assert (found["stdout"], found["stderr"], found["status"]) == ("/usr\nf a b\nit's\n", "err\n", "error")
    assert found["error"] == {"name": "ExitStatus", "value": "exit status 7", "traceback": []}
    assert run(server, where, 'echo "[$A]"', language="sh")["stdout"] == "[]\n"
    assert run(server, where, "sleep 600", language="bash", timeout_s=0.2)["status"] == "timeout"
    died = run(server, where, "exit 4", language="bash")
    assert (died["status"], died["detail"]) == ("kernel-died", "it ended with exit code 4")
    assert run(server, where, 'echo "[$x]"', language="bash")["fresh"] is True
    facts = server.client.get(f"{where}/contexts/bash").json()
    assert (facts["kernel"], facts["rich"], facts["runs"]) == ("bash", False, 1)


def test_completion(server, where, context):
    run(server, where, "a_long_name = 1", context=context)
    found = server.client.post(f"{where}/contexts/{context}/complete", json={"code": "1 + a_lo"}).json()
    assert (found["start"], found["end"]) == (4, 8)
    assert "a_long_name" in found["matches"]
    run(server, where, "true", language="bash")
    found = server.client.post(f"{where}/contexts/bash/complete", json={"code": "ls /et && x", "cursor": 6}).json()
    assert ("/etc" in found["matches"], found["start"], found["end"]) == (True, 3, 6)
    late = server.client.post(f"{where}/contexts/{context}/complete", json={"code": "1", "cursor": 2})
    assert (late.status_code, late.json()["field"]) == (400, "cursor")


def test_languages_say_what_is_missing(server, where):
    found = {one["name"]: one for one in server.client.get(f"{where}/languages").json()["languages"]}
    assert {"python", "javascript", "typescript", "bash"} <= set(found)
    assert (found["python"]["usable"], found["bash"]["usable"]) == (True, True)
    assert all(one["usable"] or one["missing"] for one in found.values())


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"code": "1", "language": "no such thing"}, 400, "language"),
        ({"code": "1", "language": "cobol-85"}, 501, "language"),
        ({"code": "1", "context": "UPPER"}, 400, "context"),
        ({"code": "1", "context": "python", "language": "bash"}, 400, "language"),
        ({"code": "1", "env": {"1A": ""}}, 400, "env"),
        ({"code": "1", "timeout_s": 0}, 400, "timeout_s"),
        ({"code": "x" * (1 << 20)}, 413, "code"),
        ({"code": ": " + "x" * (1 << 17), "language": "bash"}, 413, "code"),
        ({"code": 1}, 400, "code"),
        ({}, 400, "code"),
        ({"code": "1", "nonsense": 1}, 400, "nonsense"),
    ],
)
def test_what_is_no_run_is_refused(server, where, body, status, field):
    for path in ("code", "code/stream"):
        answer = server.client.post(f"{where}/{path}", json=body, timeout=LIMIT_S)
        assert (answer.status_code, answer.json().get("field")) == (status, field), answer.text


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"cwd": "usr"}, 400, "cwd"),
        ({"cwd": "/no/such/place"}, 400, "cwd"),
        ({"user": "no-such-user"}, 400, "user"),
        ({"language": "cobol-85"}, 501, "language"),
        ({"language": "bash", "cwd": "/no/such/place"}, 400, "cwd"),
        ({"idle_timeout_s": 0}, 400, "idle_timeout_s"),
    ],
)
def test_what_is_no_context_is_refused(server, where, body, status, field):
    before = len(server.client.get(f"{where}/contexts").json()["contexts"])
    answer = server.client.post(f"{where}/contexts", json=body, timeout=LIMIT_S)
    assert (answer.status_code, answer.json().get("field")) == (status, field), answer.text
    assert len(server.client.get(f"{where}/contexts").json()["contexts"]) == before


def test_an_idle_context_ends(server, where):
    made = server.client.post(f"{where}/contexts", json={"idle_timeout_s": 1}, timeout=LIMIT_S).json()
    # Looking at it asks its kernel, which is no work.
    until(lambda: not server.client.get(f"{where}/contexts/{made['id']}").json()["alive"])
    assert run(server, where, "1", context=made["id"])["fresh"] is True
    server.client.delete(f"{where}/contexts/{made['id']}")


def test_large_output_keeps_its_tail_and_large_results_come_whole(server, where, context):
    found = run(server, where, "print('a' * 12_000_000 + 'end')", context=context)
    assert (found["stdout"].endswith("aend\n"), found["stdout_dropped_bytes"] > 1_000_000) == (True, True)
    assert len(found["stdout"]) + found["stdout_dropped_bytes"] == 12_000_004
    code = "class Big:\n    def _repr_html_(self): return 'b' * 3_000_000\nBig()"
    result = run(server, where, code, context=context)["results"][0]
    assert (len(result["data"]["text/html"]), result["dropped"]) == (3_000_000, [])


def test_a_reader_may_not_run_code(server, where):
    made = server.client.post("/keys", json={"name": "reader", "scopes": ["read"]}).json()
    headers = {"Authorization": f"Bearer {made['key']}"}
    with httpx2.Client(base_url=f"{server.url}/api/v1", headers=headers) as key:
        assert key.get(f"{where}/contexts").status_code == 200
        assert key.post(f"{where}/code", json={"code": "1"}).status_code == 403
        assert key.post(f"{where}/contexts", json={}).status_code == 403


def test_another_user_has_contexts_too(server, where, driver):
    is_plain = driver == "fake" and os.geteuid() != 0  # the fake driver's agent is a process of this user
    user = pwd.getpwuid(os.geteuid()).pw_name if is_plain else "daemon"
    made = server.client.post(f"{where}/contexts", json={"user": user, "cwd": "/tmp"}, timeout=LIMIT_S)
    assert made.status_code == 201, made.text
    context = made.json()["id"]
    code = "import os, pwd\npwd.getpwuid(os.getuid()).pw_name"
    assert main_text(run(server, where, code, context=context)) == repr(user)
    server.client.delete(f"{where}/contexts/{context}")


def test_runs_are_counted_and_on_record(server):
    where = f"/sandboxes/{server.sandbox()['id']}"
    run(server, where, "1/0  # of the record", env={"SECRET": "not-on-record"})
    until(lambda: any(one["event"] == "exec.exit" for one in audit(server, where)))
    lines = audit(server, where)
    start = next(one for one in lines if one["event"] == "exec.start")
    end = next(one for one in lines if one["event"] == "exec.exit")
    assert (start["data"]["command"], start["data"]["context"]) == ("1/0  # of the record", "python")
    assert (end["data"]["exec"], end["data"]["exit_code"], end["data"]["why"]) == (start["data"]["exec"], 1, "error")
    assert "not-on-record" not in json.dumps(lines)
    metrics = httpx2.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {server.key}"}).text
    assert 'cove_code_runs_total{status="error"}' in metrics
    assert server.client.post(f"{where}/contexts", json={}, timeout=LIMIT_S).status_code == 201
    assert [one["data"]["language"] for one in audit(server, where) if one["event"] == "context.created"] == ["python"]
    server.client.delete(where)


def audit(server, where):
    return server.client.get(f"{where}/audit").json()["lines"]
