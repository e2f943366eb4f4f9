from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cove.server.setup.commands import Command, Runner
from cove.server.setup.settings import SetupFailed


def shell(script: str, *, timeout_s: float = 20, accept: tuple[int, ...] = (0,)) -> Command:
    return Command(argv=["sh", "-c", script], what="the script", cure="mend it", timeout_s=timeout_s, accept=accept)


def test_a_command_gives_its_output() -> None:
    assert Runner().run(shell("echo out; echo err >&2")) == "out\n"


def test_a_failure_shows_the_end_of_what_the_program_said_and_the_cure() -> None:
    with pytest.raises(SetupFailed, match=r"the script failed \(exit 3\)") as failure:
        Runner().run(shell("seq 1 100 >&2; exit 3"))
    assert "100" in failure.value.public
    assert "\n  50\n" not in failure.value.public
    assert failure.value.cure == "mend it"


def test_an_accepted_exit_code_is_no_failure() -> None:
    assert Runner().run(shell("echo part; exit 1", accept=(0, 1))) == "part\n"


def test_a_program_that_is_not_installed_says_so() -> None:
    with pytest.raises(SetupFailed, match="could not be started"):
        Runner().run(Command(argv=["/nowhere/program"], what="it", cure="get it"))


def test_a_time_limit_ends_the_program_and_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(SetupFailed, match="did not end within"):
        Runner().run(shell(f"(sleep 2; touch {mark}) & wait", timeout_s=0.3))
    time.sleep(2.2)
    assert not mark.exists()


def test_a_program_asks_no_question() -> None:
    assert Runner().run(shell("read answer || echo nobody")) == "nobody\n"


def test_killing_all_ends_what_runs_and_refuses_the_next() -> None:
    runner = Runner()
    failures: list[SetupFailed] = []

    def work() -> None:
        try:
            runner.run(shell("sleep 20"))
        except SetupFailed as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.2)
    runner.kill_all()
    thread.join(60)
    assert not thread.is_alive()
    assert failures
    with pytest.raises(SetupFailed, match="was not started"):
        runner.run(shell("true"))
