"""Nothing that could carry another key goes out, nothing that carries ours comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.edge.serviceheaders import authority, incoming, outgoing, outgoing_query, rewritten
from cove.model.credentials import Secret, Service

OPENAI = Service(name="openai", host="api.openai.com", prefix="/v1")
ANTHROPIC = Service(name="anthropic", host="api.anthropic.com", header="x-api-key", value="{key}")
GOOGLE = Service(
    name="google", host="g.example", header="x-goog-api-key", value="{key}", strip_query=("key", "access_token")
)
ODD = Service(name="odd", host="odd.example", port=8443, header="X-Odd-Key", value="{key}", strip_headers=("x-second",))
KEY = Secret("sk-real")

CARRIERS = [
    "Authorization", "authorization", "AUTHORIZATION", "aUtHoRiZaTiOn", "Proxy-Authorization", "X-Api-Key", "x_api_key",
    "X_Api-Key", "api-key", "API_KEY", "x-goog-api-key", "X-Goog_Api-Key", "Cookie", "cookie", "Cookie2",
    "X-Auth-Token", "Private-Token", "x-access-token",
]  # fmt: skip
STEERING = [
    "Host", "Content-Length", "Transfer-Encoding", "Connection", "Expect", "TE", "Upgrade", "X-HTTP-Method-Override",
    "X_HTTP_METHOD_OVERRIDE", "X-Method-Override", "X-Original-URL", "X-Rewrite-Url", "X-Forwarded-For",
    "x_forwarded_host", "Forwarded", "Proxy", "Keep-Alive",
]  # fmt: skip


def names(headers: list[tuple[bytes, bytes]]) -> list[bytes]:
    return [name for name, _ in headers]


def sent(service: Service, *headers: tuple[str, str], upgrade: bytes | None = None) -> list[tuple[bytes, bytes]]:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    return outgoing(raw, service, (service.header.lower().encode(), KEY), upgrade)


@pytest.mark.parametrize("service", [OPENAI, ANTHROPIC, GOOGLE, ODD], ids=lambda one: one.name)
@pytest.mark.parametrize("name", CARRIERS + STEERING)
def test_what_carries_a_key_or_steers_goes_nowhere(service: Service, name: str) -> None:
    found = sent(service, (name, "evil"), (name.upper(), "evil2"), ("X-Fine", "yes"))
    assert not [value for _, value in found if b"evil" in value]
    assert found.count((b"x-fine", b"yes")) == 1
    assert [value for key, value in found if key == service.header.lower().encode()] == [b"sk-real"]
    assert found[0] == (b"host", authority(service))


def test_a_service_names_further_ones() -> None:
    found = sent(ODD, ("X-Second", "a"), ("x_second", "b"), ("X-Odd-Key", "c"), ("x_odd_key", "d"), ("X-Third", "e"))
    assert found == [(b"host", b"odd.example:8443"), (b"x-third", b"e"), (b"x-odd-key", b"sk-real")]


@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.sampled_from([*CARRIERS, *STEERING]),
                st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,20}", fullmatch=True),
            ),
            st.text("ab,; =", max_size=12),
        ),
        max_size=12,
    )
)
def test_there_is_one_key_whatever_is_sent(headers: list[tuple[str, str]]) -> None:
    found = sent(OPENAI, *headers)
    assert [value for name, value in found if name.replace(b"_", b"-") == b"authorization"] == [b"sk-real"]
    assert names(found).count(b"host") == 1
    plain = {name.replace(b"_", b"-") for name in names(found)}
    assert not plain & {name.lower().replace("_", "-").encode() for name in [*CARRIERS, *STEERING]} - {
        b"authorization", b"host",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["X-Search-Api-Key", "X_MY_APIKEY", "x-auth", "Service-Secret", "X-Access-Key", "x-credentials", "X-Api-Token"],
)
def test_a_header_that_says_itself_that_it_carries_a_key_stays_here(name: str) -> None:
    assert names(sent(OPENAI, (name, "evil"))) == [b"host", b"authorization"]


@pytest.mark.parametrize(
    "name", ["Sec-WebSocket-Key", "Idempotency-Key", "X-Author", "OpenAI-Organization", "X-Tokens"]
)
def test_other_headers_go_out(name: str) -> None:
    assert names(sent(OPENAI, (name, "x"))) == [b"host", name.lower().encode(), b"authorization"]


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("realtime, openai-insecure-api-key.sk-evil, openai-beta.realtime-v1", b"realtime, openai-beta.realtime-v1"),
        ("base64url.bearer.authorization.k8s.io.ZXZpbA", None),
        ("OPENAI-INSECURE-API-KEY.x", None),
        ("chat", b"chat"),
    ],
)
def test_a_subprotocol_that_carries_a_key_stays_here(given: str, left: bytes | None) -> None:
    found = [value for name, value in sent(OPENAI, ("Sec-WebSocket-Protocol", given)) if b"protocol" in name]
    assert found == ([] if left is None else [left])


def test_what_connection_names_stays_here_and_an_upgrade_goes_on() -> None:
    found = sent(OPENAI, ("Connection", "Upgrade, X-Hop"), ("X-Hop", "1"), ("Upgrade", "websocket"), ("X-Far", "1"))
    assert names(found) == [b"host", b"x-far", b"authorization"]
    found = sent(OPENAI, ("Sec-WebSocket-Key", "k"), upgrade=b"websocket")
    assert (b"upgrade", b"websocket") in found
    assert (b"connection", b"Upgrade") in found
    assert (b"sec-websocket-key", b"k") in found


@pytest.mark.parametrize(
    ("query", "left"),
    [
        (b"", b""),
        (b"alt=sse", b"alt=sse"),
        (b"key=evil", b""),
        (b"alt=sse&key=evil", b"alt=sse"),
        (b"key=evil&alt=sse", b"alt=sse"),
        (b"a=1&KEY=evil&b=2", b"a=1&b=2"),
        (b"a=1&k%65y=evil&b=2", b"a=1&b=2"),
        (b"a=1;key=evil;b=2", b"a=1;b=2"),
        (b"key&a=1", b"a=1"),
        (b"key=1&key=2&access_token=3&a=%20+b", b"a=%20+b"),
        (b"+key=evil&a=1", b"a=1"),
        (b"monkey=1&keys=2", b"monkey=1&keys=2"),
    ],
)
def test_keys_in_the_query(query: bytes, left: bytes) -> None:
    assert outgoing_query(query, GOOGLE) == left
    assert outgoing_query(query, OPENAI) == query


def test_what_comes_back() -> None:
    answer = [
        (b"content-type", b"text/event-stream"),
        (b"content-length", b"5"),
        (b"set-cookie", b"session=1"),
        (b"connection", b"keep-alive, x-hop"),
        (b"x-hop", b"1"),
        (b"transfer-encoding", b"chunked"),
        (b"alt-svc", b'h3=":443"'),
        (b"strict-transport-security", b"max-age=1"),
        (b"x-echo", b"Bearer sk-real!"),
        (b"x-ratelimit", b"9"),
        (b"x-request-id", b"r"),
    ]
    found = incoming(answer, OPENAI, KEY, has_length=True)
    assert names(found) == [b"content-type", b"content-length", b"x-ratelimit", b"x-request-id"]
    assert names(incoming(answer, OPENAI, KEY, has_length=False)) == [b"content-type", b"x-ratelimit", b"x-request-id"]


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        (b"/v1/x", b"/proxy/openai/v1/x"),
        (b"https://api.openai.com/v1/x?a=b", b"http://169.254.1.1:3130/proxy/openai/v1/x?a=b"),
        (b"https://API.openai.com:443/v1", b"http://169.254.1.1:3130/proxy/openai/v1"),
        (b"https://api.openai.com:8443/v1", b"https://api.openai.com:8443/v1"),
        (b"http://api.openai.com/v1", b"http://api.openai.com/v1"),
        (b"https://evil.example/v1", b"https://evil.example/v1"),
        (b"https://api.openai.com.evil.example/", b"https://api.openai.com.evil.example/"),
        (b"https://api.openai.com@evil.example/", b"https://api.openai.com@evil.example/"),
        (b"//evil.example/x", b"//evil.example/x"),
        (b"/\\evil.example", b"/\\evil.example"),
        (b"x/y", b"x/y"),
        (b"https://169.254.169.254/latest", b"https://169.254.169.254/latest"),
    ],
)
def test_addresses_of_the_upstream_itself_become_the_brokers(address: bytes, seen: bytes) -> None:
    assert rewritten(address, OPENAI) == seen
    found = incoming([(b"location", address), (b"link", b'<%b>; rel="next"' % address)], OPENAI, KEY, has_length=False)
    assert found == [(b"location", seen), (b"link", b'<%b>; rel="next"' % seen)]
