"""Rows of exposed ports: who they belong to, and when they go."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.unit.store.test_sandbox_rows import sandbox

from cove.model.errors import Conflict
from cove.model.exposures import Access, Exposure
from cove.model.state import State
from cove.store.store import open_store


async def test_rows_are_there_after_a_restart(tmp_path: Path) -> None:
    one = sandbox()
    row = Exposure(sandbox=one.id, port=8000, access=Access.TOKEN, digest="a" * 64, host_port=5432, created_at=2.0)
    async with open_store(tmp_path / "db") as store:
        await store.sandboxes.save(one)
        assert await store.exposures.save(row)
        assert await store.exposures.save(Exposure(sandbox=one.id, port=80, access=Access.PUBLIC))
    async with open_store(tmp_path / "db") as store:
        assert store.exposures.get(one.id, 8000) == row
        assert [found.port for found in store.exposures.of_sandbox(one.id)] == [80, 8000]
        assert store.exposures.with_host_port() == [row]
        assert await store.exposures.save(replace(row, access=Access.KEY, digest=None, host_port=None))
        changed = store.exposures.get(one.id, 8000)
        assert changed is not None
        assert (changed.access, changed.digest, changed.created_at) == (Access.KEY, None, 2.0)
        assert await store.exposures.remove(one.id, 80)
        assert not await store.exposures.remove(one.id, 80)


async def test_a_sandbox_that_ends_takes_its_rows_along_and_gets_no_new_ones(tmp_path: Path) -> None:
    one, other = sandbox(), sandbox("two")
    async with open_store(tmp_path / "db") as store:
        for box in (one, other):
            await store.sandboxes.save(box)
            await store.exposures.save(Exposure(sandbox=box.id, port=80, access=Access.PUBLIC))
        await store.sandboxes.save(replace(one, state=State.TERMINATED, ended_at=3.0))
        assert store.exposures.of_sandbox(one.id) == []
        assert not await store.exposures.save(Exposure(sandbox=one.id, port=80, access=Access.PUBLIC))
        assert not await store.exposures.save(Exposure(sandbox="0" * 16, port=80, access=Access.PUBLIC))
        assert len(store.exposures.of_sandbox(other.id)) == 1


async def test_a_port_of_the_host_leads_to_one_place(tmp_path: Path) -> None:
    one, other = sandbox(), sandbox("two")
    async with open_store(tmp_path / "db") as store:
        await store.sandboxes.save(one)
        await store.sandboxes.save(other)
        await store.exposures.save(Exposure(sandbox=one.id, port=80, host_port=5432))
        with pytest.raises(Conflict):
            await store.exposures.save(Exposure(sandbox=other.id, port=80, host_port=5432))
