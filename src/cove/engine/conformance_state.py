"""What every driver must do about checkpoints: the part of the conformance suite that stops time.

A driver that keeps no memory says so (`memory_gaps`), refuses, and passes the rest. Each check ends its boxes and
removes its checkpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any, Final

from cove.agentlink.client import AgentClient
from cove.engine.checkpoints.model import Checkpoint
from cove.engine.conformance_bench import Bench, require, sh
from cove.engine.driver import Box
from cove.model.errors import AgentTimeout, CoveError, NotFound, Unsupported
from cove.model.execs import Ended, ExecSpec
from cove.model.network import NetworkPolicy
from cove.model.sandbox import MIB, Limits
from cove.model.shells import ShellCommand, ShellSpec
from cove.model.terminals import TerminalSize

_ZOO: Final = r"""
import os, socket, time
os.makedirs('/root/kept/empty'); os.chdir('/root/kept')
with open('plain', 'w') as f: f.write('x' * 70000)
os.chmod('plain', 0o640); os.utime('plain', (1e9, 1.25e9))
os.link('plain', 'hard'); os.symlink('/nowhere/at all', 'soft')
with open('sparse', 'wb') as f: f.truncate(200 << 20); f.seek(100 << 20); f.write(b'middle')
s = socket.socket(socket.AF_UNIX); s.bind('sock'); s.close()
for name, uid in (('a', 1000), ('b', 65534)):
    with open('of-' + name, 'w') as f: f.write(name)
    os.chown('of-' + name, uid, uid + 1 if uid == 1000 else uid); os.chmod('of-' + name, 0o4711)
os.mkdir('sticky', 0o777); os.chmod('sticky', 0o1777); open('sticky/\u00e9 \n', 'w').close()
try: os.setxattr('plain', 'user.note', b'of it')
except OSError: pass
os.unlink('/etc/issue')
for name in os.listdir('/etc/skel'): os.unlink('/etc/skel/' + name)
os.rmdir('/etc/skel'); os.mkdir('/etc/skel'); open('/etc/skel/only', 'w').close()
os.utime('soft', (1e9, 1.5e9), follow_symlinks=False)
os.utime('empty', (1e9, 1.75e9)); os.utime('sparse', (1e9, 1.6e9))
"""

_SEEN: Final = r"""
import hashlib, json, os, stat
def look(path):
    i = os.lstat(path); kind = stat.S_IFMT(i.st_mode)
    one = {'mode': oct(i.st_mode), 'ids': [i.st_uid, i.st_gid],
           'links': i.st_nlink if kind == stat.S_IFREG else 0,
           # What was set; other times are of the moment, and gVisor has a clock of its own.
           'mtime': i.st_mtime_ns if i.st_mtime < 1.7e9 else 0,
           'size': i.st_size if kind in (stat.S_IFREG, stat.S_IFLNK) else 0}
    if kind == stat.S_IFLNK: one['to'] = os.readlink(path)
    if kind == stat.S_IFREG:
        h = hashlib.sha256()
        with open(path, 'rb') as f:
            while data := f.read(1 << 20): h.update(data)
        one['sha'] = h.hexdigest(); one['sparse'] = i.st_blocks * 512 < max(i.st_size // 2, 4096 * 40)
        try: one['xattrs'] = {n: os.getxattr(path, n).decode() for n in os.listxattr(path) if n.startswith('user.')}
        except OSError: one['xattrs'] = {}
    return one
found = {}
for top in ('/root/kept', '/etc/skel', '/etc/issue'):
    if os.path.lexists(top): found[top] = look(top)
    for folder, names, files in os.walk(top):
        for name in names + files: found[os.path.join(folder, name)] = look(os.path.join(folder, name))
print(json.dumps(found, sort_keys=True))
"""

_LIVE: Final = r"""
import json, mmap, os, socket, threading, time
os.makedirs('/root/place', exist_ok=True); os.chdir('/root/place')
memory = mmap.mmap(-1, 4096); count = os.open('count', os.O_RDWR | os.O_CREAT); apart = 0
memory[:20] = b'%020d' % 0; os.pwrite(count, memory[:20], 0)
log = os.open('log', os.O_RDWR | os.O_CREAT | os.O_APPEND); os.write(log, b'ten bytes.')
shm = open('/dev/shm/kept', 'w+b'); shm.write(b'shared'); shm.flush()
gone = open('/dev/shm/gone', 'w+b'); gone.write(b'deleted'); gone.flush(); os.unlink('/dev/shm/gone')
read, write = os.pipe(); os.write(write, b'in the pipe')
ours, theirs = socket.socketpair(); theirs.send(b'in the pair')
anon = os.memfd_create('anon'); os.write(anon, b'nowhere')
local = socket.socket(socket.AF_UNIX); local.bind('/dev/shm/live.sock'); local.listen()
server = socket.create_server(('127.0.0.1', 7000))
def step():
    global apart
    n = 0
    while True:
        n += 1
        if os.pread(count, 20, 0) != memory[:20]: apart += 1
        os.pwrite(count, b'%020d' % n, 0); memory[:20] = b'%020d' % n
        if n % 100 == 0: time.sleep(0.005)
threading.Thread(target=step, daemon=True).start()
while True:
    peer, _ = server.accept()
    piped = os.read(read, 99); os.write(write, piped)
    paired = ours.recv(99); theirs.send(paired)
    via = socket.socket(socket.AF_UNIX); via.connect('/dev/shm/live.sock'); other, _ = local.accept(); via.send(b'hi')
    status = dict(l.split(':\t') for l in open('/proc/self/status').read().splitlines() if ':\t' in l)
    answer = dict(pid=os.getpid(), cwd=os.getcwd(), mark=os.environ.get('MARK'), apart=apart,
        count=int(memory[:20]),
        offset=os.lseek(log, 0, 1), shm=os.pread(shm.fileno(), 99, 0).decode(),
        gone=os.pread(gone.fileno(), 99, 0).decode(),
        piped=piped.decode(), paired=paired.decode(), anon=os.pread(anon, 99, 0).decode(),
        local=other.recv(9).decode(),
        closed=[status.get(k, '').strip() for k in ('Seccomp', 'CapEff', 'CapBnd', 'NoNewPrivs')])
    peer.sendall(json.dumps(answer).encode()); peer.close(); via.close(); other.close()
"""

_ASK: Final = r"""
import socket
c = socket.create_connection(('127.0.0.1', 7000), 5); c.settimeout(10); data = b''
while more := c.recv(65536): data += more
print(data.decode())
"""

_OUT: Final = r"""
import socket as s
for a in ('169.254.169.254', '11.0.0.1'):
    try: s.create_connection((a, 80), 2); print('open')
    except OSError: print('refused')
"""

_MACHINE: Final = "0123456789abcdef" * 2

_COUNTING: Final = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"


async def _python(box: Box, code: str) -> tuple[int, str]:
    result = await box.agent.exec(ExecSpec(argv=("python3", "-c", code)))
    return result.exit.code, (result.stdout + result.stderr).decode(errors="replace")


async def _told(box: Box, code: str) -> Any:
    """What a program inside prints as JSON."""
    status, text = await _python(box, code)
    require(status == 0, text)
    return json.loads(text)


async def _lives(box: Box) -> bool:
    code, text = await sh(box, "echo alive")
    return (code, text) == (0, "alive\n")


@contextlib.asynccontextmanager
async def _cleared(bench: Bench) -> AsyncGenerator[tuple[list[Box], list[Checkpoint]]]:
    """What a check made goes, whatever it saw."""
    boxes: list[Box] = []
    kept: list[Checkpoint] = []
    try:
        yield boxes, kept
    finally:
        for box in boxes:
            await box.destroy()
        for one in kept:
            await bench.checkpoints.remove(one.id)


async def _refuses_memory(bench: Bench, box: Box) -> bool:
    """Whether this driver keeps none; then it must say so, and the box goes on."""
    if not bench.driver.memory_gaps:
        return False
    refused = ""
    try:
        await bench.keep(box, with_memory=True)
    except Unsupported as error:
        refused = error.field or ""
    require(refused == "memory" and await _lives(box), refused)
    return True


async def check_files_of_a_checkpoint_are_those_of_its_instant(bench: Bench) -> None:
    """All that a file can be, and what was deleted of the image; then each goes its own way."""
    async with _cleared(bench) as (boxes, kept):
        boxes.append(box := await bench.box())
        code, text = await _python(box, _ZOO)
        require(code == 0, text)
        before = await _told(box, _SEEN)
        kept.append(origin := await bench.keep(box, with_memory=False))
        await sh(box, "echo changed > /root/kept/plain; rm /root/kept/soft /etc/skel/only; echo new > /root/later")
        boxes.append(copy := await bench.copy(origin, with_memory=False))
        seen = await _told(copy, _SEEN)
        _, later = await sh(copy, "ls /root; echo theirs > /root/kept/hard; rm -r /root/kept/empty")
        _, ours = await sh(box, "cat /root/kept/plain; ls -d /root/kept/empty")
        boxes.append(again := await bench.copy(origin, with_memory=False))
        once_more = await _told(again, _SEEN)
    require("/etc/issue" not in before and "/etc/skel/only" in before and len(before) > 12, before)  # noqa: PLR2004
    wrong = {path: (before.get(path), seen.get(path)) for path in before | seen if before.get(path) != seen.get(path)}
    require(not wrong, wrong)
    require("later" not in later and ours == "changed\n/root/kept/empty\n", (later, ours))
    require(once_more == before, "a copy wrote into the checkpoint")


async def check_a_fifo_is_kept_without_memory(bench: Bench) -> None:
    """The file of one, that is; what is in it is memory."""
    async with _cleared(bench) as (boxes, kept):
        boxes.append(box := await bench.box())
        await sh(box, "mkfifo /root/fifo")
        kept.append(origin := await bench.keep(box, with_memory=False))
        boxes.append(copy := await bench.copy(origin, with_memory=False))
        require((await sh(copy, "test -p /root/fifo"))[0] == 0, "it is not there")


async def check_files_in_tmp_are_kept_without_memory(bench: Bench) -> None:
    """As any others."""
    async with _cleared(bench) as (boxes, kept):
        boxes.append(box := await bench.box())
        await sh(box, "echo here > /tmp/kept")
        kept.append(origin := await bench.keep(box, with_memory=False))
        boxes.append(copy := await bench.copy(origin, with_memory=False))
        require(await sh(copy, "cat /tmp/kept") == (0, "here\n"), "it is not there")


async def check_a_paused_box_stays_paused_over_a_checkpoint(bench: Bench) -> None:
    """Taken of a paused box, with memory where that can be; nothing runs afterwards until it is resumed."""
    async with _cleared(bench) as (boxes, kept):
        boxes.append(box := await bench.box())
        await box.agent.start("c1", ExecSpec(shell=_COUNTING), keep_bytes=65536, stdin_open=False)
        while (await box.agent.command("c1")).cursor == 0:
            await asyncio.sleep(0.02)
        for with_memory in (False, not bench.driver.memory_gaps):
            await box.pause()
            kept.append(await bench.keep(box, with_memory=with_memory))
            before = (await box.usage()).cpu_ms
            await asyncio.sleep(0.2)
            after = (await box.usage()).cpu_ms
            await box.resume()
            require(before == after and await _lives(box), (with_memory, before, after))
        kept.append(await bench.keep(box, with_memory=with_memory, stay_paused=True))
        with contextlib.suppress(AgentTimeout):
            await box.agent.ping(0.2)
            require(condition=False, detail="it answers although it was to stay paused")
        await box.resume()
        first = (await box.agent.command("c1")).cursor
        await asyncio.sleep(0.3)
        require((await box.agent.command("c1")).cursor > first, "its commands do not go on")


async def check_calls_go_on_over_a_checkpoint(bench: Bench) -> None:
    """A command that a caller waits for, its output and its input notice nothing."""
    async with _cleared(bench) as (boxes, kept):
        boxes.append(box := await bench.box())
        script = "read a; for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.1; done; echo $a; exit 9"
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(box.agent.exec(ExecSpec(shell=script, stdin=b"said\n")))
            await asyncio.sleep(0.2)
            for with_memory in (False, not bench.driver.memory_gaps):
                kept.append(await bench.keep(box, with_memory=with_memory))
        result = running.result()
    require((result.exit.code, result.stdout) == (9, b"1\n2\n3\n4\n5\n6\n7\n8\nsaid\n"), result)


async def check_a_cancelled_checkpoint_leaves_the_box_as_it_was(bench: Bench) -> None:
    """Whenever it is: commands and calls go on, the next one succeeds, nothing is left of it."""
    async with _cleared(bench) as (boxes, kept):
        boxes.append(box := await bench.box())
        with_memory = not bench.driver.memory_gaps
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(box.agent.exec(ExecSpec(shell="sleep 1.5; echo done")))
            await asyncio.sleep(0.1)
            for delay_s in (0.0, 0.02, 0.06, 0.12, 0.2):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        kept.append(await bench.keep(box, with_memory=with_memory))
                require(await _lives(box), delay_s)
        require(running.result().stdout == b"done\n", running.result())
        kept.append(await bench.keep(box, with_memory=with_memory))


async def check_a_damaged_checkpoint_is_refused_and_leaves_nothing(bench: Bench) -> None:
    """Bits that changed, bytes that are missing, files that are gone: an error that says so, and no box."""
    async with _cleared(bench) as (boxes, kept):
        boxes.append(box := await bench.box())
        if await _refuses_memory(bench, box):
            return
        kept.append(origin := await bench.keep(box, with_memory=True))
        # Not the agent: where it is this server's own, the copy in the checkpoint is not needed.
        images = [path for path in origin.memory.iterdir() if path.name != "agent"]
        images.sort(key=lambda path: path.stat().st_size)
        with images[-1].open("r+b") as file:
            file.seek(images[-1].stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes((byte[0] ^ 64,)))
        flipped = await _refusal(bench.checkpoints.get(origin.id))
        with images[-1].open("r+b") as file:
            file.truncate(images[-1].stat().st_size // 2)
        cut = await _refusal(bench.checkpoints.get(origin.id))
        for image in images:
            image.unlink()
        empty = await _refusal(bench.copy(origin, with_memory=True))
        left = [facts.id for facts in await bench.driver.remains()]
        require(flipped and cut and empty, (flipped, cut, empty))
        require(left == [box.facts.id] and await _lives(box), left)


async def _refusal(action: Any) -> str:
    """The public text of the error that `action` ends with; empty: none."""
    try:
        await action
    except CoveError as error:
        return error.public
    return ""


async def _start_live(box: Box) -> None:
    """Let `_LIVE` run in it."""
    spec = ExecSpec(argv=("python3", "-c", _LIVE), env={"MARK": "of the source"})
    await box.agent.start("live", spec, keep_bytes=65536, stdin_open=False)
    for _ in range(200):
        code, _ = await _python(box, _ASK)
        if code == 0:
            return
        await asyncio.sleep(0.05)
    async with box.agent.output("live") as events:
        said = b"".join([getattr(event, "data", b"") async for event in events])
    require(condition=False, detail=said)


async def check_memory_and_files_go_on_from_one_instant(bench: Bench) -> None:
    """A program with memory, files, sockets and pipes goes on in the source and in a copy as if nothing had been."""
    async with _cleared(bench) as (boxes, kept):
        boxes.append(box := await bench.box())
        if await _refuses_memory(bench, box):
            return
        await _start_live(box)
        before = await _told(box, _ASK)
        kept.append(origin := await bench.keep(box, with_memory=True))
        boxes.append(copy := await bench.copy(origin, with_memory=True))
        after = [await _told(one, _ASK) for one in (box, copy)]
        later = [await _told(one, _ASK) for one in (box, copy)]
    for one, next_one in zip(after, later, strict=True):
        changed = {key for key in before if one[key] != before[key]}
        require(changed == {"count"} and one["apart"] == 0, (before, one))
        require(before["count"] < one["count"] < next_one["count"], (before, one, next_one))


async def check_terminals_shells_and_commands_go_on_in_a_copy(bench: Bench) -> None:
    """A terminal with a program, a shell's variables, a background command's output, and what a caller waited for."""
    async with _cleared(bench) as (boxes, kept):
        boxes.append(box := await bench.box())
        if await _refuses_memory(bench, box):
            return
        agent = box.agent
        await agent.start("c1", ExecSpec(shell=_COUNTING), keep_bytes=1 * MIB, stdin_open=False)
        await agent.start_terminal("t1", ExecSpec(argv=("cat",)), size=TerminalSize(cols=90), keep_bytes=65536)
        await agent.open_shell("s1", ShellSpec())
        await agent.shell_exec(
            "s1", "e1", ShellCommand(text="cd /usr/bin; V='of the source'; f() { echo $V in $PWD; }")
        )
        await _type(agent, b"before\n")
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(agent.exec(ExecSpec(shell="sleep 1; echo waited")))
            await asyncio.sleep(0.3)
            kept.append(origin := await bench.keep(box, with_memory=True))
        cursor = (await agent.command("c1")).cursor
        boxes.append(copy := await bench.copy(origin, with_memory=True))
        for one in (box, copy):
            said = await one.agent.shell_exec("s1", "e2", ShellCommand(text="f"))
            require(said.stdout == b"of the source in /usr/bin\n", (one is copy, said))
            await _type(one.agent, b"again\n")
            size = (await one.agent.terminal("t1")).size
            require(size == TerminalSize(cols=90), size)
        while (await copy.agent.command("c1")).cursor <= cursor:
            await asyncio.sleep(0.05)
        async with copy.agent.output("c1", cursor=0, follow=False, limit_bytes=0) as events:
            lines = b"".join([getattr(event, "data", b"") async for event in events]).split()
        released = [one for one in await copy.agent.commands() if one.id not in {"c1", "e1", "e2"}]
        ended = [await copy.agent.wait(one.id, 10.0) for one in released]
    require(waiting.result().stdout == b"waited\n", waiting.result())
    require(lines == [b"%d" % n for n in range(1, len(lines) + 1)], lines[-20:])
    require([one.exit is not None and one.exit.code == 0 for one in ended] == [True], released)


async def _type(agent: AgentClient, text: bytes) -> None:
    """Type a line into the `cat` of the terminal, and see it twice: the echo, and what `cat` says."""
    seen = b""
    async with agent.attach("t1", cursor=None) as stream:
        await stream.write(text)
        async with asyncio.timeout(10.0):
            async for event in stream:
                require(not isinstance(event, Ended), event)
                seen += getattr(event, "data", b"")
                if seen.count(text.strip()) == 2:  # noqa: PLR2004
                    return


async def check_a_copy_with_memory_is_as_closed_as_any_box(bench: Bench) -> None:
    """System calls, capabilities, limits, network, name: of what went on and of what starts in it."""
    async with _cleared(bench) as (boxes, kept):
        boxes.append(box := await bench.box())
        if await _refuses_memory(bench, box):
            return
        await _start_live(box)
        await sh(box, f"echo {_MACHINE} > /etc/machine-id")
        before = await _told(box, _ASK)
        kept.append(origin := await bench.keep(box, with_memory=True))
        limits = Limits(memory_bytes=160 * MIB, cpus=0.5)
        boxes.append(copy := await bench.copy(origin, with_memory=True, limits=limits, hostname="otter"))
        after = await _told(copy, _ASK)
        _, fresh = await sh(copy, "grep -E '^(Seccomp|CapEff|CapBnd):' /proc/self/status")
        _, name = await sh(
            copy, "cat /proc/sys/kernel/hostname /etc/hostname; echo $COPY; kill -9 1 2>&-; kill -STOP 1 2>&-"
        )
        _, machine = await sh(copy, "cat /etc/machine-id")
        _, source_machine = await sh(box, "cat /etc/machine-id; cat /proc/sys/kernel/hostname")
        _, closed = await _python(copy, _OUT)
        with contextlib.suppress(Unsupported):
            await copy.set_network(NetworkPolicy(links=("nobody",)), {})
        _, joined = await _python(copy, _OUT)
        address = copy.facts.address
        kills = copy.oom_kills()
        code, _ = await sh(copy, "exec python3 -c 'a = [bytearray(1000000) for _ in range(400)]'")
        kills = copy.oom_kills() - kills
        usage = await copy.usage()
        await copy.agent.close()
        boxes.append(adopted := await bench.driver.adopt(copy.facts))
        await adopted.reconnect()
        lives = await _lives(adopted)
        facts = copy.facts
    require(after["closed"] == before["closed"] and before["closed"][0] == "2", (before, after))
    require([line.split(":\t")[1] for line in sorted(fresh.splitlines())] == sorted_status(before["closed"]), fresh)
    require(name == "otter\notter\nyes\n", name)
    require(source_machine == f"{_MACHINE}\nconformance\n", source_machine)
    require(len(machine) == len(_MACHINE) + 1 and machine.strip() != _MACHINE, machine)
    require((closed.split(), joined.split()) == (["refused"] * 2, ["refused"] * 2), (closed, joined))
    require(bool(address) is not bool(bench.driver.network_gaps) and address != box.facts.address, address)
    # The kernel counts in batches: a page more can have been seen.
    fits = usage.memory_peak_bytes <= limits.memory_bytes + MIB
    require(code in copy.oom_codes and kills > 0 and fits, (code, kills, usage))
    require(lives and facts.origin == origin.id and facts.uid_base != box.facts.uid_base, facts)


def sorted_status(closed: list[str]) -> list[str]:
    """The fields as `sort` gives their lines: CapBnd, CapEff, Seccomp."""
    seccomp, effective, bounding = closed[:3]
    return [bounding, effective, seccomp]


async def check_what_cannot_be_kept_is_refused_by_name(bench: Bench) -> None:
    """A file that was deleted while it is open: it is there in the copy, or the reason is told and the box goes on."""
    async with _cleared(bench) as (boxes, kept):
        boxes.append(box := await bench.box())
        if await _refuses_memory(bench, box):
            return
        script = "exec 7<>/root/gone; echo still here >&7; rm /root/gone; while :; do sleep 1; done"
        await box.agent.start("c1", ExecSpec(argv=("/bin/sh", "-c", script)), keep_bytes=4096, stdin_open=False)
        read = f"head -1 /proc/{(await box.agent.command('c1')).pid}/fd/7"
        for _ in range(100):
            if await sh(box, read) == (0, "still here\n"):
                break
            await asyncio.sleep(0.05)
        try:
            kept.append(origin := await bench.keep(box, with_memory=True))
        except Unsupported as error:
            require(error.field == "memory" and "deleted" in error.public, error.public)
        else:
            boxes.append(copy := await bench.copy(origin, with_memory=True))
            require(await sh(copy, read) == (0, "still here\n"), "the copy lost it")
        require(await sh(box, read) == (0, "still here\n"), "the source lost it")


async def check_a_checkpoint_outlives_its_source(bench: Bench) -> None:
    """Its box is gone and its server, too; then it is removed, and there is none."""
    async with _cleared(bench) as (boxes, _):
        boxes.append(box := await bench.box())
        with_memory = not bench.driver.memory_gaps
        kept = await bench.keep(box, with_memory=with_memory)
        await box.destroy()
        origin = await bench.checkpoints.get(kept.id)
        boxes.append(copy := await bench.copy(origin, with_memory=with_memory))
        lives = await _lives(copy)
        await bench.checkpoints.remove(kept.id)
        alone = await _lives(copy)
        gone = False
        try:
            await bench.checkpoints.get(kept.id)
        except NotFound:
            gone = True
    require(lives and alone and gone, (lives, alone, gone))
