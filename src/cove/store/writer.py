"""The one thread that writes, with group commit. It knows no table.

Callers queue a function and await its result; whatever is queued when the thread looks shares one transaction, each
in a savepoint of its own, so a failing one fails alone. A commit costs about 40 µs (WAL, synchronous=NORMAL) and a
thread hop 150 µs, so sharing is what keeps a burst of creates cheap.

Two levels of durability. Normal: survives a kill of the process at any moment, and a power failure may lose the last
few transactions but never damages the file. `durable`: synced to the disk before the caller goes on.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar, cast

from msgspec import Struct

from cove.model.errors import CapacityExceeded, Conflict, CoveError, EngineFailure

T = TypeVar("T")

QUEUE_LIMIT: Final = 4096
"""Writes that may wait. Past it a write is refused at once: the disk has stopped answering."""

BATCH_LIMIT: Final = 256
"""Most writes in one transaction, so that no caller waits long for its neighbours."""

RETRY_AFTER_S: Final = 5

_FULL: Final = ("disk is full", "full")
_REFUSED: Final = ("readonly", "read-only", "locked", "busy", "disk i/o error", "unable to open")


class WriterStats(Struct, frozen=True, kw_only=True):
    """Counts since start: `writes` asked for, `commits` that carried them, `failures` of either; `waiting` now."""

    writes: int
    commits: int
    failures: int
    waiting: int


class _Write(Generic[T]):
    """One queued write: what to do and whom to tell."""

    __slots__ = ("action", "durable", "error", "future", "value")

    def __init__(self, action: Callable[[sqlite3.Connection], T], future: asyncio.Future[T], *, durable: bool) -> None:
        self.action = action
        self.future = future
        self.durable = durable
        self.value: T | None = None
        self.error: CoveError | None = None

    def tell(self) -> None:
        """On the loop: hand the outcome to the caller, unless it has gone away."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(cast("T", self.value))


class Writer:
    """Owns the writing connection and its thread from `start` to `close`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._queue: queue.Queue[_Write[object] | None] = queue.Queue(QUEUE_LIMIT)
        self._thread = threading.Thread(target=self._run, name="cove-store", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_durable = False
        self._writes = self._commits = self._failures = 0

    def start(self) -> None:
        """Start the thread; answers go to the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def write(self, action: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        """Run `action` in the writer's transaction and return its result once that is committed.

        `action` runs in the writer's thread and may only touch the connection. Cancelling the caller does not undo
        the write. Raises: CapacityExceeded (disk full or too many writes waiting), EngineFailure, Conflict (a unique
        constraint), and whatever CoveError `action` raises.
        """
        return await self.submit(action, durable=durable)

    def submit(self, action: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> asyncio.Future[T]:
        """As `write`, without waiting: what is submitted first is written first.

        Raises: CapacityExceeded (too many writes waiting), EngineFailure.
        """
        if self._loop is None or not self._thread.is_alive():
            raise EngineFailure("the state database is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        item = _Write(action, future, durable=durable)
        try:
            self._queue.put_nowait(cast("_Write[object]", item))
        except queue.Full as error:
            raise CapacityExceeded("the state database does not keep up", retry_after_s=RETRY_AFTER_S) from error
        return future

    async def close(self) -> None:
        """Finish what is queued, stop the thread and close the connection."""
        if self._thread.is_alive():
            await asyncio.to_thread(self._queue.put, None)
            await asyncio.to_thread(self._thread.join)
        self._connection.close()

    def stats(self) -> WriterStats:
        """Counts for the metrics."""
        waiting = self._queue.qsize()
        return WriterStats(writes=self._writes, commits=self._commits, failures=self._failures, waiting=waiting)

    # What follows runs in the writer's thread.

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch, is_open = self._next_batch()
            if batch:
                self._write_batch(batch)
                self._tell(batch)

    def _next_batch(self) -> tuple[list[_Write[object]], bool]:
        batch: list[_Write[object]] = []
        item = self._queue.get()
        while item is not None:
            batch.append(item)
            if len(batch) == BATCH_LIMIT:
                return batch, True
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _write_batch(self, batch: list[_Write[object]]) -> None:
        self._writes += len(batch)
        try:
            self._set_durable(is_durable=any(item.durable for item in batch))
            self._connection.execute("BEGIN IMMEDIATE")
            for item in batch:
                self._apply(item)
            self._connection.execute("COMMIT")
            self._commits += 1
        except sqlite3.Error as error:
            self._failures += 1
            self._roll_back()
            for item in batch:
                item.error = item.error or _translated(error)

    def _apply(self, item: _Write[object]) -> None:
        """One write in its savepoint. Raises: sqlite3.Error when the whole transaction is lost."""
        self._connection.execute("SAVEPOINT one")
        try:
            item.value = item.action(self._connection)
        except (sqlite3.Error, CoveError) as error:
            self._failures += 1
            item.error = error if isinstance(error, CoveError) else _translated(error)
            if not self._connection.in_transaction:
                raise  # SQLite rolls everything back itself on a full disk or an I/O error
            self._connection.execute("ROLLBACK TO one")
        except Exception as error:  # noqa: BLE001 - the thread's outermost frame: a bug in one action stops nobody else
            item.error = EngineFailure("the state database failed", internal=repr(error))
            self._connection.execute("ROLLBACK TO one")
        self._connection.execute("RELEASE one")

    def _set_durable(self, *, is_durable: bool) -> None:
        """SQLite takes this between transactions only, which is where we are."""
        if is_durable != self._is_durable:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if is_durable else 'NORMAL'}")
            self._is_durable = is_durable

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            # Nothing is lost by it: the next BEGIN fails with the true cause and tells its callers.
            self._failures += 1

    def _tell(self, batch: list[_Write[object]]) -> None:
        def tell_all() -> None:
            for item in batch:
                item.tell()

        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(tell_all)


def _translated(error: sqlite3.Error) -> CoveError:
    """SQLite's words as ours. The texts are those of sqlite3_errstr()."""
    text = str(error).lower()
    if isinstance(error, sqlite3.IntegrityError):
        return Conflict("an object of that name exists already", internal=str(error))
    if any(word in text for word in _FULL):
        return CapacityExceeded(
            "the disk that holds the state database is full", internal=str(error), retry_after_s=RETRY_AFTER_S
        )
    if any(word in text for word in _REFUSED):
        return EngineFailure("the state database cannot be written at the moment", internal=str(error))
    return EngineFailure("the state database failed", internal=str(error))
