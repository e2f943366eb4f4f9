"""Directories through the SDK, both surfaces, and between sandboxes through the command line, on a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cove
from cove import aio
from tests_support import RunningServer

pytestmark = pytest.mark.real


def make_tree(at: Path) -> Path:
    for number in range(200):
        (at / f"d{number % 7}").mkdir(parents=True, exist_ok=True)
        (at / f"d{number % 7}" / f"f{number}").write_bytes(os.urandom(number * 10))
    (at / "big").write_bytes(os.urandom(3_000_000))
    (at / "link").symlink_to("d1/f1")
    (at / "outward").symlink_to("/etc/passwd")
    return at


def is_same(one: Path, other: Path) -> bool:
    (one / "outward").unlink(missing_ok=True)
    return subprocess.run(["diff", "-r", "--no-dereference", one, other], check=False).returncode == 0


def test_a_tree_goes_in_and_comes_back_through_the_sdk(server: RunningServer, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    with cove.connect(server.url, server.key) as client, client.create() as box:
        sent = box.files.upload_dir(tree, "/w", owner="nobody")
        assert (sent.files, sent.skipped) == (202, 1)
        assert {info.uid for info in box.files.find("/w", kind="file")} == {65534}
        assert sum(1 for _ in box.files.find("/w")) == 202 + 7
        assert box.files.usage("/w").files == 201
        assert box.files.download_dir("/w", tmp_path / "back") == cove.sdk.tree_models.TreeCopy(202, sent.bytes, 0)
        assert is_same(tree, tmp_path / "back")
        with pytest.raises(OSError, match="more than"):
            box.files.download_dir("/w", tmp_path / "small", max_bytes=1_000_000)
        with pytest.raises(cove.FileMissing):
            list(box.files.find("/nowhere"))


async def test_the_awaited_surface_does_the_same(server: RunningServer, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    async with aio.connect(server.url, server.key) as client, client.create() as box:
        sent = await box.files.upload_dir(tree, "/w")
        assert (sent.files, sent.skipped) == (202, 1)
        assert len([info async for info in box.files.find("/w", "f1*", kind="file")]) == 111
        await box.files.write("/w/text", b"one\ntwo\n", sync=True)
        assert [match.line async for match in box.files.search("/w", "two", glob="text")] == [2]
        assert (await box.files.replace("/w/text", "two", "2")).replacements == 1
        await box.files.remove("/w/text")
        await box.files.set("/w", owner="nobody", recursive=True)
        await box.files.link("/w/again", "/w/big", hard=True)
        assert (await box.files.usage("/w")).files == 201
        await box.files.remove("/w/again")
        assert (await box.files.download_dir("/w", tmp_path / "back")).files == 202
        assert is_same(tree, tmp_path / "back")


def test_a_directory_goes_from_one_sandbox_to_another(server: RunningServer, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("COVE_", "XDG_"))}
    env |= {"COVE_URL": server.url, "COVE_API_KEY": server.key, "HOME": str(tmp_path)}
    with cove.connect(server.url, server.key) as client, client.create() as one, client.create() as other:
        one.files["/w/a"] = b"a"
        one.files.link("/w/outward", "/etc/passwd")
        argv = [sys.executable, "-m", "cove.cli.main", "cp", f"{one.id}:/w", f"{other.id}:/x"]
        done = subprocess.run(argv, env=env, check=False, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert other.files["/x/a"] == b"a"
        assert other.files.stat("/x/outward").target == "/etc/passwd"
