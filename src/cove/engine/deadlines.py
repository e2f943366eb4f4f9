"""When a sandbox expires and when it is idle. It keeps one timer and rings; what then happens is the supervisor's.

Both count on the monotonic clock, so a wall clock that jumps neither ends a sandbox early nor lets it live longer. The
wall times in the record serve the next start only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cove.engine.clock import Clock, Timer
from cove.model.sandbox import IdleAction, Sandbox
from cove.model.state import FINAL, State

NEVER: Final = float("inf")

NOTED_EVERY_S: Final = 60.0
"""Activity is written that often, so after a crash an adopted sandbox is given so long before it counts as idle."""


class Deadlines:
    """The timers of one sandbox. `ring` is called on the loop when the earliest is due, or a little before."""

    def __init__(self, sandbox: Sandbox, clock: Clock, ring: Callable[[], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._timer: tuple[float, Timer] | None = None
        self._is_over = False
        self._leases = 0
        self._last_active = clock.monotonic() - self._idle_at_start(sandbox)
        self._noted = clock.monotonic()
        self._expires = NEVER
        self._not_before = -NEVER
        self.set_expiry(sandbox)

    def set_expiry(self, sandbox: Sandbox) -> None:
        """Count from the record's wall time. A clock that was set back cannot prolong the life that was asked for."""
        if sandbox.expires_at is None:
            self._expires = NEVER
            return
        left_s = min(sandbox.expires_at - self._clock.now(), sandbox.expires_at - sandbox.created_at)
        self._expires = self._clock.monotonic() + left_s

    def left_s(self) -> float:
        """How long until it expires."""
        return self._expires - self._clock.monotonic()

    def postpone(self, seconds: float) -> None:
        """Its idle action was tried in vain: not again before so long."""
        self._not_before = self._clock.monotonic() + seconds

    def acquire(self) -> None:
        """Something works in the sandbox: it is not idle until the matching `release`."""
        self._leases += 1

    def release(self, sandbox: Sandbox) -> None:
        """The work is done."""
        self._leases -= 1
        self.touch()
        self.arm(sandbox)

    def touch(self) -> None:
        """Count the idle time from now on."""
        self._last_active = self._clock.monotonic()

    def last_active_at(self) -> float:
        """The last activity as wall time; now, while something works in the sandbox."""
        return self._clock.now() - (0.0 if self._leases else self._clock.monotonic() - self._last_active)

    def must_note(self) -> bool:
        """Whether there was activity that the store should learn of; asked once per NOTED_EVERY_S."""
        now = self._clock.monotonic()
        if now - self._noted < NOTED_EVERY_S:
            return False
        self._noted = now
        return True

    def has_expired(self) -> bool:
        """Whether its absolute time is over."""
        return self._expires <= self._clock.monotonic()

    def is_idle(self, sandbox: Sandbox) -> bool:
        """Whether its idle action is due."""
        return self._idle_deadline(sandbox) <= self._clock.monotonic()

    def arm(self, sandbox: Sandbox) -> None:
        """See to it that the earliest deadline rings. Activity only moves deadlines away: an early timer may stay."""
        due = NEVER if self._is_over or sandbox.state in FINAL else min(self._expires, self._idle_deadline(sandbox))
        if self._timer is not None:
            if self._timer[0] <= due:
                return
            self._disarm()
        if due != NEVER:
            self._timer = (due, self._clock.call_later(max(due - self._clock.monotonic(), 0.0), self._fire))

    def stop(self) -> None:
        """Ring no more, ever."""
        self._is_over = True
        self._disarm()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer[1].cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        self._ring()

    def _idle_deadline(self, sandbox: Sandbox) -> float:
        """A paused one is idle, too, where it is to be hibernated: that gives its memory back."""
        is_hibernated_next = sandbox.state is State.PAUSED and sandbox.idle_action is IdleAction.HIBERNATE
        is_awake = (sandbox.state is State.RUNNING or is_hibernated_next) and self._leases == 0
        if sandbox.idle_timeout_s is None or not is_awake or sandbox.idle_action is IdleAction.NONE:
            return NEVER
        return max(self._last_active + sandbox.idle_timeout_s, self._not_before)

    def _idle_at_start(self, sandbox: Sandbox) -> float:
        """How long an adopted sandbox has been idle, less what may not have been written."""
        if sandbox.state is State.PENDING or sandbox.idle_timeout_s is None:
            return 0.0
        idle_s = max(self._clock.now() - sandbox.last_active_at, 0.0)
        return min(idle_s, max(sandbox.idle_timeout_s - NOTED_EVERY_S, 0.0))
