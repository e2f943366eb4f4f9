"""The meters of sandboxes that live: what each one uses and costs, to the millisecond, whatever restarts in between.

A meter counts on CLOCK_MONOTONIC, which goes on while the server is down and which no step of the wall clock moves. Its
row says up to when it was read and at which rate it runs, and a change of the rate (pause, resume, other limits, the
end) is written in the same transaction as the sandbox it belongs to: after `kill -9` the next start counts on from
there, nothing twice. What is lost is what was measured (CPU time, bytes) since the last look if the sandbox died, too,
and after a reboot the time since then. The wall clock only says in which hour something is told.

How an amount becomes money: `prices.py`; what happens when it is too much: `budgets.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cove.core.prices import Prices, charge
from cove.engine.clock import Clock
from cove.model.errors import CoveError
from cove.model.quota import millicpus
from cove.model.sandbox import MIB, Sandbox, Usage
from cove.model.state import FINAL, State
from cove.model.usage import AMOUNTS, HOUR_S, Amounts, PausedBilling, SandboxUsage
from cove.store.store import Store
from cove.store.usage import Flush, MeterRow, SpanRow

log = logging.getLogger(__name__)

HOUR_MS: Final = HOUR_S * 1000
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
FRESH_MS: Final = 200
"""What was read so lately need not be read again."""

AT_ONCE: Final = 100
"""Meters read without a pause, and written in one transaction: each takes 5 µs to read and 25 µs to write."""


class MeteringSettings(Struct, frozen=True, kw_only=True):
    """`interval_s`: how often what only measuring tells (CPU time, bytes) is read, and all is written."""

    prices: Prices = Prices()
    paused: PausedBilling = PausedBilling.MEMORY
    interval_s: float = 10.0
    keep_s: float = 400 * 86400.0


class Rate(Struct, frozen=True, kw_only=True):
    """What a meter counts: `state` is running, paused, or empty: nothing (hibernated, too); cores in thousandths."""

    state: str = ""
    mcpus: int = 0
    mib: int = 0


STILL: Final = Rate()
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Rate).decode


class Meter:
    """One sandbox's. `facts`: all of its bill but the amounts, which are numbers in the order of `AMOUNTS`.

    `amounts`: so far; `spans`: what of it is not written yet, by hour.
    """

    __slots__ = ("amounts", "at_ms", "carry", "facts", "rate", "spans")

    def __init__(self, usage: SandboxUsage, rate: Rate, at_ms: int, carry: int = 0) -> None:
        self.facts = usage
        self.amounts = [getattr(usage.amounts, name) for name in AMOUNTS]
        self.spans: dict[int, list[int]] = {}
        self.rate = rate
        self.at_ms = at_ms
        self.carry = carry

    @property
    def usage(self) -> SandboxUsage:
        """The bill so far."""
        return replace(self.facts, amounts=_amounts(self.amounts))

    def add(self, hour: int, numbers: Sequence[int]) -> None:
        """Count more of an hour."""
        span = self.spans.setdefault(hour, [0] * len(AMOUNTS))
        for index, number in enumerate(numbers):
            span[index] += number


class Taken(Struct, frozen=True, kw_only=True):
    """What is being written, and of which meters."""

    flush: Flush
    meters: tuple[Meter, ...]


class Turn(Struct, frozen=True, kw_only=True):
    """A change that is being written: what goes with it, and what it takes back if it fails."""

    taken: Taken
    meter: Meter
    before: Rate | None

    @property
    def flush(self) -> Flush:
        """What is to be written in the transaction of the sandbox's row."""
        return self.taken.flush


class MeteringStats(Struct, frozen=True, kw_only=True):
    """Since the start of this server, over all sandboxes: what was used and what it cost."""

    running_ms: int = 0
    paused_ms: int = 0
    vcpu_us: int = 0
    mib_ms: int = 0
    cpu_ms: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    cost_nano: int = 0


class Metering:
    """All meters. What counts is synchronous, for one sandbox; what is about all of them pauses in between."""

    def __init__(self, store: Store, clock: Clock, settings: MeteringSettings, boot: str | None = None) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self._boot = boot if boot is not None else BOOT_ID.read_text(encoding="ascii").strip()
        self._meters: dict[str, Meter] = {}
        self._unwritten: dict[str, Meter] = {}
        self._advanced_ms = 0
        self._total = [0] * len(AMOUNTS)
        self.on_cost: Callable[[str, str, int, int], None] = lambda _project, _key, _hour, _nano: None

    # Changes of a sandbox. Told by the journal, for every record that it writes.

    def turn(self, sandbox: Sandbox) -> Turn | None:
        """What the writing of this record means for its bill; None: nothing. Undone by `take_back`."""
        meter, rate = self._meters.get(sandbox.id), self.rate_of(sandbox)
        if meter is None:
            if rate == STILL:
                return self._closed(sandbox) if sandbox.state in FINAL else None
            meter = self._meters[sandbox.id] = Meter(_begun(sandbox, self._clock.now()), rate, self._now_ms())
            return Turn(taken=self._take(meter), meter=meter, before=None)
        is_over = sandbox.state in FINAL
        if rate == meter.rate and meter.facts.name == sandbox.name and not is_over:
            return None
        self._read(meter)
        before, meter.rate = meter.rate, rate
        meter.facts = replace(meter.facts, name=sandbox.name)
        if is_over or sandbox.state is State.HIBERNATED:
            self._measure(meter, sandbox.usage)  # its box goes: nobody can measure that any more
        if is_over:
            meter.facts = replace(meter.facts, ended_at=sandbox.ended_at)
            del self._meters[sandbox.id]
        return Turn(taken=self._take(meter), meter=meter, before=before)

    def take_back(self, turn: Turn) -> None:
        """The change was not written, so it did not happen: the old rate goes on."""
        meter = turn.meter
        if turn.before is None:
            self._meters.pop(meter.facts.sandbox, None)
            return
        meter.rate = turn.before
        meter.facts = replace(meter.facts, ended_at=None)
        self._meters[meter.facts.sandbox] = meter
        self._put_back(turn.taken)

    def keep(self, turn: Turn) -> None:
        """The change happened but could not be written: its part of the bill is written later."""
        self._put_back(turn.taken)

    def adopt(self, sandbox: Sandbox) -> None:
        """Go on with a sandbox that outlived the server: the time in between counts, at the rate that was written."""
        row = self._store.usage.meter(sandbox.id)
        rate = self.rate_of(sandbox)
        if row is None:  # made before there were meters
            self._meters[sandbox.id] = Meter(_begun(sandbox, self._clock.now()), rate, self._now_ms())
            return
        # CLOCK_MONOTONIC began anew with another boot, which no process of a sandbox outlives.
        at_ms = row.at_ms if row.boot == self._boot else self._now_ms()
        meter = self._meters[sandbox.id] = Meter(row.usage, _decode(row.rate), min(at_ms, self._now_ms()), row.carry)
        self._read(meter)
        meter.rate = rate

    def rate_of(self, sandbox: Sandbox) -> Rate:
        """What a sandbox in this state, with these limits, is billed for."""
        mcpus, mib = millicpus(sandbox.limits.cpus), -(-sandbox.limits.memory_bytes // MIB)
        if sandbox.state is State.RUNNING:
            return Rate(state="running", mcpus=mcpus, mib=mib)
        if sandbox.state is State.PAUSED:
            paused = self._settings.paused
            return Rate(
                state="paused",
                mcpus=mcpus if paused is PausedBilling.ALL else 0,
                mib=0 if paused is PausedBilling.NOTHING else mib,
            )
        return STILL

    # Looks.

    def measured(self, sandbox_id: str, used: Usage) -> None:
        """What a look at a live sandbox has told."""
        meter = self._meters.get(sandbox_id)
        if meter is not None:
            self._read(meter)
            self._measure(meter, used)

    async def advance(self) -> None:
        """Read all meters, so that what is told is of now; a few at a time, for there may be a thousand."""
        now_ms = self._now_ms()
        if 0 <= now_ms - self._advanced_ms < FRESH_MS:
            return
        self._advanced_ms = now_ms
        for number, meter in enumerate(tuple(self._meters.values())):
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            if meter.facts.sandbox in self._meters:
                self._read(meter)

    def bill(self, sandbox_id: str) -> SandboxUsage | None:
        """All of one sandbox until now, live or ended; None: it never ran, or is past its time."""
        meter = self._meters.get(sandbox_id)
        if meter is not None:
            self._read(meter)
            return meter.usage
        ended = self._unwritten.get(sandbox_id)
        row = None if ended is not None else self._store.usage.meter(sandbox_id)
        return ended.usage if ended is not None else None if row is None else row.usage

    def live(self, project: str) -> list[SandboxUsage]:
        """All of a project's sandboxes that have not ended, until now."""
        meters = [meter for meter in self._meters.values() if meter.facts.project == project]
        for meter in meters:
            self._read(meter)
        return [meter.usage for meter in meters]

    def now(self) -> float:
        """The moment up to which meters are read, Unix seconds."""
        return self._clock.now()

    async def flush(self) -> None:
        """Write all that is not written, up to now. Raises: CoveError; nothing is lost then."""
        await self.advance()
        for _ in range(0, len(self._unwritten), AT_ONCE):
            taken = self._take(*islice(self._unwritten.values(), AT_ONCE))
            try:
                await self._store.usage.save(taken.flush)
            except CoveError:
                self._put_back(taken)
                raise

    def stats(self) -> MeteringStats:
        """Numbers for the metrics."""
        return MeteringStats(**dict(zip(AMOUNTS, self._total, strict=True)))

    def _closed(self, sandbox: Sandbox) -> Turn | None:
        """The end of a sandbox that nobody saw end: it pays for what was read, and no more."""
        row = self._store.usage.meter(sandbox.id)
        if row is None or row.usage.ended_at is not None:
            return None
        meter = Meter(replace(row.usage, ended_at=sandbox.ended_at), STILL, row.at_ms, row.carry)
        return Turn(taken=self._take(meter), meter=meter, before=None)

    def _now_ms(self) -> int:
        return int(self._clock.monotonic() * 1000)

    def _read(self, meter: Meter) -> None:
        """Count the time since it was last read, hour by hour."""
        now_ms = self._now_ms()
        passed = now_ms - meter.at_ms
        meter.at_ms = now_ms
        self._unwritten[meter.facts.sandbox] = meter
        rate = meter.rate
        if passed <= 0 or not rate.state:
            return
        is_running = rate.state == "running"
        for hour, ms in _by_hour(passed, int(self._clock.now() * 1000)):
            time_in = (ms, 0) if is_running else (0, ms)
            self._add(meter, hour, (*time_in, rate.mcpus * ms, rate.mib * ms, 0, 0, 0))

    def _measure(self, meter: Meter, used: Usage) -> None:
        """Count what measuring tells. The numbers only grow: one that does not is of another life and no more."""
        so_far = meter.amounts[4:7]
        seen = (used.cpu_ms, used.sent_bytes, used.received_bytes)
        more = [max(number - before, 0) for number, before in zip(seen, so_far, strict=True)]
        meter.facts = replace(
            meter.facts,
            memory_peak_bytes=max(meter.facts.memory_peak_bytes, used.memory_peak_bytes),
            disk_bytes=used.disk_bytes,
        )
        if any(more):
            self._add(meter, int(self._clock.now()) // HOUR_S * HOUR_S, (0, 0, 0, 0, *more))

    def _add(self, meter: Meter, hour: int, numbers: tuple[int, ...]) -> None:
        """Count amounts, in the order of `AMOUNTS` without their cost, and what they cost."""
        _, _, vcpu_us, mib_ms, _, sent, received = numbers
        cost, meter.carry = charge(
            self._settings.prices, vcpu_us=vcpu_us, mib_ms=mib_ms, traffic_bytes=sent + received, carry=meter.carry
        )
        numbers = (*numbers, cost)
        meter.add(hour, numbers)
        for index, number in enumerate(numbers):
            meter.amounts[index] += number
            self._total[index] += number
        if cost:
            self.on_cost(meter.facts.project, meter.facts.key, hour, cost)

    def _take(self, *meters: Meter) -> Taken:
        """What these meters have to write: a row and its spans are never apart."""
        spans: list[SpanRow] = []
        for meter in meters:
            facts = meter.facts
            for hour, numbers in meter.spans.items():
                spans.append(SpanRow(hour, facts.project, facts.key, facts.sandbox, _amounts(numbers)))
            meter.spans = {}
            self._unwritten.pop(facts.sandbox, None)
        return Taken(flush=Flush(meters=tuple(map(self._row, meters)), spans=tuple(spans)), meters=meters)

    def _put_back(self, taken: Taken) -> None:
        by_id = {meter.facts.sandbox: meter for meter in taken.meters}
        for span in taken.flush.spans:
            by_id[span.sandbox].add(span.start, [getattr(span.amounts, name) for name in AMOUNTS])
        self._unwritten |= by_id  # their rows are made anew: an older one must never follow a newer one

    def _row(self, meter: Meter) -> MeterRow:
        rate = _encode(meter.rate).decode()
        return MeterRow(usage=meter.usage, boot=self._boot, at_ms=meter.at_ms, rate=rate, carry=meter.carry)


def _amounts(numbers: Sequence[int]) -> Amounts:
    return Amounts(**dict(zip(AMOUNTS, numbers, strict=True)))


def _begun(sandbox: Sandbox, now: float) -> SandboxUsage:
    return SandboxUsage(sandbox=sandbox.id, project=sandbox.project, key=sandbox.key, name=sandbox.name, started_at=now)


def _by_hour(passed_ms: int, until_ms: int) -> Iterator[tuple[int, int]]:
    """The milliseconds before `until_ms` (Unix) as pieces: the hour's beginning in seconds, and how many are in it."""
    at = until_ms - passed_ms
    while at < until_ms:
        end = min((at // HOUR_MS + 1) * HOUR_MS, until_ms)
        yield at // HOUR_MS * HOUR_S, end - at
        at = end
