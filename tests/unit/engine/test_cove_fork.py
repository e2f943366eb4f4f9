"""The module that sandboxes' Pythons import: what the signal does to a process, as it does in a copy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cove.engine import rootfs
from cove.engine.inside import __file__ as inside

SIGNAL = 63
HOME = str(Path(inside).parent)


def run(script: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": HOME}, timeout=60, check=True
    ).stdout.split()


def test_the_signal_makes_equal_generators_differ() -> None:
    """Two processes with the same seed are what a process and its copy are."""
    script = f"""
import os, random, ssl, uuid, cove_fork
random.seed(7)
node = uuid.getnode()
print(random.random())
os.kill(os.getpid(), {SIGNAL})
print(random.random(), uuid._node)
"""
    one, other = run(script), run(script)
    assert one[0] == other[0]
    assert one[1] != other[1]
    assert one[2] == "None"


def test_callbacks_are_called_after_it_and_an_error_of_one_stops_no_other() -> None:
    script = f"""
import os, random, signal
def old(*_): print("old")
signal.signal({SIGNAL}, old)
import cove_fork
random.seed(7)
@cove_fork.on_fork
def first(): raise ValueError
cove_fork.on_fork(lambda: print("second", random.random() != first_number))
first_number = random.Random(7).random()
os.kill(os.getpid(), {SIGNAL})
print("end")
"""
    assert run(script) == ["second", "True", "old", "end"]


def test_a_thread_cannot_install_it_and_is_told_so() -> None:
    script = """
import threading
def work():
    try:
        import cove_fork
    except RuntimeError as error:
        print(str(error).split()[0])
t = threading.Thread(target=work); t.start(); t.join()
"""
    assert run(script) == ["import"]


def test_the_signal_is_caught_where_the_kernel_tells_it() -> None:
    mask = run(
        "import cove_fork; print([l.split()[1] for l in open('/proc/self/status') if l.startswith('SigCgt')][0])"
    )
    assert int(mask[0], 16) >> (SIGNAL - 1) & 1


def test_the_original_has_no_generation() -> None:
    assert run("import cove_fork; cove_fork.GENERATION = '/nowhere'; print([cove_fork.generation()])") == ["['']"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_skeleton_has_it_where_debians_python_looks(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        rootfs.make_skeleton(tmp_path)
        rootfs.make_skeleton(tmp_path)
    finally:
        os.umask(before)
    module = tmp_path / "usr/lib/python3/dist-packages/cove_fork.py"
    assert module.read_bytes() == (Path(HOME) / "cove_fork.py").read_bytes()
    for name, mode in (
        *((parent, 0o755) for parent in ("usr", "usr/lib", "usr/lib/python3", "usr/lib/python3/dist-packages")),
        ("run/cove", 0o755),
        ("run/cove/reseed", 0o1777),
    ):
        assert (tmp_path / name).stat().st_mode & 0o7777 == mode, name
    assert module.stat().st_mode & 0o777 == 0o644
