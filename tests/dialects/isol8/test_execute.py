"""POST /execute: the envelope, each field and option, the result. Named as the rows of docs/protocols/isol8.md."""

# ruff: noqa: ANN001, ANN201 - fixtures are typed where they are defined

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.real

KEYS = [
    *("stdout", "stderr", "exitCode", "durationMs", "truncated", "executionId", "runtime", "timestamp"),
    *("containerId", "resourceUsage"),
]
NO_SOURCE = "ExecutionRequest must include exactly one of: code, codeUrl, or cmd."
SEVERAL = (
    "ExecutionRequest.code, ExecutionRequest.codeUrl, and ExecutionRequest.cmd are mutually exclusive — provide "
    "exactly one."
)


def test_hello_has_the_fields_in_their_order(client):
    answer = client.post("/execute", json={"request": {"code": "print('hello')", "runtime": "python"}})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert list(found) == KEYS
    assert (found["stdout"], found["stderr"], found["exitCode"]) == ("hello", "", 0)
    assert found["truncated"] is False
    assert found["runtime"] == "python"
    assert isinstance(found["durationMs"], int)
    assert uuid.UUID(found["executionId"]).version == 4
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["timestamp"])
    assert re.fullmatch(r"[0-9a-f]{64}", found["containerId"])
    assert list(found["resourceUsage"]) == ["cpuPercent", "memoryMB", "networkBytesIn", "networkBytesOut"]


@pytest.mark.parametrize(
    ("runtime", "code"),
    [("python", "print('hello')"), ("node", "console.log('hello')"), ("bash", "echo hello")],
)
def test_each_runtime_says_hello(run, runtime, code):
    assert run(code, runtime)["stdout"] == "hello"


def test_the_roots_paths_are_the_prefixs(machine, client):
    answer = client.post(f"{machine.url}/execute", json={"request": {"code": "echo root", "runtime": "bash"}})
    assert answer.json()["stdout"] == "root"


def test_all_white_space_at_the_end_is_removed(run):
    found = run(r"printf ' a \n\t\n'; printf 'b\r\n \n' >&2")
    assert (found["stdout"], found["stderr"]) == (" a", "b")


def test_exit_codes_are_the_programs(run):
    assert run("exit 7")["exitCode"] == 7
    assert run("kill -TERM $$")["exitCode"] == 143


def test_unknown_fields_and_content_types_are_passed_over(client):
    body = json.dumps({"request": {"code": "echo a", "runtime": "bash", "x": 1}, "mode": "persistent", "sessionId": ""})
    answer = client.post("/execute", content=body, headers={"Content-Type": "text/plain"})
    assert answer.json()["stdout"] == "a"


@pytest.mark.parametrize(
    ("body", "words"),
    [("{", "JSON"), ("", "request"), ('{"request":1}', "request"), ("[]", "object"), ('{"request":{"env":1}}', "env")],
)
def test_what_is_no_request_is_400(client, body, words):
    answer = client.post("/execute", content=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert client.post("/execute/stream", content=body).status_code == 400


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({}, NO_SOURCE),
        ({"code": " \n"}, NO_SOURCE),
        ({"code": "a", "cmd": "b"}, SEVERAL),
        ({"code": "a", "codeUrl": "https://example.com/"}, SEVERAL),
        ({"code": "a", "runtime": "x"}, 'Unknown runtime: "x". Available: python, node, bun, bash, deno, agent'),
        ({"code": "a", "workdir": "/etc"}, "Working directory must be inside /sandbox"),
        ({"code": "a", "workdir": "../x"}, "Working directory must be inside /sandbox"),
        ({"code": "a", "workdir": "/sandboxes"}, "Working directory must be inside /sandbox"),
    ],
)
def test_a_request_that_is_refused_has_their_sentence(run, request_, text):
    found = run(**{"runtime": "bash", **request_})
    assert found == {"status": 500, "error": text}


@pytest.mark.parametrize("text", ["", "m", "12x", "-1m", "1 2m", "0", "1e3"])
def test_a_bad_memory_limit_has_their_sentence(run, text):
    said = f'Invalid memory limit format: "{text}". Use e.g. "512m", "1g".'
    assert run("echo", options={"memoryLimit": text}) == {"status": 500, "error": said}


@pytest.mark.parametrize("text", ["64m", "65536k", "0.0625G", "64MB", "67108864", "64Mb"])
def test_memory_limits_are_powers_of_1024(run, text):
    assert run("df --output=size -k /sandbox | tail -1", options={"sandboxSize": text})["stdout"].strip() == "65536"


def test_cmd_is_for_bash_whatever_the_runtime(run):
    assert run(cmd="echo $BASH_VERSION | cut -c1", runtime="python")["stdout"] == "5"


def test_inline_code_is_no_file_and_a_file_has_their_name(run):
    code = "import sys, os; print(sys.argv[0], os.path.exists('/sandbox/main.py'))"
    assert run(code, "python")["stdout"] == "-c False"
    assert run(code, "python", stdin="x")["stdout"] == "/sandbox/main.py True"
    assert run("echo $0", fileExtension=".bash")["stdout"] == "/sandbox/main.bash"


def test_node_inline_has_require_and_its_files_are_modules(run):
    code = "console.log(typeof require)"
    assert run(code, "node")["stdout"] == "function"
    assert run(code, "node", outputPaths=[])["stdout"] == "undefined"
    assert run(code, "node", outputPaths=[], fileExtension=".cjs")["stdout"] == "function"


def test_the_environment_is_theirs(run):
    found = dict(line.split("=", 1) for line in run("env")["stdout"].splitlines())
    path = "/sandbox/.local/bin:/sandbox/.npm-global/bin:/sandbox/.bun-global/bin:/usr/local/bin:/usr/bin:/bin"
    wanted = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONUSERBASE": "/sandbox/.local",
        "NPM_CONFIG_PREFIX": "/sandbox/.npm-global",
        "DENO_DIR": "/sandbox/.deno",
        "PATH": path,
        "NODE_PATH": "/usr/local/lib/node_modules:/sandbox/.npm-global/lib/node_modules:/sandbox/node_modules",
        "HOME": "/sandbox",
    }
    assert {name: found.get(name) for name in wanted} == wanted


def test_env_comes_after_secrets_and_is_not_masked(run):
    found = run("echo $A $B", env={"A": "mine", "B": "b"}, options={"secrets": {"A": "secret", "C": ""}})
    assert found["stdout"] == "mine b"


def test_who_runs_where(run):
    found = run("id -u; id -g; whoami; pwd; echo ~; node -e 1 2>/dev/null; umask")["stdout"].splitlines()
    assert found[:5] == ["100", "101", "sandbox", "/sandbox", "/sandbox"]


def test_workdir_is_resolved_below_sandbox(run):
    assert run("pwd", setupScript="mkdir -p a/b", workdir="a/./c/../b")["stdout"] == "/sandbox/a/b"
    assert run("pwd", workdir="/sandbox/")["stdout"] == "/sandbox"


def test_stdin_is_piped_and_without_it_there_is_an_end(run):
    assert run("cat; exit 4", stdin="some\ntext")["stdout"] == "some\ntext"
    assert run("cat; exit 4", stdin="x")["exitCode"] == 4
    assert run("cat; echo end", stdin="")["stdout"] == "end"
    assert run("cat; echo end")["stdout"] == "end"


def test_files_are_written_as_text_and_as_bytes(run):
    data = bytes(range(256)) * 4096
    files = {
        "/sandbox/t.txt": "ä\n",
        "rel/ative.txt": "r",
        "/sandbox/b.bin": {"type": "Buffer", "data": list(data)},
    }
    found = run("cat t.txt rel/ative.txt; sha256sum < b.bin; touch rel/more; stat -c %U:%G b.bin rel", files=files)
    lines = found["stdout"].splitlines()
    assert lines[0] == "ä"
    assert lines[1] == "r" + hashlib.sha256(data).hexdigest() + "  -"
    assert lines[2:] == ["sandbox:sandbox"] * 2


def test_a_file_that_cannot_be_written_is_named(run):
    found = run("echo", files={"/etc/passwd": "x"})
    assert found == {"status": 500, "error": "Failed to write file /etc/passwd in container (exit code 1)"}


def test_output_paths_are_base64_and_what_is_not_there_is_left_out(run):
    code = r"printf 'a\0b' > out.bin; mkdir d"
    found = run(code, outputPaths=["/sandbox/out.bin", "/nowhere", "d", "out.bin"])
    data = base64.b64encode(b"a\0b").decode()
    assert found["files"] == {"/sandbox/out.bin": data, "out.bin": data}
    assert list(found) == [*KEYS, "files"]
    assert run("echo", outputPaths=[])["files"] == {}
    assert "files" not in run("echo")


def test_a_time_out_keeps_what_was_said(run):
    found = run("echo before; echo err >&2; sleep 60", timeoutMs=700)
    assert found["stdout"] == "before"
    assert found["stderr"] == "err\n\n--- EXECUTION TIMED OUT ---"
    assert found["exitCode"] == 137
    assert 600 <= found["durationMs"] < 30_000


def test_the_options_time_is_the_default_and_0_is_at_once(run):
    assert "TIMED OUT" in run("sleep 60", options={"timeoutMs": 300})["stderr"]
    assert run("sleep 0.4; echo done", timeoutMs=30_000, options={"timeoutMs": 10})["stdout"] == "done"
    assert "TIMED OUT" in run("sleep 60", timeoutMs=0)["stderr"]


def test_a_kill_for_memory_is_137(run):
    found = run("x = bytearray(200 * 1024**2)", "python", options={"memoryLimit": "48m"})
    assert found["exitCode"] == 137


def test_pids_are_limited(run):
    code = """
import os, time
n = 0
try:
    while n < 200:
        if os.fork() == 0:
            time.sleep(30)
        n += 1
except OSError:
    print(n)
"""
    # Beside its own, the sandbox has some for Cove's agent.
    assert int(run(code, "python", options={"pidsLimit": 20})["stdout"]) < 40


def test_cut_output_says_how_much_there_was(run):
    found = run(
        "head -c 5000 /dev/zero | tr '\\0' a; sleep 0.1; head -c 5001 /dev/zero | tr '\\0' b",
        options={"maxOutputSize": 100},
    )
    assert found["stdout"] == "a" * 100 + "\n\n--- OUTPUT TRUNCATED (10001 bytes, limit: 100) ---"
    assert found["truncated"] is True
    exact = run("head -c 100 /dev/zero | tr '\\0' a", options={"maxOutputSize": 100})
    assert (exact["truncated"], exact["stdout"]) == (False, "a" * 100)
    assert run("echo abc >&2", options={"maxOutputSize": 2})["truncated"] is True


def test_no_character_is_cut_in_two(run):
    found = run("printf 'ääää'", options={"maxOutputSize": 3})
    assert found["stdout"].startswith("ä\n\n--- OUTPUT TRUNCATED (8 bytes, limit: 3)")


def test_the_operators_limit_of_output_wins(run):
    found = run("head -c 4000000 /dev/zero | tr '\\0' a", options={"maxOutputSize": 10**9})
    assert found["truncated"] is True
    assert found["stdout"].endswith("--- OUTPUT TRUNCATED (4000000 bytes, limit: 2097152) ---")


def test_much_output_does_not_hold_the_server_up(run):
    found = run("head -c 100000000 /dev/zero", options={"maxOutputSize": 10})
    assert "(100000000 bytes, limit: 10)" in found["stdout"]


def test_secrets_are_masked_the_longest_first(run):
    secrets = {"SHORT": "abc", "LONG": "abcdef", "EMPTY": ""}
    code = "echo $SHORT $LONG xabcdefx; echo $LONG >&2; printf abc; sleep 0.2; printf def"
    found = run(code, options={"secrets": secrets})
    assert found["stdout"] == "*** *** x***x\n***"
    assert found["stderr"] == "***"


def test_a_secret_is_not_told_by_the_cut(run):
    found = run("printf 'x%s' $S", options={"secrets": {"S": "topsecret"}, "maxOutputSize": 3})
    assert found["stdout"].startswith("x**\n")


def test_set_up_sees_secrets_and_no_env_and_the_files(run):
    found = run(
        "cat seen",
        setupScript='echo "[$S] [$E]" $(cat f) $0 $(id -u) > seen',
        env={"E": "env"},
        files={"f": "file"},
        options={"secrets": {"S": "s-e-c"}},
    )
    assert found["stdout"] == "[***] [] file /sandbox/.isol8-setup.sh 100"


def test_a_failed_set_up_is_500_with_its_text_masked(run):
    found = run("echo", setupScript="echo out; echo bad $S >&2; exit 9", options={"secrets": {"S": "topsecret"}})
    assert found == {"status": 500, "error": "Setup script failed (exit code 9): bad ***\n"}


def test_a_set_up_has_the_time_limit_for_itself(run):
    found = run("echo", setupScript="sleep 60", timeoutMs=400)
    assert found["status"] == 500
    assert found["error"].startswith("Setup script failed (exit code 137)")
    assert run("sleep 0.5; echo both", setupScript="sleep 0.5", timeoutMs=30_000)["stdout"] == "both"


def test_an_install_without_network_says_so(run):
    found = run("print(1)", "python", installPackages=["no-such-package-of-ours"])
    assert found["status"] == 500
    assert found["error"].startswith("Package install failed (exit code 1): ")


def test_the_root_is_read_only_unless_asked_and_sizes_hold(run):
    code = (
        "touch /var/tmp/x && echo yes; head -c 20000000 /dev/zero > big; echo $?; grep -c noexec,*.*/tmp /proc/mounts"
    )
    found = run(code, options={"sandboxSize": "16m"})
    assert "Read-only file system" in found["stderr"]
    assert "No space left" in found["stderr"]
    assert found["stdout"].splitlines()[0] == "1"
    assert run("touch /var/tmp/x && echo yes", options={"readonlyRootFs": False})["stdout"] == "yes"


def test_nothing_starts_from_tmp(run):
    found = run("cp /bin/true /tmp/t; /tmp/t; echo $?; cp /bin/true t; ./t; echo $?")
    assert found["stdout"].splitlines() == ["126", "0"]


def test_without_network_there_is_none(run):
    assert run("cat /proc/net/dev | grep -c : ; ls /sys/class/net 2>/dev/null")["stdout"].split()[0] == "1"


AGENT_NETWORK = (
    "Agent runtime requires network access. The AI coding agent needs to reach its LLM provider API. Use --net host, "
    'or --net filtered --allow "api.anthropic.com" (or your provider\'s domain).'
)
AGENT_LIST = (
    "Agent runtime requires at least one network whitelist entry. The AI coding agent needs to reach its LLM provider "
    'API. Use --allow "api.anthropic.com" (or your provider\'s domain).'
)


FILTERED = {"network": "filtered", "networkFilter": {"whitelist": ["^a$"], "blacklist": []}}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, AGENT_NETWORK),
        ({"network": "none"}, AGENT_NETWORK),
        ({"network": "filtered"}, AGENT_LIST),
        ({"network": "filtered", "networkFilter": {"whitelist": [], "blacklist": ["x"]}}, AGENT_LIST),
    ],
)
def test_the_agent_needs_a_network(run, options, text):
    assert run("do it", "agent", options=options)["error"] == text
    assert run(cmd="echo", runtime="agent", options=options)["error"] == text


def test_the_agent_says_what_is_missing(run):
    found = run("do it", "agent", options=FILTERED)
    assert found["status"] == 500
    assert "the program pi" in found["error"]


def test_the_agents_command_line_is_quoted(run):
    program = '#!/bin/sh\\nfor a; do echo "[$a]"; done\\n'
    setup = f"mkdir -p .local/bin; printf '{program}' > .local/bin/pi; chmod +x .local/bin/pi"
    prompt = "it's $HOME `id`"
    found = run(prompt, "agent", options=FILTERED, setupScript=setup, agentFlags="--model 'a b'")["stdout"].splitlines()
    assert found[:2] == ["[--no-session]", "[--append-system-prompt]"]
    assert found[3:] == ["[--model]", "[a b]", "[-p]", f"[{prompt}]"]


def test_an_image_that_is_not_here_is_refused(run):
    found = run("echo", options={"image": "localhost/no-such-image"})
    assert found["status"] in {404, 500}
    assert found["error"]


@pytest.mark.parametrize(
    ("runtime", "code", "said"),
    [
        ("bun", "const a: number = 40; console.log(a + 2)", "42"),
        ("deno", "const a: number = 40; console.log(a + 2, import.meta.filename)", "42 /sandbox/main.mts"),
    ],
)
def test_a_runtime_of_its_own_image(machine, run, runtime, code, said):
    """Not made by default: then it says how an operator gets it."""
    found = run(code, runtime)
    if (machine.data_dir / "images" / runtime).exists():
        assert found["stdout"] == said
        assert run(code, runtime, outputPaths=[])["stdout"].startswith("42")
    else:
        text = (
            f"this server has no image for {runtime}: its operator puts {runtime} into COVE_IMAGES and runs cove setup"
        )
        assert found == {"status": 500, "error": text}


def test_a_custom_seccomp_profile_fails_closed(run):
    found = run("echo", options={"security": {"seccomp": "custom", "customProfilePath": "/etc/passwd"}})
    assert found["error"].startswith("Failed to load custom seccomp profile at /etc/passwd: ")


def test_the_clients_options_do_not_change_the_servers_policy(run):
    remote = {"enabled": True, "allowedSchemes": ["file"], "requireHash": False}
    found = run(codeUrl="file:///etc/passwd", options={"remoteCode": remote, "debug": True, "audit": {}})
    assert found["error"] == "URL scheme not allowed: file"


def test_executions_side_by_side_do_not_mix(run):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: run(f"echo {n}; sleep 0.2; echo {n}")["stdout"], range(16)))
    assert found == [f"{n}\n{n}" for n in range(16)]
