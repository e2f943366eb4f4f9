"""Watched directories. The awaited twin is `aio/watches.py`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Self

from cove.sdk import watch_calls
from cove.sdk.errors import Error
from cove.sdk.transport import Lost, Retries, Retry
from cove.sdk.units import Duration, parse_seconds
from cove.sdk.watch_calls import Change, ChangeReader

if TYPE_CHECKING:
    from cove.sdk.client import Client
    from cove.sdk.watch_calls import WatchInfo

__all__ = ["Change", "Watch"]

FORGOTTEN: Final = frozenset({"gone", "not-found", "sandbox-gone"})
"""Codes that answer "stop it" for what is no longer there."""


class Watch:
    """A watched directory. It and what it keeps outlive this client, and the server's restarts.

    Iterating yields what happens from `seen` on and ends with the watch; after a broken connection it goes on where it
    was. Leaving a `with` stops the watch. Get one from `box.watch` or `box.watches`.
    """

    def __init__(
        self, ref: str, watch_id: str, *, client: Client, seen: int = 0, info: WatchInfo | None = None
    ) -> None:
        self._ref = ref
        self._id = watch_id
        self._client = client
        self._reader = ChangeReader(seen)
        self._info = info

    @property
    def id(self) -> str:
        """The watch's id in the sandbox."""
        return self._id

    @property
    def seen(self) -> int:
        """Cursor behind the last change yielded."""
        return self._reader.seen

    @property
    def ended(self) -> str | None:
        """Why it ended, as far as was read: `removed`, `moved`, `limit`, `stopped` or `sandbox-gone`; None: not yet."""
        return self._reader.ended

    @property
    def info(self) -> WatchInfo:
        """The watch as it was when the server last answered."""
        return self._info or self.refresh()

    def refresh(self) -> WatchInfo:
        """Ask the server again. Raises: NotFound (stopped), Gone (the sandbox has ended)."""
        self._info = self._client.call(watch_calls.get(self._ref, self._id))
        return self._info

    def changes(self, *, limit: int = watch_calls.PAGE, wait: Duration | None = None) -> list[Change]:
        """Return what has happened since `seen`, at most `limit` changes; `wait`: so long for the first one."""
        wait_s = parse_seconds(wait, "wait")
        call = watch_calls.events(self._ref, self._id, cursor=self.seen, limit=limit, wait_s=wait_s)
        return self._reader.page(self._client.call(call))

    def stop(self) -> None:
        """End the watch and forget what it keeps; ended already: nothing happens."""
        try:
            self._client.call(watch_calls.stop(self._ref, self._id))
        except Error as error:
            if error.code not in FORGOTTEN:
                raise

    def __iter__(self) -> Iterator[Change]:
        """Yield what happens from `seen` on, to the watch's end.

        Raises: Unreachable (the connection broke and could not be made again), Gone, NotFound.
        """
        retries, seen = Retries(Retry.LOST, Retries.FOLLOW_LIMIT), self.seen
        while self.ended is None:
            try:
                yield from self._follow()
            except Error as error:
                if self.seen > seen:  # it worked in between: this is another break
                    retries, seen = Retries(Retry.LOST, Retries.FOLLOW_LIMIT), self.seen
                delay = retries.delay_s(error)
                if delay is None:
                    raise
                time.sleep(delay)

    def _follow(self) -> Iterator[Change]:
        call = watch_calls.follow(self._ref, self._id, cursor=self.seen)
        self._reader.restart()
        with self._client.open(call, events=True) as response:
            for piece in response.chunks():
                yield from self._reader.feed(piece)
        if self.ended is None:
            raise Lost("the stream ended before the watch did")

    def __enter__(self) -> Self:
        """Return the watch itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the watch."""
        self.stop()

    def __repr__(self) -> str:
        """Return id and what is known of the end."""
        return f"<Watch {self._id} {self.ended or 'running'}>"
