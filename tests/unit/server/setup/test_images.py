from __future__ import annotations

import io
import os
from pathlib import Path

import msgspec
import pytest

from cove.engine.confined.measure import measure_tree
from cove.engine.extra_ca import Certificate, ExtraCa
from cove.server.setup.commands import Command, Runner
from cove.server.setup.images import ImageFacts, collect_old, inherited_apt_conf, is_current, read_image, sweep
from cove.server.setup.leftout import leave_out
from cove.server.setup.progress import StderrProgress
from cove.server.setup.recipes import load_recipe, recipe_names
from cove.server.setup.settings import SetupFailed, SetupSettings, find_checkout
from cove.server.setup.steps import build_all

RECIPE = """
description = "small"
suites = ["bookworm"]
packages = ["bash", "libc6"]
[env]
PATH = "/bin"
"""
INTEGRITY = f"sha512-{'A' * 86}=="


def npm(name: str = "npm", version: str = "1.0.0", integrity: str = INTEGRITY, into: str = "opt") -> str:
    """An npm archive in a recipe."""
    return f'[[npm]]\nname = "{name}"\nversion = "{version}"\nintegrity = "{integrity}"\ninto = "{into}"\n'


def recipe(top: Path, name: str = "small", text: str = RECIPE) -> Path:
    (top / name / "hooks").mkdir(parents=True)
    (top / name / "recipe.toml").write_text(text)
    return top


def test_a_recipe_is_read_with_its_executable_hooks_in_order(tmp_path: Path) -> None:
    recipe(tmp_path)
    for name, mode in (("20-b", 0o755), ("10-a", 0o755), ("notes", 0o644)):
        path = tmp_path / "small" / "hooks" / name
        path.touch()
        path.chmod(mode)
    loaded = load_recipe(tmp_path, "small")
    assert [hook.name for hook in loaded.hooks] == ["10-a", "20-b"]
    assert loaded.recipe.packages == ("bash", "libc6")


def test_any_change_in_a_recipes_directory_changes_its_digest(tmp_path: Path) -> None:
    recipe(tmp_path)
    before = load_recipe(tmp_path, "small").digest
    (tmp_path / "small" / "hooks" / "10-a").write_text("x")
    assert load_recipe(tmp_path, "small").digest != before


def test_an_unknown_recipe_names_the_known_ones(tmp_path: Path) -> None:
    recipe(tmp_path)
    with pytest.raises(SetupFailed, match="no recipe 'smal'") as failure:
        load_recipe(tmp_path, "smal")
    assert "small" in failure.value.cure


@pytest.mark.parametrize("name", ["../small", "", "Small", "a/b", "a\0b"])
def test_a_name_that_is_no_name_finds_no_recipe(tmp_path: Path, name: str) -> None:
    recipe(tmp_path)
    with pytest.raises(SetupFailed, match="no recipe"):
        load_recipe(tmp_path, name)


@pytest.mark.parametrize(
    "text",
    [
        RECIPE.replace('"libc6"', '"--evil"'),
        RECIPE.replace('"libc6"', '"a,b"'),
        RECIPE.replace('["bookworm"]', "[]"),
        RECIPE + "[surprise]\n",
        RECIPE.replace("[env]", 'base = "small"\n[env]'),
        RECIPE.replace("[env]", 'workdir = "root"\n[env]'),
        RECIPE + npm(name="--evil"),
        RECIPE + npm(version="latest"),
        RECIPE + npm(integrity="sha1-abc"),
        RECIPE + npm(into="/etc"),
        RECIPE + npm(into="usr/../.."),
        RECIPE.replace("[env]", 'without = ["gdb"]\n[env]'),
        RECIPE.replace("[env]", 'without = ["a, b"]\n[env]'),
        "not toml",
    ],
)
def test_a_malformed_recipe_is_refused(tmp_path: Path, text: str) -> None:
    recipe(tmp_path, text=text)
    with pytest.raises(SetupFailed, match=r"recipe\.toml"):
        load_recipe(tmp_path, "small")


def derived(top: Path, text: str = 'description = "d"\nbase = "small"\npackages = ["git"]\n[env]\nX = "1"\n') -> Path:
    """A recipe `derived` that is based on `small`."""
    recipe(top)
    return recipe(top, "derived", text)


def test_a_derived_recipe_inherits_all_but_the_packages(tmp_path: Path) -> None:
    derived(tmp_path)
    for name, hook in (("small", "50-b"), ("small", "10-a"), ("derived", "20-c")):
        path = tmp_path / name / "hooks" / hook
        path.touch()
        path.chmod(0o755)
    loaded = load_recipe(tmp_path, "derived")
    assert loaded.base is not None
    assert loaded.base.name == "small"
    assert loaded.recipe.packages == ("git",)
    assert loaded.recipe.suites == ("bookworm",)
    assert loaded.recipe.env == {"PATH": "/bin", "X": "1"}
    assert [hook.name for hook in loaded.hooks] == ["10-a", "20-c", "50-b"]


def test_a_change_of_the_base_changes_the_digest(tmp_path: Path) -> None:
    before = load_recipe(derived(tmp_path), "derived").digest
    (tmp_path / "small" / "recipe.toml").write_text(RECIPE + "# changed\n")
    assert load_recipe(tmp_path, "derived").digest != before


def test_recipes_in_a_circle_are_refused(tmp_path: Path) -> None:
    recipe(tmp_path, text='description = "d"\nbase = "small"\npackages = []\n')
    with pytest.raises(SetupFailed, match="based on itself"):
        load_recipe(tmp_path, "small")


def test_packages_that_are_left_out_count_as_installed(tmp_path: Path) -> None:
    database = tmp_path / "var" / "lib" / "dpkg"
    (database / "info").mkdir(parents=True)
    (database / "status").touch()
    leave_out(tmp_path, "small", ())
    assert (database / "status").read_text() == ""
    leave_out(tmp_path, "small", ("gdb", "g++"))
    said = dpkg_query(database, "${Package} ${db:Status-Status} ${Provides}\n")
    assert said == "cove-left-out installed g++ (= 9999), gdb (= 9999)\n"


def dpkg_query(database: Path, form: str) -> str:
    command = Command(argv=["dpkg-query", f"--admindir={database}", "-W", "-f", form], what="dpkg-query", cure="none")
    return Runner().run(command)


def test_npm_archives_are_read(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path, text=RECIPE + npm(name="@scope/x", into="usr/local/lib")), "small")
    assert [archive.name for archive in loaded.recipe.npm] == ["@scope/x"]


def test_the_recipes_of_this_checkout_are_well_formed() -> None:
    checkout = find_checkout()
    assert checkout is not None
    names = recipe_names(checkout / "images")
    assert {"base", "python", "node"} <= set(names)
    for name in names:
        assert load_recipe(checkout / "images", name).recipe.description


def facts(home: Path, digest: str) -> None:
    rootfs = home / "abc" / "rootfs"
    (rootfs / "etc").mkdir(parents=True)
    image = ImageFacts(
        name="small",
        digest="abc",
        rootfs=str(rootfs),
        env={},
        workdir="/",
        size_bytes=1,
        created_at=0,
        recipe_digest=digest,
        suite="bookworm",
    )
    (home / "abc" / "image.json").write_bytes(msgspec.json.encode(image))
    (home / "current").symlink_to("abc")


def test_an_image_is_current_until_its_recipe_changes(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path / "recipes"), "small")
    facts(tmp_path / "images" / "small", loaded.digest)
    assert is_current(tmp_path / "images", loaded, ExtraCa())
    (tmp_path / "recipes" / "small" / "recipe.toml").write_text(RECIPE + "# changed\n")
    assert not is_current(tmp_path / "images", load_recipe(tmp_path / "recipes", "small"), ExtraCa())


def setup_of(tmp_path: Path, *images: str) -> tuple[SetupSettings, io.StringIO]:
    """Settings with an image `small` that is ready, and where progress is told."""
    loaded = load_recipe(recipe(tmp_path / "recipes"), "small")
    facts(tmp_path / "images" / "small", loaded.digest)
    return SetupSettings(data_dir=tmp_path, recipes=tmp_path / "recipes", images=images), io.StringIO()


def test_without_its_first_image_setup_fails(tmp_path: Path) -> None:
    settings, told = setup_of(tmp_path, "missing", "small")
    with pytest.raises(SetupFailed, match="no recipe 'missing'"):
        build_all(settings, Runner(), StderrProgress(told))


def test_without_another_image_setup_says_so_and_goes_on(tmp_path: Path) -> None:
    settings, told = setup_of(tmp_path, "small", "missing", "small")
    build_all(settings, Runner(), StderrProgress(told))
    assert "The image missing was not made: there is no recipe 'missing'\nhint: known are: small" in told.getvalue()


def test_other_certificates_make_an_image_out_of_date(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path / "recipes"), "small")
    facts(tmp_path / "images" / "small", loaded.digest)
    assert not is_current(tmp_path / "images", loaded, ExtraCa((Certificate("pem", ""),)))


def test_an_image_that_is_not_there_has_no_facts(tmp_path: Path) -> None:
    assert read_image(tmp_path, "small") is None


def test_an_interrupted_build_is_swept_and_the_image_stays(tmp_path: Path) -> None:
    facts(tmp_path, "x")
    (tmp_path / ".building-7" / "rootfs").mkdir(parents=True)
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["abc", "current"]


def test_only_how_to_reach_mirrors_is_inherited_from_the_machines_apt() -> None:
    dump = 'APT::Architecture "amd64";\nAcquire::http::Proxy "http://p:1";\nAcquire::IndexTargets::deb "";\nDir "/";\n'
    text = inherited_apt_conf(dump)
    assert 'Acquire::http::Proxy "http://p:1";' in text
    assert "IndexTargets" not in text
    assert "APT::Architecture" not in text
    assert "netrc" in text


def test_a_tree_is_named_by_content_mode_and_path_and_not_by_time(tmp_path: Path) -> None:
    top = tmp_path / "t"
    (top / "d").mkdir(parents=True)
    (top / "d" / "f").write_text("x")
    (top / "l").symlink_to("d/f")
    first = measure_tree(top)
    os.utime(top / "d" / "f", (1, 1))
    assert measure_tree(top).digest == first.digest
    assert (first.files, first.size_bytes, first.special) == (1, 1, ())
    (top / "d" / "f").chmod(0o755)
    assert measure_tree(top).digest != first.digest


@pytest.mark.parametrize("change", ["content", "name", "target"])
def test_every_difference_changes_the_digest(tmp_path: Path, change: str) -> None:
    for side in ("a", "b"):
        (tmp_path / side).mkdir(mode=0o755)
        (tmp_path / side / "f").write_text("x")
        (tmp_path / side / "l").symlink_to("f")
    assert measure_tree(tmp_path / "a").digest == measure_tree(tmp_path / "b").digest
    other = tmp_path / "b"
    if change == "content":
        (other / "f").write_text("y")
    elif change == "name":
        (other / "f").rename(other / "g")
    else:
        (other / "l").unlink()
        (other / "l").symlink_to("g")
    assert measure_tree(tmp_path / "a").digest != measure_tree(other).digest


def test_pipes_and_devices_in_a_tree_are_reported(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert measure_tree(tmp_path).special == ("pipe",)


def test_names_that_are_not_utf8_have_a_digest_too(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).touch()
    assert measure_tree(tmp_path).files == 1


def test_old_trees_go_once_no_box_stands_on_them(tmp_path: Path) -> None:
    home, run_dir = tmp_path / "images" / "base", tmp_path / "run"
    for name in ("aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"):
        (home / name / "rootfs").mkdir(parents=True)
        (home / name / "image.json").touch()
    (home / "current").symlink_to("cccccccccccc")
    box = run_dir / "server" / "sb" / "b1"
    box.mkdir(parents=True)
    assert collect_old(home, run_dir, set(), older_than_s=-1) == [], "a box is being made"
    (box / "box.json").write_text('{"image_digest": "bbbbbbbbbbbb0000"}')
    assert collect_old(home, run_dir, set()) == [], "younger than an hour"
    assert collect_old(home, run_dir, None, older_than_s=-1) == [], "what snapshots need is not known"
    assert collect_old(home, run_dir, {"aaaaaaaaaaaa" + "0" * 52}, older_than_s=-1) == [], "under a snapshot"
    assert collect_old(home, run_dir, set(), older_than_s=-1) == ["aaaaaaaaaaaa"]
    assert sorted(path.name for path in home.iterdir()) == ["bbbbbbbbbbbb", "cccccccccccc", "current"]
