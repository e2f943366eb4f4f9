"""Group C: using up what is shared. Each attack has its own box; the machine and the neighbours must not notice."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Final

from cove.engine.attacks.target import Broken, NotHere, Target, python, require, shell, text_of
from cove.engine.cgroup import OWN_PIDS
from cove.engine.driver import Box
from cove.engine.oci.bundle import TASKS_PER_PROCESS
from cove.model.errors import AgentTimeout, AgentViolation, CoveError, SandboxGone
from cove.model.execs import Chunk, Ended, ExecSpec, Why
from cove.model.sandbox import MIB, Limits

_SLACK: Final = 512 * MIB
"""Memory of the machine that other work may take while an attack runs."""


def available() -> int:
    """Memory that the machine has left, in bytes."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


async def burst(box: Box, script: str, timeout_s: float) -> str:
    """Run what may end the box. Returns how it ended: the command's own end, or that of the box."""
    try:
        result = await shell(box, script, timeout_s)
    except (SandboxGone, AgentTimeout, AgentViolation) as error:
        return type(error).__name__
    return f"exit {result.exit.code} ({result.exit.why.value})"


async def memory_bomb(target: Target, what: str, script: str) -> str:
    """A program that takes memory in one way until something stops it: the box's limit, not the machine's memory."""
    limit = 128 * MIB
    async with target.box(Limits(memory_bytes=limit, disk_bytes=64 * MIB, pids=256)) as box:
        before, lowest = available(), available()
        peak = 0
        async with asyncio.TaskGroup() as tasks:
            attack = tasks.create_task(burst(box, f"python3 -c '{script}'", 12.0))
            while not attack.done():
                await asyncio.wait({attack}, timeout=0.1)
                lowest = min(lowest, available())
                peak = max(peak, (await box.usage()).memory_bytes)
        require(peak <= limit + 8 * MIB, f"{what}: {peak // MIB} MiB were used at a limit of {limit // MIB}")
        require(before - lowest < limit + _SLACK, f"{what}: the machine lost {(before - lowest) // MIB} MiB")
        return f"{what}: {attack.result()}, at most {peak // MIB} of {limit // MIB} MiB"


async def attack_c31_fork_bomb(target: Target) -> str:
    """A shell that forks itself without end; a neighbour must still get its commands done."""
    async with target.box() as neighbour, target.box(Limits(memory_bytes=256 * MIB, pids=128)) as box:
        async with asyncio.TaskGroup() as tasks:
            attack = tasks.create_task(burst(box, "f(){ f|f& };f; sleep 60", 3.0))
            await asyncio.sleep(1.0)
            started = time.perf_counter()
            fine = await shell(neighbour, "true")
            took = time.perf_counter() - started
            pids = (await box.usage()).pids
        seen = (
            f"{attack.result()}, {pids} processes at a limit of 128, the neighbour's command took {took * 1000:.0f} ms"
        )
        # Not the limit itself: gVisor needs several threads of the host for a process.
        most = (128 + OWN_PIDS) * (TASKS_PER_PROCESS if box.isolation.driver == "gvisor" else 1)
        require(fine.exit.code == 0 and took < 5 and pids <= most, seen)  # noqa: PLR2004
        return seen


async def attack_c32_thread_bomb(target: Target) -> str:
    """Threads until the kernel refuses one."""
    script = """
import threading
made = 0
try:
    while made < 20000:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        made += 1
except RuntimeError as error:
    print("stopped at", made, flush=True)
os._exit(0 if made < 20000 else 1)
"""
    async with target.box(Limits(memory_bytes=512 * MIB, pids=128)) as box:
        try:
            result = await python(box, script, 15.0)
        except (SandboxGone, AgentTimeout) as error:
            return f"the box ended itself: {type(error).__name__}"
        text = text_of(result).strip()
        made = int(text.split()[-1]) if text.startswith("stopped at") else -1
        require(0 < made < 1000, f"{text or 'no answer'} (exit {result.exit.code}) at a limit of 128")  # noqa: PLR2004
        return text


async def attack_c33_memory_bombs(target: Target) -> str:
    """Heap, /dev/shm, memfd, System V shared memory, pipes, page tables: each until it is stopped."""
    bombs = {
        "heap": 'a=[]\nwhile 1: a.append(bytearray(b"x"*4194304))',
        "shm": 'f=open("/dev/shm/f","wb")\nwhile 1: f.write(b"x"*4194304)',
        "memfd": 'import os\nf=os.memfd_create("f")\nwhile 1: os.write(f,b"x"*4194304)',
        "sysv": "import ctypes\nl=ctypes.CDLL(None)\nl.shmat.restype=ctypes.c_void_p\nwhile 1:\n"
        " i=l.shmget(0,ctypes.c_size_t(4194304),0o1600)\n p=l.shmat(i,None,0)\n"
        " ctypes.memset(ctypes.c_void_p(p),1,4194304)",
        "pipes": "import os,fcntl\nk=[]\nwhile 1:\n r,w=os.pipe()\n k.append((r,w))\n os.set_blocking(w,False)\n"
        ' try:\n  while 1: os.write(w,b"x"*65536)\n except BlockingIOError: pass',
        "page tables": "import mmap\nm=mmap.mmap(-1,1<<40,flags=0x4022)\ni=0\nwhile 1:\n m[i]=1\n i+=1<<21",
    }
    return "; ".join([await memory_bomb(target, what, script) for what, script in bombs.items()])


async def attack_c34_out_of_memory_in_the_box(target: Target) -> str:
    """The kernel takes a process of the box and counts it there; whoever runs the box lives on."""
    async with target.box(Limits(memory_bytes=96 * MIB)) as box, target.box() as neighbour:
        before = box.oom_kills()
        how = await burst(box, "head -c 400000000 /dev/zero | tail", 15.0)
        require(box.oom_kills() > before, f"no kill was counted ({how})")
        require((await shell(neighbour, "true")).exit.code == 0, "the neighbour suffered")
        return f"{how}, {box.oom_kills() - before} kill(s) counted in the box"


async def attack_c35_fill_the_disk(target: Target) -> str:
    """Writing past the limit, in one file and in many, dense and sparse."""
    async with target.box(Limits(memory_bytes=256 * MIB, disk_bytes=64 * MIB)) as box:
        script = (
            "cd /root; head -c 99000000 /dev/zero >a; for i in 1 2 3; do head -c 30000000 /dev/zero >b$i; done; sync"
        )
        how = await burst(box, script, 30.0)
        used = (await box.usage()).disk_bytes
        require(used <= 72 * MIB, f"{used // MIB} MiB are on the disk at a limit of 64")
        again = await shell(box, "rm -f /root/a /root/b*; sync; head -c 1000000 /dev/zero > /root/c")
        require(again.exit.code == 0, "space did not come back: " + text_of(again))
        return f"{how}, {used // MIB} MiB on the disk at a limit of 64, and room again after a remove"


async def attack_c36_fill_the_inodes(target: Target) -> str:
    """Empty files until it is stopped; a neighbour can still make one."""
    async with target.box(Limits(memory_bytes=256 * MIB, disk_bytes=4 * MIB)) as box, target.box() as neighbour:
        script = """
made = 0
os.mkdir("/root/d")
try:
    while made < 50000:
        os.close(os.open("/root/d/%d" % made, os.O_CREAT))
        made += 1
except OSError as error:
    print(errno.errorcode.get(error.errno), "at", made)
else:
    print("made", made)
"""
        text = text_of(await python(box, script, 60.0)).strip()
        fine = await shell(neighbour, "touch /root/f")
        require(fine.exit.code == 0, "the neighbour cannot make a file: " + text_of(fine))
        return text + ", the neighbour makes files"


async def attack_c37_output_flood(target: Target) -> str:
    """Output as fast as it comes to a reader that looks away: bounded memory, and the end is told."""
    async with target.box() as box:
        before = _own_memory()
        count = 0
        async with box.agent.exec_stream(ExecSpec(shell="yes | head -c 200000000", timeout_s=5.0)) as events:
            await asyncio.sleep(1.0)
            grown = _own_memory() - before
            async for event in events:
                if isinstance(event, Chunk):
                    count += len(event.data)
                if isinstance(event, Ended):
                    break
        require(grown < 64 * MIB, f"the reader's process grew by {grown // MIB} MiB")
        return f"{count // 1_000_000} MB were read after a pause, the host grew by {max(grown, 0) // MIB} MiB meanwhile"


def _own_memory() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


async def attack_c39_output_that_stays_open(target: Target) -> str:
    """A child in the background that keeps stdout: the answer does not wait for it."""
    async with target.box() as box:
        started = time.perf_counter()
        result = await shell(box, "nohup sleep 300 & echo done")
        took = time.perf_counter() - started
        require(took < 3 and b"done" in result.stdout, f"{took:.1f} s, {result.stdout!r}")  # noqa: PLR2004
        return f"answered after {took * 1000:.0f} ms"


async def attack_c40_cpu_spin(target: Target) -> str:
    """Busy loops in more threads than there are cores: the quota holds, a neighbour gets its turn."""
    async with target.box(Limits(cpus=0.5, memory_bytes=256 * MIB, pids=256)) as box, target.box() as neighbour:
        calm = await _latency(neighbour)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(burst(box, "for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; sleep 30", 3.0))
            await asyncio.sleep(0.5)
            used, started = (await box.usage()).cpu_ms, time.perf_counter()
            busy = await _latency(neighbour)
            # The quota holds per period of 100 ms; a window of a few of them would show a burst, not the share.
            await asyncio.sleep(max(0.0, started + 1.5 - time.perf_counter()))
            share = ((await box.usage()).cpu_ms - used) / (time.perf_counter() - started) / 1000
        seen = (
            f"{share:.2f} cores at a limit of 0.5; a neighbour's command: {calm * 1000:.1f} ms, then {busy * 1000:.1f}"
        )
        require(share < 0.9 and busy < max(calm * 20, 0.5), seen)  # noqa: PLR2004 - wide: the machine may be busy
        return seen


async def _latency(box: Box) -> float:
    """The worst but one of 20 commands, in seconds."""
    samples: list[float] = []
    for _ in range(20):
        started = time.perf_counter()
        await box.agent.exec(ExecSpec(argv=("true",), timeout_s=10.0))
        samples.append(time.perf_counter() - started)
    return sorted(samples)[-2]


async def attack_c41_connections_and_ports(target: Target) -> str:
    """Connection tracking, ports and half-open connections of the machine."""
    del target
    raise NotHere("a sandbox has no network but its own loopback yet")


def _own_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def attack_c42_descriptors(target: Target) -> str:
    """Files, sockets, epolls and pipes until refused; the host's own count does not move."""
    script = """
import select, socket
kept, ended = [], ""
makers = (lambda: os.open("/dev/null", 0), lambda: socket.socket(), lambda: select.epoll(), lambda: os.pipe())
for make in makers:
    try:
        for _ in range(200000):
            kept.append(make())
        ended += "none "
    except OSError as error:
        ended += errno.errorcode.get(error.errno, "?") + " "
        del kept[-50:]
print(ended, len(kept))
os._exit(1 if "none" in ended else 0)
"""
    before = _own_descriptors()
    async with target.box() as box:
        try:
            text = text_of(await python(box, script, 30.0)).strip()
        except (SandboxGone, AgentTimeout) as error:
            text = f"the box ended itself: {type(error).__name__}"
        held = _own_descriptors()
    require("none" not in text, text)
    require(held - before < 32, f"the host holds {held - before} descriptors more")  # noqa: PLR2004
    return text


def _terminals() -> int:
    return int(Path("/proc/sys/kernel/pty/nr").read_text(encoding="ascii"))


async def attack_c43_terminals(target: Target) -> str:
    """Pseudo-terminals until refused, 10 000 resizes, and a flood through one."""
    script = """
import fcntl, termios
made, ends = 0, []
try:
    while made < 5000:
        ends.append(os.openpty())
        made += 1
except OSError as error:
    print("stopped at", made, errno.errorcode.get(error.errno))
if not ends:
    os._exit(0)
for size in range(10000):
    fcntl.ioctl(ends[0][0], termios.TIOCSWINSZ, struct.pack("HHHH", size % 500, size % 300, 0, 0))
print("made", made, flush=True)
import time
time.sleep(1.5)
"""
    before, most = _terminals(), 0
    async with target.box() as box, target.box() as neighbour:
        try:
            async with asyncio.TaskGroup() as tasks:
                attack = tasks.create_task(python(box, script, 30.0))
                while not attack.done():
                    await asyncio.wait({attack}, timeout=0.2)
                    most = max(most, _terminals() - before)
            text = text_of(attack.result()).strip()
        except* (SandboxGone, AgentTimeout) as errors:
            text = f"the box ended itself: {type(errors.exceptions[0]).__name__}"
        fine = await shell(neighbour, "python3 -c 'import os; os.openpty()'")
        require(fine.exit.code == 0, "the neighbour gets no terminal: " + text_of(fine))
        require(most < 512, f"the machine lost {most} terminals")  # noqa: PLR2004 - two boxes at 256
        return f"{text}; the machine lost at most {most} terminals"


async def attack_c44_zombies(target: Target) -> str:
    """Thousands of orphans and of children nobody waits for: reaped, and the box works on."""
    script = (
        "for i in $(seq 500); do (true &) ; done; sleep 1; cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z '; true"
    )
    async with target.box() as box:
        how = await burst(box, script, 40.0)
        left = await burst(box, "echo alive", 10.0)
        require(left.startswith("exit 0"), f"{how}, then {left}")
        return f"{how}, then a command: {left}"


async def attack_c45_fsync_storm(target: Target) -> str:
    """Small synced writes from many processes; a neighbour still gets its commands done."""
    write = "dd if=/dev/zero of=/root/f$i bs=4k count=8 conv=fsync 2>/dev/null"
    script = f"for i in 1 2 3 4; do (while :; do {write}; done) & done; sleep 30"
    async with target.box() as box, target.box() as neighbour:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(burst(box, script, 3.0))
            await asyncio.sleep(0.5)
            started = time.perf_counter()
            fine = await shell(neighbour, "echo x > /root/f; sync /root/f", 30.0)
            took = time.perf_counter() - started
        require(fine.exit.code == 0 and took < 15, f"the neighbour's synced write took {took:.1f} s")  # noqa: PLR2004
        return f"the neighbour's synced write took {took * 1000:.0f} ms"


async def attack_c46_huge_arguments(target: Target) -> str:
    """Arguments and variables of megabytes, thousands of them: refused or reported, never a hang."""
    async with target.box() as box:
        seen: list[str] = []
        for what, spec in (
            ("one argument of 900 KB", ExecSpec(argv=("true", "x" * 900_000), timeout_s=10.0)),
            ("50 000 arguments", ExecSpec(argv=("true", *("x",) * 50_000), timeout_s=10.0)),
            ("a variable of 900 KB", ExecSpec(argv=("true",), env={"X": "x" * 900_000}, timeout_s=10.0)),
        ):
            try:
                result = await box.agent.exec(spec)
                seen.append(f"{what}: exit {result.exit.code}")
            except CoveError as error:
                seen.append(f"{what}: {type(error).__name__}")
        require((await shell(box, "true")).exit.code == 0, "the box is not usable afterwards")
        return "; ".join(seen)


async def attack_c47_processes_that_do_not_end(target: Target) -> str:
    """Stopped, ignoring every signal, in a group and session of their own: the deadline and the end of the box win."""
    script = (
        "trap '' TERM INT HUP QUIT; (setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 1; done' &); kill -STOP $$"
    )
    async with target.box() as box:
        started = time.perf_counter()
        result = await shell(box, script, 1.0)
        took = time.perf_counter() - started
        require(took < 5, f"{result.exit}, {took:.1f} s")  # noqa: PLR2004
    ended = time.perf_counter() - started - took
    require(ended < 10, f"ending the box took {ended:.1f} s")  # noqa: PLR2004
    return f"with a deadline of 1 s it ended after {took:.2f} s, the end of the box took {ended * 1000:.0f} ms"


async def attack_c48_sleeping_past_the_deadline(target: Target) -> str:
    """Timers, alarms and a clock that the sandbox tries to set."""
    script = "import signal,time; signal.signal(14,signal.SIG_IGN); signal.setitimer(0,.01,.01); time.sleep(600)"
    async with target.box() as box:
        started = time.perf_counter()
        result = await shell(box, f"date -s 2001-01-01 2>&1; python3 -c '{script}'", 1.0)
        took = time.perf_counter() - started
        require(result.exit.why is Why.TIMEOUT and took < 5, f"{result.exit}, {took:.1f} s")  # noqa: PLR2004
        if abs(time.time() - float(text_of(await shell(box, "date +%s")))) > 60:  # noqa: PLR2004
            raise Broken("the clock was set")
        return f"ended after {took:.2f} s; the clock stays"
