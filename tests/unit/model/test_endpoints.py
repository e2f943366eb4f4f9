"""One form of each path, and rules that no second spelling gets around."""

from __future__ import annotations

import time
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.model.credentials import EndpointRule
from cove.model.endpoints import canonical_path, check_rule, path_matches, refusal, with_prefix


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/", "/"),
        (b"/v1/chat", "/v1/chat"),
        (b"//v1///chat", "/v1/chat"),
        (b"/v1/./chat/", "/v1/chat/"),
        (b"/v1/x/../chat", "/v1/chat"),
        (b"/v1/%2e%2e/chat", "/chat"),
        (b"/v1/%2E/chat", "/v1/chat"),
        (b"/v1/x/..", "/v1/"),
        (b"/v1/%63hat", "/v1/chat"),
        (b"/v1/a%2fb", "/v1/a%2Fb"),
        (b"/v1/a%20b", "/v1/a%20b"),
        (b"/v1/%252e%252e", "/v1/%252e%252e"),
        (b"/v1/a:b@c,d;e=f", "/v1/a:b@c,d;e=f"),
        (b"/v1/[x]", "/v1/%5Bx%5D"),
        (b"/..%2fx/../y", "/y"),
        (b"/a/..", "/"),
    ],
)
def test_a_path_has_one_form(raw: bytes, path: str) -> None:
    assert canonical_path(raw) == path
    assert canonical_path(path.encode()) == path


@pytest.mark.parametrize(
    "raw",
    [b"", b"v1", b"/..", b"/a/../..", b"/%2e%2e/x", b"/a%", b"/a%2", b"/a%zz", b"/a%00", b"/a%0a", b"/a\\b", b"/a b",
     b"/\xc3\xa9", b"/a?b", b"/a#b", b"/\x7f", b"/" + b"a" * 9000],
)  # fmt: skip
def test_what_is_no_path_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"path"):
        canonical_path(raw)


@given(st.binary(max_size=64).map(lambda tail: b"/" + tail))
def test_the_form_is_stable_and_has_no_dot_segment(raw: bytes) -> None:
    try:
        path = canonical_path(raw)
    except ValueError:
        return
    assert canonical_path(path.encode()) == path
    assert path.startswith("/")
    assert "//" not in path
    assert not {".", ".."} & set(path.split("/"))
    assert path.isascii()
    assert path.isprintable()


@given(st.lists(st.sampled_from(["v1", "chat", "..", ".", "%2e%2e", "%2E", "", "a%2fb", "%761", "files"]), max_size=8))
def test_spellings_of_one_path_are_judged_alike(segments: list[str]) -> None:
    rules = [(EndpointRule(paths=("/v1/chat",)),)]
    raw = "/" + "/".join(segments)
    try:
        path = canonical_path(raw.encode())
    except ValueError:
        return
    if refusal(rules, "GET", path) is None:
        assert path == "/v1/chat" or path.startswith("/v1/chat/")
        decoded = unquote(path)
        assert decoded == "/v1/chat" or decoded.startswith("/v1/chat/")
        assert ".." not in decoded.split("/")


@pytest.mark.parametrize(
    "raw",
    [b"/v1/chat/..%2f..%2fadmin", b"/v1/chat/%2e%2e%5cadmin", b"/v1/chat/%252e%252e/admin", b"/v1/chat/..;/admin",
     b"/v1/chat/%252fadmin", b"/v1/chat/x%3b/admin", b"/v1/chat/.;a/b", b"/v1/chat/%25252e"],
)  # fmt: skip
def test_what_a_server_may_read_as_another_path_is_refused_under_rules(raw: bytes) -> None:
    path = canonical_path(raw)
    assert refusal([(EndpointRule(paths=("/v1/chat",)),)], "GET", path) is not None
    assert refusal([(EndpointRule(methods=("GET",)),)], "GET", path) is None, "where paths are no rule it may pass"


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/v1/chat", "/v1/chat", True),
        ("/v1/chat", "/v1/chat/completions", True),
        ("/v1/chat", "/v1/chatter", False),
        ("/v1/chat/", "/v1/chat", False),
        ("/v1/chat/", "/v1/chat/x", True),
        ("/", "/anything", True),
        ("/v1/*", "/v1/chat", True),
        ("/v1/*", "/v1/chat/x", False),
        ("/v1/**", "/v1/chat/x", True),
        ("/repos/*/issues", "/repos/a/issues", True),
        ("/repos/*/issues", "/repos/a/b/issues", False),
        ("/repos/**/issues", "/repos/a/b/issues", True),
        ("/repos/*/issues", "/repos/a/issues/1", False),
        ("/a*c", "/abc", True),
        ("/a*c", "/ac", True),
        ("/a*c", "/acd", False),
        ("/**a*b", "/x/a/ab", True),
        ("/V1", "/v1", False),
        ("/a.c", "/abc", False),
    ],
)
def test_patterns(pattern: str, path: str, fits: bool) -> None:  # noqa: FBT001 - a table's column
    assert path_matches(pattern, path) is fits


def naive(pattern: str, path: str) -> bool:
    """Whether it matches, by trying everything."""
    if not pattern:
        return not path
    if pattern.startswith("*"):
        bare = pattern.lstrip("*")
        is_deep = len(pattern) - len(bare) > 1
        for end in range(len(path) + 1):
            if not is_deep and "/" in path[:end]:
                return False
            if naive(bare, path[end:]):
                return True
        return False
    return bool(path) and path[0] == pattern[0] and naive(pattern[1:], path[1:])


@given(st.text("ab/*", min_size=1, max_size=8), st.text("ab/", max_size=8))
def test_stars_match_what_trying_everything_finds(tail: str, path: str) -> None:
    pattern = "/*" + tail
    assert path_matches(pattern, "/" + path) is naive(pattern, "/" + path)


def test_a_pattern_takes_time_linear_to_the_path() -> None:
    pattern, path = "/" + "**a" * 100, "/" + "a" * 8000 + "b"
    begin = time.process_time()
    assert not path_matches(pattern, path)
    assert time.process_time() - begin < 1.0


def test_rules_of_sandbox_and_project_must_both_allow() -> None:
    own = (EndpointRule(methods=("POST",), paths=("/v1/chat",)),)
    shared = (EndpointRule(paths=("/v1",)), EndpointRule(methods=("GET",)))
    assert refusal([own, shared], "POST", "/v1/chat") is None
    assert refusal([own, shared], "GET", "/v1/chat") is not None
    assert refusal([own, ()], "POST", "/v1/chat") is None
    assert refusal([(), shared], "POST", "/v2") is not None
    assert refusal([(), shared], "GET", "/v2") is None
    assert refusal([(), ()], "DELETE", "/anything") is None


def test_a_services_own_prefix_may_be_left_out() -> None:
    assert with_prefix("/chat", "/v1") == "/v1/chat"
    assert with_prefix("/v1/chat", "/v1") == "/v1/chat"
    assert with_prefix("/v10", "/v1") == "/v1/v10"
    rules = [(EndpointRule(paths=("/chat",)),)]
    assert refusal(rules, "GET", "/v1/chat", "/v1") is None
    assert refusal(rules, "GET", "/v1/files", "/v1") is not None


@pytest.mark.parametrize(
    "rule",
    [
        EndpointRule(methods=("get",)),
        EndpointRule(methods=("GET POST",)),
        EndpointRule(methods=("",)),
        EndpointRule(paths=("v1",)),
        EndpointRule(paths=("/v1/../x",)),
        EndpointRule(paths=("/v1//x",)),
        EndpointRule(paths=("/v1/%2fx",)),
        EndpointRule(paths=("/é",)),
        EndpointRule(paths=("/" + "a" * 600,)),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(rule: EndpointRule) -> None:
    with pytest.raises(ValueError, match=r".+"):
        check_rule(rule)
    check_rule(EndpointRule(methods=("GET", "M-SEARCH"), paths=("/v1/chat", "/repos/*/issues/**")))
