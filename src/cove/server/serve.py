"""The server process: opens what is below, listens, waits for the word to stop, closes in the reverse order.

Stopping never ends a sandbox, unless `cove down --all` asked for it: they go on, and the next start takes them over.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final, cast

import uvloop
from msgspec.structs import replace

from cove.core.access import LOCAL, require
from cove.core.admission import Disk
from cove.core.facade import Core, open_core
from cove.edge.limits import EdgeLimits
from cove.edge.stopping import Stopping
from cove.engine import machine
from cove.engine.extra_ca import read_extra_ca
from cove.engine.images.store import ImageStore
from cove.engine.registry import Engine, needs_mounts, open_engine
from cove.model.access import Principal, Scope
from cove.model.errors import CoveError
from cove.model.request import PAGE_LIMIT, SandboxFilter
from cove.server import config, logs
from cove.server.adminkey import ensure_admin_key
from cove.server.app import build_app, core_settings, cove_version, edge_limits, engine_config
from cove.server.auditkey import ensure_audit_key, noted_run
from cove.server.brokering import BrokerDoor, open_broker
from cove.server.config import Settings
from cove.server.listen import Listener, bind_tcp, bind_unix, listeners
from cove.server.lock import single_server
from cove.server.secretsfile import open_secrets
from cove.server.ssh.listener import open_ssh
from cove.server.tracing import OpenTelemetry, open_tracing
from cove.server.webhooking import open_poster
from cove.server.welcome import announce, farewell, show_first_command
from cove.store.store import open_store

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S: Final = 30.0
DESTROY_AT_ONCE: Final = 8


class Controller:
    """When to stop, and with or without the sandboxes."""

    def __init__(self) -> None:
        self.stopped = asyncio.Event()
        self.destroy_all = False
        self.core: Core | None = None

    def stop(self) -> None:
        """Stop soon: as a signal does."""
        self.stopped.set()

    async def shutdown(self, who: Principal, *, destroy_all: bool) -> int:
        """Stop soon, with `destroy_all` after all sandboxes have ended. Raises: Forbidden."""
        require(who, Scope.ADMIN)
        assert self.core is not None  # noqa: S101 - a request comes through the application, which has the core
        if destroy_all:
            self.destroy_all = True
            await destroy_sandboxes(self.core)
        left = len(unended(self.core))
        # After this answer is out: the next turn of the loop would still cut it.
        asyncio.get_running_loop().call_later(0.05, self.stop)
        return left


def unended(core: Core) -> list[tuple[Principal, str]]:
    """Every sandbox of every project that has not ended, with a principal that may end it."""
    found: list[tuple[Principal, str]] = []
    for project in core.projects.list(LOCAL):
        who = replace(LOCAL, project=project.id)
        cursor: str | None = None
        while True:
            page = core.sandboxes.list(who, SandboxFilter(), limit=PAGE_LIMIT, cursor=cursor)
            found += [(who, one.id) for one in page.sandboxes]
            cursor = page.cursor
            if cursor is None:
                break
    return found


async def destroy_sandboxes(core: Core) -> None:
    """End them all, a few at a time. One that cannot be ended is logged."""
    slots = asyncio.Semaphore(DESTROY_AT_ONCE)

    async def destroy(who: Principal, ref: str) -> None:
        async with slots:
            try:
                await core.sandboxes.destroy(who, ref)
            except CoveError as error:
                log.warning("sandbox %s could not be ended: %s %s", ref, error, error.internal)

    async with asyncio.TaskGroup() as tasks:
        for who, ref in unended(core):
            tasks.create_task(destroy(who, ref))


async def serve(settings: Settings, *, welcome: bool) -> bool:
    """Serve until told to stop. Returns whether everything was ended, sandboxes included.

    Raises: CoveError for whatever keeps it from starting.
    """
    limits = edge_limits(settings)
    stopping = Stopping()
    control = Controller()
    engine_settings = engine_config(settings)
    async with AsyncExitStack() as stack:
        stack.enter_context(single_server(settings.data_dir))
        tcp_socket = bind_tcp(settings)
        stack.callback(tcp_socket.close)
        settings = replace(settings, port=tcp_socket.getsockname()[1])
        engine = await stack.enter_async_context(open_engine(engine_settings))
        stack.push_async_callback(_free_machine, engine, control)
        engine.checkpoints.lets_memory_in = settings.import_memory
        engine.checkpoints.keep_free_bytes = core_settings(settings).admission.keep_free_disk_bytes
        store = await stack.enter_async_context(open_store(settings.data_dir / "cove.db"))
        extra_ca = read_extra_ca(settings.extra_ca)
        image_store = ImageStore(settings.data_dir / "pulled", extra_ca)
        await asyncio.to_thread(image_store.open)
        door = None if engine.network is None else BrokerDoor(engine.network)
        spaces = stack.enter_context(ExitStack())
        hooks, getter = await open_poster(
            settings.network_outside, settings.network_opened_ranges, engine.network, extra_ca.bundle, spaces
        )
        opened = open_core(
            core_settings(settings),
            drivers=engine.drivers,
            images=engine.images,
            image_store=image_store,
            store=store,
            secrets_at_rest=open_secrets(settings.data_dir),
            audit_key=ensure_audit_key(settings.data_dir),
            unusable={one.name: one.missing for one in engine.status if not one.usable},
            disk=lambda: Disk(*engine.disk()),
            network=engine.network,
            post=hooks,
            getter=getter,
            checkpoints=engine.checkpoints,
        )
        core = control.core = await stack.enter_async_context(opened)
        await core.keys.bootstrap(settings.bootstrap_keys)
        key = await ensure_admin_key(core, settings.data_dir)
        if engine.network is not None and door is not None:
            broker = open_broker(core, engine.network, door, extra_ca.bundle, limits, stopping)
            await stack.enter_async_context(broker)
        unix_socket = bind_unix(engine_settings.run_dir)
        stack.callback((engine_settings.run_dir / "api.sock").unlink, missing_ok=True)
        ssh = await stack.enter_async_context(open_ssh(settings, core))
        tracer = _tracer(settings, stack)
        app = build_app(core, control, settings, limits=limits, stopping=stopping, ssh=ssh, tracer=tracer)
        servers = listeners(app, settings, limits)
        with _signals(control), noted_run(core, settings):
            async with _serving(servers, (tcp_socket, unix_socket), stopping, limits):
                _settle_memory()
                announce(settings, key, engine_settings.run_dir)
                if welcome:
                    await show_first_command(settings, key)
                await control.stopped.wait()
        left = 0 if control.destroy_all else len(unended(core))
        if control.destroy_all:
            await destroy_sandboxes(core)
    farewell(left, destroyed=control.destroy_all)
    return control.destroy_all


def _tracer(settings: Settings, stack: AsyncExitStack) -> OpenTelemetry | None:
    """Where traces go, closed with `stack`; None: nowhere. Raises: EngineFailure."""
    if not settings.otlp_endpoint:
        return None
    tracer = open_tracing(settings.otlp_endpoint, settings.trace_ratio, version=cove_version())
    stack.push_async_callback(asyncio.to_thread, tracer.close)
    return tracer


async def _free_machine(engine: Engine, control: Controller) -> None:
    """After `down --all`: the warm pool's boxes too, then every mount and claim. The core is closed already."""
    if not control.destroy_all:
        return
    for driver in engine.drivers.values():
        for facts in await driver.remains():
            await driver.reap(facts)
    engine.end_strangers()
    for driver in engine.drivers.values():
        await driver.reap(None)
    await engine.release()


def main(argv_overrides: Mapping[str, str], welcome: bool) -> int:  # noqa: FBT001 - the CLI's contract
    """`cove serve`. Returns the exit code: 0, 2 for a setting that cannot be used, 125 for anything else."""
    # A unit or a shell may have another: directories that a sandbox's root must pass through are made with their modes,
    # and secrets are made with 0600 whatever it is.
    os.umask(0o022)
    raise_open_files()
    try:
        loaded = config.load(os.environ, argv_overrides)
    except CoveError as error:
        return _failed(error, code=2)
    settings = loaded.settings
    logs.configure(level=settings.log_level, as_json=settings.log_format == "json")
    for warning in loaded.warnings:
        log.warning(warning)
    try:
        _serve_on_this_machine(settings, welcome=welcome)
    except (CoveError, OSError, ExceptionGroup) as raised:
        first = _first(raised)
        if not isinstance(first, CoveError | OSError):
            raise
        return _failed(first)
    return 0


def raise_open_files() -> None:
    """Take as many open files as we may: a shell's own limit, 1024, is less than the connections that we take."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Where the kernel takes no more than fs.nr_open, "unlimited" cannot be had.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _serve_on_this_machine(settings: Settings, *, welcome: bool) -> None:
    """Enter the instance's mount namespace while this process has one thread, serve, and leave nothing if told so."""
    engine_settings = engine_config(settings)
    origin = machine.enter(engine_settings.run_dir) if needs_mounts(engine_settings) else None
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        is_all_ended = runner.run(serve(settings, welcome=welcome))
    if is_all_ended and origin is not None:
        machine.release(engine_settings.run_dir, origin)


def _first(error: Exception) -> Exception:
    """The first leaf of a group: what failed in a task below."""
    while isinstance(error, ExceptionGroup):
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    return error


def _failed(error: BaseException, *, code: int = 125) -> int:
    print(f"error: {error}", file=sys.stderr)  # noqa: T201 - for a person
    detail = getattr(error, "internal", "")
    if detail:
        print(f"detail: {detail}", file=sys.stderr)  # noqa: T201
    return code


class _signals:  # noqa: N801 - used as a function
    """SIGINT and SIGTERM stop the server; a second one ends the process at once (sandboxes go on all the same)."""

    def __init__(self, control: Controller) -> None:
        self._control = control
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._came)

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.remove_signal_handler(number)

    def _came(self) -> None:
        if self._control.stopped.is_set():
            os._exit(130)
        self._control.stop()


@asynccontextmanager
async def _serving(
    servers: Sequence[Listener], sockets: tuple[socket.socket, ...], stopping: Stopping, limits: EdgeLimits
) -> AsyncGenerator[None]:
    """Accept connections for the body's time; then refuse new ones, end streams, and give the rest a moment."""
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(server.serve(sockets=[sock])) for server, sock in zip(servers, sockets, strict=True)
        ]
        while not all(server.started for server in servers):
            await asyncio.sleep(0.005)
        try:
            yield
        finally:
            for server in servers:
                server.should_exit = True
            stopping.stop()
            await asyncio.wait(running, timeout=limits.stop_grace_s + CLOSE_TIMEOUT_S)


def _settle_memory() -> None:
    """Take what lives as long as the server out of the collector's sight, and let it run seldom.

    A full collection of 100 000 objects stops the loop for 10-20 ms, which would be our p99.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def socket_path(settings: Settings) -> Path:
    """Where the local CLI finds this server."""
    return engine_config(settings).run_dir / "api.sock"
