"""The fake driver: the real agent as a plain process on this machine. For tests and for trying the API; no isolation.

It needs no root and keeps the driver's promises about lifetimes: boxes outlive the server, are adopted, and leave
nothing. It gives no isolation and enforces no limit, which its `Isolation` says. A process that leaves the agent's
family (double fork) is not found again, so never run code in it that you would not run yourself.

A checkpoint of a fake box has neither files (they are the machine's own) nor memory, and says so. For tests of what
stands above the engine, `Staged` makes the driver claim that it keeps memory, fail, or hang.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

import msgspec
from msgspec import Struct

from cove.agentlink.client import AgentClient, Revived
from cove.engine import inside
from cove.engine.agentbin import agent_path
from cove.engine.checkpoints.model import Checkpoint, CheckpointFacts, Draft
from cove.engine.config import EngineConfig
from cove.engine.driver import Box, BoxFacts, BoxSpec, Driver
from cove.model.errors import AgentTimeout, EngineFailure, SandboxGone, Unsupported
from cove.model.sandbox import Isolation, Limits, Usage

NAME: Final = "fake"
READY_S: Final = 5.0
POLL_S: Final = 0.002
TICKS: Final = os.sysconf("SC_CLK_TCK")

ISOLATION: Final = Isolation(
    driver=NAME,
    driver_version="1",
    user_namespace=False,
    seccomp="none",
    quota="none",
    cgroup="none",
    network="host",
    missing=("no isolation of any kind: commands run as the server's own user, on its files and network",),
)

NO_MEMORY: Final = "the fake driver keeps no memory: it is for tests"
_CODE: Final = Path(inside.__file__).with_name("code")
IMAGE: Final = "fake-memory"
"""The one file of a staged checkpoint with memory."""


class Staged(Struct, frozen=True, kw_only=True):
    """What a test makes the driver do. It lies in a file, so that a server in a process of its own can be told, too.

    `keeps_memory`: it claims that it can; a box that is made "with memory" is in truth a fresh agent. `fails`: every
    checkpoint ends with that text. `hangs`: every checkpoint waits until this is False again or it is cancelled.
    `restore_fails`: no box can be made of a checkpoint.
    """

    keeps_memory: bool = False
    fails: str | None = None
    hangs: bool = False
    restore_fails: str | None = None


def stage(run_dir: Path, staged: Staged) -> None:
    """Tell the fake driver of the server (or engine) with that run directory."""
    partial = run_dir / "fake.partial"
    partial.write_bytes(msgspec.json.encode(staged))
    partial.rename(run_dir / "fake.staged")


class _NamelessAgent(AgentClient):
    """An agent that must not write /etc/hostname and /etc/hosts, which here are the machine's own."""

    async def claim(
        self, env: dict[str, str], workdir: str | None, hostname: str | None, user: str | None = None
    ) -> None:
        """As the agent's, without the name."""
        del hostname
        await super().claim(env, workdir, None, user)

    remembered: CheckpointFacts | None = None
    """Of a box that was made with staged memory: what its processes would know. Its agent is a fresh one."""

    async def revive(self, *, hostname: str | None, env: dict[str, str] | None, is_copy: bool) -> Revived:
        """A claim: the files that the agent's own would write are the machine's, and there is no process to tell."""
        del hostname
        if (facts := self.remembered) is None:
            raise Unsupported(NO_MEMORY, field="memory")
        await self.claim({**facts.env, **((env or {}) if is_copy else {})}, facts.workdir, None, facts.user)
        return Revived()


class FakeBox(Box):
    """One agent process and its family. `pretended_oom_kills` lets a test stage an out-of-memory kill.

    `is_paused` is of this server's own doing: an adopted box was let go on.
    """

    has_own_files = False

    def __init__(self, facts: BoxFacts, agent: _NamelessAgent, home: Path) -> None:
        self.facts = facts
        self._agent = agent
        self.pretended_oom_kills = 0
        self.is_paused = False
        self._home = home
        self._usage = Usage()

    @property
    def agent(self) -> AgentClient:
        """The connection to its agent."""
        return self._agent

    @property
    def code_dir(self) -> str:
        """On this machine, as all of its files."""
        return str(_CODE)

    @property
    def isolation(self) -> Isolation:
        """None, and it says so."""
        return ISOLATION

    async def set_limits(self, limits: Limits) -> None:
        """Noted, not enforced."""
        self.facts = msgspec.structs.replace(self.facts, limits=limits)
        _write_facts(self._home, self.facts)

    async def set_hostname(self, hostname: str) -> None:
        """Nothing: the host name is the machine's."""

    async def pause(self) -> None:
        """Stop the family."""
        _signal_family(self.facts, signal.SIGSTOP)
        self.is_paused = True

    async def resume(self) -> None:
        """Let it go on."""
        _signal_family(self.facts, signal.SIGCONT)
        self.is_paused = False

    async def checkpoint(self, draft: Draft, *, with_memory: bool, stay_paused: bool = False) -> CheckpointFacts:
        """Facts, and with memory (where a test staged it) a file that holds none."""
        started, was_paused = time.monotonic(), self.is_paused
        if with_memory and not self._staged.keeps_memory:
            raise Unsupported(NO_MEMORY, field="memory")
        if not _is_alive(self.facts):
            raise SandboxGone("the sandbox has ended")
        await self.pause()
        try:
            while self._staged.hangs:
                await asyncio.sleep(POLL_S)
            if self._staged.fails is not None:
                raise EngineFailure(self._staged.fails)
            if with_memory:
                (draft.memory / IMAGE).write_bytes(msgspec.json.encode(self.facts.id))
        except BaseException:
            if not was_paused:
                await self.resume()
            raise
        if not (was_paused or stay_paused):
            await self.resume()
        return CheckpointFacts(
            driver=NAME,
            has_memory=with_memory,
            why_no_memory=None if with_memory else NO_MEMORY,
            image=self.facts.image,
            image_digest=self.facts.image_digest,
            limits=self.facts.limits,
            hostname=os.uname().nodename,
            agent_build=self.facts.agent_build,
            engine={NAME: ISOLATION.driver_version} if with_memory else {},
            processes=sum(1 for _ in _family(self.facts.init_pid)),
            memory_bytes=(draft.memory / IMAGE).stat().st_size if with_memory else 0,
            stopped_ms=(time.monotonic() - started) * 1000,
        )

    @property
    def _staged(self) -> Staged:
        return _read_staged(self._home.parent)

    async def usage(self) -> Usage:
        """CPU time of the agent and of what it has waited for."""
        with suppress(OSError):
            fields = _stat(self.facts.init_pid)
            cpu_ms = sum(int(field) for field in fields[11:15]) * 1000 // TICKS
            self._usage = Usage(cpu_ms=cpu_ms, oom_kills=self.pretended_oom_kills)
        return self._usage

    def oom_kills(self) -> int:
        """What the test says."""
        return self.pretended_oom_kills

    async def wait_dead(self) -> None:
        """Until the agent has ended."""
        while _is_alive(self.facts):
            try:
                pidfd = os.pidfd_open(self.facts.init_pid)
            except ProcessLookupError:
                return
            try:
                await _wait_readable(pidfd)
            finally:
                os.close(pidfd)
            _collect(self.facts.init_pid)

    def let_go(self) -> None:
        """Drop the connection."""
        self._agent.drop()

    async def reconnect(self) -> None:
        """A fresh connection, if the old one is closed."""
        if self.agent.is_closed:
            self._agent = await _connect(self._home, self._agent.remembered)

    async def destroy(self) -> Usage:
        """Kill the family and remove its directory."""
        usage = await self.usage()
        await self.agent.close()
        await _kill(self.facts)
        shutil.rmtree(self._home, ignore_errors=True)
        return usage


class FakeDriver(Driver):
    """Agents as plain processes, each in a directory of its own below `root`."""

    name = NAME

    def __init__(self, root: Path, agent: Path) -> None:
        self._root = root
        self._agent = agent
        self._known: set[str] = set()

    async def requirements(self) -> tuple[str, ...]:
        """The agent must have been built."""
        return () if self._agent.exists() else ("the agent is not built: run `make agent`",)

    @property
    def memory_gaps(self) -> tuple[str, ...]:
        """All there is to say, but where a test staged otherwise."""
        return () if _read_staged(self._root).keeps_memory else (NO_MEMORY,)

    def origin_gaps(self, origin: Checkpoint) -> tuple[str, ...]:
        """Only what was taken by this driver."""
        if origin.facts.driver != NAME:
            return (f"the memory was kept by the driver {origin.facts.driver}",)
        return self.memory_gaps

    def _check_origin(self, spec: BoxSpec) -> None:
        """Raises: EngineFailure, Unsupported."""
        if spec.origin is None:
            return
        staged = _read_staged(self._root)
        if staged.restore_fails is not None:
            raise EngineFailure(staged.restore_fails)
        if spec.with_memory:
            gaps = self.origin_gaps(spec.origin)
            if gaps:
                raise Unsupported(gaps[0], field="memory")
            if not (spec.origin.memory / IMAGE).is_file():
                raise EngineFailure("the checkpoint is damaged", internal=f"no {IMAGE} in {spec.origin.memory}")

    async def create(self, spec: BoxSpec) -> Box:
        """Start an agent, of a checkpoint too: none holds more than that. On failure or cancellation nothing is left.

        The agent of a box that is made with staged memory is a fresh one: it knows nothing of before.
        """
        self._check_origin(spec)
        home = self._root / spec.id
        (home / "work").mkdir(parents=True, mode=0o700)
        self._known.add(spec.id)
        pid = self._spawn(home)
        facts = BoxFacts(
            id=spec.id,
            driver=NAME,
            image=spec.image.name,
            image_digest=spec.image.digest,
            uid_base=os.getuid(),
            init_pid=pid,
            init_start=int(_stat(pid)[19]),
            limits=spec.limits,
            isolation=ISOLATION,
            agent_build="",
            created_at=time.time(),
            origin="" if spec.origin is None else spec.origin.id,
        )
        try:
            _write_facts(home, facts)
            agent = await _connect(home, spec.origin.facts if spec.origin and spec.with_memory else None)
        except BaseException:
            await asyncio.shield(_kill(facts))
            shutil.rmtree(home, ignore_errors=True)
            raise
        facts = msgspec.structs.replace(facts, agent_build=agent.hello.build)
        _write_facts(home, facts)
        return FakeBox(facts, agent, home)

    def _spawn(self, home: Path) -> int:
        """The agent in a session of its own and without our streams: it would hold a pipe open that others read."""
        argv = [str(self._agent), "-socket", str(_socket(home))]
        quiet = [(os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in range(3)]
        try:
            return os.posix_spawn(self._agent, argv, {}, file_actions=quiet, setsid=True)
        except OSError as error:
            shutil.rmtree(home, ignore_errors=True)
            raise EngineFailure("the agent cannot be started", internal=str(error)) from error

    async def adopt(self, facts: BoxFacts) -> Box:
        """Take over an agent that outlived the server; a stopped one is let go on, so that it can answer."""
        home = self._root / facts.id
        if not _is_alive(facts):
            raise SandboxGone("the sandbox is dead")
        _signal_family(facts, signal.SIGCONT)
        box = FakeBox(facts, await _connect(home), home)
        self._known.add(facts.id)
        return box

    async def remains(self) -> list[BoxFacts]:
        """What the directories say."""
        return [facts for home in self._homes() if (facts := _read_facts(home)) is not None]

    async def reap(self, facts: BoxFacts | None = None) -> None:
        """Free one box, or all that this driver does not know."""
        homes = self._homes() if facts is None else [self._root / facts.id]
        for home in homes:
            if facts is None and home.name in self._known:
                continue
            found = _read_facts(home)
            if found is not None:
                await _kill(found)
            shutil.rmtree(home, ignore_errors=True)

    def _homes(self) -> list[Path]:
        return sorted(self._root.iterdir()) if self._root.exists() else []


def driver_factory(config: EngineConfig) -> Driver:
    """What the registry calls."""
    return FakeDriver(config.run_dir / "fake", agent_path())


async def _connect(home: Path, remembered: CheckpointFacts | None = None) -> _NamelessAgent:
    """Connect as soon as the agent listens. Raises: AgentTimeout, SandboxGone, AgentViolation."""
    deadline = time.monotonic() + READY_S
    while True:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.setblocking(False)
        try:
            link.connect(str(_socket(home)))
            agent = cast("_NamelessAgent", await _NamelessAgent.connect(link))
        except OSError as error:
            link.close()
            if time.monotonic() > deadline:
                raise AgentTimeout("the sandbox does not answer", internal=str(error)) from error
            await asyncio.sleep(POLL_S)
        else:
            agent.remembered = remembered
            return agent


def _socket(home: Path) -> Path:
    return home / "a.sock"


def _read_staged(root: Path) -> Staged:
    """What a test wrote beside `root`; usually nothing."""
    try:
        return msgspec.json.decode(root.with_name("fake.staged").read_bytes(), type=Staged)
    except OSError:
        return Staged()


def _write_facts(home: Path, facts: BoxFacts) -> None:
    partial = home / "facts.new"
    partial.write_bytes(msgspec.json.encode(facts))
    partial.rename(home / "facts.json")


def _read_facts(home: Path) -> BoxFacts | None:
    try:
        return msgspec.json.decode((home / "facts.json").read_bytes(), type=BoxFacts)
    except (OSError, msgspec.MsgspecError):
        return None


def _stat(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) after the name, so [0] is field 3. Raises: OSError when there is no such pid."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()


def _is_alive(facts: BoxFacts) -> bool:
    """Whether that very process lives: a pid alone may have been given to another."""
    try:
        fields = _stat(facts.init_pid)
    except OSError:
        return False
    return fields[0] not in "ZX" and int(fields[19]) == facts.init_start


def _family(pid: int) -> Iterator[int]:
    """`pid` and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parents.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    todo = [pid]
    while todo:
        one = todo.pop()
        yield one
        todo += parents.get(one, [])


def _signal_family(facts: BoxFacts, number: signal.Signals) -> None:
    if _is_alive(facts):
        for pid in _family(facts.init_pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


async def _kill(facts: BoxFacts) -> None:
    """End the whole family. Raises: EngineFailure when it does not go."""
    deadline = time.monotonic() + READY_S
    _signal_family(facts, signal.SIGKILL)
    while _is_alive(facts):
        if time.monotonic() > deadline:
            raise EngineFailure("the sandbox's processes do not end", internal=f"pid {facts.init_pid}")
        await asyncio.sleep(POLL_S)
    _collect(facts.init_pid)


def _collect(pid: int) -> None:
    """Take the exit status of our child; after a restart it is init's child, and nothing is to do."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


async def _wait_readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(descriptor, done.set)
    try:
        await done.wait()
    finally:
        loop.remove_reader(descriptor)
