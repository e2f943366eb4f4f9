"""What every isolation driver must do, as named checks against real boxes. Shipped, so that others can run it too.

`python -m cove.engine.conformance --driver NAME --data-dir DIR` prints one JSON line per check (`name`, `ok`, `detail`,
`ms`) and exits 1 if one failed that is not in the driver's `KNOWN_GAPS`. Needs root, `cove setup`, and a data directory
of its own that no server uses.

To add a check: a coroutine `check_<sentence>` below, or in `conformance_state.py` where it is about checkpoints; it is
found by its name. A driver that cannot pass one yet is listed in `KNOWN_GAPS` with the reason.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import inspect
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

from cove.engine import conformance_state, kernel, machine
from cove.engine.cgroup import OWN_PIDS
from cove.engine.config import EngineConfig
from cove.engine.conformance_bench import Bench, CheckFailed, host_file, require, sh
from cove.engine.registry import open_engine
from cove.model.errors import CoveError, FileError, SandboxGone, Unsupported
from cove.model.execs import ExecSpec, Why
from cove.model.network import NetworkPolicy
from cove.model.sandbox import MIB, Limits

KNOWN_GAPS: Final[dict[str, dict[str, str]]] = {
    "fake": dict.fromkeys(
        (
            "check_memory_beyond_the_limit_kills_inside",
            "check_memory_held_by_the_kernel_counts_and_kills_inside",
            "check_a_death_for_memory_is_told_as_one",
            "check_disk_beyond_the_limit_fails_inside",
            "check_processes_beyond_the_limit_fail_inside",
            "check_hostname_is_the_one_asked_for",
            "check_a_running_box_can_be_renamed",
            "check_isolation_is_told_as_it_is",
            "check_agent_cannot_be_killed_from_inside",
            "check_nothing_of_the_host_is_visible",
            "check_two_boxes_do_not_see_each_other",
            "check_cpu_use_is_counted",
            "check_files_of_a_checkpoint_are_those_of_its_instant",
            "check_a_fifo_is_kept_without_memory",
            "check_files_in_tmp_are_kept_without_memory",
        ),
        "the fake driver isolates nothing; it exists for tests of what stands above the engine",
    ),
    "gvisor": {
        "check_memory_held_by_the_kernel_counts_and_kills_inside": "pipes and files in memory are the sentry's own "
        "memory to the host: a box that passes its limit with them ends as a whole, and its record says out of memory",
        "check_a_running_box_can_be_renamed": "the host name belongs to the sentry, which takes it at its start only",
        "check_a_fifo_is_kept_without_memory": "gVisor has FIFOs in its memory only",
        "check_files_in_tmp_are_kept_without_memory": "gVisor has /tmp in its memory, as /dev/shm",
    },
}
_CHECK_LIMIT_S: Final = 60.0


async def check_a_command_runs_and_its_streams_stay_apart(bench: Bench) -> None:
    """Exit code, stdout and stderr come back as they were."""
    box = await bench.box()
    result = await box.agent.exec(ExecSpec(shell="echo out; echo err >&2; exit 7"))
    await box.destroy()
    require((result.exit.code, result.stdout, result.stderr) == (7, b"out\n", b"err\n"), result)


async def check_a_timeout_kills_the_process_group(bench: Bench) -> None:
    """Nothing of a timed-out command is left."""
    box = await bench.box()
    result = await box.agent.exec(ExecSpec(shell="sleep 971 & sleep 972", timeout_s=0.3))
    _, left = await sh(box, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c 'sleep 97[12]'; true")
    await box.destroy()
    require(result.exit.why is Why.TIMEOUT, result)
    require(left.strip() in {"0", "1"}, left)  # the grep's own shell may name it once


async def check_a_file_comes_back_as_it_was_written(bench: Bench) -> None:
    """Bytes, mode and size of a file survive a round trip, and reading a directory is refused by name."""
    box = await bench.box()
    data = os.urandom(3 * MIB + 17)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 65536):
            yield data[start : start + 65536]

    path = f"/tmp/cove-{box.facts.id}/a/b"  # noqa: S108 (inside the sandbox)
    info = await box.agent.write(path, chunks(), mode=0o640, parents=True)
    async with box.agent.read(path) as reader:
        back = b"".join([chunk async for chunk in reader])
    refused = ""
    try:
        async with box.agent.read("/tmp") as reader:  # noqa: S108 (inside the sandbox)
            async for _ in reader:
                pass
    except FileError as error:
        refused = error.reason
    await box.agent.remove(f"/tmp/cove-{box.facts.id}", recursive=True)  # noqa: S108 (inside the sandbox)
    await box.destroy()
    require((info.size, info.mode, back == data, refused) == (len(data), 0o640, True, "is_directory"), (info, refused))


async def check_a_background_command_outlives_the_connection(bench: Bench) -> None:
    """After losing the connection a kept command runs on, and its output is there from the start."""
    box = await bench.box()
    await box.agent.start("c1", ExecSpec(shell="echo one; sleep 0.5; echo two"), keep_bytes=65536, stdin_open=False)
    await box.agent.close()
    await box.reconnect()
    command = await box.agent.wait("c1", 10.0)
    async with box.agent.output("c1", cursor=0, follow=True, limit_bytes=0) as events:
        text = b"".join([getattr(event, "data", b"") async for event in events])
    await box.destroy()
    require((command.running, text) == (False, b"one\ntwo\n"), (command, text))


async def check_a_paused_box_does_nothing_until_resumed(bench: Bench) -> None:
    """While paused no instruction runs; afterwards it goes on where it was."""
    box = await bench.box()
    script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"
    await box.agent.start("c1", ExecSpec(shell=script), keep_bytes=65536, stdin_open=False)
    while (await box.agent.command("c1")).cursor == 0:
        await asyncio.sleep(0.05)
    await box.pause()
    before = (await box.usage()).cpu_ms
    await asyncio.sleep(0.5)
    after = (await box.usage()).cpu_ms
    await box.resume()
    first = (await box.agent.command("c1")).cursor
    while (await box.agent.command("c1")).cursor <= first:
        await asyncio.sleep(0.05)
    await box.destroy()
    require(before == after, (before, after))


async def check_memory_beyond_the_limit_kills_inside(bench: Bench) -> None:
    """The kernel kills the hog, counts it, and the agent lives on."""
    box = await bench.box(Limits(memory_bytes=64 * MIB))
    before = box.oom_kills()
    code, _ = await sh(box, "exec python3 -c 'a = [bytearray(1000000) for _ in range(200)]'")
    after, (alive, _) = box.oom_kills(), await sh(box, "true")
    await box.destroy()
    require(code in box.oom_codes and after > before and alive == 0, (code, before, after, alive))


async def check_memory_held_by_the_kernel_counts_and_kills_inside(bench: Bench) -> None:
    """As above, for what passes through a pipe: all of a pipeline and nothing else."""
    box = await bench.box(Limits(memory_bytes=64 * MIB))
    code, _ = await sh(box, "head -c 200000000 /dev/zero | tail")
    alive, _ = await sh(box, "true")
    await box.destroy()
    require(code != 0 and alive == 0, (code, alive))


async def check_a_death_for_memory_is_told_as_one(bench: Bench) -> None:
    """Whether it takes the command or all of the box: it is counted, and the count outlives the box."""
    box = await bench.box(Limits(memory_bytes=64 * MIB))
    before = box.oom_kills()
    with contextlib.suppress(SandboxGone):
        await sh(box, "head -c 200000000 /dev/zero | tail")
    after = box.oom_kills()
    usage = await box.destroy()
    require(after > before and usage.oom_kills == after, (before, after, usage))


async def check_disk_beyond_the_limit_fails_inside(bench: Bench) -> None:
    """Writing past the limit fails there, removing and writing again works."""
    box = await bench.box(Limits(disk_bytes=32 * MIB))
    full, text = await sh(box, "head -c 60000000 /dev/zero > /root/f && sync /root/f")
    again, text2 = await sh(box, "rm /root/f && sync && head -c 1000000 /dev/zero > /root/g")
    await box.destroy()
    require(full != 0 and again == 0, (full, text, again, text2))


async def check_processes_beyond_the_limit_fail_inside(bench: Bench) -> None:
    """A fork bomb meets its limit, and the box is usable afterwards."""
    box = await bench.box(Limits(pids=64))
    # A named function: dash, which is /bin/sh in Debian, takes `:` for no name and would only report an error.
    # It sleeps on, so that its time is up while the bomb goes off: the whole group is then killed at once.
    ended = await box.agent.exec(ExecSpec(shell="f(){ f|f& };f; sleep 60", timeout_s=2.0))
    await asyncio.sleep(0.5)
    # Counted without a fork, and before each: the inner shell ends when it cannot have one.
    count = "(for i in $(seq 200); do set -- /proc/[0-9]*; echo $#; sleep 60 & done) 2>/dev/null; sleep 60"
    _, counts = await sh(box, count, timeout_s=4.0 * bench.slow)
    most = max(int(line) for line in counts.splitlines() if line.isdigit())
    code, text = await sh(box, "echo alive")
    await box.destroy()
    require(
        32 < most <= 64 + OWN_PIDS and (ended.exit.why, code, text) == (Why.TIMEOUT, 0, "alive\n"),  # noqa: PLR2004
        (most, ended, text),
    )


async def check_programs_can_start_threads(bench: Bench) -> None:
    """As libc does it: `clone3` first, and `clone` only where that is not there."""
    box = await bench.box()
    script = "import threading as t; a = [t.Thread(target=print, args=(n,)) for n in range(20)]; [b.start() for b in a]"
    code, text = await sh(box, f"python3 -c '{script}'")
    await box.destroy()
    require((code, sorted(map(int, text.split()))) == (0, list(range(20))), (code, text))


async def check_hostname_is_the_one_asked_for(bench: Bench) -> None:
    """And not the machine's; a driver that cannot change it later says so and changes nothing."""
    box = await bench.box()
    refused = False
    if not bench.driver.can_rename:
        try:
            await box.set_hostname("otter")
        except Unsupported:
            refused = True
    _, name = await sh(box, "cat /proc/sys/kernel/hostname")
    await box.destroy()
    require(name.strip() == "conformance" and refused is not bench.driver.can_rename, (name, refused))


async def check_a_running_box_can_be_renamed(bench: Bench) -> None:
    """Its host name is set after it was made, and the machine keeps its own."""
    box = await bench.box()
    await box.set_hostname("otter")
    _, name = await sh(box, "cat /proc/sys/kernel/hostname")
    await box.destroy()
    require(name.strip() == "otter" and os.uname().nodename != "otter", name)


async def check_limits_can_change_while_it_runs(bench: Bench) -> None:
    """Raised and lowered without a restart; a driver that cannot do that for processes says so."""
    box = await bench.box(Limits(memory_bytes=128 * MIB, pids=200))
    for memory in (256 * MIB, 64 * MIB):
        await box.set_limits(Limits(memory_bytes=memory, cpus=0.5, pids=200))
    changes = True
    try:
        await box.set_limits(Limits(memory_bytes=64 * MIB, cpus=0.5, pids=100))
    except Unsupported:
        changes = False
    code, _ = await sh(box, "true")
    await box.destroy()
    require(code == 0 and changes is bench.driver.can_change_pids, (code, changes))


async def check_agent_cannot_be_killed_from_inside(bench: Bench) -> None:
    """Root inside may signal init; nothing happens."""
    box = await bench.box()
    await sh(box, "kill -9 1; kill -STOP 1; sleep 0.1")
    code, _ = await sh(box, "true")
    await box.destroy()
    require(code == 0, code)


async def check_nothing_of_the_host_is_visible(bench: Bench) -> None:
    """Own pids, own network (loopback, and an interface of its own at most), own root, root without the host's ids."""
    box = await bench.box()
    _, out = await sh(box, "cat /proc/1/comm /proc/net/dev; ls /proc | grep -c '^[0-9]'")
    status = host_file(f"/proc/{box.facts.init_pid}/status")
    await box.destroy()
    interfaces = [line.split(":")[0].strip() for line in out.splitlines() if ":" in line]
    require(set(interfaces) == ({"lo", "eth0"} if box.is_joined else {"lo"}) and int(out.split()[-1]) < 10, out)  # noqa: PLR2004 (a handful of pids)
    ids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
    require(set(ids) == {str(box.facts.uid_base)} and box.facts.uid_base > 0, ids)


async def check_a_box_is_connected_while_it_runs_and_is_closed_first(bench: Bench) -> None:
    """An interface with an address of its own; what its policy does not allow is refused at once, and bytes count.

    A driver that cannot says so.
    """
    box = await bench.box()
    # A policy that leads nowhere: nothing of the machine's own network is touched for it.
    policy = NetworkPolicy(links=("nobody",))
    refused = False
    try:
        await box.set_network(policy, {})
    except Unsupported:
        refused = True
    script = (
        "import socket as s\nfor a in ('169.254.169.254', '11.0.0.1'):\n"
        " try: s.create_connection((a, 80), 2); print('open')\n except TimeoutError: print('slow')\n"
        " except OSError: print('refused')"
    )
    code, said = await sh(box, f'cut -d: -f1 /proc/net/dev | tail -n +3; python3 -c "{script}"')
    used = await box.network_use()
    await box.destroy()
    require(refused is bool(bench.driver.network_gaps), (refused, bench.driver.network_gaps))
    if not refused:
        require((code, sorted(said.split())) == (0, ["eth0", "lo", "refused", "refused"]), (code, said))
        require(bool(box.facts.address) and used.sent_bytes > 0, (box.facts, used))


async def check_isolation_is_told_as_it_is(bench: Bench) -> None:
    """What the box reports of its layers is what can be seen of them, from inside and from outside."""
    box = await bench.box()
    told = box.isolation
    _, inside = await sh(box, "grep -E '^(Seccomp|NoNewPrivs|CapBnd):' /proc/self/status")
    uid_map = host_file(f"/proc/{box.facts.init_pid}/uid_map").split()
    await box.destroy()
    seen = dict(line.split(":\t") for line in inside.splitlines())
    require(told.driver == bench.driver.name and told.driver_version[:1].isdigit(), told)
    require(told.user_namespace is (uid_map[:2] == ["0", str(box.facts.uid_base)] and uid_map[1] != "0"), uid_map)
    require(told.seccomp and seen["Seccomp"] == "2" and seen["CapBnd"].endswith("405fb"), (told, seen))


async def check_what_waits_in_the_pool_is_ready_when_it_is_taken(bench: Bench) -> None:
    """A box that rested and woke answers, and rests without using the CPU."""
    box = await bench.box()
    await box.rest()
    await box.wake()
    code, _ = await sh(box, "true")
    await box.destroy()
    require(code == 0, code)


async def check_no_descriptor_of_the_host_is_inside(bench: Bench) -> None:
    """A command has its three streams; none leads to a file of the host."""
    box = await bench.box()
    _, out = await sh(box, "ls -l /proc/self/fd | tail -n +2; ls -l /proc/1/fd 2>/dev/null | tail -n +2")
    await box.destroy()
    targets = [line.split(" -> ")[1] for line in out.splitlines() if " -> " in line]
    good = ("pipe:", "socket:", "anon_inode:", "/dev/null", "/proc/", "host:", "[")
    require(targets and all(target.startswith(good) for target in targets), out)


async def check_two_boxes_do_not_see_each_other(bench: Bench) -> None:
    """A file and a process of one are not there in the other."""
    one, two = await bench.box(), await bench.box()
    await sh(one, "echo secret > /root/mark; sleep 900 >/dev/null 2>&1 & true")
    _, seen = await sh(two, "ls /root; cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep 'sleep 900' | grep -v grep")
    await one.destroy()
    await two.destroy()
    require("mark" not in seen and one.facts.uid_base != two.facts.uid_base, seen)


async def check_cpu_use_is_counted(bench: Bench) -> None:
    """CPU time and peak memory grow with use."""
    box = await bench.box()
    await sh(box, "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
    usage = await box.usage()
    await box.destroy()
    require(usage.cpu_ms > 20 and usage.memory_peak_bytes > 0, usage)  # noqa: PLR2004 (a busy loop of ~100 ms)


async def check_a_box_is_adopted_after_its_server_is_gone(bench: Bench) -> None:
    """Facts alone are enough to go on with a running box."""
    box = await bench.box()
    await box.agent.start("c1", ExecSpec(shell="sleep 60"), keep_bytes=4096, stdin_open=False)
    await box.agent.close()
    again = await bench.driver.adopt(box.facts)
    await again.reconnect()
    command = await again.agent.command("c1")
    await again.destroy()
    require(command.running, command)


async def check_death_is_noticed(bench: Bench) -> None:
    """`wait_dead` returns, the agent's calls end, and a dead box cannot be adopted."""
    box = await bench.box()
    os.kill(box.facts.init_pid, 9)
    async with asyncio.timeout(5):
        await box.wait_dead()
    refused = False
    try:
        await bench.driver.adopt(box.facts)
    except (SandboxGone, CoveError):
        refused = True
    await box.destroy()
    require(refused, "a dead box was adopted")


async def check_destroy_leaves_nothing_and_can_be_repeated(bench: Bench) -> None:
    """No facts remain, and a second destroy answers the same."""
    box = await bench.box()
    first = await box.destroy()
    second = await box.destroy()
    left = [f.id for f in await bench.driver.remains() if f.id == box.facts.id]
    require(first == second and not left and kernel.process_start(box.facts.init_pid) is None, left)


Check = Callable[[Bench], Awaitable[None]]


def checks() -> dict[str, Check]:
    """All checks by name."""
    found: dict[str, Check] = {}
    for module in (sys.modules[__name__], conformance_state):
        members = inspect.getmembers(module, inspect.iscoroutinefunction)
        found |= {name: check for name, check in members if name.startswith("check_")}
    return found


async def run(config: EngineConfig, name: str, slow: float = 1.0) -> bool:
    """Run every check against driver `name`, one after the other; print a JSON line each. Whether all passed.

    Each may take 60 s times `slow`, which is for emulated machines.
    """
    passed = True
    async with open_engine(config) as engine:
        driver = engine.drivers[name]
        bench = Bench(driver, engine.images.get("base"), engine.checkpoints, slow)
        for check_name, check in checks().items():
            started, detail = time.perf_counter(), ""
            gap = KNOWN_GAPS.get(name, {}).get(check_name)
            try:
                if gap is not None:
                    # Not run at all: without isolation a fork bomb or a kill of init would hit this machine.
                    raise CheckFailed(gap)
                async with asyncio.timeout(_CHECK_LIMIT_S * slow):
                    await check(bench)
            except (CheckFailed, CoveError, TimeoutError, OSError, ExceptionGroup) as failed:
                error = failed.exceptions[0] if isinstance(failed, ExceptionGroup) else failed
                detail = f"{type(error).__name__}: {error} {getattr(error, 'internal', '')}"
            passed = passed and (not detail or gap is not None)
            ms = round((time.perf_counter() - started) * 1000, 1)
            verdict = {"name": check_name, "ok": not detail, "detail": detail, "gap": gap, "ms": ms}
            sys.stdout.write(json.dumps(verdict) + "\n")
            sys.stdout.flush()
        for facts in await driver.remains():
            await driver.reap(facts)
        await engine.release()
    return passed


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", default="runc")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument(
        "--setup-dir", type=Path, default=Path("/var/lib/cove"), help="the data directory of `cove setup`"
    )
    parser.add_argument("--slow", type=float, default=1.0, help="multiplies time limits, for emulated machines")
    given = parser.parse_args()
    os.umask(0o022)
    given.data_dir.mkdir(parents=True, exist_ok=True)
    config = EngineConfig.for_trials(given.data_dir, given.setup_dir, (given.driver,))
    origin = machine.enter(config.run_dir)
    try:
        return 0 if asyncio.run(run(config, given.driver, given.slow)) else 1
    finally:
        machine.release(config.run_dir, origin)


if __name__ == "__main__":
    sys.exit(main())
