"""`clean` against the real kernel: processes, cgroups, mounts, loop devices and files of an instance really go."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cove.engine import kernel
from cove.engine.config import instance_of
from cove.server.setup.clean import clean, find_traces
from cove.server.setup.progress import SilentProgress
from cove.server.setup.settings import SetupFailed, SetupSettings

pytestmark = [pytest.mark.real, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def settings(tmp_path: Path) -> SetupSettings:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / ".setup.lock").touch()
    return SetupSettings(data_dir=data_dir, run_dir=tmp_path / "run")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "300"])
    yield child
    child.kill()
    child.wait()


def cgroup_parent() -> Path:
    v1 = Path("/sys/fs/cgroup/pids")
    return v1 if v1.is_dir() else Path("/sys/fs/cgroup")


def test_everything_of_an_instance_is_removed_and_found_gone(
    settings: SetupSettings, sleeper: subprocess.Popen[bytes]
) -> None:
    instance = instance_of(settings.data_dir)
    group = cgroup_parent() / "cove" / instance / "box"
    group.mkdir(parents=True)
    (group / "cgroup.procs").write_text(str(sleeper.pid))
    namespace_dir = settings.run_dir / instance / "ns"
    namespace_dir.mkdir(parents=True)
    kernel.mount(namespace_dir, namespace_dir, None, kernel.MS_BIND)
    pool, point = settings.data_dir / "pool", settings.data_dir / "mnt"
    point.mkdir()
    pool.touch()
    os.truncate(pool, 16 << 20)
    subprocess.run(["mkfs.ext4", "-q", pool], check=True)
    subprocess.run(["mount", "-o", "loop", pool, point], check=True)
    before = find_traces(settings, [instance])
    assert before.processes == (sleeper.pid,)
    assert len(before.mounts) == 2
    assert len(before.loops) == 1

    clean(settings, SilentProgress(), every=False)

    assert sleeper.wait(60) == -9
    assert find_traces(settings, [instance]).lines() == []
    assert not settings.data_dir.exists()
    assert not settings.run_dir.exists()


def test_a_reused_process_number_is_left_alone(settings: SetupSettings, sleeper: subprocess.Popen[bytes]) -> None:
    box = settings.run_dir / instance_of(settings.data_dir) / "sb" / "one"
    box.mkdir(parents=True)
    start = kernel.process_start(sleeper.pid)
    assert start is not None
    (box / "box.json").write_text(f'{{"init_pid": {sleeper.pid}, "init_start": {start - 1}}}')
    clean(settings, SilentProgress(), every=False)
    assert sleeper.poll() is None


def test_the_init_of_a_box_dies_by_its_own_name(settings: SetupSettings, sleeper: subprocess.Popen[bytes]) -> None:
    box = settings.run_dir / instance_of(settings.data_dir) / "sb" / "one"
    box.mkdir(parents=True)
    start = kernel.process_start(sleeper.pid)
    (box / "box.json").write_text(f'{{"init_pid": {sleeper.pid}, "init_start": {start}, "more": []}}')
    clean(settings, SilentProgress(), every=False)
    assert sleeper.wait(60) == -9


def test_another_instance_is_not_touched(settings: SetupSettings) -> None:
    other = settings.run_dir / "0123456789ab"
    (other / "sb").mkdir(parents=True)
    claims = settings.run_dir / "uid"
    claims.mkdir()
    (claims / "0").write_text(str(other))
    (claims / "1").write_text(str(settings.run_dir / instance_of(settings.data_dir)))
    clean(settings, SilentProgress(), every=False)
    assert (claims / "0").read_text() == str(other)
    assert not (claims / "1").exists()
    assert other.is_dir()


def test_a_directory_that_is_not_coves_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(SetupFailed, match="does not look like"):
        clean(SetupSettings(data_dir=tmp_path, run_dir=tmp_path / "run"), SilentProgress(), every=False)
    assert (tmp_path / "letter.txt").exists()
