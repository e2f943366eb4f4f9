"""`cove image`: what is sent, what is printed where, and how a build or pull is told as it goes."""

# ruff: noqa: ANN001 - fixtures are typed where they are defined
from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import click
import pytest

from cove.cli.commands.image import _how_far
from cove.cli.tree import complete_image
from cove.sdk.image_events import ImageProgress

MADE: dict[str, Any] = {
    "name": "docker.io/library/alpine:3.20",
    "digest": "a" * 64,
    "size_bytes": 8 << 20,
    "status": "ready",
    "origin": "pulled",
    "manifest_digest": "sha256:" + "b" * 64,
    "created_at": "2026-01-02T03:04:05.000Z",
    "config": {"env": {"A": "b c"}, "workdir": "/", "user": None, "entrypoint": [], "command": ["/bin/sh"]},
}
PATH = "/api/v1/images"


def going(stage: str, done: int = 0, total: int = 0, text: str = "") -> tuple[str, dict[str, Any]]:
    return stage, {"done_bytes": done, "total_bytes": total, "text": text}


def test_ls_shows_where_images_come_from(cove, stub) -> None:
    stub.extra["GET", "/images"] = {"images": [MADE, {"name": "x", "status": "pulling", "digest": ""}]}
    head, first, second = cove("image", "ls").out.splitlines()
    assert head.split() == ["NAME", "ORIGIN", "STATUS", "SIZE", "DIGEST", "AGE"]
    assert first.split()[:5] == ["docker.io/library/alpine:3.20", "pulled", "ready", "8.0M", "a" * 12]
    assert second.split() == ["x", "builtin", "pulling", "0B", "-", "-"]


def test_inspect_shows_how_an_image_runs_and_cleans_what_strangers_wrote(cove, stub) -> None:
    config = MADE["config"] | {"labels": {"evil": "\x1b[31mred\x07"}}
    stub.extra["GET", "/images/inspect"] = MADE | {"config": config}
    ran = cove("image", "inspect", "alpine:3.20")
    assert "command          /bin/sh" in ran.out
    assert "env              'A=b c'" in ran.out
    assert "\x1b" not in ran.out
    assert cove("image", "inspect", "alpine:3.20", "--json", "config").objects == [{"config": config}]


def test_a_pull_prints_the_full_name_alone_on_stdout(cove, stub) -> None:
    stream = stub.events(going("resolve"), going("download", 5, 10), going("unpack"), ("done", MADE))
    stub.extra["POST", "/images/pull"] = stream
    ran = cove("image", "pull", "alpine:3.20")
    assert (ran.code, ran.out) == (0, MADE["name"] + "\n")
    assert ran.err.startswith("Pulled docker.io/library/alpine:3.20, 8.0M, in 0.")
    assert stub.seen == [("POST", f"{PATH}/pull", {"reference": "alpine:3.20"})]


def test_a_pull_as_json_is_its_events(cove, stub) -> None:
    stub.extra["POST", "/images/pull"] = stub.events(going("download", 5, 10), ("done", MADE))
    ran = cove("image", "pull", "alpine:3.20", "--json", "event,done_bytes,name")
    assert ran.objects == [{"event": "download", "done_bytes": 5}, {"event": "done", "name": MADE["name"]}]
    assert ran.err == ""


def test_a_pull_that_fails_says_why_and_prints_nothing(cove, stub) -> None:
    failed = {"code": "registry-error", "status": 502, "detail": "the registry refused", "hint": "h"}
    stub.extra["POST", "/images/pull"] = stub.events(going("resolve"), ("error", failed))
    ran = cove("image", "pull", "alpine:3.20")
    assert (ran.code, ran.out) == (121, "")
    assert ran.err == "error: the registry refused (registry-error)\nhint: h\n"


def test_a_pull_whose_stream_breaks_off_is_no_success(cove, stub) -> None:
    stub.extra["POST", "/images/pull"] = stub.events(going("resolve"))
    assert cove("image", "pull", "alpine:3.20").code == 123


def test_a_password_comes_from_stdin_only(cove, stub, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.extra["POST", "/images/pull"] = stub.events(("done", MADE))
    monkeypatch.setattr("sys.stdin", io.StringIO("s3cret\n"))
    ran = cove("image", "pull", "ghcr.io/me/x", "-u", "me", "--password-stdin")
    assert ran.code == 0
    assert stub.seen[0][2] == {"reference": "ghcr.io/me/x", "username": "me", "password": "s3cret"}
    assert "s3cret" not in ran.out + ran.err
    monkeypatch.setattr("sys.stdin", io.StringIO("t0ken\n"))
    cove("image", "pull", "ghcr.io/me/x", "--token-stdin")
    assert stub.seen[1][2] == {"reference": "ghcr.io/me/x", "token": "t0ken"}
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert cove("image", "pull", "x", "-u", "me", "--password-stdin").code == 2
    for words in (["-u", "me"], ["--password-stdin"], ["-u", "me", "--password-stdin", "--token-stdin"]):
        assert cove("image", "pull", "x", *words).code == 2
    assert len(stub.seen) == 2


def test_a_recipe_is_read_here_and_sent_alone(cove, stub, tmp_path: Path) -> None:
    stub.extra["POST", "/images/build"] = stub.events(going("run", text="\x1b[1mhello\x1b[0m"), ("done", MADE))
    recipe = tmp_path / "r.toml"
    recipe.write_text('from = "python"\ncommands = ["echo hello"]\n')
    ran = cove("image", "build", str(recipe), "-t", "tools")
    assert stub.seen == [("POST", f"{PATH}/build", {"from": "python", "commands": ["echo hello"]})]
    assert ran.err.splitlines()[0] == "[1mhello[0m"
    assert ran.err.splitlines()[1].startswith("Built ")
    recipe.write_text("commands = [")
    assert cove("image", "build", str(recipe), "-t", "tools").code == 2
    assert cove("image", "build", str(tmp_path / "none.toml"), "-t", "tools").code == 120


def test_a_directory_is_sent_with_its_dockerfile(cove, stub, tmp_path: Path) -> None:
    stub.extra["POST", "/images/build"] = stub.events(("done", MADE))
    assert cove("image", "build", str(tmp_path), "-t", "x").code == 120  # no Dockerfile
    (tmp_path / "Dockerfile").write_text("FROM base\n")
    ran = cove("image", "build", "-t", "x", "--build-arg", "A=1", "-q", str(tmp_path))
    assert (ran.code, ran.err) == (0, "")
    assert cove("image", "build", "-t", "x", str(tmp_path / "nothing")).code == 2
    assert cove("image", "build", "-t", "x", "--context", ".", str(tmp_path)).code == 2


def test_an_archive_goes_both_ways(cove, stub, tmp_path: Path) -> None:
    stub.extra["POST", "/images/import"] = stub.events(going("unpack"), ("done", MADE))
    archive = tmp_path / "a.tar"
    archive.write_bytes(b"tar")
    assert cove("image", "import", "-t", "app", str(archive)).out == MADE["name"] + "\n"
    stub.extra["GET", "/images/export"] = b"archive"
    ran = cove("image", "export", "app", str(tmp_path / "b.tar"), "--json")
    assert ran.objects == [{"name": "app", "bytes": 7}]
    assert (tmp_path / "b.tar").read_bytes() == b"archive"


def test_images_are_checked_and_removed(cove, stub) -> None:
    stub.extra["POST", "/images/verify"] = MADE
    stub.extra["DELETE", "/images"] = b""
    ran = cove("image", "verify", "alpine:3.20")
    assert ran.out == "a" * 64 + "\n"
    assert "is what it was" in ran.err
    assert cove("image", "rm", "a", "b").err == "Removed a.\nRemoved b.\n"
    assert [one[:2] for one in stub.seen[1:]] == [("DELETE", PATH), ("DELETE", PATH)]


@pytest.mark.parametrize(
    ("stage", "done", "total", "shown"),
    [
        ("resolve", 0, 0, "asking the registry"),
        ("download", 5, 10, "downloading [############............] 5B of 10B"),
        ("download", 50, 10, "downloading [########################] 50B of 10B"),
        ("unpack", 2048, 0, "unpacking 2.0K"),
        ("run", 0, 0, ""),
    ],
)
def test_how_far_it_is(stage: str, done: int, total: int, shown: str) -> None:
    assert _how_far(ImageProgress(stage, done, total, "")) == shown


def test_events_are_json_lines(cove, stub) -> None:
    stub.extra["POST", "/images/pull"] = stub.events(going("download", 5, 10), ("done", MADE))
    lines = cove("image", "pull", "x", "--json").out.splitlines()
    assert json.loads(lines[0]) == {"event": "download", "done_bytes": 5, "total_bytes": 10, "text": ""}


def test_the_shell_completes_names_of_images_and_a_server_that_is_down_breaks_no_prompt(stub) -> None:
    stub.extra["GET", "/images"] = {"images": [MADE, {"name": "base"}]}
    context = click.Context(click.Command("x"))
    option = click.Option(["--image"])
    assert complete_image(context, option, "b") == ["base"]
    stub.is_down = True
    assert complete_image(context, option, "b") == []
