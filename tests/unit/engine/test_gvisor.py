"""Who pauses a sentry must let it go on exactly once, whenever a server dies: one time too many ends it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cove.engine.checkpoints.model import Checkpoint, CheckpointFacts
from cove.engine.drivers import gvisor
from cove.engine.drivers.gvisor import GvisorDriver
from cove.model.sandbox import Limits


class Sentry:
    """Counts as a sentry does."""

    def __init__(self) -> None:
        self.stops = 0
        self.slowly = asyncio.Event()
        self.slowly.set()

    async def pause(self, box: str) -> None:
        assert box == "b"
        await self.slowly.wait()
        self.stops += 1

    async def resume(self, box: str) -> None:
        assert box == "b"
        assert self.stops > 0, "told to go on once too often: it would have ended"
        self.stops -= 1


class Lab:
    """A driver with one box, whose sentry is not there."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "s").mkdir()

        def runtime_state(driver: str) -> Path:
            del driver
            return home

        def dirs(box: str) -> SimpleNamespace:
            del box
            return SimpleNamespace(home=home)

        config = SimpleNamespace(runtimes_dir=home)
        ground: Any = SimpleNamespace(config=config, runtime_state=runtime_state, dirs=dirs, network=None)
        self.driver: Any = GvisorDriver(ground)
        self.box: Any = SimpleNamespace(facts=SimpleNamespace(id="b"), socket_dir=home / "s", was_quiet=False)
        self.sentry = self.driver._runsc = Sentry()

    @property
    def mark(self) -> Path:
        return self.home / "held"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(gvisor, "_BIND_LIMIT_S", 0.05)
    return Lab(tmp_path)


async def test_what_was_never_held_is_left_alone(lab: Lab) -> None:
    await lab.driver.let_go_on(lab.box)


async def test_it_is_held_once_and_goes_on_once(lab: Lab) -> None:
    await lab.driver._hold(lab.box)
    await lab.driver._hold(lab.box)  # a second checkpoint of a paused one
    assert lab.sentry.stops == 1
    await lab.driver.let_go_on(lab.box)
    await lab.driver.let_go_on(lab.box)
    assert (lab.sentry.stops, lab.mark.exists()) == (0, False)


async def test_a_cancelled_hold_is_complete_before_anything_else_happens(lab: Lab) -> None:
    lab.sentry.slowly.clear()
    async with asyncio.TaskGroup() as tasks:
        holding = tasks.create_task(lab.driver._hold(lab.box))
        await asyncio.sleep(0.01)
        holding.cancel()
        await asyncio.sleep(0.01)
        assert not holding.done()
        lab.sentry.slowly.set()
    assert holding.cancelled()
    await lab.driver.let_go_on(lab.box)
    assert lab.sentry.stops == 0


@pytest.mark.parametrize("is_held", [True, False])
async def test_after_a_server_died_in_between_it_is_found_out(lab: Lab, *, is_held: bool) -> None:
    lab.mark.write_text("perhaps")
    (lab.box.socket_dir / "quiesce").touch()
    if is_held:
        lab.sentry.stops = 1
    else:
        (lab.box.socket_dir / "a.sock").touch()  # its agent took its socket back
    await lab.driver.let_go_on(lab.box)
    assert (lab.sentry.stops, lab.mark.exists(), lab.box.was_quiet) == (0, False, True)
    assert not (lab.box.socket_dir / "quiesce").exists()


def test_only_what_fits_this_machine_goes_on(lab: Lab) -> None:
    lab.driver._version = "1"
    engine = {"runsc": "1", "machine": gvisor.platform.machine(), "processor": "", "network": "none"}

    def gaps(driver: str = "gvisor", **changes: str) -> tuple[str, ...]:
        facts = CheckpointFacts(
            driver=driver,
            has_memory=True,
            image="base",
            image_digest="d",
            limits=Limits(),
            hostname="h",
            agent_build="a",
            engine={**engine, **changes},
        )
        found: tuple[str, ...] = lab.driver.origin_gaps(Checkpoint(id="c", memory=Path(), layer="s-c", facts=facts))
        return found

    assert gaps() == ()
    for changes in ({"runsc": "2"}, {"machine": "vax"}, {"processor": "avx999"}, {"network": "sandbox"}):
        assert len(gaps(**changes)) == 1, changes
    assert gaps("runc") == ("the memory was kept by the driver runc",)
