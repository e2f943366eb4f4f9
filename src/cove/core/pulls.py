"""Pulls in progress. Callers watch a job; two who ask for one image watch one job, and the job outlives each of them.

A job that nobody has watched for `watch_grace_s` is cancelled; what it had fetched whole is kept for the next.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from cove.engine.clock import Clock
from cove.engine.images.manifests import image_config
from cove.engine.images.records import StoredImage
from cove.engine.images.settings import ImageSettings
from cove.engine.images.store import ImageStore
from cove.engine.images.transfer import Fetched, Resolution, Transfer
from cove.engine.images.unpack import LayerFile
from cove.model.audit import AuditValue
from cove.model.errors import CoveError, EngineFailure, RegistryError, RegistryUnreachable, TooLarge
from cove.model.image import Credentials, ImageEvent, ImageInfo, ImageOrigin, ImageStage
from cove.model.reference import Reference

log = logging.getLogger(__name__)

MOST_FAILURES: Final = 256
"""Failed pulls that are remembered, of all projects."""

_FINAL = (ImageStage.DONE, ImageStage.FAILED)


ImageNote = Callable[[str, str, Mapping[str, AuditValue]], object]
"""Writes a line of a project's audit trail: event, project, data."""


class PullStats(Struct, frozen=True, kw_only=True):
    """Pulls now, and counts since start. `aliased`: creates that got a built-in image for an unreachable one."""

    running: int = 0
    done: int = 0
    failed: int = 0
    aliased: int = 0
    fetched_bytes: int = 0
    trees_collected: int = 0


class _Key(Struct, frozen=True):
    """What makes two pulls the same."""

    project: str
    reference: str
    credentials: Credentials | None


class Job:
    """One pull. `latest` is its newest event; watchers that are slow miss some, never the last."""

    def __init__(self, key: _Key) -> None:
        self.key = key
        self.latest = ImageEvent(stage=ImageStage.RESOLVE)
        self.failure: CoveError | None = None
        self.task: asyncio.Task[None] | None = None
        self.watchers = 0
        self._changed = asyncio.Event()

    def say(self, event: ImageEvent) -> None:
        """Tell everybody who watches."""
        self.latest = event
        self._changed.set()
        self._changed = asyncio.Event()

    async def events(self) -> AsyncGenerator[ImageEvent]:
        """What happens from now on, ending with `done` or `failed`."""
        seen: ImageEvent | None = None
        while seen is None or seen.stage not in _FINAL:
            changed = self._changed
            if self.latest is seen:
                await changed.wait()
            seen = self.latest
            yield seen


class Pulls:
    """All jobs. Made by the facade; `tasks` outlives them."""

    def __init__(
        self, store: ImageStore, settings: ImageSettings, clock: Clock, tasks: asyncio.TaskGroup, note: ImageNote
    ) -> None:
        self._store = store
        self._note = note
        self._settings = settings
        self._clock = clock
        self._tasks = tasks
        self._jobs: dict[_Key, Job] = {}
        self._slots = asyncio.Semaphore(settings.pulls)
        self._unreachable: dict[str, float] = {}
        self._failures: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._done = self._failed = self._bytes = 0
        self.aliased = 0

    async def watch(
        self, project: str, reference: Reference, credentials: Credentials | None
    ) -> AsyncGenerator[ImageEvent]:
        """Start the pull, or join it, and say how it goes. Leaving early may end it after a while."""
        job = self._job(_Key(project, str(reference), credentials), reference)
        async for event in self._watched(job):
            yield event

    def begin(self, project: str, reference: Reference) -> None:
        """Start the pull, or let one go on that runs, for nobody who waits. `failures` tells if it fails."""
        self._job(_Key(project, str(reference), None), reference)

    def failures(self, project: str) -> Iterable[ImageInfo]:
        """The project's last pulls that failed, unless there was another try since."""
        for (owner, reference), failure in self._failures.items():
            if owner == project:
                yield ImageInfo(
                    name=reference,
                    digest="",
                    size_bytes=0,
                    status="failed",
                    origin=ImageOrigin.PULLED,
                    project=project,
                    failure=failure,
                )

    async def wait(self, project: str, reference: Reference) -> None:
        """Pull, and return when it is there. Raises: what the pull failed with."""
        job = self._job(_Key(project, str(reference), None), reference)
        async for _ in self._watched(job):
            pass
        if job.failure is not None:
            raise job.failure

    def is_unreachable(self, registry: str) -> bool:
        """Whether the registry could not be reached a short while ago."""
        return self._unreachable.get(registry, 0.0) > self._clock.monotonic()

    def in_progress(self, project: str) -> Iterable[ImageInfo]:
        """The project's images that are on their way."""
        for job in self._jobs.values():
            if job.key.project == project:
                yield ImageInfo(
                    name=job.key.reference,
                    digest="",
                    size_bytes=job.latest.done_bytes,
                    status="pulling",
                    origin=ImageOrigin.PULLED,
                    project=project,
                )

    def cancel_all(self) -> None:
        """End every job: the server stops."""
        for job in tuple(self._jobs.values()):
            if job.task is not None:
                job.task.cancel()

    def stats(self) -> PullStats:
        """Counts for metrics."""
        return PullStats(
            running=len(self._jobs),
            done=self._done,
            failed=self._failed,
            aliased=self.aliased,
            fetched_bytes=self._bytes,
            trees_collected=self._store.collected,
        )

    def _job(self, key: _Key, reference: Reference) -> Job:
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = Job(key)
            self._failures.pop((key.project, key.reference), None)
            job.task = self._tasks.create_task(self._live(job, reference), name=f"pull {key.reference}")
        return job

    async def _watched(self, job: Job) -> AsyncGenerator[ImageEvent]:
        job.watchers += 1
        try:
            async for event in job.events():
                yield event
        finally:
            job.watchers -= 1
            if job.watchers == 0:
                asyncio.get_running_loop().call_later(self._settings.watch_grace_s, _abandon, job)

    async def _live(self, job: Job, reference: Reference) -> None:
        """The job's task, from its start to its last event."""
        try:
            image = await self._pulled(job, reference)
        except CoveError as error:
            log.warning("pull of %s failed: %s %s", reference, error, error.internal)
            self._fail(job, error)
        except asyncio.CancelledError:
            self._fail(job, EngineFailure("the pull was ended before it was done"))
            raise
        except Exception as error:  # the task's outermost frame
            log.exception("pull of %s failed", reference)
            self._fail(job, EngineFailure("Cove failed", internal=repr(error)))
        else:
            self._done += 1
            facts: dict[str, AuditValue] = {"image": image.name, "digest": image.digest, "size_bytes": image.size_bytes}
            self._note("image.pulled", image.project, facts)
            job.say(ImageEvent(stage=ImageStage.DONE, done_bytes=image.size_bytes, image=image.info))
        finally:
            self._jobs.pop(job.key, None)

    def _fail(self, job: Job, error: CoveError) -> None:
        self._failed += 1
        job.failure = error
        self._failures[job.key.project, job.key.reference] = error.public
        while len(self._failures) > MOST_FAILURES:
            self._failures.popitem(last=False)
        job.say(ImageEvent(stage=ImageStage.FAILED, text=error.public, error=error.kind))

    async def _pulled(self, job: Job, reference: Reference) -> StoredImage:
        try:
            async with self._slots, asyncio.timeout(self._settings.pull_s):
                return await self._pull(job, reference)
        except TimeoutError as error:
            raise RegistryError(f"the pull was not done within {self._settings.pull_s:.0f} s") from error
        except OSError as error:
            raise EngineFailure("the machine failed while pulling", internal=repr(error)) from error

    async def _pull(self, job: Job, reference: Reference) -> StoredImage:
        project = job.key.project
        async with self._store.download(project) as (directory, name):
            transfer = Transfer(
                reference,
                settings=self._settings,
                clock=self._clock,
                directory=directory,
                job=name,
                credentials=job.key.credentials,
            )
            try:
                resolution = await transfer.resolve()
                self._unreachable.pop(reference.registry, None)
                present = self._store.get(project, str(reference))
                if present is not None and present.manifest_digest == resolution.digest:
                    return present
                most = self._settings.limits.most_bytes
                if resolution.size_bytes > most:
                    raise TooLarge(f"this image is larger than {most >> 20} MiB, packed", field="image")
                fetched = await transfer.fetch(resolution, _reporter(job, ImageStage.DOWNLOAD, resolution.size_bytes))
            except RegistryUnreachable:
                self._unreachable[reference.registry] = self._clock.monotonic() + self._settings.unreachable_s
                raise
            finally:
                self._bytes += transfer.downloaded_bytes
            return await self._add(job, reference, resolution, fetched)

    async def _add(self, job: Job, reference: Reference, resolution: Resolution, fetched: Fetched) -> StoredImage:
        image = StoredImage(
            project=job.key.project,
            name=str(reference),
            digest="",
            size_bytes=0,
            origin=ImageOrigin.PULLED,
            created_at=time.time(),
            manifest_digest=resolution.digest,
            config=image_config(fetched.configuration),
            blobs=fetched.blobs,
        )
        layers = [
            LayerFile(path=fetched.directory / layer.digest.removeprefix("sha256:"), digest=layer.digest, diff_id=diff)
            for layer, diff in zip(fetched.layers, fetched.configuration.rootfs.diff_ids, strict=True)
        ]
        total = sum(layer.size for layer in fetched.layers)
        report = _reporter(job, ImageStage.UNPACK, total)
        report(0)
        try:
            return await self._store.add(
                image, layers, self._settings.limits, timeout_s=self._settings.pull_s, progress=report
            )
        except CoveError:
            # A blob that rotted on the disk would spoil every try: what did not unpack is fetched anew.
            await asyncio.to_thread(_remove, [layer.path for layer in layers])
            raise


def _reporter(job: Job, stage: ImageStage, total: int) -> Callable[[int], None]:
    def report(done: int) -> None:
        if job.latest.stage is not stage or job.latest.done_bytes != done:
            job.say(ImageEvent(stage=stage, done_bytes=min(done, total), total_bytes=total))

    return report


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _abandon(job: Job) -> None:
    """Nobody has come back for it."""
    if job.watchers == 0 and job.task is not None:
        job.task.cancel()
