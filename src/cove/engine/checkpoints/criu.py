"""The memory of runc's boxes, by criu: what taking and restoring it needs beyond the files.

The instant: when criu is ready, the agent lets go of its socket; criu stops every task as a debugger would, reads its
memory, says so (`post-dump`), and then the layer is copied. Only afterwards criu lets the tasks go on. So nothing of
the box ran between the memory and the files. Nothing is made durable meanwhile: that is for the store, once the box
goes on. The box's freezer is not what stops it: a task that a signal had stopped (Ctrl-Z) and a freezer then froze
cannot be attached to at all (v1, Linux 6.18: criu hangs in ptrace(2)). Where the box shall stay paused, it is frozen
while criu still holds it.

A network namespace is not kept: the box gets a new one, with what belongs to the machine in it. Connections are closed
in the copy, sockets that listen go on listening. criu puts restored tasks into a time namespace, in which the monotonic
clocks go on from where they were.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from cove.engine import rootfs
from cove.engine.checkpoints import criuimages, criulog, halfway, sessions, watched
from cove.engine.checkpoints.criurpc import Criu, CriuFailed, Dump
from cove.engine.checkpoints.model import Checkpoint, Draft
from cove.engine.driver import BoxSpec
from cove.engine.ids import Ids
from cove.engine.oci import bundle
from cove.engine.oci.box import OciBox
from cove.engine.oci.ground import Ground, processes_of
from cove.engine.oci.runtime import Runtime
from cove.engine.oci.saving import CopyLayer, Saved, StopClock
from cove.engine.userns import UserNamespaces
from cove.engine.versions import at_least
from cove.model.errors import CoveError, EngineFailure
from cove.model.sandbox import MIB

log = logging.getLogger(__name__)

MINIMUM: Final = "4.2"
"""4.1 and older fail on current kernels as soon as there is a socket (SO_PASSCRED)."""

_RESTORERS: Final = 64
_CONFIG: Final = ("tcp-close", "network-lock skip", "verbosity 1")
"""No connection is kept, so none has to be held up by packet filters meanwhile; and a log of errors only."""

_TRIES: Final = 3
"""A program that is just being started (vfork) can be stopped neither now nor a moment later; then it can."""

_PLAIN: Final = "plain"
_LIMIT_S: Final = 60.0
_SLOWEST_BYTES_PER_S: Final = 20 * MIB
_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
"""What the runtime binds into /dev of a box that may not make devices."""

_CPU_WORDS: Final = re.compile(
    r"(sse|ssse|avx|fma|f16c|bmi|adx|aes|pclmul|sha|popcnt|abm|movbe|rdrand|rdseed|xsave|vaes|vpclmul|gfni|amx|clwb|rtm"
    r"|fsgsbase|pku|ospke|cx16|erms|fsrm|rdpid|movdir|waitpkg|serialize|fpu|mmx|fxsr).*",
)
"""The flags of x86 processors that programs ask for before they use them; the others are the kernel's affair."""


class CriuMemory:
    """What criu can do for one driver on this machine. Ask `gaps` only after `probe`."""

    def __init__(self, driver: str, ground: Ground, runtime: Runtime) -> None:
        self._driver = driver
        self._ground = ground
        self._runtime = runtime
        self._criu = Criu(ground.config.runtimes_dir / "bin" / "criu", ground.config.run_dir)
        self._facts: dict[str, str] = {}
        self.gaps: tuple[str, ...] = ("criu was not asked yet",)

    async def probe(self) -> None:
        """Find out what is missing. First whatever a killed server left of its work has to end. Never raises."""
        await self._criu.await_left_behind()
        try:
            self.gaps = await self._missing()
        except (OSError, TimeoutError, CriuFailed) as error:
            log.warning("criu cannot be used: %r", error)
            self.gaps = ("criu is missing or does not run: run `cove setup`",)

    async def _missing(self) -> tuple[str, ...]:
        ids = self._ground.choice.ids
        if ids is Ids.HOST:
            return ("without user namespaces memory is not kept: criu would restore it as the machine's root",)
        version = await self._criu.version()
        if not at_least(version, MINIMUM):
            return (f"criu {version} is too old for memory, {MINIMUM} is needed: run `cove setup`",)
        if complaint := await self._criu.check():
            log.warning("criu check: %s", complaint)
            return ("this kernel lacks what criu needs for memory: `criu check` says what",)
        self._facts = {
            "criu": version,
            "kernel": platform.release(),
            "machine": platform.machine(),
            "cpu": " ".join(sorted(cpu_words())),
            "cgroup": self._ground.cgroups.kind,
            "ids": str(ids),
            "tmpfs": await asyncio.to_thread(self._spare_gzip),
        }
        if self._facts["tmpfs"] == _PLAIN:
            self._criu.path = self._path_for(_PLAIN)
        return ()

    def _spare_gzip(self) -> str:
        """Put a program that changes nothing where criu's tar finds it as gzip. Returns how a tmpfs is kept then.

        criu packs what lies in a tmpfs while the box stands still, at 20 MB/s; the store packs it again later anyway.
        """
        program = self._ground.plain_gzip
        try:
            program.unlink(missing_ok=True)
            program.write_text("#!/bin/sh\nexec cat\n")
            program.chmod(0o555)
            done = subprocess.run([program, "-d"], input=b"plain", capture_output=True, timeout=_LIMIT_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return "gzip"
        return _PLAIN if done.stdout == b"plain" else "gzip"

    def _path_for(self, kind: str) -> str:
        system = "/usr/sbin:/usr/bin:/sbin:/bin"
        return f"{self._ground.plain_gzip.parent}:{system}" if kind == _PLAIN else system

    def origin_gaps(self, origin: Checkpoint) -> tuple[str, ...]:
        """Why its memory cannot be restored here, one sentence each."""
        if self.gaps:
            return self.gaps
        facts = origin.facts
        if facts.driver != self._driver:
            return (f"its memory was kept by the driver {facts.driver}, and only that one can restore it",)
        here = {**self._facts, "mounts": " ".join(sorted(_external_paths(self._ground)))}
        return tuple(differences(facts.engine, here))

    async def keep(self, box: OciBox, draft: Draft, copy_layer: CopyLayer, *, stay_paused: bool) -> Saved:
        """As `OciDriver.keep_memory`."""
        ground, facts = self._ground, box.facts
        home = ground.dirs(facts.id).home
        work = home / "criu"
        _make_empty(work)
        external = _external_of(facts.init_pid, _binds(home))
        wanted = Dump(
            pid=facts.init_pid,
            rootfs=ground.dirs(facts.id).rootfs,
            images=draft.memory,
            work=work,
            external=external,
            config=_CONFIG,
        )
        try:
            clock, processes = await self._dump_in_time(box, wanted, copy_layer, stay_paused=stay_paused)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        (draft.memory / "descriptors.json").write_text('["/dev/null","/dev/null","/dev/null"]')
        size = sum(entry.stat().st_size for entry in os.scandir(draft.memory))
        engine = {**self._facts, "mounts": " ".join(sorted(inside for inside, name in external if inside == name))}
        return Saved(processes=processes, stopped_ms=clock.stopped_ms, memory_bytes=size, engine=engine)

    async def _dump_in_time(
        self, box: OciBox, wanted: Dump, copy_layer: CopyLayer, *, stay_paused: bool
    ) -> tuple[StopClock, int]:
        """As `_dump`, again where that may help. Raises: what is to be told the caller."""
        limit_s = _limit_s(box.group.usage().memory_bytes)
        for left in range(_TRIES - 1, -1, -1):
            _clear(wanted.images)
            try:
                return await self._dump(box, wanted, copy_layer, limit_s, stay_paused=stay_paused)
            except CriuFailed as error:
                if left and not wanted.watched and criulog.needs_places(str(error)):
                    wanted = msgspec.structs.replace(wanted, watched=await self._watched(box))
                elif not left or not criulog.is_passing(str(error)):
                    raise criulog.why_not_kept(str(error)) from error
        raise AssertionError

    async def _watched(self, box: OciBox) -> tuple[str, ...]:
        def work() -> tuple[str, ...]:
            return watched.places_of(watched.watched_inodes(pids), self._ground.dirs(box.facts.id).rootfs)

        pids = processes_of(box.group)
        return await asyncio.to_thread(work)

    async def _dump(
        self, box: OciBox, wanted: Dump, copy_layer: CopyLayer, limit_s: float, *, stay_paused: bool
    ) -> tuple[StopClock, int]:
        """One try. Returns for how long the box stood still, and how many processes it has."""
        stays, clock, processes = stay_paused or box.group.is_frozen(), StopClock(), 0
        async with contextlib.AsyncExitStack() as hushed:

            async def on_step(step: str) -> None:
                nonlocal clock, processes
                if step == "pre-dump":
                    await hushed.enter_async_context(box.quiet(stay_quiet=stay_paused))
                    clock = StopClock()
                elif step == "post-dump":
                    if stays:
                        # Each task is stopped by criu, and goes from that stop into this one.
                        await box.group.freeze()
                    pids = processes_of(box.group)
                    processes = len(pids - {box.facts.init_pid})
                    if sessions.has_lost_leader(sessions.tasks_of(pids), box.facts.init_pid):
                        raise criulog.unkept("a program took in others whose session has lost its leader")
                    await copy_layer()

            await self._criu.dump(wanted, on_step, limit_s)
            clock.stop()
        return clock, processes

    async def restore(self, spec: BoxSpec, base: int, pid_file: Path) -> None:
        """Let the processes of its origin go on in the bundle beside `pid_file`. Raises: EngineFailure, OSError."""
        home, origin = pid_file.parent, spec.origin
        if origin is None:
            raise EngineFailure("a sandbox without origin was to be restored", internal=spec.id)
        work = home / "criu"
        _make_empty(work)
        (work / "criu.conf").write_text("".join(f"{line}\n" for line in _CONFIG))

        def lay(_: UserNamespaces) -> Path:
            own = work / "own"
            criuimages.lay(origin.memory, own, base=base, size=bundle.SIZE_OF_IDS, hostname=spec.hostname)
            return rootfs.mount_images(rootfs.BoxDirs(home=home), own, origin.memory)

        try:
            images = await self._ground.mounts.run(lay)
            limit_s = _limit_s(origin.facts.memory_bytes)
            path = self._path_for(origin.facts.engine.get("tmpfs", ""))
            with halfway.hook(work) as hooks:
                _add_to(home / "config.json", hooks=hooks, annotations={"org.criu.config": str(work / "criu.conf")})
                _make_room(home / "config.json")
                await self._runtime.restore(spec.id, home, pid_file, images, work, limit_s, path)
        except criuimages.Damaged as error:
            raise EngineFailure(f"the checkpoint is damaged: {error}") from error
        except EngineFailure as error:
            raise _explained(error, work / "restore.log") from error
        group = self._ground.cgroups.of(spec.id)
        await asyncio.to_thread(lambda: group.set_limits(spec.limits, device=self._ground.io_device))
        await asyncio.to_thread(lambda: halfway.settle_network(int(pid_file.read_text())))
        await self._ground.mounts.run(lambda _: rootfs.unmount_images(rootfs.BoxDirs(home=home)))
        shutil.rmtree(work, ignore_errors=True)


def _add_to(config: Path, **parts: object) -> None:
    bundle_config = msgspec.json.decode(config.read_bytes(), type=dict[str, object])
    config.write_bytes(msgspec.json.encode({**bundle_config, **parts}))


def _make_room(config: Path) -> None:
    """A few more processes for CRIU itself, while it restores a box that is at its limit."""
    found = msgspec.json.decode(config.read_bytes())
    found["linux"]["resources"]["pids"]["limit"] += _RESTORERS
    config.write_bytes(msgspec.json.encode(found))


class _Bundle(Struct):
    """What we read of a bundle's configuration: where it binds something into the box."""

    mounts: list[dict[str, object]]


def _explained(error: EngineFailure, path: Path) -> CoveError:
    with contextlib.suppress(OSError):
        return criulog.why_not_restored(path.read_text(errors="replace")[-64 * 1024 :] + error.internal)
    return error


def _clear(images: Path) -> None:
    """Remove what an earlier try wrote. The agent's file, which is of no try, stays."""
    for path in images.glob("*.img"):
        path.unlink()


def _make_empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)


def _limit_s(memory_bytes: int) -> float:
    return _LIMIT_S + memory_bytes / _SLOWEST_BYTES_PER_S


def _binds(home: Path) -> set[str]:
    mounts = msgspec.json.decode((home / "config.json").read_bytes(), type=_Bundle).mounts
    return {str(mount["destination"]) for mount in mounts if mount.get("type") == "bind"}


def _external_paths(ground: Ground) -> set[str]:
    """What a box that is made now has from outside."""
    return {bundle.AGENT_TARGET, bundle.SOCKET_DIR_TARGET, *ground.shown, *(f"/dev/{name}" for name in _DEVICES)}


def _external_of(init_pid: int, binds: set[str]) -> tuple[tuple[str, str], ...]:
    return external_mounts(Path(f"/proc/{init_pid}/mountinfo").read_text(), binds)


def external_mounts(mountinfo: str, binds: set[str]) -> tuple[tuple[str, str], ...]:
    """The mounts of a box that criu must not look into, with the name by which the runtime will give them back.

    Masks are binds of /dev/null, and all have that name. Read from the kernel's own list: nothing in the box makes
    mounts, and no path in the box is opened.
    """
    known = binds | {f"/dev/{name}" for name in _DEVICES}
    found: list[tuple[str, str]] = []
    for line in mountinfo.splitlines():
        root, target = line.split(" ", 5)[3:5]
        if target in known:
            found.append((target, target))
        elif target in bundle.MASKED_PATHS and root == "/null":
            found.append((target, "/dev/null"))
    return tuple(found)


def cpu_words() -> set[str]:
    """What programs may use of this machine's processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, words = line.partition(":")
        if name.strip() == "flags":
            return {word for word in words.split() if _CPU_WORDS.fullmatch(word)}
        if name.strip() == "Features":
            return set(words.split())
    return set()


def differences(theirs: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Why memory that was kept under `theirs` cannot be restored `here`, one sentence each."""
    gaps: list[str] = []
    if theirs.get("machine") != here["machine"]:
        gaps.append(f"its memory is of a {theirs.get('machine')} machine, and this is a {here['machine']}")
    for name, word in (("kernel", "Linux"), ("criu", "criu")):
        if not at_least(here[name], theirs.get(name, "")):
            gaps.append(f"its memory was kept with {word} {theirs[name]}, and this machine's {here[name]} is older")
    if missing := set(theirs.get("cpu", "").split()) - set(here["cpu"].split()):
        gaps.append(f"its programs may use what this processor lacks: {', '.join(sorted(missing)[:8])}")
    if theirs.get("tmpfs") == _PLAIN != here.get("tmpfs"):
        gaps.append("its /dev/shm was kept as it is, and this machine's criu can read only what gzip wrote")
    if theirs.get("cgroup") != here["cgroup"]:
        gaps.append(f"its memory was kept with cgroup {theirs.get('cgroup')}, and this machine has {here['cgroup']}")
    if theirs.get("ids") != here["ids"]:
        gaps.append("one of the two machines maps the ids of files, the other has them on the disk as they are outside")
    if missing := set(theirs.get("mounts", "").split()) - set(here["mounts"].split()):
        gaps.append(f"it had something of its machine that this one does not give: {', '.join(sorted(missing)[:8])}")
    return gaps
