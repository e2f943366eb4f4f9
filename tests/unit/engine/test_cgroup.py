"""Both cgroup hierarchies against directories that look like the kernel's."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cove.engine import cgroup
from cove.engine.cgroup import OWN_PIDS, BoxCgroupV1, BoxCgroupV2
from cove.engine.versions import at_least
from cove.model.errors import EngineFailure
from cove.model.sandbox import MIB, Limits


@pytest.fixture
def v1(tmp_path: Path) -> BoxCgroupV1:
    paths = {}
    for name in ("memory", "cpu", "cpuacct", "pids", "blkio", "freezer"):
        paths[name] = tmp_path / name
        paths[name].mkdir()
    memory = paths["memory"]
    (memory / "memory.limit_in_bytes").write_text(str(128 * MIB))
    (memory / "memory.memsw.limit_in_bytes").write_text(str(128 * MIB))
    (memory / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    (memory / "memory.usage_in_bytes").write_text("1000\n")
    (memory / "memory.max_usage_in_bytes").write_text("2000\n")
    (paths["cpuacct"] / "cpuacct.usage").write_text("5000000\n")
    (paths["pids"] / "pids.current").write_text("7\n")
    return BoxCgroupV1(paths)


def test_v1_limits_are_written(v1: BoxCgroupV1, tmp_path: Path) -> None:
    v1.set_limits(Limits(cpus=0.5, memory_bytes=64 * MIB, pids=10, io_read_bps=5), device="7:0")
    assert (tmp_path / "memory/memory.limit_in_bytes").read_text() == str(64 * MIB)
    assert (tmp_path / "memory/memory.memsw.limit_in_bytes").read_text() == str(64 * MIB)
    assert (tmp_path / "cpu/cpu.cfs_quota_us").read_text() == "50000"
    assert (tmp_path / "pids/pids.max").read_text() == str(10 + OWN_PIDS)
    assert (tmp_path / "blkio/blkio.throttle.read_bps_device").read_text() == "7:0 5"


def test_v1_usage_is_read(v1: BoxCgroupV1) -> None:
    usage = v1.usage()
    assert (usage.cpu_ms, usage.memory_bytes, usage.memory_peak_bytes, usage.pids, usage.oom_kills) == (
        5,
        1000,
        2000,
        7,
        3,
    )


def test_v2_limits_and_usage(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text("usage_usec 9000\nuser_usec 1\n")
    (tmp_path / "memory.events").write_text("low 0\noom 2\noom_kill 2\n")
    (tmp_path / "memory.current").write_text("1\n")
    (tmp_path / "io.max").write_text("")
    group = BoxCgroupV2(tmp_path)
    group.set_limits(Limits(cpus=2, memory_bytes=MIB, pids=5, io_write_bps=9), device="7:0")
    assert (tmp_path / "memory.max").read_text() == str(MIB)
    assert (tmp_path / "memory.swap.max").read_text() == "0"
    assert (tmp_path / "cpu.max").read_text() == "200000 100000"
    assert (tmp_path / "io.max").read_text() == "7:0 rbps=max wbps=9"
    usage = group.usage()
    assert (usage.cpu_ms, usage.oom_kills, usage.memory_bytes) == (9, 2, 1)


def test_v2_memory_is_not_lowered_below_what_cannot_be_reclaimed(tmp_path: Path) -> None:
    """The kernel would take the limit and kill; v1 answers EBUSY."""
    (tmp_path / "memory.max").write_text(str(256 * MIB))
    (tmp_path / "memory.current").write_text(f"{100 * MIB}\n")
    group = BoxCgroupV2(tmp_path)
    with pytest.raises(OSError, match="busy") as caught:
        group.set_limits(Limits(memory_bytes=64 * MIB), device=None)
    assert caught.value.errno == errno.EBUSY
    assert (tmp_path / "memory.max").read_text() == str(256 * MIB)
    assert (tmp_path / "memory.high").read_text() == "max"
    group.set_limits(Limits(memory_bytes=128 * MIB), device=None)
    assert (tmp_path / "memory.max").read_text() == str(128 * MIB)


def test_v2_in_a_container_its_processes_move_out_of_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that has processes refuses controllers for its own children: one that forks meanwhile moves as well."""
    procs = tmp_path / "cgroup.procs"
    procs.write_text("7\n8\n9\n")
    moved: list[str] = []
    write = Path.write_text

    def as_the_kernel(path: Path, data: str, *args: object, **kwargs: object) -> int:
        if path.name == "cgroup.subtree_control" and procs.read_text():
            raise OSError(errno.EBUSY, "busy")
        if path.parent.name == "cove-init":
            left = [pid for pid in procs.read_text().split() if pid != data]
            write(procs, "\n".join([*left, *(["10"] if data == "9" else [])]))
            if data == "8":
                raise ProcessLookupError
            moved.append(data)
        return write(path, data)

    monkeypatch.setattr(Path, "write_text", as_the_kernel)
    cgroup._enable(tmp_path, "+memory +pids")
    assert moved == ["7", "9", "10"]
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_v2_where_nothing_moves_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup.procs").write_text("")

    def busy(path: Path, data: str) -> int:
        del path, data
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(Path, "write_text", busy)
    with pytest.raises(EngineFailure, match="cannot be moved"):
        cgroup._enable(tmp_path, "+memory")


def test_a_vanished_cgroup_reads_as_zeros(tmp_path: Path) -> None:
    assert BoxCgroupV2(tmp_path / "gone").usage().pids == 0
    assert BoxCgroupV2(tmp_path / "gone").oom_kills() == 0


@pytest.mark.parametrize(
    ("version", "minimum", "expected"),
    [("1.3.6+ds1", "1.3.6", True), ("1.3.10", "1.3.6", True), ("1.1.5", "1.3.6", False), ("unknown", "1.0", False)],
)
def test_versions_compare_by_number(version: str, minimum: str, *, expected: bool) -> None:
    assert at_least(version, minimum) is expected
