"""Both cgroup hierarchies against directories that look like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from cove.engine.cgroup import OWN_PIDS, BoxCgroupV1, BoxCgroupV2
from cove.engine.versions import at_least
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


def test_a_vanished_cgroup_reads_as_zeros(tmp_path: Path) -> None:
    assert BoxCgroupV2(tmp_path / "gone").usage().pids == 0
    assert BoxCgroupV2(tmp_path / "gone").oom_kills() == 0


@pytest.mark.parametrize(
    ("version", "minimum", "expected"),
    [("1.3.6+ds1", "1.3.6", True), ("1.3.10", "1.3.6", True), ("1.1.5", "1.3.6", False), ("unknown", "1.0", False)],
)
def test_versions_compare_by_number(version: str, minimum: str, *, expected: bool) -> None:
    assert at_least(version, minimum) is expected
