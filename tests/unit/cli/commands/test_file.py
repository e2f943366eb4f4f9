# ruff: noqa: ANN001 - fixtures are typed where they are defined
from __future__ import annotations

import json

import pytest

HERE = "/sandboxes/sb_0000000000000001/files"
ENTRY = {"path": "/w/a\x1b[2J\u202e", "name": "a", "kind": "symlink", "size": 1, "mode": "0640", "target": "\x1b]0;x"}


def ndjson(*values: object) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in ("", *values)).removeprefix(b'""')


def test_what_names_no_place_in_a_sandbox_is_wrong_usage(cove) -> None:
    for where in ("brave", "brave:w", "/w"):
        assert cove("file", "find", where).code == 2


def test_names_from_a_sandbox_reach_the_terminal_clean(cove, stub) -> None:
    stub.extra["GET", f"{HERE}/find"] = ndjson(ENTRY, {"end": {"entries": 1, "unreadable": 0, "stopped": None}})
    assert cove("file", "find", "brave:/w").out == "/w/a[2J\n"
    assert cove("file", "find", "brave:/w", "-l").out == "l0640         0:0     1B - /w/a[2J -> ]0;x\n"
    ran = cove("file", "find", "--json", "brave:/w")
    assert ran.objects[0]["path"] == ENTRY["path"]
    assert "\x1b" not in ran.out
    assert "\u202e" not in ran.out


def test_matches_are_printed_with_their_place(cove, stub) -> None:
    found = {"path": "/w/a", "line": 3, "column": 1, "length": 1, "text": "x\ty\x1b", "cut": False}
    stub.extra["GET", f"{HERE}/search"] = ndjson(found, {"end": {"stopped": "limit"}})
    assert cove("file", "search", "x", "brave:/w").out == "/w/a:3:x y\n"


def test_a_list_that_is_not_whole_is_an_error(cove, stub) -> None:
    stub.extra["GET", f"{HERE}/find"] = ndjson(ENTRY)
    assert (cove("file", "find", "brave:/w").code, stub.extra.clear()) == (125, None)
    stub.extra["GET", f"{HERE}/find"] = ndjson({"end": {"stopped": "timeout"}})
    ran = cove("file", "find", "brave:/w")
    assert (ran.code, "before all was seen" in ran.err) == (121, True)
    problem = {"code": "file-error", "reason": "not_found", "detail": "gone", "status": 404}
    stub.extra["GET", f"{HERE}/find"] = ndjson({"error": problem})
    assert cove("file", "find", "brave:/w").code == 120


@pytest.mark.parametrize(("options", "word"), [([], "Replaced"), (["--dry-run"], "Would replace")])
def test_a_replacement_says_what_it_did(cove, stub, options: list[str], word: str) -> None:
    done = {"files": [{"path": "/w/a", "replacements": 2}], "replacements": 2, "searched": 5, "stopped": "limit"}
    stub.extra["POST", f"{HERE}/replace"] = done
    ran = cove("file", "replace", "a", "b", "brave:/w", *options)
    assert ran.out == "/w/a: 2\n"
    assert ran.err == f"{word} 2 in 1 of 5 files. There is more: stopped by its limit.\n"


def test_usage_is_one_line(cove, stub) -> None:
    stub.extra["GET", f"{HERE}/usage"] = {"bytes": 2048, "allocated_bytes": 4096, "files": 2, "directories": 1}
    assert cove("file", "usage", "brave:/w").out == "2.0K in 2 files and 1 directories, 4.0K on the disk\n"


def test_a_mode_is_octal(cove, stub) -> None:
    assert cove("file", "set", "brave:/w", "-m", "rwx").code == 2
    stub.extra["PATCH", HERE] = ENTRY
    assert cove("file", "set", "brave:/w", "-m", "0640", "-R", "-o", "app").code == 0
