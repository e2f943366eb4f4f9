# ruff: noqa: ANN001, ANN003, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import pytest

from cove.core.access import LOCAL
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, Forbidden, NotFound
from cove.model.files import Attributes
from cove.model.sandbox import SandboxSpec
from cove.model.trees import Search, Unpacking, Walk

X = Search(pattern="x")


@pytest.fixture
async def made(core):
    return await core.sandboxes.create(LOCAL, SandboxSpec())


async def nothing():
    for _ in range(0):
        yield b""


def opened(trees, who, ref, path="/w", walk=Walk(), **more):  # noqa: B008 - a frozen value
    """What `find` and `search` refuse is refused when they are entered."""
    return trees.search(who, ref, path, walk, **{"search": X} | more)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"path": "w"}, "path"),
        ({"path": "/a/../b"}, "path"),
        ({"walk": Walk(depth=-1)}, "depth"),
        ({"walk": Walk(timeout_s=0.5)}, "timeout_s"),
        ({"walk": Walk(glob=("a\0",))}, "glob"),
        ({"walk": Walk(exclude=("\udc80",))}, "exclude"),
        ({"search": Search(pattern="")}, "pattern"),
        ({"search": Search(pattern="é" * 513)}, "pattern"),
        ({"search": Search(pattern="x", max_file_bytes=0)}, "max_file_bytes"),
        ({"search": Search(pattern="x", max_line_bytes=5000)}, "max_line_bytes"),
        ({"limit": -1}, "limit"),
    ],
)
async def test_a_value_out_of_range_is_refused_by_name(core, made, more, field) -> None:
    with pytest.raises(BadRequest) as refused:
        async with opened(core.trees, LOCAL, made.id, **more):
            pass
    assert refused.value.field == field


async def test_a_literal_to_be_replaced_may_be_long_and_an_expression_may_not(core, made) -> None:
    for search in (Search(pattern="x" * 2000), Search(pattern="x" * 2000, literal=True, ignore_case=True)):
        with pytest.raises(BadRequest, match="1024 bytes"):
            await core.trees.replace(LOCAL, made.id, "/w", Walk(), search=search, replacement="")
    with pytest.raises(BadRequest) as refused:
        await core.trees.replace(LOCAL, made.id, "/w", Walk(), search=X, replacement="", limit=10_001)
    assert refused.value.field == "limit"


async def test_what_excludes_each_other_is_refused(core, made) -> None:
    with pytest.raises(BadRequest, match="owners excludes"):
        await core.trees.unpack(LOCAL, made.id, "/w", nothing(), Unpacking(owners=True, owner="app"))
    for change in (Attributes(owner="app", uid=1), Attributes(directory_mode=0o755), Attributes(owner="a:b")):
        with pytest.raises(BadRequest):
            await core.files.set_attributes(LOCAL, made.id, "/w", change)
    with pytest.raises(BadRequest) as refused:
        await core.trees.link(LOCAL, made.id, "/w", "relative", hard=True)
    assert refused.value.field == "target"


async def test_a_key_without_files_may_do_none_of_it(core, made) -> None:
    reader = Principal(key_id="k", name="k", project="default", scopes=frozenset({Scope.READ, Scope.EXEC}))
    with pytest.raises(Forbidden):
        async with opened(core.trees, reader, made.id):
            pass
    with pytest.raises(Forbidden):
        await core.trees.usage(reader, made.id, "/", Walk())
    with pytest.raises(Forbidden):
        await core.trees.unpack(reader, made.id, "/w", nothing(), Unpacking())


async def test_a_strangers_sandbox_does_not_exist(core, made) -> None:
    stranger = Principal(key_id="k", name="k", project="other", scopes=frozenset({Scope.FILES}))
    with pytest.raises(NotFound):
        async with opened(core.trees, stranger, made.id):
            pass
