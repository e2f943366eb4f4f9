"""`key`, `project`, `image`, `config`, `open`, `completion`, `help`, `service`, `down`: their words on both streams."""

# ruff: noqa: ANN001 - fixtures are typed where they are defined
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KEYS = [
    {"id": "aa11", "name": "ci", "project": "default", "scopes": ["read"], "created_at": None},
    {"id": "aa22", "name": "cd", "project": "default", "scopes": ["read"], "created_at": None},
]


def test_a_key_is_on_stdout_alone(cove, stub) -> None:
    stub.extra["POST", "/keys"] = {**KEYS[0], "key": "cove_secret"}
    ran = cove("key", "create", "ci", "--scope", "read", "--life", "30d")
    assert ran.out == "cove_secret\n"
    assert "cove_secret" not in ran.err
    assert stub.seen[-1][2] == {"name": "ci", "scopes": ["read"], "timeout_s": 2592000.0}
    assert cove("key", "create", "ci", "--json", "id,key").objects == [{"id": "aa11", "key": "cove_secret"}]


def test_keys_are_listed_and_removed_by_name_or_prefix(cove, stub) -> None:
    stub.extra["GET", "/keys"] = {"keys": KEYS}
    stub.extra["DELETE", "/keys/aa11"] = b""
    assert [line.split()[0] for line in cove("key", "ls").out.splitlines()] == ["ID", "aa11", "aa22"]
    assert cove("key", "rm", "ci").err == "Revoked ci (aa11).\n"
    assert cove("key", "rm", "aa").code == 2
    assert cove("key", "rm", "zz").code == 120


def test_projects_and_images_are_listed(cove, stub) -> None:
    stub.extra["GET", "/projects"] = {"projects": [{"id": "lab", "created_at": "2026-01-02T03:04:05Z"}]}
    image = {"name": "base", "digest": "d" * 64, "size_bytes": 1 << 20, "status": "ready"}
    stub.extra["GET", "/images"] = {"images": [image]}
    stub.extra["POST", "/projects"] = {"id": "lab", "created_at": None}
    assert cove("project", "ls").out.splitlines()[1].split() == ["lab", "2026-01-02", "03:04", "-", "any"]
    assert cove("project", "create", "lab").out == "lab\n"
    assert cove("image", "ls", "--json", "name,status").objects == [{"name": "base", "status": "ready"}]


def test_config_names_each_values_origin_and_hides_keys(cove, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COVE_URL", "http://a.example:8080")
    monkeypatch.setenv("COVE_API_KEY", "cove_" + "s" * 40)
    monkeypatch.setenv("COVE_PORT", "9000")
    rows = {one["name"]: (one["value"], one["origin"]) for one in cove("config", "--json").objects}
    assert rows["url"] == ("http://a.example:8080", "COVE_URL")
    assert rows["api_key"] == ("cove_sssss…", "COVE_API_KEY")
    assert rows["port"] == ("9000", "COVE_PORT")
    assert rows["host"] == ("127.0.0.1", "default")
    assert "s" * 20 not in cove("config").out


def test_open_prints_the_page(cove, stub, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.extra["GET", "/health"] = {"status": "ok"}
    monkeypatch.setenv("COVE_URL", "https://a.example")
    assert cove("open", "--print").out == "https://a.example/docs\n"
    monkeypatch.delenv("COVE_URL")
    assert cove("open", "--print").out == "http://127.0.0.1:8080/docs\n"
    stub.is_down = True
    assert cove("open").code == 123


def test_completion_is_written_where_the_shell_looks(cove, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/bash")
    assert cove("completion", "install").code == 0
    assert "_COVE_COMPLETE" in (tmp_path / "data" / "bash-completion" / "completions" / "cove").read_text()
    assert cove("completion", "show", "fish").out.startswith("function _cove_completion")
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert cove("completion", "install").code == 2


def test_names_of_sandboxes_are_completed(cove, stub) -> None:
    from cove.cli.tree import complete_box

    assert complete_box(None, None, "br") == ["brave-otter"]  # type: ignore[arg-type]
    stub.is_down = True
    assert complete_box(None, None, "br") == []  # type: ignore[arg-type]


def test_help_json_is_the_whole_tree(cove) -> None:
    (tree,) = cove("help", "--json").objects
    names = [command["name"] for command in tree["commands"]]
    assert "cove exec" in names
    run = tree["commands"][names.index("cove run")]
    assert {"name": "COMMAND", "required": True, "many": True} in run["arguments"]
    assert "exit" in run["fields"]
    key = tree["commands"][names.index("cove key")]
    assert [command["name"] for command in key["commands"]] == ["cove key create", "cove key ls", "cove key rm"]
    assert cove("help", "key", "create").out.startswith("Usage: cove key create ")
    assert cove("help", "nope").code == 120


def test_every_command_takes_json(cove) -> None:
    (tree,) = cove("help", "--json").objects

    def leaves(command: dict[str, object]) -> list[dict[str, object]]:
        below = command.get("commands")
        return [leaf for one in below for leaf in leaves(one)] if isinstance(below, list) else [command]

    for leaf in leaves(tree):
        assert "--json" in json.dumps(leaf["options"]), leaf["name"]


def test_service_print_shows_the_unit_without_secrets(cove, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COVE_DATA_DIR", "/srv/cove")
    monkeypatch.setenv("COVE_BOOTSTRAP_KEYS", "hush")
    ran = cove("service", "install", "--print")
    assert "KillMode=process" in ran.out
    assert 'Environment="COVE_DATA_DIR=/srv/cove"' in ran.out
    assert "hush" not in ran.out + ran.err
    assert "COVE_BOOTSTRAP_KEYS" in ran.err


def test_serve_refuses_a_setting_that_cannot_be() -> None:
    argv = [sys.executable, "-m", "cove.cli.main", "serve", "--port", "99999999"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]})
    assert (done.returncode, done.stdout) == (2, "")
    assert "COVE_PORT" in done.stderr


def test_serve_has_a_flag_for_each_setting_but_secrets(cove) -> None:
    from cove.server.settings_table import TABLE

    text = cove("serve", "--help").out
    for row in TABLE:
        assert (f"--{row.name.replace('_', '-')}" in text) == (row.name != "bootstrap_keys")


def test_down_of_no_server_says_so_and_is_no_failure(
    cove, stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stub.is_down = True
    monkeypatch.setenv("COVE_RUN_DIR", str(tmp_path / "run"))
    ran = cove("down")
    assert (ran.code, ran.out, ran.err) == (0, "", "No server runs on this machine.\n")
    assert cove("down", "--all").code == 0
    assert cove("down", "--json").objects == [{"server": "not running", "sandboxes": 0, "all": False}]


SSH_KEYS = [
    {"id": "aa11", "name": "me@here", "project": "default", "type": "ssh-ed25519", "fingerprint": "SHA256:abc"},
    {"id": "aa22", "name": "you", "project": "default", "type": "ssh-rsa", "fingerprint": "SHA256:def"},
]


def test_an_ssh_key_is_added_from_a_file_stdin_or_ones_own(cove, stub, tmp_path: Path, monkeypatch) -> None:
    stub.extra["POST", "/ssh-keys"] = SSH_KEYS[0]
    (tmp_path / "k.pub").write_text("ssh-ed25519 AAAA me@here\n")
    ran = cove("ssh-key", "add", str(tmp_path / "k.pub"))
    assert (ran.code, ran.out) == (0, "aa11\n")
    assert "me@here (SHA256:abc) may log in" in ran.err
    monkeypatch.setenv("HOME", str(tmp_path))
    missing = cove("ssh-key", "add")
    assert missing.code == 2
    assert "ssh-keygen" in missing.err
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_rsa.pub").write_text("ssh-rsa AAAA old\n")
    assert cove("ssh-key", "add", "--json", "id").objects == [{"id": "aa11"}]
    assert cove("ssh-key", "add", str(tmp_path / "none.pub")).code == 2


def test_ssh_keys_are_listed_and_removed_by_name_or_prefix(cove, stub) -> None:
    stub.extra["GET", "/ssh-keys"] = {"ssh_keys": SSH_KEYS}
    stub.extra["DELETE", "/ssh-keys/aa11"] = b""
    assert [line.split()[0] for line in cove("ssh-key", "ls").out.splitlines()] == ["ID", "aa11", "aa22"]
    assert cove("ssh-key", "rm", "me@here").err == "me@here (aa11) opens nothing from now on.\n"
    assert cove("ssh-key", "rm", "aa").code == 2
    assert cove("ssh-key", "rm", "zz").code == 120
