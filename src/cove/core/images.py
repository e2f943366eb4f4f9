"""Images for callers: what there is, pulling, removing, and which one a new sandbox gets.

A name means, in this order: a built-in image; what the project built or imported (`localhost/NAME`); what the project
pulled; what the registry has; a built-in image that stands in while the registry cannot be reached. Images that were
not made by `cove setup` belong to the project that brought them; their trees are shared underneath by content. What
lies on the disk, and how it gets there, is `engine/images/`.
"""

from __future__ import annotations

import asyncio
import builtins
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from cove.core.access import require
from cove.core.pulls import ImageNote, Pulls, PullStats
from cove.engine.clock import Clock, sleep
from cove.engine.driver import BoxImage
from cove.engine.images.addresses import RegistryRules
from cove.engine.images.aliases import find_alias
from cove.engine.images.records import StoredImage
from cove.engine.images.settings import ImageSettings
from cove.engine.images.store import ImageStore, verified
from cove.engine.images.unpack import LayerFile
from cove.engine.ports import ImageSource
from cove.model.access import Principal, Scope
from cove.model.audit import AuditValue
from cove.model.errors import BadRequest, Conflict, NotFound, RegistryUnreachable, Unsupported
from cove.model.image import Credentials, ImageConfig, ImageEvent, ImageInfo, ImageOrigin
from cove.model.reference import Reference, parse_local, parse_reference
from cove.model.sandbox import Sandbox

log = logging.getLogger(__name__)

COLLECT_S: Final = 600.0
"""How often trees and blobs that nothing uses are looked for, beside after each removal."""

_MOST_SECRET: Final = 16 * 1024


class Resolved(Struct, frozen=True, kw_only=True):
    """What a name came to. `note` says why it is another image than was asked for, else None."""

    image: BoxImage
    note: str | None = None


class ImageUse(Struct, frozen=True, kw_only=True):
    """What runs on images now, asked at the moment of a decision.

    `sandboxes` are those that have not ended; `digests` of all trees under boxes, ready or in the making, and of those
    that snapshots need; `snapshots`: the names of a project's that need a digest. `names`: what sandboxes of a project
    were made with, as it was asked for, ended ones included.
    """

    sandboxes: Callable[[], list[Sandbox]]
    digests: Callable[[], AbstractSet[str]]
    snapshots: Callable[[str, str], list[str]] = lambda _project, _digest: []
    names: Callable[[str], list[str]] = lambda _project: []


class Images:
    """Every operation on images. `name` is a built-in image's or a reference (`model/reference.py`)."""

    def __init__(  # noqa: PLR0913 - made once, by the facade
        self,
        source: ImageSource,
        *,
        store: ImageStore | None,
        settings: ImageSettings,
        clock: Clock,
        tasks: asyncio.TaskGroup,
        use: ImageUse,
        note: ImageNote,
    ) -> None:
        self._source = source
        self._store = store
        self._settings = settings
        self._clock = clock
        self._tasks = tasks
        self._use = use
        self._note = note
        self._pulls = None if store is None else Pulls(store, settings, clock, tasks, note)
        self._collect_soon = asyncio.Event()

    def list(self, who: Principal) -> list[ImageInfo]:
        """The built-in ones, then the project's by name, those on their way among them. Raises: Forbidden."""
        require(who, Scope.READ)
        found = self._source.list()
        if self._store is not None and self._pulls is not None:
            own = [image.info for image in self._store.list(who.project)]
            names = {image.name for image in own}
            own += [image for image in self._pulls.in_progress(who.project) if image.name not in names]
            found += sorted(own, key=lambda image: image.name)
        return found

    def get(self, who: Principal, name: str) -> ImageInfo:
        """One image. Raises: Forbidden, BadRequest, NotFound (field `image`)."""
        require(who, Scope.READ)
        builtin = self._builtin(name)
        return self._stored(who, name).info if builtin is None else builtin

    def tried(self, who: Principal) -> builtins.list[ImageInfo]:
        """What a sandbox can be made of, under the names that callers use; then what failed to come, and why.

        Names that were used are there too where something stands in for them. Raises: Forbidden.
        """
        found = {self._familiar(one.name): one for one in self.list(who)}
        tries = () if self._pulls is None else tuple(self._pulls.failures(who.project))
        asked = (*self._use.names(who.project), *(one.name for one in tries))
        names = dict.fromkeys(map(self._familiar, asked))
        for name in names:
            usable = None if name in found else self._usable(who.project, name)
            if usable is not None:
                found[name] = usable
        for one in tries:
            found.setdefault(self._familiar(one.name), one)
        return [replace(one, name=name) for name, one in found.items()]

    async def begin(self, who: Principal, name: str) -> ImageInfo:
        """See to it that an image is here, without waiting for it: it is ready, or on its way, and `tried` tells more.

        Raises: Forbidden, BadRequest, NotFound (one that no registry has), Unsupported.
        """
        require(who, Scope.CREATE)
        _, pulls = self._needed()
        usable = self._builtin(name) or self._usable(who.project, self._familiar(name))
        if usable is not None:
            return usable
        reference = self._parsed(name)
        if reference.is_local:
            raise _no_image(name)
        RegistryRules(self._settings.registries, self._settings.insecure_registries).check(reference.registry)
        pulls.begin(who.project, reference)
        return next(one for one in pulls.in_progress(who.project) if one.name == str(reference))

    async def pull(
        self, who: Principal, reference: str, *, credentials: Credentials | None = None
    ) -> AsyncGenerator[ImageEvent]:
        """Fetch an image; the events end with `done` or `failed`. Two pulls of one image share one job.

        Closing the generator ends the job once nobody has watched it for a while. A failure of the pull is the last
        event, not an exception. Raises (at the first step): Forbidden, BadRequest, Unsupported.
        """
        require(who, Scope.CREATE)
        _, pulls = self._needed()
        parsed = self._parsed(reference)
        if parsed.is_local:
            raise BadRequest("an image made here (localhost/...) cannot be pulled", field="image")
        RegistryRules(self._settings.registries, self._settings.insecure_registries).check(parsed.registry)
        if credentials is not None:
            _check_credentials(credentials)
        async for event in pulls.watch(who.project, parsed, credentials):
            yield event

    async def remove(self, who: Principal, name: str) -> None:
        """Forget it; its tree goes when nothing uses it. Raises: Forbidden, BadRequest, NotFound, Conflict (in use)."""
        require(who, Scope.DESTROY)
        if self._builtin(name) is not None:
            raise Conflict("a built-in image stays; the settings say which ones `cove setup` makes", field="image")
        store, _ = self._needed()
        image = self._stored(who, name)
        users = [
            sandbox
            for sandbox in self._use.sandboxes()
            if (sandbox.project, sandbox.image_used, sandbox.image_digest) == (who.project, image.name, image.digest)
        ]
        if users:
            count = "1 sandbox runs" if len(users) == 1 else f"{len(users)} sandboxes run"
            raise Conflict(f"{count} on {image.name}: end them first", field="image")
        snapshots = self._use.snapshots(who.project, image.digest)
        if snapshots:
            more = f" and {len(snapshots) - 1} more" if snapshots[1:] else ""
            raise Conflict(f"{image.name} is under the snapshot {snapshots[0]}{more}", field="image")
        await store.forget(image)
        self._note("image.removed", image.project, {"image": image.name, "digest": image.digest})
        self._collect_soon.set()

    async def verify(self, who: Principal, name: str) -> ImageInfo:
        """Measure its tree again. Raises: Forbidden, BadRequest, NotFound, EngineFailure when it is not what it was."""
        require(who, Scope.READ)
        builtin = self._builtin(name)
        if builtin is not None:
            await verified(self._source.get(name).rootfs, builtin.digest)
            return builtin
        store, _ = self._needed()
        image = self._stored(who, name)
        await store.verify(image.digest)
        return image.info

    async def ensure(self, who: Principal, name: str) -> Resolved:
        """For a create: the local image, else the pulled one, else (registry unreachable) an alias.

        Nothing is awaited for an image that is here. Raises: BadRequest, NotFound, Forbidden, RegistryError,
        Unsupported, CapacityExceeded, EngineFailure.
        """
        try:
            return Resolved(image=self._source.get(name))
        except NotFound:
            if self._store is None or self._pulls is None:
                raise
        image = self._find(who.project, name)
        if image is None:
            reference = self._parsed(name)
            if reference.is_local:
                raise _no_image(name)
            alias = find_alias(reference, self._settings.aliases)
            if alias is not None and self._pulls.is_unreachable(reference.registry):
                return self._aliased(reference, alias)
            try:
                await self._pulls.wait(who.project, reference)
            except RegistryUnreachable:
                if alias is None:
                    raise
                return self._aliased(reference, alias)
            image = self._stored(who, name)
        return Resolved(image=self._store.box_image(image))

    def version(self, project: str, name: str, digest: str, *, is_known: bool = True) -> BoxImage:
        """The very content that a sandbox of the project ran on, whatever its name means by now. Looks, never waits.

        `is_known` False: somebody says so, thus it must be the project's to use. Raises: NotFound (field `image`): it
        is not here, or not any more.
        """
        if not (digest.isascii() and digest.isalnum()):
            raise NotFound("that is no digest of an image", field="image")
        if self._store is not None:
            known = [image for image in self._store.list(project) if image.digest == digest]
            if known:
                return self._store.box_image(next((one for one in known if one.name == name), known[0]))
        try:
            return self._source.version(name, digest)
        except NotFound:
            # Its name is another's by now, or nobody's: a tree stays for as long as something needs it.
            if self._store is None or not is_known or not self._store.tree(digest).is_dir():
                raise
        return BoxImage(name=name, digest=digest, rootfs=self._store.tree(digest), origin=ImageOrigin.PULLED)

    # For builds, imports and exports.

    @asynccontextmanager
    async def workspace(self) -> AsyncGenerator[Path]:
        """A private directory on the images' file system, removed afterwards whatever is in it. Put uploads there."""
        store, _ = self._needed()
        async with store.workspace() as path:
            yield path

    async def adopt_layers(  # noqa: PLR0913 - facts of one image, by name
        self,
        who: Principal,
        name: str,
        layers: Sequence[LayerFile],
        *,
        config: ImageConfig,
        origin: ImageOrigin,
        progress: Callable[[int], None] = lambda _: None,
    ) -> ImageInfo:
        """A new image out of tar files (plain, gzip or zstd; each over the one before), unpacked confined, with limits.

        `name` is a short one (`mine`, `mine:v1`): the image becomes `localhost/mine:v1`. The files are the caller's,
        in a `workspace`. An earlier image of that name is replaced. Cancelling leaves nothing.
        Raises: Forbidden, BadRequest (damaged or hostile layers, bad name), TooLarge (limits), EngineFailure.
        """
        require(who, Scope.CREATE)
        store, _ = self._needed()
        reference = parse_local(name)
        if self._builtin(reference.path) is not None:
            raise Conflict(f"{reference.path} is a built-in image: choose another name", field="image")
        image = StoredImage(
            project=who.project,
            name=str(reference),
            digest="",
            size_bytes=0,
            origin=origin,
            created_at=self._clock.now(),
            config=config,
        )
        settings = self._settings
        stored = await store.add(image, layers, settings.limits, timeout_s=settings.pull_s, progress=progress)
        self._collect_soon.set()
        facts: dict[str, AuditValue] = {"image": stored.name, "digest": stored.digest, "size_bytes": stored.size_bytes}
        self._note(f"image.{origin.value}", stored.project, facts)
        return stored.info

    @asynccontextmanager
    async def opened(self, who: Principal, name: str) -> AsyncGenerator[tuple[ImageInfo, Path]]:
        """An image and its tree (read only; hostile: never follow its links), kept from removal meanwhile.

        Raises: Forbidden, BadRequest, NotFound.
        """
        info = self.get(who, name)
        if info.project is None:
            image = self._source.get(name)
            yield info, image.rootfs
            return
        store, _ = self._needed()
        with store.hold(info.digest) as rootfs:
            yield info, rootfs

    # For the facade.

    async def collect_forever(self) -> None:
        """Remove what nothing uses, after each removal and now and then, until cancelled; then end all pulls."""
        if self._store is None or self._pulls is None:
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._remind_forever())
                while True:
                    self._collect_soon.clear()
                    try:
                        await self._store.collect(self._use.digests)
                    except Exception:  # this task's outermost frame: a failed collection must not end the server
                        log.exception("images that nothing uses could not be removed")
                    await self._collect_soon.wait()
        finally:
            self._pulls.cancel_all()

    async def _remind_forever(self) -> None:
        while True:
            await sleep(self._clock, COLLECT_S)
            self._collect_soon.set()

    def stats(self) -> PullStats:
        """Counts for metrics."""
        return PullStats() if self._pulls is None else self._pulls.stats()

    def _builtin(self, name: str) -> ImageInfo | None:
        return next((info for info in self._source.list() if info.name == name), None)

    def _familiar(self, name: str) -> str:
        """As callers write it; a name that is none stays as it is."""
        if self._builtin(name) is not None:
            return name
        try:
            return self._parsed(name).familiar(self._settings.default_registry)
        except BadRequest:
            return name

    def _usable(self, project: str, name: str) -> ImageInfo | None:
        """What a create would get of this name at once."""
        try:
            image, reference = self._find(project, name), self._parsed(name)
        except BadRequest:
            return None
        if image is not None:
            return image.info
        alias = find_alias(reference, self._settings.aliases)
        if alias is None or self._pulls is None or not self._pulls.is_unreachable(reference.registry):
            return None
        return self._builtin(alias)

    def _stored(self, who: Principal, name: str) -> StoredImage:
        image = self._find(who.project, name)
        if image is None:
            raise _no_image(name)
        return image

    def _find(self, project: str, name: str) -> StoredImage | None:
        """The project's image of that name: one made here, then one pulled. Raises: BadRequest."""
        if self._store is None:
            return None
        reference = self._parsed(name)
        if not reference.is_local and "/" not in name and "@" not in name:
            made = self._store.get(project, str(parse_local(name)))
            if made is not None:
                return made
        exact = self._store.get(project, str(reference))
        if exact is not None or reference.digest is None:
            return exact
        same = (
            image
            for image in self._store.list(project)
            if image.manifest_digest == reference.digest
            and image.name.startswith((f"{reference.repository}:", f"{reference.repository}@"))
        )
        return next(same, None)

    def _parsed(self, name: str) -> Reference:
        return parse_reference(name, default_registry=self._settings.default_registry)

    def _aliased(self, reference: Reference, alias: str) -> Resolved:
        assert self._pulls is not None  # noqa: S101 - its caller has looked
        try:
            image = self._source.get(alias)
        except NotFound:
            raise RegistryUnreachable(
                f"the registry {reference.registry} could not be reached, and the image {alias} that would stand in "
                "for it was not made here: cove setup"
            ) from None
        self._pulls.aliased += 1
        note = f"the registry {reference.registry} could not be reached: by the alias table, {alias} stands in"
        log.warning("%s for %s", note, reference)
        return Resolved(image=image, note=note)

    def _needed(self) -> tuple[ImageStore, Pulls]:
        if self._store is None or self._pulls is None:
            raise Unsupported("this server has no place for images")
        return self._store, self._pulls


def _check_credentials(credentials: Credentials) -> None:
    for text in (credentials.username, credentials.password, credentials.token):
        if len(text) > _MOST_SECRET or any(ord(char) < ord(" ") for char in text):
            raise BadRequest("a login has at most 16 KiB and no control characters", field="password")
    if ":" in credentials.username:
        raise BadRequest("a user name has no colon", field="username")


def _no_image(name: str) -> NotFound:
    return NotFound(f'no image "{name[:64]}"', field="image")
