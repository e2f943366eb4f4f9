"""When a request may be sent again, and how it looks on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.sdk import calls, tcp
from cove.sdk.errors import CapacityExceeded, Error, QuotaExceeded, Unreachable
from cove.sdk.transport import Call, Lost, Retries, Retry

STOPPING = Error("bye", code="server-stopping", retryable=True, retry_after_s=1)
FULL = CapacityExceeded("full", retry_after_s=3)


@given(st.sampled_from(Retry), st.lists(st.sampled_from([Lost("x"), FULL, STOPPING, Unreachable("x")]), max_size=12))
def test_there_are_at_most_three_and_each_wait_is_bounded(retry: Retry, errors: list[Error]) -> None:
    retries = Retries(retry)
    waits = [wait for error in errors if (wait := retries.delay_s(error)) is not None]
    assert len(waits) <= Retries.LIMIT
    assert all(0 < wait <= 10 for wait in waits)
    assert not waits or retry is not Retry.NEVER


@pytest.mark.parametrize(
    ("retry", "error", "again"),
    [
        (Retry.NEVER, Lost("x"), False),
        (Retry.NEVER, STOPPING, False),
        (Retry.LOST, Lost("x"), True),
        (Retry.LOST, STOPPING, True),
        (Retry.LOST, FULL, False),
        (Retry.LOST, Unreachable("nobody listens"), False),
        (Retry.CREATE, FULL, True),
        (Retry.CREATE, QuotaExceeded("x", retry_after_s=1), False),
        (Retry.CREATE, Error("x", code="engine-failure"), False),
    ],
)
def test_what_may_be_sent_again(retry: Retry, error: Error, again: bool) -> None:  # noqa: FBT001
    assert (Retries(retry).delay_s(error) is not None) == again


def test_a_server_that_restarts_is_waited_for() -> None:
    retries = Retries(Retry.LOST)
    assert [retries.delay_s(error) for error in (Lost("x"), Unreachable("x"), Unreachable("x"))] == [0.1, 0.5, 2.0]
    assert retries.delay_s(Lost("x")) is None


def test_the_server_says_when() -> None:
    assert Retries(Retry.CREATE).delay_s(FULL) == 3
    assert Retries(Retry.CREATE).delay_s(CapacityExceeded("full", retry_after_s=999)) == 10


@pytest.mark.parametrize(
    ("call", "retry"),
    [
        (calls.run("b", {"command": "x"}), Retry.NEVER),
        (calls.start("b", {"command": "x"}), Retry.NEVER),
        (calls.write_stdin("b", "c", b"x", close=False), Retry.NEVER),
        (calls.signal("b", "c", "TERM"), Retry.NEVER),
        (calls.create("base"), Retry.CREATE),
        (calls.destroy("b"), Retry.LOST),
    ],
)
def test_what_acts_once_is_sent_once(call: Call[object], retry: Retry) -> None:
    assert call.retry is retry


def test_values_are_quoted_and_none_is_left_out() -> None:
    call: Call[object] = Call("GET", "/x", lambda wire: wire, query={"a": "b c&d", "e": ["1", "2"], "f": None})
    assert call.target() == "/x?a=b+c%26d&e=1&e=2"
    assert Call("GET", "/x", lambda wire: wire).target() == "/x"
    assert calls.get("a/b?c").path == "/api/v1/sandboxes/a%2Fb%3Fc"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://localhost", "https://[::1]:2", "http://a.localhost"])
def test_this_machine_is_never_asked_for_through_a_proxy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    assert tcp.is_loopback(url)
    assert not tcp.is_loopback("https://cove.example")
    transport = tcp.TcpTransport(url)
    assert not transport._http.trust_env
    assert not transport._http._mounts
    transport.close()


def test_another_machine_is_asked_for_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    transport = tcp.TcpTransport("http://cove.example")
    assert transport._http._mounts
    transport.close()


def test_https_is_checked_against_the_machines_certificates() -> None:
    assert tcp.verify_for("https://cove.example") is True
    context = tcp.verify_for("http://cove.example")
    assert not isinstance(context, bool)
    assert context.check_hostname
    assert not context.get_ca_certs()
