from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from cove.core import ratelimits
from cove.core.access import LOCAL
from cove.core.quotabook import QuotaBook
from cove.core.ratelimits import RateLimits, RateSettings, RateState, site
from cove.engine.clock import ManualClock
from cove.model.access import Principal
from cove.model.errors import RateLimited
from cove.model.quota import Quota

WHO = Principal(key_id="k", name="k", project="p", scopes=frozenset())
FROM = "203.0.113.7"


class Book:
    """A chain that a test writes down."""

    def __init__(self, **quotas: int) -> None:
        self.quotas = {name.replace("_", ":"): Quota(requests_per_minute=count) for name, count in quotas.items()}
        self.has_rates = bool(quotas)

    def quota(self, subject: str) -> Quota:
        return self.quotas.get(subject, Quota())

    def chain(self, project: str, key: str) -> tuple[str, ...]:
        return (f"project:{project}", f"key:{key}", "key:maker")


def limits(clock: ManualClock, book: Book | None = None, **settings: int) -> RateLimits:
    return RateLimits(RateSettings(**settings), cast("QuotaBook", book or Book()), clock)


def take(one: RateLimits, who: Principal = WHO) -> Iterator[RateState | None]:
    while True:
        try:
            yield one.take(who)
        except RateLimited:
            return


def test_nothing_is_limited_unasked(clock: ManualClock) -> None:
    one = limits(clock)
    assert [one.take(WHO) for _ in range(1000)] == [None] * 1000


def test_a_minute_has_so_many_requests_and_then_they_come_one_by_one(clock: ManualClock) -> None:
    one = limits(clock, requests=60)
    states = list(take(one))
    assert len(states) == 60
    assert states[0] == RateState(60, 59, 1)
    assert states[-1] == RateState(60, 0, 60)
    with pytest.raises(RateLimited) as caught:
        one.take(WHO)
    assert caught.value.retry_after_s == 1
    clock.advance(2.0)
    assert len(list(take(one))) == 2
    assert one.stats().requests_refused == 3


def test_the_burst_may_be_smaller(clock: ManualClock) -> None:
    one = limits(clock, requests=60, request_burst=5)
    assert len(list(take(one))) == 5


def test_a_wall_clock_that_jumps_gives_nothing(clock: ManualClock) -> None:
    one = limits(clock, requests=10)
    assert len(list(take(one))) == 10
    clock.jump_wall(86400)
    assert list(take(one)) == []


@pytest.mark.parametrize(
    ("quotas", "fit"),
    [({"key_k": 5}, 5), ({"project_p": 3, "key_k": 5}, 3), ({"key_maker": 2, "key_k": 50}, 2), ({"key_other": 1}, 7)],
)
def test_the_tightest_of_key_maker_and_project_counts(clock: ManualClock, quotas: dict[str, int], fit: int) -> None:
    assert len(list(take(limits(clock, Book(**quotas), requests=7)))) == fit


def test_a_refused_request_takes_nothing_of_the_others(clock: ManualClock) -> None:
    one = limits(clock, Book(project_p=100, key_k=1))
    assert len(list(take(one))) == 1
    for _ in range(500):
        assert list(take(one)) == []
    state = one.take(Principal(key_id="other", name="o", project="p", scopes=frozenset()))
    assert state is not None
    assert state.remaining == 98
    assert one.refused_state(WHO) == RateState(1, 0, 60)


def test_the_operator_is_not_limited(clock: ManualClock) -> None:
    assert limits(clock, requests=1).take(LOCAL) is None


def test_failed_logins_shut_out_their_address_only_and_for_a_while(clock: ManualClock) -> None:
    one = limits(clock, failed_logins=3)
    one.succeeded(FROM, "friend")
    for _ in range(3):
        one.check_login(FROM, None)
        one.failed(FROM)
    for key_id in (None, "right-but-new"):
        with pytest.raises(RateLimited, match="too many failed logins") as caught:
            one.check_login(FROM, key_id)
        assert caught.value.retry_after_s == 20
    one.check_login(FROM, "friend")
    one.check_login(FROM, None, "ssh")
    one.check_login("203.0.113.8", None)
    one.check_login("", None)
    clock.advance(20)
    one.check_login(FROM, "right-but-new")


def test_hammering_does_not_make_the_wait_longer(clock: ManualClock) -> None:
    one = limits(clock, failed_logins=3)
    for _ in range(1000):
        one.failed(FROM)
    clock.advance(21)
    one.check_login(FROM, None)


def test_no_limit_is_no_limit(clock: ManualClock) -> None:
    one = limits(clock, failed_logins=0)
    for _ in range(1000):
        one.failed(FROM)
    one.check_login(FROM, None)


@pytest.mark.parametrize(
    ("address", "counts_as"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9%eth0", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("no:address", "no:address"),
        ("x" * 1000, "x" * 64),
    ],
)
def test_an_address_counts_as_its_site(address: str, counts_as: str) -> None:
    assert site(address) == counts_as


def test_memory_is_bounded_however_many_come(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratelimits, "KEPT_BUCKETS", 100)
    monkeypatch.setattr(ratelimits, "KEPT_FRIENDS", 100)
    one = limits(clock, requests=5000)
    for number in range(1000):
        one.failed(f"203.0.{number // 250}.{number % 250}")
        one.succeeded(f"203.0.{number // 250}.{number % 250}", str(number))
        one.take(Principal(key_id=str(number), name="", project="p", scopes=frozenset()))
    assert one.stats().buckets == 200
    assert len(one._friends) == 100


def test_keys_that_a_key_makes_share_the_limit_of_the_settings(clock: ManualClock) -> None:
    one = limits(clock, requests=5)
    children = [Principal(key_id=f"c{number}", name="c", project="p", scopes=frozenset()) for number in range(4)]
    assert sum(len(list(take(one, child))) for child in children) == 5
    state = one.refused_state(children[0])
    assert state is not None
    assert state.remaining == 0
