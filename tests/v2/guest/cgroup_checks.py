"""Runs in the guest: what Cove writes into a real cgroup v2, and what the kernel then does. One JSON line per check.

The conformance suite sees a box from outside and inside; these look at the files between.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from cove.engine import machine
from cove.engine.cgroup import OWN_PIDS
from cove.engine.config import EngineConfig
from cove.engine.driver import Box, BoxSpec
from cove.engine.registry import Engine, open_engine
from cove.model.errors import Conflict
from cove.model.execs import ExecSpec
from cove.model.ids import new_core_id
from cove.model.sandbox import MIB, Limits

_ROOT = Path("/sys/fs/cgroup")
_HOG = "import time; a = b'x' * (96 << 20); print('ready', flush=True); time.sleep(600)"


class Guest:
    """The engine and where its boxes' cgroups are."""

    def __init__(self, engine: Engine, instance: str, slow: float) -> None:
        self._engine = engine
        self._base = _ROOT / "cove" / instance
        self.slow = slow

    @asynccontextmanager
    async def box(self, limits: Limits) -> AsyncGenerator[tuple[Box, Path]]:
        """A claimed box by runc and its cgroup; destroyed at the end."""
        spec = BoxSpec(id=new_core_id(), image=self._engine.images.get("base"), limits=limits, hostname="v2")
        box = await self._engine.drivers["runc"].create(spec)
        try:
            await box.agent.claim({"PATH": "/usr/bin:/bin"}, None, None)
            yield box, self._base / spec.id
        finally:
            await box.destroy()


def expect(condition: object, detail: object) -> None:
    """Raise AssertionError with what was seen; an assert statement would not tell."""
    if not condition:
        raise AssertionError(str(detail))


def words(directory: Path, name: str) -> str:
    """A file's text without the newline."""
    return (directory / name).read_text(encoding="utf-8").strip()


async def sh(box: Box, script: str, timeout_s: float) -> tuple[int, str]:
    """Run a script in the box."""
    result = await box.agent.exec(ExecSpec(shell=script, timeout_s=timeout_s))
    return result.exit.code, (result.stdout + result.stderr).decode(errors="replace")


async def start_hog(box: Box, group: Path, slow: float) -> None:
    """Have 96 MiB of anonymous memory in use there."""
    await box.agent.start("hog", ExecSpec(argv=("python3", "-c", _HOG)), keep_bytes=4096, stdin_open=False)
    async with asyncio.timeout(20 * slow):
        while int(words(group, "memory.current")) < 96 * MIB:
            await asyncio.sleep(0.05)


async def check_the_unified_hierarchy_is_the_only_one(guest: Guest) -> None:
    """And the box says so."""
    kinds = [line.split()[2] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    async with guest.box(Limits()) as (box, group):
        told, there = box.isolation, group.is_dir()
    expect(
        (kinds.count("cgroup2"), kinds.count("cgroup"), told.cgroup, there) == (1, 0, "v2", True),
        (kinds, told, there),
    )


async def check_limits_are_in_the_kernels_files(guest: Guest) -> None:
    """From the start and after a change."""
    names = ("memory.max", "memory.swap.max", "cpu.max", "pids.max", "io.max")
    first = Limits(memory_bytes=128 * MIB, cpus=0.5, pids=50, io_read_bps=5 * MIB, io_write_bps=6 * MIB)
    async with guest.box(first) as (box, group):
        # Without swap accounting the file is not there, and there is no swap to limit either.
        before = {name: words(group, name) for name in names if (group / name).exists()}
        await box.set_limits(Limits(memory_bytes=256 * MIB, cpus=2, pids=70, io_read_bps=7 * MIB))
        after = {name: words(group, name) for name in names if (group / name).exists()}
    expect(before["memory.max"] == str(128 * MIB) and after["memory.max"] == str(256 * MIB), (before, after))
    expect((before["cpu.max"], after["cpu.max"]) == ("50000 100000", "200000 100000"), (before, after))
    expect((before["pids.max"], after["pids.max"]) == (str(50 + OWN_PIDS), str(70 + OWN_PIDS)), (before, after))
    expect(before.get("memory.swap.max", "0") == after.get("memory.swap.max", "0") == "0", (before, after))
    expect(f"rbps={5 * MIB} wbps={6 * MIB}" in before["io.max"], before)
    expect(f"rbps={7 * MIB} wbps=max" in after["io.max"], after)


async def check_writing_is_throttled(guest: Guest) -> None:
    """4 MiB at 1 MiB/s take seconds."""
    async with guest.box(Limits(io_write_bps=MIB)) as (box, _):
        started = time.monotonic()
        script = "dd if=/dev/zero of=/root/f bs=1M count=4 oflag=direct 2>&1 && sync /root/f"
        code, text = await sh(box, script, 60 * guest.slow)
        took = time.monotonic() - started
    expect(code == 0 and took > 2.5, (code, text, took))  # the first of the four may be a burst


async def check_memory_is_not_lowered_below_what_is_used(guest: Guest) -> None:
    """It is a conflict, as on v1, and kills nothing: by itself the kernel would kill until it fits."""
    async with guest.box(Limits(memory_bytes=256 * MIB)) as (box, group):
        await start_hog(box, group, guest.slow)
        refused = False
        try:
            await box.set_limits(Limits(memory_bytes=64 * MIB))
        except Conflict:
            refused = True
        seen = [words(group, name) for name in ("memory.max", "memory.high")]
        alive, kills = (await box.agent.command("hog")).running, box.oom_kills()
    expect((refused, seen, alive, kills) == (True, [str(256 * MIB), "max"], True, 0), (refused, seen, alive, kills))


async def check_cached_files_do_not_refuse_a_lower_limit(guest: Guest) -> None:
    """They are given up."""
    async with guest.box(Limits(memory_bytes=256 * MIB)) as (box, group):
        script = "head -c 100000000 /dev/zero >/root/f && sync && cat /root/f >/dev/null"
        code, text = await sh(box, script, 60 * guest.slow)
        before = int(words(group, "memory.current"))
        await box.set_limits(Limits(memory_bytes=64 * MIB))
        after, kills = int(words(group, "memory.current")), box.oom_kills()
    expect((code, kills) == (0, 0) and before > 64 * MIB >= after, (code, text, before, after, kills))


async def check_a_pause_freezes_all(guest: Guest) -> None:
    """The kernel says frozen, the CPU time stands still, and a paused box can be ended."""
    async with guest.box(Limits()) as (box, group):
        spin = ExecSpec(shell="while :; do :; done")
        await box.agent.start("spin", spin, keep_bytes=4096, stdin_open=False)
        await box.pause()
        frozen = words(group, "cgroup.events")
        first = (await box.usage()).cpu_ms
        await asyncio.sleep(0.5)
        second = (await box.usage()).cpu_ms
        await box.resume()
        thawed = words(group, "cgroup.events")
        await box.pause()
    expect("frozen 1" in frozen and "frozen 0" in thawed and first == second, (frozen, thawed, first, second))
    expect(not group.exists(), "the cgroup of a paused box is left")


async def check_use_is_counted(guest: Guest) -> None:
    """CPU, memory now and at its peak, processes; refusals of the process limit."""
    async with guest.box(Limits(memory_bytes=256 * MIB, pids=8)) as (box, group):
        await start_hog(box, group, guest.slow)
        await sh(box, "for i in $(seq 60); do sleep 20 & done 2>/dev/null; true", 30 * guest.slow)
        used, refused = await box.usage(), words(group, "pids.events")
    expect(used.memory_peak_bytes >= used.memory_bytes > 96 * MIB, used)
    expect(used.cpu_ms > 0 and 1 < used.pids <= 8 + OWN_PIDS and refused != "max 0", (used, refused))


async def check_killing_a_group_ends_its_box(guest: Guest) -> None:
    """`cgroup.kill` takes every process, frozen ones too."""
    async with guest.box(Limits()) as (box, group):
        await box.pause()
        (group / "cgroup.kill").write_text("1", encoding="utf-8")
        async with asyncio.timeout(10 * guest.slow):
            await box.wait_dead()
            while "populated 0" not in words(group, "cgroup.events"):
                await asyncio.sleep(0.01)


async def run(config: EngineConfig, slow: float) -> bool:
    """Run all; whether all passed."""
    passed = True
    async with open_engine(config) as engine:
        guest = Guest(engine, config.instance, slow)
        module = sys.modules[__name__]
        for name, check in inspect.getmembers(module, inspect.iscoroutinefunction):
            if not name.startswith("check_"):
                continue
            started, detail = time.monotonic(), ""
            try:
                async with asyncio.timeout(120 * slow):
                    await check(guest)
            except Exception as error:  # noqa: BLE001 (whatever goes wrong is the verdict)
                detail = f"{type(error).__name__}: {error} {getattr(error, 'internal', '')}"
            passed = report(name, detail, started) and passed
        engine.release()
    left = [str(path) for path in _ROOT.glob("cove*")]
    return report("check_nothing_is_left", f"left: {left}" if left else "", time.monotonic()) and passed


def report(name: str, detail: str, started: float) -> bool:
    """Print the verdict; whether it is good."""
    ms = round((time.monotonic() - started) * 1000)
    sys.stdout.write(json.dumps({"name": name, "ok": not detail, "detail": detail, "ms": ms}) + "\n")
    sys.stdout.flush()
    return not detail


def check_runc_conforms_inside_a_container(data_dir: Path, slow: float) -> str:
    """The same where the root of the hierarchy is another's child with processes in it, as in a container on v2."""
    group = _ROOT / "container"
    group.mkdir()
    (_ROOT / "cgroup.subtree_control").write_text("+memory +cpu +pids +io", encoding="utf-8")
    script = (
        'echo $$ >/sys/fs/cgroup/container/cgroup.procs && exec unshare --cgroup --mount sh -c "'
        "umount /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && "
        f'{sys.executable} -m cove.engine.conformance --driver runc --data-dir {data_dir} --slow {slow}"'
    )
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, timeout=900 * slow, check=False)
    bad = [line for line in done.stdout.splitlines() if not json.loads(line)["ok"]]
    return "" if done.returncode == 0 and done.stdout else f"exit {done.returncode}: {bad} {done.stderr[-1500:]}"


def main() -> int:
    """Run in a mount namespace of the engine's own; exit 1 when one fails."""
    data_dir, slow = Path(sys.argv[1]), float(sys.argv[2])
    setup = Path("/var/lib/cove")
    config = msgspec.structs.replace(
        EngineConfig.at(data_dir, pool_bytes=2048 * MIB),
        runtimes_dir=setup / "runtimes" / "current",
        images_dir=setup / "images",
    )
    origin = machine.enter(config.run_dir)
    try:
        passed = asyncio.run(run(config, slow))
    finally:
        machine.release(config.run_dir, origin)
    outer = check_runc_conforms_inside_a_container
    started, inner = time.monotonic(), data_dir / "container"
    inner.mkdir()
    return int(not (report(outer.__name__, outer(inner, slow), started) and passed))


if __name__ == "__main__":
    sys.exit(main())
