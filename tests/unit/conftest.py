"""Stand-ins of the engine's outside for unit tests: boxes that are only records, and a core over them.

The driver's boxes outlive a core, as real ones do, so a test can open a second core over the first one's leftovers.
"""

# ruff: noqa: ANN001, ANN003, ANN201, ANN202, ARG002 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
from msgspec.structs import asdict, replace

from checkpoints_support import StubCheckpoints
from cove.agentlink.client import TerminalStream
from cove.agentlink.session import ExecSession
from cove.agentlink.wire import AgentHello, ClaimedEnvironment, Revived
from cove.core.admission import Memory
from cove.core.facade import Core, open_core
from cove.core.info import CoreSettings
from cove.engine.checkpoints.model import Checkpoint, CheckpointFacts, Draft
from cove.engine.clock import ManualClock
from cove.engine.driver import Box, BoxFacts, BoxImage, BoxSpec, Driver
from cove.engine.pool import PoolConfig, PoolTarget
from cove.model.errors import Conflict, CoveError, EngineFailure, NotFound, SandboxGone, Unsupported
from cove.model.execs import Chunk, Command, Ended, ExecExit, ExecResult, ExecSpec, Started, Stream, Why
from cove.model.image import ImageInfo
from cove.model.network import NO_NETWORK, NetworkPolicy, NetworkUse
from cove.model.sandbox import MIB, Isolation, Limits, Sandbox, Usage
from cove.model.state import State
from cove.model.terminals import Terminal
from cove.store.store import open_store
from waiting_support import comes_true

ISOLATION = Isolation(
    driver="stub", driver_version="1", user_namespace=False, seccomp="none", quota="none", cgroup="none"
)


class StubAgent:
    """Answers at once. `exit` is what the next commands end with; `gone` makes everything fail as in a dead box."""

    def __init__(self) -> None:
        self.is_closed = False
        self.hello = AgentHello(protocol=1, agent="stub", build="stub", features=("tools",))
        self.gone = False
        self.exit = ExecExit(code=0, why=Why.EXITED)
        self.on_exec: Callable[[], None] = lambda: None
        self.block: asyncio.Event | None = None
        self.claimed: tuple[dict[str, str], str | None, str | None] | None = None
        self.kept: dict[str, Command] = {}
        self.screens: dict[str, Terminal] = {}
        self.revived: tuple[str | None, dict[str, str], bool] | None = None
        self.dropped: CoveError | None = None

    async def claim(self, env, workdir, hostname, user=None) -> None:
        self._check()
        if self.claimed is not None:
            raise Conflict("claimed already")
        self.claimed = (env, workdir, hostname)

    async def environment(self) -> ClaimedEnvironment:
        self._check()
        env, workdir, _ = self.claimed or ({}, None, None)
        return ClaimedEnvironment(env=env, workdir=workdir, user=None)

    async def revive(self, *, hostname, env, is_copy) -> Revived:
        self._check()
        self.revived = (hostname, env, is_copy)
        return Revived()

    def drop(self, reason: CoveError | None = None) -> None:
        self.dropped, self.is_closed = reason, True

    async def exec(self, spec: ExecSpec, share: object = None) -> ExecResult:
        self._check()
        if self.block is not None:
            await self.block.wait()
        self.on_exec()
        self._check()
        return ExecResult(exit=self.exit, stdout=b"out", stderr=b"")

    @asynccontextmanager
    async def exec_stream(self, spec: ExecSpec):
        self._check()

        async def events():
            yield Started(id="c1", pid=7)
            yield Chunk(stream=Stream.STDOUT, data=b"out")
            self.on_exec()
            self._check()
            yield Ended(exit=self.exit)

        yield events()

    @asynccontextmanager
    async def exec_session(self, spec: ExecSpec):
        async def sent(data: bytes) -> bool:
            return not self.gone

        async def signalled(command_id: str, number: int) -> None:
            self._check()

        async with self.exec_stream(spec) as events:
            session = ExecSession(events, send=sent, send_eof=lambda: None, send_signal=signalled)
            await session.begin()
            yield session

    async def start(self, id, spec, *, keep_bytes, stdin_open) -> Started:  # noqa: A002 - the client's name
        self._check()
        self.kept[id] = Command(
            id=id,
            pid=9,
            argv=spec.argv or ("/bin/sh", "-c", spec.shell),
            started_at=0.0,
            running=True,
            exit=None,
            cursor=0,
            oldest_cursor=0,
        )
        return Started(id=id, pid=9)

    async def command(self, id) -> Command:  # noqa: A002 - the client's name
        self._check()
        if id not in self.kept:
            raise NotFound("no such command")
        return self.kept[id]

    async def commands(self) -> list[Command]:
        return list(self.kept.values())

    async def start_terminal(self, id, spec, *, size, keep_bytes) -> Started:  # noqa: A002 - the client's name
        started = await self.start(id, spec, keep_bytes=keep_bytes, stdin_open=True)
        command = self.kept.pop(id)
        self.screens[id] = Terminal(**asdict(command), size=size)
        return started

    async def terminals(self) -> list[Terminal]:
        return list(self.screens.values())

    async def terminal(self, id) -> Terminal:  # noqa: A002 - the client's name
        self._check()
        if id not in self.screens:
            raise NotFound("no such terminal")
        return self.screens[id]

    async def resize(self, id, size) -> None:  # noqa: A002 - the client's name
        self.screens[id] = replace(await self.terminal(id), size=size)

    async def forget(self, id) -> None:  # noqa: A002 - the client's name
        self.screens.pop(id, None)
        self.kept.pop(id, None)

    @asynccontextmanager
    async def attach(self, id, *, cursor):  # noqa: A002 - the client's name
        terminal = await self.terminal(id)

        async def events():
            yield Chunk(stream=Stream.STDOUT, data=b"out")
            if self.block is not None:
                await self.block.wait()
            self._check()
            yield Ended(exit=self.exit, cursor=3)

        yield TerminalStream(None, events(), cursor or 0, terminal.size)

    async def close(self) -> None:
        self.is_closed = True

    def _check(self) -> None:
        if self.gone or self.is_closed:
            raise SandboxGone("the sandbox died")


class StubBox(Box):
    """A record. `calls` is what was done to it, in order; `refuse` names calls that fail."""

    isolation = ISOLATION
    agent = None
    addresses = count(2)

    def __init__(self, facts: BoxFacts) -> None:
        self.facts = facts
        self.agent = StubAgent()
        self.dead = asyncio.Event()
        self.is_destroyed = False
        self.is_paused = False
        self.calls: list[str] = []
        self.refuse: dict[str, CoveError] = {}
        self.ooms = 0
        self.limits = facts.limits
        self.network = NO_NETWORK
        self.links: dict[str, str] = {}
        self.has_memory = True
        self.origin: Checkpoint | None = None
        self.on_checkpoint: Callable[[], Awaitable[None]] | None = None

    async def checkpoint(self, draft: Draft, *, with_memory: bool, stay_paused: bool = False) -> CheckpointFacts:
        was_paused, self.is_paused = self.is_paused, True
        try:
            await self._do("checkpoint")
            if with_memory and not self.has_memory:
                raise Unsupported("this stub keeps no memory")
            if self.on_checkpoint is not None:
                await self.on_checkpoint()
        except BaseException:
            self.is_paused = was_paused
            raise
        self.is_paused = was_paused or stay_paused
        return CheckpointFacts(
            driver="stub",
            has_memory=with_memory,
            image=self.facts.image,
            image_digest=self.facts.image_digest,
            limits=self.facts.limits,
            hostname="host",
            agent_build="b",
            engine={},
            memory_bytes=100 * MIB if with_memory else 0,
        )

    async def _do(self, call: str) -> None:
        self.calls.append(call)
        await asyncio.sleep(0)
        if call in self.refuse:
            raise self.refuse[call]

    async def set_limits(self, limits: Limits) -> None:
        await self._do("set_limits")
        self.limits = limits

    async def set_hostname(self, hostname: str) -> None:
        await self._do("set_hostname")

    async def set_network(self, policy: NetworkPolicy, links: Mapping[str, str]) -> None:
        await self._do("set_network")
        self.network, self.links = policy, dict(links)
        if policy.is_connected:
            await self.prepare_network()
        elif self.is_joined:
            self.facts = replace(self.facts, address="")
        self.isolation = replace(ISOLATION, network=policy.mode.value)

    @property
    def is_joined(self) -> bool:
        return bool(self.facts.address)

    async def prepare_network(self) -> None:
        await self._do("prepare_network")
        if not self.is_joined:
            self.facts = replace(self.facts, address=f"10.213.0.{next(self.addresses)}")

    async def network_use(self) -> NetworkUse:
        return NetworkUse(sent_bytes=3, received_bytes=4)

    async def pause(self) -> None:
        await self._do("pause")
        self.is_paused = True

    async def resume(self) -> None:
        await self._do("resume")
        self.is_paused = False

    async def usage(self) -> Usage:
        return Usage(cpu_ms=5)

    def oom_kills(self) -> int:
        return self.ooms

    async def wait_dead(self) -> None:
        await self.dead.wait()

    async def reconnect(self) -> None:
        await self._do("reconnect")
        if self.dead.is_set():
            raise SandboxGone("dead")
        claimed = self.agent.claimed
        self.agent = StubAgent()
        self.agent.claimed = claimed

    async def destroy(self) -> Usage:
        await self._do("destroy")
        self.die()
        self.is_destroyed = True
        return Usage(cpu_ms=9)

    def die(self) -> None:
        self.agent.gone = True
        self.dead.set()


class StubDriver(Driver):
    """Makes StubBoxes. `failures` are raised by the next creates, `gate` holds them while it is cleared."""

    name = "stub"
    network_gaps = ()

    def __init__(self) -> None:
        self.boxes: dict[str, StubBox] = {}
        self.specs: list[BoxSpec] = []
        self.failures: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.creating = 0
        self.most_creating = 0
        self.created = 0
        self.adopt_failures: list[CoveError] = []
        self.swept = 0
        self.missing: tuple[str, ...] = ()
        self.gaps: tuple[str, ...] = ()

    async def requirements(self) -> tuple[str, ...]:
        return self.missing

    async def create(self, spec: BoxSpec) -> Box:
        self.creating += 1
        self.most_creating = max(self.creating, self.most_creating)
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
        finally:
            self.creating -= 1
        if self.failures:
            raise self.failures.pop(0)
        assert spec.id not in self.living(), "an id is used twice"
        self.created += 1
        box = StubBox(
            BoxFacts(
                id=spec.id,
                driver=self.name,
                image=spec.image.name,
                image_digest=spec.image.digest,
                uid_base=0,
                init_pid=1,
                init_start=1,
                limits=spec.limits,
                isolation=ISOLATION,
                agent_build="b",
                created_at=0.0,
                origin="" if spec.origin is None else spec.origin.id,
            )
        )
        self.specs.append(spec)
        if spec.origin is not None and spec.with_memory:
            facts = spec.origin.facts
            box.agent.claimed = (facts.env, facts.workdir, None)
        box.origin = spec.origin
        self.boxes[spec.id] = box
        return box

    @property
    def memory_gaps(self) -> tuple[str, ...]:
        return self.gaps

    async def adopt(self, facts: BoxFacts) -> Box:
        await asyncio.sleep(0)
        if self.adopt_failures:
            raise self.adopt_failures.pop(0)
        box = self.boxes[facts.id]
        if box.dead.is_set():
            raise SandboxGone("dead")
        claimed = box.agent.claimed
        box.agent = StubAgent()
        box.agent.claimed = claimed
        return box

    async def remains(self) -> list[BoxFacts]:
        return [replace(box.facts, limits=box.limits) for box in self.boxes.values() if not box.is_destroyed]

    async def reap(self, facts: BoxFacts | None = None) -> None:
        if facts is None:
            self.swept += 1
        else:
            box = self.boxes[facts.id]
            box.die()
            box.is_destroyed = True

    def living(self) -> dict[str, StubBox]:
        return {id_: box for id_, box in self.boxes.items() if not box.is_destroyed}


class StubImages:
    """One image, `base`, whose digest a test may change; `missing` makes it unknown."""

    def __init__(self) -> None:
        self.digest = "d1"
        self.missing = False

    def get(self, name: str) -> BoxImage:
        if self.missing or name != "base":
            raise NotFound("no such image", field="image")
        return BoxImage(name=name, digest=self.digest, rootfs=Path("/nowhere"), env={"LANG": "C"}, workdir="/w")

    def version(self, name: str, digest: str) -> BoxImage:
        image = self.get(name)
        if image.digest != digest:
            raise NotFound("not that version", field="image")
        return image

    def list(self) -> list[ImageInfo]:
        return [ImageInfo(name="base", digest=self.digest, size_bytes=1, status="ready")]


class StubJournal:
    """Remembers what was written. `refuse` makes writes fail."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self.records: list[Sandbox] = []
        self.refuse = False

    async def write(self, sandbox: Sandbox) -> None:
        await asyncio.sleep(0)
        if self.refuse:
            raise EngineFailure("the state database cannot be written at the moment")
        self._keep(sandbox)

    def _keep(self, sandbox: Sandbox) -> None:
        self.states.append(sandbox.state)
        self.records.append(sandbox)

    async def write_surely(self, sandbox: Sandbox) -> None:
        """As the real one, which keeps what it cannot write at the moment."""
        await asyncio.sleep(0)
        self._keep(sandbox)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def driver() -> StubDriver:
    return StubDriver()


@pytest.fixture
def checkpoints() -> StubCheckpoints:
    return StubCheckpoints()


@pytest.fixture
def images() -> StubImages:
    return StubImages()


@pytest.fixture
def journal() -> StubJournal:
    return StubJournal()


@pytest.fixture
def stubs() -> Callable[[], tuple[StubDriver, StubImages, StubJournal]]:
    """Makes fresh ones, for tests that need them more than once."""
    return lambda: (StubDriver(), StubImages(), StubJournal())


@pytest.fixture(name="eventually")
def eventually_fixture():
    return comes_true


MEMORY = Memory(total=16384 * MIB, available=12288 * MIB)

OpenCore = Callable[..., AbstractAsyncContextManager[Core]]


@pytest.fixture
def opened(
    tmp_path: Path, driver: StubDriver, images: StubImages, clock: ManualClock, checkpoints: StubCheckpoints
) -> OpenCore:
    """Opens a core, over the same store and driver each time."""

    @asynccontextmanager
    async def open_one(
        *, pool: int = 0, memory: Callable[[], Memory] = lambda: MEMORY, network=None, secrets=None, **settings
    ) -> AsyncIterator[Core]:
        targets = (PoolTarget(image="base", driver="stub", size=pool),) if pool else ()
        config = PoolConfig(targets=targets, quiet_s=0.0, agent_build="b")
        async with (
            open_store(tmp_path / "cove.db") as store,
            open_core(
                CoreSettings(default_driver="stub", pool=config, **settings),
                drivers={"stub": driver},
                images=images,
                store=store,
                clock=clock,
                memory=memory,
                network=network,
                secrets_at_rest=secrets,
                checkpoints=checkpoints,
            ) as core,
        ):
            if pool:
                await comes_true(lambda: core.stats().pool[0].ready == pool)
            yield core

    return open_one


@pytest.fixture
async def core(opened: OpenCore) -> AsyncIterator[Core]:
    async with opened() as one:
        yield one
