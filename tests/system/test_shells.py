"""Shells in real sandboxes: what a caller sees, over the SDK, with a server that is killed under them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cove
from tests_support import SOAK

if TYPE_CHECKING:
    from tests_support import NewServer, RunningServer

pytestmark = pytest.mark.real

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=2000 if SOAK else 200)


@pytest.fixture(scope="module")
def box(server: RunningServer) -> Iterator[cove.Sandbox]:
    with cove.connect(server.url, server.key) as client, client.create(memory="256m") as box:
        yield box


@pytest.fixture(scope="module", params=["bash", "sh"])
def shell(request: pytest.FixtureRequest, box: cove.Sandbox) -> Iterator[cove.Shell]:
    with box.shell(program=request.param) as shell:
        yield shell


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def interrupted(shell: cove.Shell, job: cove.Job) -> cove.Exit:
    """Ctrl-C, as a person presses it: again, if it came just between two programs, where it meets nobody."""
    for _ in range(12):
        with contextlib.suppress(cove.Conflict):  # it has not begun, or has just ended
            shell.signal("INT")
        if (end := job.wait(5)) is not None:
            return end
    raise AssertionError("it cannot be interrupted")


def test_state_lasts_and_streams_come_apart(shell: cove.Shell) -> None:
    shell.run("cd /tmp; x='a b'; export Y=2; f() { echo \"f $1\"; }; alias hi='echo hi'; umask 027")
    found = shell.run("pwd; echo \"$x\"; sh -c 'echo $Y'; f 3; hi; umask; echo err >&2; (exit 7)")
    assert found.out == "/tmp\na b\n2\nf 3\nhi\n0027\n"
    assert (found.err, found.exit, found.why, found.ok) == ("err\n", 7, "exited", False)
    assert shell.run("echo $?").out == "7\n"
    assert shell.cwd() == "/tmp"


@settings(max_examples=1000 if SOAK else 40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS)
def test_any_text_reaches_the_shell_as_it_is(shell: cove.Shell, text: str) -> None:
    assert shell.run(f"printf %s {quoted(text)}").out_bytes == text.encode()


def test_jobs_last_and_can_be_waited_for(shell: cove.Shell) -> None:
    shell.run("rm -f /tmp/gate; until [ -e /tmp/gate ]; do sleep 0.1; done & job=$!")
    assert shell.run("kill -0 $job && touch /tmp/gate && wait $job; echo $?").out.endswith("0\n")


def test_output_is_live(shell: cove.Shell) -> None:
    with shell.stream("echo first; sleep 30") as running:
        assert next(one.text for one in running if one.stream == "stdout") == "first\n"  # stderr: an older job is done
    assert shell.run("echo on", timeout=10).out == "on\n"


def test_no_output_can_forge_the_end(shell: cove.Shell) -> None:
    word = "0123456789abcdef" * 2
    forged = [
        f"printf '{word} 0 /\\n' >{target}"
        for target in ("/dev/tty", "/proc/self/fd/1", "/proc/$$/fd/0", "/proc/$$/fd/9", "/proc/$$/fd/255", "&9")
    ]
    found = shell.run(f"({'; '.join(forged)}) 2>/dev/null; sh -c 'ls /proc/self/fd' | wc -l; (exit 5)", timeout=20)
    assert (found.exit, found.out.splitlines()[-1]) == (5, "4"), found  # 3 is the directory that ls reads
    assert shell.run("cat /proc/$$/environ >/dev/tty; head -c 99999 /dev/urandom >/dev/tty; echo on").out == "on\n"


def test_a_question_on_the_terminal_is_answered_by_end_of_file(shell: cove.Shell) -> None:
    asking = "import getpass\ntry: getpass.getpass()\nexcept EOFError: print('nobody')"
    assert shell.run(f"python3 -c {quoted(asking)} 2>/dev/null", timeout=20).out == "nobody\n"


def test_a_signal_ends_the_program_or_the_loop_and_not_the_shell(shell: cove.Shell) -> None:
    shell.run("kept=1")
    for text in ("echo on; sleep 60; echo after", "echo on; while :; do :; done; echo after"):
        job = shell.start(text)
        assert job.output(wait=10)[0].text == "on\n"
        end = interrupted(shell, job)
        assert (end.exit, end.why, end.signal) == (130, "killed", 2)
        assert not [chunk for chunk in job.output() if "after" in chunk.text]
    assert shell.run("echo $kept").out == "1\n"
    with pytest.raises(cove.Conflict):
        shell.signal("INT")


def test_a_time_limit_ends_all_of_the_command(shell: cove.Shell) -> None:
    found = shell.run("sh -c 'trap \"\" INT TERM; sleep 60'; echo after", timeout=0.3)
    assert (found.exit, found.why, found.out) == (124, "timeout", "")
    assert shell.run("echo on").out == "on\n"


def test_commands_wait_for_their_turn_and_can_be_taken_out(shell: cove.Shell) -> None:
    shell.run("n=0")
    jobs = [shell.start("sleep 0.3; n=$((n+1)); echo $n")]
    jobs += [shell.start("n=$((n+1)); echo $n") for _ in range(5)]
    assert jobs[3].info.queued
    jobs[3].kill()
    found: list[str] = []
    for thread in [threading.Thread(target=lambda: found.append(shell.run("echo last $n").out)) for _ in range(2)]:
        thread.start()
    ends = [job.wait(60) for job in jobs]
    assert [end and end.why for end in ends] == ["exited"] * 3 + ["canceled"] + ["exited"] * 2
    assert [chunk.text for job in jobs for chunk in job.output()] == [f"{n}\n" for n in range(1, 6)]
    deadline = time.monotonic() + 60
    while len(found) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found == ["last 5\n"] * 2


def test_exit_ends_the_shell_and_what_waited(box: cove.Sandbox) -> None:
    shell = box.shell()
    ending, waiting = shell.start("sleep 0.2; exit 9"), shell.start("echo never")
    assert [(end.exit, end.why) for job in (ending, waiting) if (end := job.wait(60))] == [
        (9, "exited"),
        (125, "canceled"),
    ]
    ended = shell.refresh().exit
    assert ended is not None
    assert ended.exit == 9
    with pytest.raises(cove.Conflict):
        shell.run("true")
    shell.close()
    with pytest.raises(cove.NotFound):
        shell.refresh()


def test_a_large_output_is_complete_even_for_a_slow_reader(box: cove.Sandbox) -> None:
    size = 24 << 20
    with box.shell() as shell, shell.stream(f"head -c {size} /dev/zero | tr '\\0' x; exit 3") as running:
        total = 0
        for number, chunk in enumerate(running):
            assert chunk.lost == 0
            total += len(chunk.data) if chunk.stream == "stdout" else 0
            time.sleep(0.02 if number < 20 else 0)
    assert (total, running.exit and running.exit.exit) == (size, 3)


def test_a_shell_runs_as_another_user(box: cove.Sandbox) -> None:
    with box.shell(user="nobody", cwd="/tmp", env={"A": "1"}) as shell:
        assert shell.run("id -u; echo $A; cd /usr").out == "65534\n1\n"
        assert shell.cwd() == "/usr"
        assert shell.run("sleep 60", timeout=0.2).why == "timeout"
        assert shell.run("sleep 0.2 & fg", timeout=10).exit == 0


def test_without_bash_it_is_sh(server: RunningServer) -> None:
    with cove.connect(server.url, server.key) as client, client.create(memory="256m") as box:
        box.run("rm -f /bin/bash /usr/bin/bash", check=True)
        with box.shell() as shell:
            assert shell.info.program == "sh"
            assert shell.run("cd /tmp; pwd").out == "/tmp\n"
        with pytest.raises(cove.BadRequest, match="bash"):
            box.shell(program="bash")


def test_gvisor_has_shells_too(server: RunningServer) -> None:
    with (
        cove.connect(server.url, server.key) as client,
        client.create(driver="gvisor", memory="256m") as box,
        box.shell() as shell,
    ):
        shell.run("cd /tmp; x=kept")
        found = shell.run("pwd; echo err >&2; (exit 4)", timeout=30)
        assert (found.out, found.err, found.exit) == ("/tmp\n", "err\n", 4)
        for text in ("sleep 60; echo after", "while :; do :; done"):
            assert shell.run(text, timeout=0.3).why == "timeout"
        job = shell.start("echo on; sleep 60")
        assert job.output(wait=30)[0].text == "on\n"
        assert interrupted(shell, job).exit == 130
        assert shell.run("echo $x", timeout=30).out == "kept\n"


def test_a_killed_server_loses_no_output(new_server: NewServer) -> None:
    server = new_server()
    with cove.connect(server.url, server.key) as client:
        box = client.create(memory="256m", name="lasting")
        shell = box.shell()
        shell.run("x=kept; cd /tmp")
        job = shell.start("for i in $(seq 400); do echo line $i; sleep 0.005; done; (exit 6)")
        waiting = shell.start("echo $x; pwd")
        seen = ""
        chunks = iter(job)
        while "line 40\n" not in seen:
            seen += next(chunks).text
        server.kill()
        time.sleep(0.3)
        server.start()
        again = client.get("lasting").attach(job.id, after=job.seen)
        seen += "".join(chunk.text for chunk in again)
        assert seen == "".join(f"line {i}\n" for i in range(1, 401))
        assert again.exit is not None
        assert again.exit.exit == 6
        assert (end := waiting.wait(60)) is not None
        assert end.ok
        assert [chunk.text for chunk in waiting.output()] == ["kept\n/tmp\n"]
        (found,) = client.get("lasting").shells()
        assert (found.id, found.run("echo $x").out) == (shell.id, "kept\n")
