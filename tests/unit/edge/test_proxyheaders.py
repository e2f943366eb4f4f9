"""What a proxied request and its answer say about themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.edge.proxyheaders import (
    Place,
    cookie_tokens,
    own_path,
    request_headers,
    response_headers,
    rewritten_cookie,
    rewritten_location,
    split_token,
    token_cookie,
    wanted_upgrade,
)

PREFIX = b"/api/v1/sandboxes/sb_0123456789abcdef/ports/8000/http"
PATH = Place(port=8000, prefix=PREFIX, scheme=b"http", host=b"cove:8080", client=b"192.0.2.1")
HOST = Place(port=8000, prefix=b"", scheme=b"https", host=b"8000-sb-0123456789abcdef.example.com", client=b"192.0.2.1")


def _request(*headers: tuple[bytes, bytes], drop: frozenset[bytes] = frozenset()) -> list[tuple[bytes, bytes]]:
    return request_headers(list(headers), PATH, drop=drop, upgrade=None)


def test_hop_by_hop_headers_and_those_that_connection_names_stay_here() -> None:
    got = _request(
        (b"connection", b"close, X-Private ,te"),
        (b"x-private", b"1"),
        (b"te", b"trailers"),
        (b"keep-alive", b"timeout=5"),
        (b"proxy-authorization", b"Basic x"),
        (b"transfer-encoding", b"chunked"),
        (b"trailer", b"x"),
        (b"accept", b"*/*"),
    )
    assert [name for name, _ in got] == [b"host", b"accept", b"x-forwarded-for", b"x-forwarded-proto",
                                         b"x-forwarded-host", b"x-forwarded-prefix"]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [b"transfer_encoding", b"proxy_authorization",
     b"x-forwarded-for", b"x_forwarded_for", b"X-Forwarded-Port".lower(), b"forwarded", b"x-real-ip", b"x_real_ip",
     b"proxy", b"x-cove-token", b"x_cove_token", b"content-length", b"content_length", b"host", b"expect"],
)  # fmt: skip
def test_what_a_client_says_about_its_way_is_not_believed(name: bytes) -> None:
    got = _request((name, b"evil"))
    assert b"evil" not in [value for _, value in got]


def test_the_way_is_told_by_us() -> None:
    assert dict(_request()) == {
        b"host": b"cove:8080",
        b"x-forwarded-for": b"192.0.2.1",
        b"x-forwarded-proto": b"http",
        b"x-forwarded-host": b"cove:8080",
        b"x-forwarded-prefix": PREFIX,
    }
    assert b"x-forwarded-prefix" not in dict(request_headers([], HOST, drop=frozenset(), upgrade=None))


def test_a_client_cannot_take_our_headers_away_with_connection() -> None:
    got = dict(_request((b"connection", b"x-forwarded-for, host")))
    assert got[b"x-forwarded-for"] == b"192.0.2.1"
    assert got[b"host"] == b"cove:8080"


def test_keys_and_cookies_of_ours_stay_here() -> None:
    got = _request(
        (b"authorization", b"Bearer cove_x"),
        (b"cookie", b"a=1; cove_token=t; __Host-cove_session=s; b=2"),
        (b"cookie", b"cove_x=1"),
        drop=frozenset({b"authorization"}),
    )
    assert b"authorization" not in dict(got)
    assert [value for name, value in got if name == b"cookie"] == [b"a=1; b=2"]


def test_an_authorization_of_the_application_goes_on() -> None:
    assert (b"authorization", b"Basic YTpi") in _request((b"authorization", b"Basic YTpi"))


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ([(b"connection", b"keep-alive, Upgrade"), (b"upgrade", b"websocket")], b"websocket"),
        ([(b"upgrade", b"websocket")], None),
        ([(b"connection", b"upgrade"), (b"upgrade", b"h2c")], None),
        ([(b"connection", b"upgrade"), (b"upgrade", b"websocket, h2c")], None),
        ([(b"connection", b"upgrade"), (b"upgrade", b"a"), (b"upgrade", b"b")], None),
        ([(b"connection", b"upgrade")], None),
    ],
)
def test_which_upgrade_is_wanted(headers: list[tuple[bytes, bytes]], wanted: bytes | None) -> None:
    assert wanted_upgrade(headers) == wanted


@pytest.mark.parametrize(
    ("location", "in_path", "in_host"),
    [
        (b"/login?next=%2F", PREFIX + b"/login?next=%2F", b"/login?next=%2F"),
        (b"/", PREFIX + b"/", b"/"),
        (b"http://localhost:8000/x", b"http://cove:8080" + PREFIX + b"/x", b"https://" + HOST.host + b"/x"),
        (b"http://127.0.0.1:8000", b"http://cove:8080" + PREFIX + b"/", b"https://" + HOST.host + b"/"),
        (b"http://0.0.0.0:8000/?a", b"http://cove:8080" + PREFIX + b"/?a", b"https://" + HOST.host + b"/?a"),
        (b"http://[::1]:8000/x", b"http://cove:8080" + PREFIX + b"/x", b"https://" + HOST.host + b"/x"),
        (b"HTTP://LocalHost:8000/x", b"http://cove:8080" + PREFIX + b"/x", b"https://" + HOST.host + b"/x"),
        (b"http://localhost:9000/x", b"http://localhost:9000/x", b"http://localhost:9000/x"),
        (b"http://localhost/x", b"http://localhost/x", b"http://localhost/x"),
        (b"https://elsewhere.example/x", b"https://elsewhere.example/x", b"https://elsewhere.example/x"),
        (b"//elsewhere.example/x", b"//elsewhere.example/x", b"//elsewhere.example/x"),
        (b"next/page", b"next/page", b"next/page"),
        (b"?page=2", b"?page=2", b"?page=2"),
        (b"#top", b"#top", b"#top"),
        (PREFIX + b"/there", PREFIX + b"/there", PREFIX + b"/there"),
        (PREFIX + b"-other/x", PREFIX + PREFIX + b"-other/x", PREFIX + b"-other/x"),
        (b"http://cove:8080/x", b"http://cove:8080" + PREFIX + b"/x", b"http://cove:8080/x"),
    ],
)
def test_redirects_lead_to_where_the_client_sees_the_port(location: bytes, in_path: bytes, in_host: bytes) -> None:
    assert rewritten_location(location, PATH) == in_path
    assert rewritten_location(location, HOST) == in_host


@pytest.mark.parametrize(
    ("cookie", "in_path", "in_host"),
    [
        (b"a=1", b"a=1; Path=" + PREFIX + b"/", b"a=1"),
        (b"a=1; Path=/", b"a=1; Path=" + PREFIX + b"/", b"a=1; Path=/"),
        (b"a=1; path=/x; HttpOnly", b"a=1; HttpOnly; Path=" + PREFIX + b"/x", b"a=1; path=/x; HttpOnly"),
        (b"a=1; Domain=example.com; Path=/", b"a=1; Path=" + PREFIX + b"/", b"a=1; Path=/"),
        (b"a=1; DOMAIN =example.com", b"a=1; Path=" + PREFIX + b"/", b"a=1"),
        (b"a=1; Path=/a; Path=/b", b"a=1; Path=" + PREFIX + b"/b", b"a=1; Path=/a; Path=/b"),
        (b"a=1; Path=" + PREFIX + b"/x", b"a=1; Path=" + PREFIX + b"/x", b"a=1; Path=" + PREFIX + b"/x"),
        (b"cove_token=x; Path=/", None, None),
        (b" __Secure-cove_a=x", None, None),
    ],
)
def test_cookies_stay_with_their_port(cookie: bytes, in_path: bytes | None, in_host: bytes | None) -> None:
    assert rewritten_cookie(cookie, PATH) == in_path
    assert rewritten_cookie(cookie, HOST) == in_host


def test_what_would_speak_for_the_whole_origin_is_dropped_in_path_form() -> None:
    headers = [
        (b"clear-site-data", b"*"),
        (b"strict-transport-security", b"max-age=1"),
        (b"service-worker-allowed", b"/"),
        (b"alt-svc", b"h3=evil"),
        (b"content-security-policy", b"default-src *"),
        (b"content-length", b"3"),
    ]
    got = response_headers(headers, PATH, has_length=True)
    assert [name for name, _ in got] == [b"content-security-policy", b"content-length", b"content-security-policy"]
    assert got[-1][1].startswith(b"sandbox ")
    assert b"allow-same-origin" not in got[-1][1]
    names = [name for name, _ in response_headers(headers, HOST, has_length=False)]
    assert names == [b"clear-site-data", b"strict-transport-security", b"service-worker-allowed",
                     b"content-security-policy"]  # fmt: skip


def test_hop_by_hop_headers_of_an_answer_stay_here() -> None:
    headers = [(b"connection", b"x-a"), (b"x-a", b"1"), (b"keep-alive", b"x"), (b"transfer-encoding", b"chunked")]
    assert response_headers(headers, HOST, has_length=True) == []


@pytest.mark.parametrize(
    ("query", "token", "rest"),
    [
        (b"cove_token=t", "t", b""),
        (b"a=%20&cove_token=t&b", "t", b"a=%20&b"),
        (b"cove_token=t&cove_token=u&&a", "t", b"&a"),
        (b"xcove_token=t", None, b"xcove_token=t"),
        (b"a=cove_token", None, b"a=cove_token"),
    ],
)
def test_a_token_is_taken_out_of_the_query(query: bytes, token: str | None, rest: bytes) -> None:
    assert split_token(query) == (token, rest)


def test_tokens_of_all_cookies_are_found() -> None:
    assert cookie_tokens([(b"cookie", b"cove_token=a; x=1"), (b"cookie", b"cove_token=b")]) == ["a", "b"]


def test_the_token_s_cookie_is_bound_to_the_port() -> None:
    assert token_cookie(b"t", PATH) == b"cove_token=t; Path=" + PREFIX + b"; HttpOnly; SameSite=Lax"
    assert token_cookie(b"t", HOST) == b"cove_token=t; Path=/; HttpOnly; SameSite=Lax; Secure"


@given(st.binary(max_size=64), st.binary(max_size=32))
def test_our_own_redirect_cannot_leave_the_host(path: bytes, query: bytes) -> None:
    got = own_path(b"/" + path, query)
    assert got.startswith(b"/")
    assert got[1:2] not in {b"/", b"\\"}


NAMES = st.sampled_from(
    [b"connection", b"host", b"cookie", b"authorization", b"x-api-key", b"x-forwarded-for", b"x-forwarded-host",
     b"content-length", b"transfer-encoding", b"upgrade", b"te", b"accept", b"x-a"]
)  # fmt: skip


@given(st.lists(st.tuples(NAMES, st.binary(max_size=24)), max_size=12))
def test_whatever_is_sent_the_application_gets_one_of_each_of_ours(headers: list[tuple[bytes, bytes]]) -> None:
    got = request_headers(headers, PATH, drop=frozenset({b"authorization", b"x-api-key"}), upgrade=None)
    names = [name for name, _ in got]
    for name in (b"host", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-prefix"):
        assert names.count(name) == 1
    for name in (b"authorization", b"x-api-key", b"connection", b"transfer-encoding", b"content-length", b"te"):
        assert name not in names


@given(st.binary(max_size=80))
def test_no_cookie_gets_a_domain_or_leaves_its_prefix(value: bytes) -> None:
    got = rewritten_cookie(value, PATH)
    if got is not None:
        attributes = [one.strip().lower() for one in got.split(b";")[1:]]
        assert not any(one.startswith((b"domain=", b"domain ")) or one == b"domain" for one in attributes)
        assert got.rsplit(b"; Path=", 1)[1].startswith(PREFIX)
