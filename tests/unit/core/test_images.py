"""Which image a name means, who may do what with it, and what a server without a place for images does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from cove.core.access import LOCAL
from cove.core.images import Images, ImageUse
from cove.core.pulls import Job, _Key
from cove.engine.clock import ManualClock
from cove.engine.driver import BoxImage
from cove.engine.images.records import StoredImage, record_path, write_file
from cove.engine.images.settings import ImageSettings
from cove.engine.images.store import ImageStore
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, Conflict, Forbidden, NotFound, RegistryUnreachable, Unsupported
from cove.model.image import Credentials, ImageConfig, ImageEvent, ImageInfo, ImageOrigin, ImageStage

DIGEST = "sha256:" + "ab" * 32


class Builtin:
    """One image of `cove setup`."""

    def get(self, name: str) -> BoxImage:
        if name != "base":
            raise NotFound("no such image", field="image")
        return BoxImage(name=name, digest="d1", rootfs=Path("/nowhere"))

    def version(self, name: str, digest: str) -> BoxImage:
        image = self.get(name)
        if image.digest != digest:
            raise NotFound("not that version", field="image")
        return image

    def list(self) -> list[ImageInfo]:
        return [ImageInfo(name="base", digest="d1", size_bytes=1)]


def stored(directory: Path, name: str, digest: str = "t1", *, project: str = "default", manifest: str = "") -> None:
    """An image as an earlier server left it."""
    (directory / "trees" / digest / "rootfs").mkdir(parents=True, exist_ok=True)
    image = StoredImage(
        project=project,
        name=name,
        digest=digest,
        size_bytes=5,
        origin=ImageOrigin.PULLED,
        created_at=1.0,
        manifest_digest=manifest,
        config=ImageConfig(user="7", env={"A": "b"}),
    )
    write_file(record_path(directory / "refs", image), msgspec.json.encode(image))


class Bench:
    def __init__(self, directory: Path, settings: ImageSettings, tasks: asyncio.TaskGroup) -> None:
        self.store = ImageStore(directory)
        self.store.open()
        self.used: set[str] = set()
        self.clock = ManualClock()
        use = ImageUse(sandboxes=list, digests=lambda: self.used)
        self.images = Images(
            Builtin(), store=self.store, settings=settings, clock=self.clock, tasks=tasks, use=use, note=lambda *_: None
        )


@pytest.fixture
async def tasks() -> AsyncGenerator[asyncio.TaskGroup]:
    async with asyncio.TaskGroup() as group:
        yield group


def limited(*scopes: Scope) -> Principal:
    return replace(LOCAL, key_id="k", scopes=frozenset(scopes))


async def test_names_are_looked_for_in_the_promised_order(tmp_path: Path, tasks: asyncio.TaskGroup) -> None:
    stored(tmp_path, "localhost/base:latest", "t1")
    stored(tmp_path, "localhost/mine:latest", "t2")
    stored(tmp_path, "docker.io/library/mine:latest", "t3")
    stored(tmp_path, "docker.io/library/alpine:3", "t4", manifest=DIGEST)
    bench = Bench(tmp_path, ImageSettings(), tasks)
    for name, digest in {
        "base": "d1",
        "localhost/base": "t1",
        "mine": "t2",
        "docker.io/mine": "t3",
        "alpine:3": "t4",
        f"alpine@{DIGEST}": "t4",
        f"alpine:3@{DIGEST}": "t4",
    }.items():
        resolved = await bench.images.ensure(LOCAL, name)
        assert (resolved.image.digest, resolved.note) == (digest, None), name
        assert bench.images.get(LOCAL, name).digest == digest
    image = (await bench.images.ensure(LOCAL, "alpine:3")).image
    assert (image.user, image.env, image.origin) == ("7", {"A": "b"}, ImageOrigin.PULLED)
    assert bench.images.list(LOCAL)[0].name == "base"


async def test_another_projects_image_does_not_exist(tmp_path: Path, tasks: asyncio.TaskGroup) -> None:
    stored(tmp_path, "localhost/mine:latest", project="other")
    bench = Bench(tmp_path, ImageSettings(), tasks)
    assert [info.name for info in bench.images.list(LOCAL)] == ["base"]
    with pytest.raises(NotFound):
        bench.images.get(LOCAL, "localhost/mine")
    with pytest.raises(NotFound):
        await bench.images.ensure(LOCAL, "localhost/mine")
    assert bench.images.get(replace(LOCAL, project="other"), "mine").digest == "t1"


async def test_each_operation_asks_for_its_scope(tmp_path: Path, tasks: asyncio.TaskGroup) -> None:
    stored(tmp_path, "localhost/mine:latest")
    images = Bench(tmp_path, ImageSettings(), tasks).images
    with pytest.raises(Forbidden):
        images.list(limited(Scope.EXEC))
    with pytest.raises(Forbidden):
        images.get(limited(Scope.EXEC), "base")
    with pytest.raises(Forbidden):
        await anext(images.pull(limited(Scope.READ), "alpine"))
    with pytest.raises(Forbidden):
        await images.remove(limited(Scope.READ, Scope.CREATE), "mine")
    with pytest.raises(Forbidden):
        await images.verify(limited(Scope.CREATE), "mine")
    config = ImageConfig()
    with pytest.raises(Forbidden):
        await images.adopt_layers(limited(Scope.READ), "mine", [], config=config, origin=ImageOrigin.BUILT)


async def test_builtin_images_stay_and_their_names_are_taken(tmp_path: Path, tasks: asyncio.TaskGroup) -> None:
    images = Bench(tmp_path, ImageSettings(), tasks).images
    with pytest.raises(Conflict):
        await images.remove(LOCAL, "base")
    with pytest.raises(Conflict):
        await images.adopt_layers(LOCAL, "base", [], config=ImageConfig(), origin=ImageOrigin.BUILT)


@pytest.mark.parametrize(
    "credentials",
    [Credentials(username="a:b", password="hunter2"), Credentials(password="a\nb"), Credentials(token="x" * 20_000)],
)
async def test_a_login_that_cannot_be_one_is_refused(
    tmp_path: Path, tasks: asyncio.TaskGroup, credentials: Credentials
) -> None:
    images = Bench(tmp_path, ImageSettings(), tasks).images
    with pytest.raises(BadRequest) as caught:
        await anext(images.pull(LOCAL, "ghcr.io/a/b", credentials=credentials))
    assert str(credentials.password or credentials.token or "x") not in str(caught.value) + repr(credentials)


async def test_an_unreachable_registry_is_remembered_for_its_time(tmp_path: Path, tasks: asyncio.TaskGroup) -> None:
    settings = ImageSettings(aliases=(("debian:*", "base"), ("node:*", "node")), unreachable_s=600)
    bench = Bench(tmp_path, settings, tasks)
    pulls = bench.images._pulls
    assert pulls is not None
    asked: list[str] = []

    async def wait(_project: str, reference: object) -> None:
        asked.append(str(reference))
        pulls._unreachable["docker.io"] = bench.clock.monotonic() + 600
        raise RegistryUnreachable("no")

    pulls.wait = wait  # type: ignore[method-assign]
    for _ in range(3):
        resolved = await bench.images.ensure(LOCAL, "debian:12")
        assert resolved.image.name == "base"
        assert resolved.note is not None
        assert "docker.io" in resolved.note
    assert asked == ["docker.io/library/debian:12"]
    with pytest.raises(RegistryUnreachable, match="was not made here"):
        await bench.images.ensure(LOCAL, "node:22")
    bench.clock.advance(601)
    await bench.images.ensure(LOCAL, "debian:12")
    assert len(asked) == 2
    with pytest.raises(RegistryUnreachable):
        await bench.images.ensure(LOCAL, f"debian@{DIGEST}")
    assert bench.images.stats().aliased == 4


async def test_without_a_place_for_images_there_are_the_builtin_ones(tasks: asyncio.TaskGroup) -> None:
    use = ImageUse(sandboxes=list, digests=set)
    images = Images(
        Builtin(), store=None, settings=ImageSettings(), clock=ManualClock(), tasks=tasks, use=use, note=lambda *_: None
    )
    assert (await images.ensure(LOCAL, "base")).image.digest == "d1"
    with pytest.raises(NotFound):
        await images.ensure(LOCAL, "alpine")
    with pytest.raises(Unsupported):
        await anext(images.pull(LOCAL, "alpine"))
    await images.collect_forever()


async def test_a_watcher_that_comes_late_or_reads_slowly_gets_the_last_event() -> None:
    job = Job(_Key("p", "r", None))
    slow = job.events()
    assert (await anext(slow)).stage is ImageStage.RESOLVE
    for done in range(100):
        job.say(ImageEvent(stage=ImageStage.DOWNLOAD, done_bytes=done))
    assert (await anext(slow)).done_bytes == 99
    job.say(ImageEvent(stage=ImageStage.DONE))
    assert [event.stage async for event in slow] == [ImageStage.DONE]
    assert [event.stage async for event in job.events()] == [ImageStage.DONE]


async def test_a_start_sweeps_what_was_half_made_and_drops_records_without_a_tree(tmp_path: Path) -> None:
    stored(tmp_path, "localhost/whole:latest", "t1")
    stored(tmp_path, "localhost/lost:latest", "t2")
    (tmp_path / "trees/t2/rootfs").rmdir()
    (tmp_path / "work/half/tree").mkdir(parents=True)
    (tmp_path / "downloads/p/job-1").mkdir(parents=True)
    damaged = tmp_path / "refs/p/x.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    store = ImageStore(tmp_path)
    store.open()
    assert [image.name for image in store.list()] == ["localhost/whole:latest"]
    assert list((tmp_path / "work").iterdir()) == []
    assert not (tmp_path / "downloads/p/job-1").exists()
    await store.empty_trash()
    assert list((tmp_path / "trash").iterdir()) == []


async def test_collecting_spares_what_is_named_held_or_used(tmp_path: Path) -> None:
    stored(tmp_path, "localhost/named:latest", "named")
    store = ImageStore(tmp_path)
    store.open()
    for digest in ("held", "used", "free"):
        (tmp_path / "trees" / digest).mkdir()
    with store.hold("held"):
        assert await store.collect(lambda: {"used"}) == 1
    left = sorted(path.name for path in (tmp_path / "trees").iterdir())
    assert left == ["held", "named", "used"]
    (image,) = store.list()
    await store.forget(image)
    assert await store.collect(set) == 3
    assert store.collected == 4


async def test_a_version_is_found_by_its_content_whatever_its_name_means_now(
    tmp_path: Path, tasks: asyncio.TaskGroup
) -> None:
    bench = Bench(tmp_path, ImageSettings(), tasks)
    assert bench.images.version("default", "base", "d1").digest == "d1"
    with pytest.raises(NotFound):
        bench.images.version("default", "base", "d0")
    (tmp_path / "trees" / "t0" / "rootfs").mkdir(parents=True)
    kept = bench.images.version("default", "docker.io/library/alpine:3", "t0")
    assert (kept.digest, kept.origin, kept.rootfs.name) == ("t0", ImageOrigin.PULLED, "rootfs")


async def test_a_digest_that_somebody_names_opens_no_other_projects_image(
    tmp_path: Path, tasks: asyncio.TaskGroup
) -> None:
    bench = Bench(tmp_path, ImageSettings(), tasks)
    (tmp_path / "trees" / "t0" / "rootfs").mkdir(parents=True)
    for digest in ("t0", "../t0", "*", ""):
        with pytest.raises(NotFound):
            bench.images.version("default", "base", digest, is_known=False)
    with pytest.raises(NotFound):
        bench.images.version("default", "base", "../trees/t0")


async def test_an_image_under_a_snapshot_is_not_removed(tmp_path: Path, tasks: asyncio.TaskGroup) -> None:
    stored(tmp_path, "localhost/mine:latest")
    bench = Bench(tmp_path, ImageSettings(), tasks)
    names: list[str] = ["one", "two"]
    use = ImageUse(sandboxes=list, digests=set, snapshots=lambda _, digest: names if digest == "t1" else [])
    images = Images(
        Builtin(),
        store=bench.store,
        settings=ImageSettings(),
        clock=ManualClock(),
        tasks=tasks,
        use=use,
        note=lambda *_: None,
    )
    with pytest.raises(Conflict, match="under the snapshot one and 1 more"):
        await images.remove(LOCAL, "mine")
    names.clear()
    await images.remove(LOCAL, "mine")


async def test_what_was_used_and_what_failed_are_among_what_was_tried(tmp_path: Path, tasks: asyncio.TaskGroup) -> None:
    stored(tmp_path, "docker.io/library/alpine:3")
    stored(tmp_path, "quay.example/team/app:latest")
    bench = Bench(tmp_path, ImageSettings(registries=("*",), aliases=(("python:*", "base"),)), tasks)
    names = ["python:3.12-slim", "alpine:3", "gone:1", "no name"]
    use = ImageUse(sandboxes=list, digests=set, names=lambda _: names)
    images = Images(
        Builtin(),
        store=bench.store,
        settings=bench.images._settings,
        clock=bench.clock,
        tasks=tasks,
        use=use,
        note=lambda *_: None,
    )
    found = {one.name: one.status for one in images.tried(LOCAL)}
    assert found == {"base": "ready", "alpine:3": "ready", "quay.example/team/app:latest": "ready"}
    assert images._pulls is not None
    images._pulls._unreachable["docker.io"] = bench.clock.monotonic() + 60  # now python is base
    images._pulls._failures["default", "docker.io/library/gone:2"] = "no such image"
    images._pulls._failures["other", "docker.io/library/hidden:1"] = "no such image"
    tried = {one.name: (one.status, one.failure) for one in images.tried(LOCAL)}
    assert tried["python:3.12-slim"] == ("ready", "")
    assert tried["gone:2"] == ("failed", "no such image")
    assert not {"gone:1", "no name", "hidden:1"} & set(tried)
    with pytest.raises(Forbidden):
        images.tried(limited(Scope.EXEC))
    assert (await images.begin(LOCAL, "alpine:3")).status == "ready"
    assert (await images.begin(LOCAL, "python:3.12-slim")).digest == "d1"
    for name, error in (("localhost/none", NotFound), ("UPPER", BadRequest)):
        with pytest.raises(error):
            await images.begin(LOCAL, name)
    with pytest.raises(Forbidden):
        await images.begin(limited(Scope.READ), "alpine:3")
