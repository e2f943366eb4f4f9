# ruff: noqa: ANN001 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from cove.core.access import LOCAL
from cove.core.facade import Core
from cove.dialects.isol8.keyform import FORM as ISOL8
from cove.dialects.isorun.keyform import FORM as ISORUN
from cove.model.errors import Unauthorized
from cove.model.keyform import KeyGround

FORMS = {"isorun": ISORUN, "isol8": ISOL8}
REGION = "eu-1"


@pytest.fixture
async def core(opened) -> AsyncIterator[Core]:
    async with opened(key_forms=FORMS, region=REGION) as one:
        yield one


async def test_a_key_for_a_dialect_has_its_form(core) -> None:
    key, text = await core.keys.mint(LOCAL, "one", dialect="isorun")
    assert re.fullmatch(rf"isorun_live_{REGION}_{key.id}[0-9a-f]{{32}}_[0-9a-f]{{32}}", text)
    assert core.keys.authenticate(text).dialect == "isorun"
    other, again = await core.keys.mint(LOCAL, "two", dialect="isol8")
    assert re.fullmatch(rf"isol8_{other.id}[0-9a-f]{{56}}", again)
    assert core.keys.authenticate(again).dialect == "isol8"
    for dialect in (None, "native", "one-day"):
        _, text = await core.keys.mint(LOCAL, "three", dialect=dialect)
        assert text.startswith("cove_")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1] + ("0" if text[-1] != "0" else "1"),
        lambda text: text.replace(REGION, "us"),
        lambda text: text + "0",
        lambda text: re.sub(r"_[0-9a-f]{40}_", "_" + "0" * 40 + "_", text),
    ],
)
async def test_a_key_that_was_altered_opens_nothing(core, change) -> None:
    _, text = await core.keys.mint(LOCAL, "one", dialect="isorun")
    with pytest.raises(Unauthorized):
        core.keys.authenticate(change(text))


async def test_a_made_up_key_is_refused_before_the_store_is_asked(core, monkeypatch: pytest.MonkeyPatch) -> None:
    _, text = await core.keys.mint(LOCAL, "one", dialect="isorun")
    asked: list[str] = []
    rows = type(core.keys._store.keys)
    monkeypatch.setattr(rows, "by_digest", lambda _self, digest: asked.append(digest))
    with pytest.raises(Unauthorized):
        core.keys.authenticate(f"isorun_live_{REGION}_{'0' * 40}_{'0' * 32}")
    assert not asked
    with pytest.raises(Unauthorized):
        core.keys.authenticate(text)
    assert len(asked) == 1


async def test_keys_outlive_a_restart_and_another_region(opened) -> None:
    async with opened(key_forms=FORMS, region=REGION) as core:
        _, text = await core.keys.mint(LOCAL, "one", dialect="isorun")
    async with opened(key_forms=FORMS, region="us") as core:
        assert core.keys.authenticate(text).name == "one"
        _, later = await core.keys.mint(LOCAL, "two", dialect="isorun")
        assert later.startswith("isorun_live_us_")


async def test_a_bootstrap_key_may_have_any_form(opened) -> None:
    hosted = f"isorun_live_us_{'a' * 40}_{'b' * 32}"
    async with opened(key_forms=FORMS) as core:
        await core.keys.bootstrap(["isorun_live_local_test", hosted])
        assert core.keys.authenticate("isorun_live_local_test").dialect is None
        assert core.keys.authenticate(hosted).project == "default"
    async with opened(key_forms=FORMS) as core:  # the setting is gone by now, the key stays
        assert core.keys.authenticate(hosted).project == "default"


async def test_two_servers_do_not_know_each_others_texts(core) -> None:
    elsewhere = KeyGround(REGION, lambda _: "0" * 64)
    with pytest.raises(Unauthorized):
        core.keys.authenticate(ISORUN.make("00000000", elsewhere))
