"""Usage, money and limits as one part of the core: built before the supervisors, told of what they do."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import Struct

from cove.core.audit import Audit
from cove.core.budgets import Budgets
from cove.core.metering import Metering, MeteringSettings, MeteringStats
from cove.core.quotabook import QuotaBook
from cove.core.quotas import Quotas, QuotaStats
from cove.core.ratelimits import RateLimits, RateSettings, RateStats
from cove.core.usage import MeterReader
from cove.engine.clock import Clock
from cove.engine.supervisors import Supervisors
from cove.model.sandbox import Sandbox
from cove.store.store import Store


class AccountSettings(Struct, frozen=True, kw_only=True):
    """How it counts, and what it limits unasked."""

    metering: MeteringSettings = MeteringSettings()
    rates: RateSettings = RateSettings()


class AccountStats(Struct, frozen=True, kw_only=True):
    """Numbers for the metrics."""

    usage: MeteringStats
    quotas: QuotaStats
    rates: RateStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """The parts. What a caller may ask of usage is `usage.py`."""

    settings: AccountSettings
    metering: Metering
    budgets: Budgets
    quotas: Quotas
    rate_limits: RateLimits
    reader: MeterReader

    def adopt(self, sandbox: Sandbox) -> None:
        """Go on with a sandbox that outlived the server."""
        self.metering.adopt(sandbox)
        self.quotas.hold(sandbox)

    async def work(self, supervisors: Supervisors) -> None:
        """Read the meters and enforce budgets, until cancelled."""
        metering = self.settings.metering
        await self.reader.read_forever(supervisors.all, interval_s=metering.interval_s, keep_s=metering.keep_s)

    def stats(self) -> AccountStats:
        """Numbers for the metrics."""
        return AccountStats(usage=self.metering.stats(), quotas=self.quotas.stats(), rates=self.rate_limits.stats())


def make_accounts(settings: AccountSettings, store: Store, clock: Clock, audit: Audit) -> Accounts:
    """The accounts over an open store."""
    book = QuotaBook(store)
    metering = Metering(store, clock, settings.metering)
    budgets = Budgets(book, store, clock, metering, audit)
    return Accounts(
        settings=settings,
        metering=metering,
        budgets=budgets,
        quotas=Quotas(book, budgets, store, audit),
        rate_limits=RateLimits(settings.rates, book, clock),
        reader=MeterReader(metering, budgets, store, clock),
    )
