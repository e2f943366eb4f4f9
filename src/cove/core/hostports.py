"""Which ports of the host lead into sandboxes: chosen, opened again after a restart, closed at the sandbox's end.

What is written in the store wins: a port that cannot be had at a start (another program has it) stays the row's, and is
tried again until it can. A port is claimed machine-wide, so that no other server of ours takes it while this one is
down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

from msgspec import UNSET, Struct, UnsetType

from cove.agentlink.client import DialStream
from cove.core.ports import Ports
from cove.engine.claims import Claims
from cove.engine.clock import Clock, sleep
from cove.engine.config import RUN_ROOT
from cove.engine.hostports import HostPort, bind, listen
from cove.model.access import Principal, Scope
from cove.model.errors import BadRequest, CapacityExceeded, Conflict, CoveError, Unsupported
from cove.model.exposures import Exposure
from cove.model.sandbox import Sandbox

log = logging.getLogger(__name__)

RETRY_S: Final = 2.0
"""How often a port is tried again that another program had."""

Wish = int | bool | UnsetType
"""Which port of the host shall lead to a port: this one, any (True), none (False), as it is (UNSET)."""


class HostPortSettings(Struct, frozen=True, kw_only=True):
    """Where the host listens for sandboxes: address, and the first and last port that may be given out.

    `owner` is the server's run directory, in whose name they are claimed below `root`.
    """

    owner: Path
    root: Path = RUN_ROOT
    host: str = "127.0.0.1"
    first: int = 20000
    last: int = 20999


class HostPorts:
    """The open ones, by number. Decides nothing about who may have one: `core/exposures.py` asks first.

    `lock` is held by whoever changes rows, so that rows and ports agree.
    """

    def __init__(self, settings: HostPortSettings | None, ports: Ports) -> None:
        self._settings = settings
        self._ports = ports
        self._claims = None if settings is None else Claims("port", settings.owner, count=65536, root=settings.root)
        self._open: dict[int, tuple[str, HostPort]] = {}
        self._next = 0
        self.lock = asyncio.Lock()

    @asynccontextmanager
    async def changed(self, sandbox: Sandbox, port: int, held: int | None, wish: Wish) -> AsyncGenerator[int | None]:
        """The port of the host that `port` has from here; the body writes it down. It failed: all is as before.

        The lock is held. Raises: as `_opened`.
        """
        if wish is UNSET or (wish is True and held is not None) or (wish is not True and wish == held):
            yield held
            return
        number = None if wish is False else await self._opened(sandbox, port, None if wish is True else wish)
        try:
            yield number
        except BaseException:
            if number is not None:
                self.close(number)
            raise
        if held is not None:
            self.close(held)

    async def _opened(self, sandbox: Sandbox, port: int, wanted: int | None) -> int:
        """Lead a port of the host to `port`: `wanted`, or any that is free. Returns its number.

        Raises: BadRequest (out of range), Conflict (in use), CapacityExceeded (none is free), Unsupported.
        """
        if self._settings is None or self._claims is None:
            raise Unsupported("this server gives out no ports of its host (COVE_FORWARD_PORTS)", field="host_port")
        first, last = self._settings.first, self._settings.last
        if wanted is not None:
            if not first <= wanted <= last:
                raise BadRequest(f"host_port must be {first} to {last}, or true for any of them", field="host_port")
            if wanted in self._open or self._claims.take_first([wanted]) is None:
                raise Conflict(f"port {wanted} of the host leads to another sandbox", field="host_port")
            await self._listen(sandbox, port, wanted)
            return wanted
        free = [number for number in _from(self._next, first, last) if number not in self._open]
        while free:
            number = self._claims.take_first(free)
            if number is None:
                break
            try:
                await self._listen(sandbox, port, number)
            except Conflict:
                free = free[free.index(number) + 1 :]
            else:
                self._next = number + 1
                return number
        raise CapacityExceeded(f"no port of the host from {first} to {last} is free", retry_after_s=30)

    def close(self, number: int) -> None:
        """Close one; nothing happens if it is not open."""
        _, opened = self._open.pop(number, ("", None))
        if opened is not None:
            opened.close()
        if self._claims is not None:
            self._claims.give_back(number)

    def forget(self, sandbox_id: str) -> None:
        """Close all of a sandbox that has ended."""
        for number in [number for number, (owner, _) in self._open.items() if owner == sandbox_id]:
            self.close(number)

    def shut(self) -> None:
        """Close all; the claims stay, because the rows do."""
        for _, opened in self._open.values():
            opened.close()
        self._open.clear()

    async def keep_open(
        self, rows: Callable[[], Sequence[Exposure]], find: Callable[[str], Sandbox | None], clock: Clock
    ) -> None:
        """Open what is written and not open, now and again and again. Until cancelled."""
        told: set[int] = set()
        while True:
            await self.reopen(rows, find, told)
            await sleep(clock, RETRY_S)

    async def reopen(
        self,
        rows: Callable[[], Sequence[Exposure]],
        find: Callable[[str], Sandbox | None],
        told: set[int] | None = None,
    ) -> None:
        """Open the ports of `rows` whose sandboxes are there; why one cannot be is logged once (`told`)."""
        told = set() if told is None else told
        async with self.lock:
            for row in rows():
                sandbox, number = find(row.sandbox), row.host_port
                if sandbox is None or number is None or number in self._open or self._claims is None:
                    continue
                try:
                    await self._listen_again(sandbox, row.port, number)
                except CoveError as error:
                    if number not in told:
                        log.warning("%s: %s; tried again every %g s", error.public, error.internal, RETRY_S)
                    told.add(number)
                else:
                    told.discard(number)

    async def _listen_again(self, sandbox: Sandbox, port: int, number: int) -> None:
        assert self._claims is not None  # noqa: S101 - the caller has looked
        if self._claims.take_first([number]) is None:
            raise Conflict(f"port {number} of the host leads to a sandbox of another server")
        await self._listen(sandbox, port, number, keep_claim=True)

    async def _listen(self, sandbox: Sandbox, port: int, number: int, *, keep_claim: bool = False) -> None:
        who = Principal(
            key_id=f"host-port:{number}",
            name=f"host-port:{number}",
            project=sandbox.project,
            scopes=frozenset({Scope.EXEC}),
        )

        assert self._settings is not None  # noqa: S101 - who calls has looked
        assert self._claims is not None  # noqa: S101 - as above

        def dial() -> AbstractAsyncContextManager[DialStream]:
            return self._ports.dial(who, sandbox.id, port)

        try:
            self._open[number] = (sandbox.id, await listen(bind(self._settings.host, number), dial))
        except BaseException:
            if not keep_claim:
                self._claims.give_back(number)
            raise


def _from(start: int, first: int, last: int) -> Sequence[int]:
    """All numbers, beginning at `start`: one that was just given back is not given out at once."""
    start = start if first <= start <= last else first
    return (*range(start, last + 1), *range(first, start))
