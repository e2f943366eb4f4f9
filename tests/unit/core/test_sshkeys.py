# ruff: noqa: ANN001 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio
import base64

import pytest

from cove.core.access import LOCAL
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, Conflict, Forbidden, NotFound
from cove.model.sandbox import SandboxSpec


def public(number: int) -> tuple[str, bytes]:
    """A line of authorized_keys and its blob."""
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + number.to_bytes(32, "big")
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} key {number}", blob


def keeper(project: str, *scopes: Scope) -> Principal:
    return Principal(key_id="k", name="k", project=project, scopes=frozenset(scopes))


FULL_KEEPER = (Scope.KEYS, Scope.READ, Scope.EXEC, Scope.FILES, Scope.CREATE)


async def test_a_key_opens_the_sandboxes_of_its_project_by_name_and_id(core, eventually) -> None:
    made = await core.sandboxes.create(LOCAL, SandboxSpec())
    line, blob = public(1)
    assert core.ssh_keys.admit(blob, made.name) is None
    key = await core.ssh_keys.add(LOCAL, line)
    assert (key.name, key.project, key.last_used_at) == ("key 1", "default", None)
    for ref in (made.name, made.id):
        who, sandbox = core.ssh_keys.admit(blob, ref)
        assert sandbox == made.id
        assert (who.project, who.scopes) == ("default", {Scope.READ, Scope.EXEC, Scope.FILES})
    core.ssh_keys.used(who)
    await eventually(lambda: core.ssh_keys.list(LOCAL)[0].last_used_at is not None)
    assert core.ssh_keys.admit(blob, "no-such-box") is None
    assert core.ssh_keys.admit(public(2)[1], made.name) is None
    assert core.ssh_keys.why_leave(who, made.id) is None
    await core.ssh_keys.remove(LOCAL, key.id)
    assert core.ssh_keys.admit(blob, made.name) is None
    assert core.ssh_keys.why_leave(who, made.id) == "the key was removed"
    await core.sandboxes.destroy(LOCAL, made.id)
    assert core.ssh_keys.why_leave(who, made.id) == "the sandbox has ended"


async def test_a_key_of_two_projects_finds_the_box_that_one_of_them_has(core, clock) -> None:
    await core.projects.create(LOCAL, "lab")
    line, blob = public(1)
    await core.ssh_keys.add(LOCAL, line)
    clock.advance(1.0)
    await core.ssh_keys.add(LOCAL, line, project="lab", name="again")
    lab = keeper("lab", *FULL_KEEPER)
    theirs = await core.sandboxes.create(lab, SandboxSpec(name="theirs"))
    both = await core.sandboxes.create(lab, SandboxSpec(name="both"))
    ours = await core.sandboxes.create(LOCAL, SandboxSpec(name="both"))
    assert core.ssh_keys.admit(blob, "theirs")[1] == theirs.id
    assert core.ssh_keys.admit(blob, "both")[1] == ours.id, "the project that had the key first"
    assert core.ssh_keys.admit(blob, both.id)[1] == both.id


async def test_a_foreign_projects_key_opens_nothing(core) -> None:
    await core.projects.create(LOCAL, "lab")
    made = await core.sandboxes.create(LOCAL, SandboxSpec())
    line, blob = public(1)
    await core.ssh_keys.add(LOCAL, line, project="lab")
    assert core.ssh_keys.admit(blob, made.name) is None
    assert core.ssh_keys.admit(blob, made.id) is None


async def test_who_may_add_see_and_remove_what(core) -> None:
    await core.projects.create(LOCAL, "lab")
    lab = keeper("lab", *FULL_KEEPER)
    line, _ = public(1)
    with pytest.raises(Forbidden):
        await core.ssh_keys.add(keeper("lab", Scope.EXEC, Scope.FILES, Scope.READ), line)
    with pytest.raises(Forbidden, match="files"):
        await core.ssh_keys.add(keeper("lab", Scope.KEYS, Scope.READ, Scope.EXEC), line)
    with pytest.raises(NotFound):
        await core.ssh_keys.add(lab, line, project="default")
    with pytest.raises(NotFound):
        await core.ssh_keys.add(LOCAL, line, project="nowhere")
    mine = await core.ssh_keys.add(lab, line)
    with pytest.raises(Conflict):
        await core.ssh_keys.add(lab, line)
    other = await core.ssh_keys.add(LOCAL, public(2)[0])
    assert [one.id for one in core.ssh_keys.list(lab)] == [mine.id]
    assert {one.id for one in core.ssh_keys.list(LOCAL)} == {mine.id, other.id}
    with pytest.raises(NotFound):
        await core.ssh_keys.remove(lab, other.id)
    with pytest.raises(Forbidden):
        core.ssh_keys.list(keeper("lab", Scope.READ))
    with pytest.raises(BadRequest):
        await core.ssh_keys.add(lab, public(3)[0], name="\x07")
    await asyncio.sleep(0)
