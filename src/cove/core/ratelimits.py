"""How often a key may ask and an address may fail to log in: token buckets on the monotonic clock, in bounded memory.

A request takes a token from each subject that has a limit: the key, the keys that made it, the project. A login that
fails takes one from its address. At an address without tokens only keys get in that came from there before, so nobody
shuts out the others behind the same address.

A bucket is two numbers; the least recently used ones are forgotten, which can only be to their owner's advantage.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from functools import lru_cache
from typing import Final

from msgspec import Struct

from cove.core.access import LOCAL
from cove.core.quotabook import QuotaBook, key_subject
from cove.engine.clock import Clock
from cove.model.access import Principal
from cove.model.errors import RateLimited

KEPT_BUCKETS: Final = 16_384
KEPT_FRIENDS: Final = 16_384
MINUTE_S: Final = 60.0
_KEYS: Final = key_subject("")
_SITE: Final = 64
"""Of an IPv6 address: one customer has at least such a net, so its addresses count as one."""


class RateSettings(Struct, frozen=True, kw_only=True):
    """Per minute; 0: not limited. `request_burst`: requests of a key that may come at once; 0: a minute's."""

    requests: int = 0
    request_burst: int = 0
    failed_logins: int = 60


class RateState(Struct, frozen=True):
    """What an answer says: requests per minute, how many are left now, seconds until all are there again."""

    limit: int
    remaining: int
    reset_s: int


class RateStats(Struct, frozen=True, kw_only=True):
    """Refusals since the start: of requests, and of logins from addresses that failed too often; buckets kept now."""

    requests_refused: int
    logins_refused: int
    logins_failed: int
    buckets: int


class _Buckets:
    """Tokens by name, `per_minute` new ones, `burst` at most. The last used are kept."""

    def __init__(self, clock: Clock, kept: int) -> None:
        self._clock = clock
        self._kept = kept
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def look(self, name: str, per_minute: int, burst: int) -> float:
        """How many tokens there are now."""
        found = self._tokens.get(name)
        if found is None:
            return float(burst)
        tokens, at = found
        return min(burst, tokens + (self._clock.monotonic() - at) * per_minute / MINUTE_S)

    def put(self, name: str, tokens: float) -> None:
        """How many there are from now on."""
        self._tokens[name] = (tokens, self._clock.monotonic())
        self._tokens.move_to_end(name)
        if len(self._tokens) > self._kept:
            self._tokens.popitem(last=False)

    def __len__(self) -> int:
        return len(self._tokens)


class RateLimits:
    """All limits of how often."""

    def __init__(self, settings: RateSettings, book: QuotaBook, clock: Clock) -> None:
        self._settings = settings
        self._book = book
        self._requests = _Buckets(clock, KEPT_BUCKETS)
        self._logins = _Buckets(clock, KEPT_BUCKETS)
        self._friends: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._refused = self._logins_refused = self._logins_failed = 0

    def take(self, who: Principal) -> RateState | None:
        """Count one request. None: nothing limits it. Raises: RateLimited, which counts nothing."""
        if not (self._settings.requests or self._book.has_rates) or who.key_id == LOCAL.key_id:
            return None
        tightest: RateState | None = None
        taken: list[tuple[str, float]] = []
        for subject in self._book.chain(who.project, who.key_id):
            limit, burst = self._limit(subject)
            if not limit:
                continue
            tokens = self._requests.look(subject, limit, burst) - 1
            if tokens < 0:
                self._refused += 1
                raise _too_many(subject, limit, -tokens)
            taken.append((subject, tokens))
            state = RateState(limit, int(tokens), math.ceil((burst - tokens) * MINUTE_S / limit))
            if tightest is None or state.remaining < tightest.remaining:
                tightest = state
        for subject, tokens in taken:
            self._requests.put(subject, tokens)
        return tightest

    def refused_state(self, who: Principal) -> RateState | None:
        """What the answer to a refused request says: nothing is left of the tightest limit."""
        for subject in self._book.chain(who.project, who.key_id):
            limit, burst = self._limit(subject)
            if limit and (tokens := self._requests.look(subject, limit, burst)) < 1:
                return RateState(limit, 0, math.ceil((burst - tokens) * MINUTE_S / limit))
        return None

    def check_login(self, address: str, key_id: str | None, place: str = "") -> None:
        """Whether a key (None: a wrong one, or none) may log in from an address: too many may have failed there.

        `place`: where failures count apart from the API's. The empty address, of the local socket, always may.
        Raises: RateLimited.
        """
        limit = self._settings.failed_logins
        if not limit or not address:
            return
        tokens = self._logins.look(place + site(address), limit, limit)
        if tokens >= 1 or (key_id is not None and (site(address), key_id) in self._friends):
            return
        self._logins_refused += 1
        raise RateLimited(
            "too many failed logins from this address", retry_after_s=max(1, math.ceil((1 - tokens) * MINUTE_S / limit))
        )

    def failed(self, address: str, place: str = "") -> None:
        """A login from there has failed."""
        self._logins_failed += 1
        limit = self._settings.failed_logins
        if limit and address:
            name = place + site(address)
            self._logins.put(name, max(self._logins.look(name, limit, limit) - 1, 0.0))

    def succeeded(self, address: str, key_id: str) -> None:
        """A key has come from there: it may again, whoever else fails there."""
        if not address or not self._settings.failed_logins:
            return
        friend = (site(address), key_id)
        if friend in self._friends:
            self._friends.move_to_end(friend)
            return
        self._friends[friend] = None
        if len(self._friends) > KEPT_FRIENDS:
            self._friends.popitem(last=False)

    def stats(self) -> RateStats:
        """Numbers for the metrics."""
        return RateStats(
            requests_refused=self._refused,
            logins_refused=self._logins_refused,
            logins_failed=self._logins_failed,
            buckets=len(self._requests) + len(self._logins),
        )

    def _limit(self, subject: str) -> tuple[int, int]:
        """Requests per minute (0: any) and at once. The settings say it for keys without a limit of their own.

        For those that made the caller's key, too: else whoever may make keys would have as many requests as it likes.
        """
        limit = self._book.quota(subject).requests_per_minute
        if limit is not None:
            return limit, limit
        if not self._settings.requests or not subject.startswith(_KEYS):
            return 0, 0
        return self._settings.requests, self._settings.request_burst or self._settings.requests


@lru_cache(maxsize=KEPT_BUCKETS)
def site(address: str) -> str:
    """Who counts as one: an IPv4 address, or the /64 of an IPv6 one. What is no address is taken as it is, cut."""
    if ":" not in address:
        return address[:64]
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((found, _SITE), strict=False))


def _too_many(subject: str, limit: int, missing: float) -> RateLimited:
    whose = subject.partition(":")[0]
    return RateLimited(
        f"this {whose} may make {limit} requests per minute",
        retry_after_s=max(1, math.ceil(missing * MINUTE_S / limit)),
    )
