# ruff: noqa: ANN001 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from cove.core.access import LOCAL
from cove.model.access import FULL, Principal, Scope
from cove.model.errors import BadRequest, Conflict, CoveError, Forbidden, NotFound, Unauthorized

KEEPER = Principal(key_id="k", name="k", project="default", scopes=frozenset({Scope.KEYS, Scope.READ, Scope.EXEC}))


async def test_a_minted_key_has_its_form_and_opens(core) -> None:
    key, plaintext = await core.keys.mint(LOCAL, "ci", scopes={Scope.READ}, dialect="native")
    assert re.fullmatch(rf"cove_{key.id}_[A-Za-z0-9_-]{{43}}", plaintext)
    assert re.fullmatch(r"[0-9a-f]{8}", key.id)
    who = core.keys.authenticate(plaintext)
    assert who == Principal(
        key_id=key.id, name="ci", project="default", scopes=frozenset({Scope.READ}), dialect="native"
    )


async def test_no_key_is_stored_or_logged_or_told(core, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key, plaintext = await core.keys.mint(LOCAL, "ci")
    core.keys.authenticate(plaintext)
    await core.keys.bootstrap(["my-bootstrap-secret"])
    secret = plaintext.split("_", 2)[2]  # which may have an underscore itself
    files = [path.read_bytes().decode("latin-1") for path in sorted(tmp_path.iterdir())]
    for text in (repr(key), caplog.text, *files):
        assert secret not in text
        assert "my-bootstrap-secret" not in text
    with pytest.raises(Unauthorized) as caught:
        core.keys.authenticate(plaintext + "x")
    assert secret not in str(caught.value) + caught.value.internal


@pytest.mark.parametrize(
    "text", ["", "cove_", "x", "cove_00000000_" + "A" * 43, "k" * 1_000_000, "ключ", "\udcff", "a\0b", "' OR 1=1 --"]
)
async def test_what_is_no_key_is_unauthorized(core, text: str) -> None:
    with pytest.raises(Unauthorized):
        core.keys.authenticate(text)


async def test_a_revoked_key_stops_at_once(core) -> None:
    key, plaintext = await core.keys.mint(LOCAL, "ci")
    core.keys.authenticate(plaintext)
    await core.keys.revoke(LOCAL, key.id)
    with pytest.raises(Unauthorized):
        core.keys.authenticate(plaintext)
    await core.keys.revoke(LOCAL, key.id)
    assert core.keys.list(LOCAL)[0].revoked_at is not None


async def test_an_expired_key_is_unauthorized(core, clock) -> None:
    _, plaintext = await core.keys.mint(LOCAL, "ci", timeout_s=60.0)
    core.keys.authenticate(plaintext)
    clock.advance(61.0)
    with pytest.raises(Unauthorized, match="expired"):
        core.keys.authenticate(plaintext)


async def test_use_is_noted_at_most_once_a_minute(core, clock, eventually) -> None:
    _, plaintext = await core.keys.mint(LOCAL, "ci")
    core.keys.authenticate(plaintext)
    await eventually(lambda: core.keys.list(LOCAL)[0].last_used_at == clock.now())
    first = clock.now()
    writes = core.stats().store.writes
    clock.advance(30.0)
    core.keys.authenticate(plaintext)
    assert core.stats().store.writes == writes
    clock.advance(31.0)
    core.keys.authenticate(plaintext)
    await eventually(lambda: core.keys.list(LOCAL)[0].last_used_at == first + 61.0)


async def test_nobody_gives_what_they_do_not_have(core) -> None:
    for scopes in ({Scope.ADMIN}, {Scope.CREATE}, FULL):
        with pytest.raises(Forbidden):
            await core.keys.mint(KEEPER, "more", scopes=scopes)
    with pytest.raises(NotFound):
        await core.keys.mint(KEEPER, "elsewhere", project="other")
    with pytest.raises(NotFound):
        await core.keys.mint(LOCAL, "nowhere", project="nowhere")
    key, _ = await core.keys.mint(KEEPER, "same")
    assert key.scopes == KEEPER.scopes
    with pytest.raises(Forbidden):
        await core.keys.mint(replace(KEEPER, scopes=frozenset({Scope.READ})), "no")


async def test_a_keeper_sees_and_ends_only_keys_of_its_project_and_rank(core) -> None:
    await core.projects.create(LOCAL, "other")
    foreign, _ = await core.keys.mint(LOCAL, "foreign", project="other")
    strong, _ = await core.keys.mint(LOCAL, "strong", scopes=FULL)
    weak, _ = await core.keys.mint(KEEPER, "weak", scopes={Scope.READ})
    assert {key.id for key in core.keys.list(KEEPER)} == {strong.id, weak.id}
    assert {key.id for key in core.keys.list(LOCAL)} == {foreign.id, strong.id, weak.id}
    with pytest.raises(NotFound):
        await core.keys.revoke(KEEPER, foreign.id)
    with pytest.raises(Forbidden):
        await core.keys.revoke(KEEPER, strong.id)
    await core.keys.revoke(KEEPER, weak.id)


async def test_bootstrap_keys_of_any_form_open_the_default_project_and_are_added_once(opened) -> None:
    keys = ["isorun_abc", "plain", "x", "with spaces and ünïcode"]
    async with opened() as core:
        assert await core.keys.bootstrap(keys) == 4
        for text in keys:
            who = core.keys.authenticate(text)
            assert (who.project, who.scopes) == ("default", FULL)
        victim = next(key for key in core.keys.list(LOCAL) if key.id == core.keys.authenticate("plain").key_id)
        await core.keys.revoke(LOCAL, victim.id)
    async with opened() as core:
        assert await core.keys.bootstrap([*keys, "new"]) == 1
        with pytest.raises(Unauthorized):
            core.keys.authenticate("plain")
        with pytest.raises(BadRequest):
            await core.keys.bootstrap([""])


async def test_projects_are_the_admins_affair(core) -> None:
    assert [project.id for project in core.projects.list(LOCAL)] == ["default"]
    await core.projects.create(LOCAL, "lab")
    with pytest.raises(Conflict):
        await core.projects.create(LOCAL, "lab")
    with pytest.raises(BadRequest):
        await core.projects.create(LOCAL, "No Such Name")
    for call in (lambda: core.projects.list(KEEPER), lambda: core.images.list(replace(KEEPER, scopes=frozenset()))):
        with pytest.raises(Forbidden):
            call()
    with pytest.raises(CoveError):
        await core.projects.create(KEEPER, "mine")


async def test_a_key_cannot_outlive_its_maker_or_shed_its_dialect(core) -> None:
    _, plaintext = await core.keys.mint(LOCAL, "ci", scopes={Scope.KEYS}, dialect="native", timeout_s=60)
    maker = core.keys.authenticate(plaintext)
    for asked in (None, 3600, 30):
        made, _ = await core.keys.mint(maker, "child", timeout_s=asked)
        assert made.expires_at is not None
        assert made.expires_at <= maker.expires_at
        assert made.dialect == "native"
    with pytest.raises(Forbidden):
        await core.keys.mint(maker, "child", dialect="other")
