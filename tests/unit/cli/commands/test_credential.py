"""`cove credential`: what it asks for, and that a key is neither on a command line nor on the screen."""

# ruff: noqa: ANN001 - fixtures are typed where they are defined
from __future__ import annotations

import io
import sys
from typing import Any

import pytest

PATH = "/sandboxes/brave-otter/credentials"
KEY = "sk-live-secret"


def credential(service: str = "openai", **facts: Any) -> dict[str, Any]:
    found = {"service": service, "key": "own", "upstream": "https://api.openai.com/v1", "endpoints": []}
    return found | {"url": f"http://169.254.1.1:3130/proxy/{service}", "env": {"A_KEY": "placeholder"}, **facts}


@pytest.fixture(autouse=True)
def variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")


def bodies(stub) -> list[Any]:
    return [body for _, _, body in stub.seen]


def test_credentials_are_listed_with_their_rules(cove, stub) -> None:
    rules = [{"methods": ["POST", "GET"], "paths": ["/v1/chat", "/v1/files"]}, {"methods": [], "paths": ["/v2"]}]
    stub.extra["GET", PATH] = {"credentials": [credential(endpoints=rules), credential("github", upstream=None)]}
    rows = cove("credential", "ls", "brave-otter").out.splitlines()
    assert rows[1].split() == [
        "openai", "own", "https://api.openai.com/v1", "POST|GET", "/v1/chat", "/v1/files,", "*", "/v2",
    ]  # fmt: skip
    assert rows[2].split() == ["github", "own", "(gone)", "all"]
    stub.extra["GET", "/credentials"] = {"credentials": []}
    assert "There are none" in cove("credential", "ls").err
    assert cove("credential", "ls", "brave-otter", "--json", "service").objects == [
        {"service": "openai"}, {"service": "github"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "body"),
    [
        (["--key", "@MY_KEY"], {"key": KEY}),
        (["--key", "@MY_KEY", "--allow", "POST,get /v1/chat", "--allow", "/v1/**"],
         {"key": KEY, "endpoints": [{"paths": ["/v1/chat"], "methods": ["POST", "GET"]}, {"paths": ["/v1/**"]}]}),
        (["--allow", "/v1"], {"endpoints": [{"paths": ["/v1"]}]}),
        (["--allow", "all"], {"endpoints": []}),
        (["--shared"], {"key": None}),
    ],
)  # fmt: skip
def test_a_sandbox_gets_one(cove, stub, words: list[str], body: dict[str, Any]) -> None:
    stub.extra["PUT", f"{PATH}/openai"] = credential()
    ran = cove("credential", "set", "openai", "brave-otter", *words)
    assert ran.code == 0, ran.err
    assert bodies(stub)[-1] == body
    assert KEY not in ran.out + ran.err
    assert ran.out == "http://169.254.1.1:3130/proxy/openai\n"
    assert "-e A_KEY=placeholder" in ran.err


def test_without_a_box_the_project_keeps_it(cove, stub) -> None:
    stub.extra["PUT", "/credentials/github"] = credential("github")
    stub.extra["DELETE", "/credentials/github"] = b""
    assert cove("credential", "set", "github", "--key", "@MY_KEY").code == 0
    assert bodies(stub)[-1] == {"key": KEY}
    assert cove("credential", "rm", "github").code == 0
    assert stub.seen[-1][:2] == ("DELETE", "/api/v1/credentials/github")


def test_a_key_comes_from_standard_input(cove, stub, monkeypatch) -> None:
    stub.extra["PUT", f"{PATH}/openai"] = credential()
    for words in (["--key", "-"], []):
        monkeypatch.setattr(sys, "stdin", io.StringIO(KEY + "\nmore\n"))
        assert cove("credential", "set", "openai", "brave-otter", *words).code == 0
        assert bodies(stub)[-1] == {"key": KEY}


@pytest.mark.parametrize(
    "words",
    [
        ["--key", KEY],
        ["--key", "@NO_SUCH"],
        ["--key", ""],
        ["--shared", "--key", "@MY_KEY"],
        ["--key", "@MY_KEY", "--allow", "v1"],
        ["--key", "@MY_KEY", "--allow", "POST"],
    ],
)
def test_what_cannot_be_meant_is_refused_and_never_repeated(cove, stub, words: list[str]) -> None:
    ran = cove("credential", "set", "openai", "brave-otter", *words)
    assert ran.code == 2
    assert KEY not in ran.out + ran.err
    assert stub.seen == []


def test_an_empty_key_is_refused(cove, stub, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert cove("credential", "set", "openai", "brave-otter").code == 2
    assert cove("credential", "set", "openai", "--shared").code == 2
    assert stub.seen == []


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        (["--credential", "openai=@MY_KEY"], {"openai": KEY}),
        (["--credential", "github"], {"github": {}}),
        (["--credential", "openai=@MY_KEY", "--credential", "github"], {"openai": KEY, "github": {}}),
    ],
)
def test_a_new_sandbox_gets_them(cove, stub, words: list[str], sent: dict[str, Any]) -> None:
    ran = cove("new", *words)
    assert ran.code == 0, ran.err
    made = next(body for method, path, body in stub.seen if (method, path) == ("POST", "/api/v1/sandboxes"))
    assert made["credentials"] == sent
    assert KEY not in ran.out + ran.err


def test_a_key_on_the_command_line_is_refused_and_not_repeated(cove, stub) -> None:
    for command in (["new"], ["run"]):
        ran = cove(*command, "--credential", f"openai={KEY}", *(["--", "true"] if command == ["run"] else []))
        assert ran.code == 2
        assert KEY not in ran.out + ran.err
        assert "@VARIABLE" in ran.err
    assert stub.seen == []


def test_services(cove, stub) -> None:
    service = {
        "name": "search",
        "upstream": "https://s.example",
        "header": "X-Key",
        "value": "{key}",
        "env": {"U": "x"},
    }
    stub.extra["GET", "/credential-services"] = {"services": [service]}
    assert cove("credential", "services").out.splitlines()[1].split() == [
        "search", "https://s.example", "X-Key:", "{key}", "U",
    ]  # fmt: skip
    stub.extra["PUT", "/credential-services/search"] = service
    words = ["search", "https://s.example", "--header", "X-Key", "--value", "{key}", "-e", "U={url}"]
    assert cove("credential", "add-service", *words, "--strip-query", "key").code == 0
    assert bodies(stub)[-1] == {
        "upstream": "https://s.example", "header": "X-Key", "value": "{key}", "env": {"U": "{url}"},
        "strip_headers": [], "strip_query": ["key"],
    }  # fmt: skip
    stub.extra["DELETE", "/credential-services/search"] = b""
    assert cove("credential", "rm-service", "search").code == 0
    stub.extra["POST", "/server/rekey"] = {"secrets": 2}
    assert cove("credential", "rekey", "--json").objects == [{"secrets": 2}]
