"""Templates: what is kept ready for whom, within which bounds, and why there are none."""

# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from cove.core.audit import Audit
from cove.core.templates import Templates, TemplateSpec
from cove.engine.checkpoints.model import Checkpoint, CheckpointFacts
from cove.engine.pool import PoolConfig, open_pool
from cove.model.access import FULL, Principal, Project, Scope
from cove.model.audit import AuditFilter
from cove.model.errors import BadRequest, CapacityExceeded, Conflict, EngineFailure, Forbidden, NotFound
from cove.model.sandbox import Kept, Limits
from cove.model.snapshot import RestoreSpec, Snapshot, SnapshotState
from cove.store.store import open_store

ADMIN = Principal(key_id="k", name="n", project="p", scopes=FULL)
USER = Principal(key_id="u", name="u", project="p", scopes=frozenset({Scope.READ, Scope.CREATE}))
OTHER = Principal(key_id="o", name="o", project="q", scopes=frozenset({Scope.READ, Scope.CREATE}))


def snapshot(snapshot_id: str = "a" * 16, **changes: object) -> Snapshot:
    made = Snapshot(
        id=snapshot_id,
        project="p",
        name=f"snap-{snapshot_id[0]}",
        state=SnapshotState.READY,
        tags={},
        sandbox="b" * 16,
        sandbox_name="box",
        parent=None,
        kept=Kept(memory=True),
        driver="stub",
        image="base",
        image_used="base",
        image_digest="d1",
        limits=Limits(),
        created_at=1.0,
        created_by="key:n",
    )
    return replace(made, **changes)


class StubSnapshots:
    """Some snapshots, and what was restored of them; `damaged` are found so when they are opened."""

    def __init__(self) -> None:
        self.all = {one.id: one for one in (snapshot(), snapshot("c" * 16))}
        self.restored: list[tuple[str, str]] = []
        self.damaged: set[str] = set()

    def get(self, who: Principal, ref: str) -> Snapshot:
        for one in self.all.values():
            if ref in {one.id, one.name} and one.project == who.project:
                return one
        raise NotFound("no such snapshot")

    async def restore(self, who: Principal, ref: str, spec: RestoreSpec, *, dialect="native", idempotency=None):
        del who, spec, idempotency
        self.restored.append((ref, dialect))

    @property
    def book(self):
        return self

    async def checkpoint(self, snapshot: Snapshot, *, with_memory: bool) -> Checkpoint:
        assert with_memory
        snapshot_id = snapshot.id
        if snapshot_id in self.damaged:
            raise EngineFailure("snapshot snap-a is damaged: pages-1.img is shorter than it was")
        facts = CheckpointFacts(
            driver="stub", has_memory=True, image="base", image_digest="d1", limits=Limits(), hostname="h",
            agent_build="b", engine={},
        )  # fmt: skip
        return Checkpoint(id=snapshot_id, memory=Path("/nowhere"), layer=f"s-{snapshot_id}", facts=facts)


class Scene:
    def __init__(self, store, pool, driver, images, clock) -> None:
        self.store = store
        self.snapshots = StubSnapshots()
        self.audit = Audit(store, clock, b"k" * 32)
        self.pool = pool
        self.driver = driver
        self.templates = Templates(
            store.templates,
            self.snapshots,
            known=self.snapshots.all.get,
            image_of=lambda _: images.get("base"),
            drivers={"stub": driver},
            pool=pool,
            audit=self.audit,
            clock=clock,
            most_ready=5,
        )


@pytest.fixture
async def scene(tmp_path, driver, images, clock) -> AsyncIterator[Scene]:
    driver.origin_gaps = lambda _: ()
    async with open_store(tmp_path / "t.db") as store:
        for name in ("p", "q"):
            await store.projects.ensure(Project(id=name, created_at=0.0))
        async with open_pool({"stub": driver}, images, PoolConfig(quiet_s=0.0), clock=clock) as pool:
            pool.start_filling()
            yield Scene(store, pool, driver, images, clock)


async def test_copies_are_kept_ready_and_follow_what_is_said(scene, eventually) -> None:
    made = await scene.templates.set(ADMIN, "warm", TemplateSpec(snapshot="snap-a", ready=2))
    assert (made.template.snapshot, made.snapshot_name, made.reason) == ("a" * 16, "snap-a", None)
    await eventually(lambda: scene.templates.get(USER, "warm").ready_now == 2)
    assert {spec.origin.id for spec in scene.driver.specs if spec.origin} == {"a" * 16}
    await scene.templates.set(ADMIN, "warm", TemplateSpec(snapshot="snap-c"))
    await eventually(lambda: scene.templates.get(USER, "warm").ready_now == 2)
    await eventually(lambda: len(scene.driver.living()) == 2)
    assert {box.facts.origin for box in scene.driver.living().values()} == {"c" * 16}
    await scene.templates.remove(ADMIN, "warm")
    await eventually(lambda: not scene.driver.living())
    assert scene.templates.list(ADMIN) == []


async def test_templates_of_one_snapshot_share_its_copies(scene, eventually) -> None:
    await scene.templates.set(ADMIN, "one", TemplateSpec(snapshot="snap-a", ready=1))
    await scene.templates.set(ADMIN, "two", TemplateSpec(snapshot="snap-a", ready=2))
    await eventually(lambda: len(scene.driver.living()) == 3)
    await scene.templates.remove(ADMIN, "one")
    await eventually(lambda: len(scene.driver.living()) == 2)


async def test_a_sandbox_of_it_is_a_restore_of_its_snapshot(scene) -> None:
    await scene.templates.set(ADMIN, "warm", TemplateSpec(snapshot="snap-a"))
    await scene.templates.create(USER, "warm", RestoreSpec(), dialect="isorun")
    assert scene.snapshots.restored == [("a" * 16, "isorun")]
    with pytest.raises(NotFound):
        await scene.templates.create(OTHER, "warm", RestoreSpec())


async def test_who_may_do_what(scene) -> None:
    with pytest.raises(Forbidden):
        await scene.templates.set(USER, "warm", TemplateSpec(snapshot="snap-a"))
    await scene.templates.set(ADMIN, "warm", TemplateSpec(snapshot="snap-a"))
    assert [one.template.name for one in scene.templates.list(USER)] == ["warm"]
    assert scene.templates.list(OTHER) == []
    with pytest.raises(NotFound):
        scene.templates.get(OTHER, "warm")
    with pytest.raises(Forbidden):
        await scene.templates.remove(USER, "warm")


async def test_what_is_refused_changes_nothing(scene) -> None:
    scene.snapshots.all["c" * 16] = snapshot("c" * 16, state=SnapshotState.CREATING)
    for name, spec, error in (
        ("Bad Name", TemplateSpec(snapshot="snap-a"), BadRequest),
        ("warm", TemplateSpec(ready=1), NotFound),
        ("warm", TemplateSpec(snapshot="snap-z"), NotFound),
        ("warm", TemplateSpec(snapshot="snap-c"), Conflict),
        ("warm", TemplateSpec(snapshot="snap-a", ready=6), BadRequest),
    ):
        with pytest.raises(error):
            await scene.templates.set(ADMIN, name, spec)
    assert scene.templates.list(ADMIN) == []
    await scene.templates.set(ADMIN, "warm", TemplateSpec(snapshot="snap-a", ready=3))
    with pytest.raises(CapacityExceeded, match="at most 5 copies of templates ready, 3 are spoken for"):
        await scene.templates.set(ADMIN, "more", TemplateSpec(snapshot="snap-a", ready=3))
    with pytest.raises(NotFound):
        await scene.templates.remove(ADMIN, "more")


@pytest.mark.parametrize(
    ("staged", "reason"),
    [
        ("files", "its snapshot has no memory: sandboxes of it are made when they are asked for"),
        ("damaged", "snapshot snap-a is damaged: pages-1.img is shorter than it was"),
        ("gap", "this machine has another processor"),
        ("driver", "the driver other is not loaded"),
        ("gone", "its snapshot is not here any more"),
    ],
)
async def test_it_says_why_no_copies_are_ready(scene, staged: str, reason: str) -> None:
    await scene.templates.set(ADMIN, "warm", TemplateSpec(snapshot="snap-a"))
    match staged:
        case "files":
            scene.snapshots.all["a" * 16] = snapshot(kept=Kept(memory=False, reason="asked"))
        case "damaged":
            scene.snapshots.damaged.add("a" * 16)
        case "gap":
            scene.driver.origin_gaps = lambda _: ("this machine has another processor",)
        case "driver":
            scene.snapshots.all["a" * 16] = snapshot(driver="other")
        case _:
            del scene.snapshots.all["a" * 16]
    assert (await scene.templates.set(ADMIN, "warm", TemplateSpec(ready=2))).reason == reason
    assert not scene.driver.specs


async def test_a_start_keeps_ready_what_was_kept_before(scene, eventually) -> None:
    await scene.templates.set(ADMIN, "warm", TemplateSpec(snapshot="snap-a", ready=2))
    scene.pool.forget(scene.templates._kept["a" * 16])
    await eventually(lambda: not scene.driver.living())
    await scene.templates.start()
    await eventually(lambda: scene.templates.get(USER, "warm").ready_now == 2)


async def test_a_snapshot_that_is_used_says_by_what(scene) -> None:
    assert scene.templates.users_of(snapshot()) == []
    await scene.templates.set(ADMIN, "warm", TemplateSpec(snapshot="snap-a"))
    assert scene.templates.users_of(snapshot()) == ["template warm"]


async def test_every_change_is_a_line_of_the_trail(scene) -> None:
    await scene.templates.set(ADMIN, "warm", TemplateSpec(snapshot="snap-a"))
    await scene.templates.remove(ADMIN, "warm")
    await scene.audit.drain()
    lines = scene.store.audit.window("p", AuditFilter(), first=0, end=100, limit=10)
    assert [(one.event, one.data["change"]) for one in lines] == [
        ("template.changed", "set"),
        ("template.changed", "removed"),
    ]
