"""The uplink's life: made when the first policy leads out, mended when somebody takes a part of it away.

A firewall that is loaded anew flushes all rules of the machine, ours too, and an administrator may delete an interface
that he does not know. Both are noticed by the kernel's own messages, and put back.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

from cove.engine.claims import Claims
from cove.engine.network import netns, uplink
from cove.engine.network.netns import Places
from cove.engine.network.topology import TRANSITS, NetworkConfig
from cove.engine.network.watch import Changes, link_changes, rule_changes
from cove.model.errors import EngineFailure

log = logging.getLogger(__name__)


class WayOut:
    """The uplink of one router. Used on the loop."""

    def __init__(self, config: NetworkConfig) -> None:
        self._config = config
        self._claims = Claims("net", config.run_dir, count=TRANSITS)
        self._one_at_a_time = asyncio.Lock()
        self._is_made = False

    async def ensure(self, places: Places) -> None:
        """Have it, whole. Raises: EngineFailure, CapacityExceeded."""
        if self._is_made:
            return
        async with self._one_at_a_time:
            if self._is_made:
                return
            try:
                await self._make(places)
            except OSError as error:
                raise EngineFailure("the sandboxes' way out cannot be made", internal=str(error)) from error
            self._is_made = True

    @asynccontextmanager
    async def mended(self, places: Places) -> AsyncGenerator[None]:
        """While the block runs, put back what is taken away of it. Raises: OSError."""
        async with AsyncExitStack() as stack:
            watched = [await stack.enter_async_context(one(places.outside)) for one in (link_changes, rule_changes)]
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            for changes in watched:
                mending = tasks.create_task(self._mend_at(changes, places))
                stack.callback(mending.cancel)
            yield

    async def remove(self, places: Places | None) -> None:
        """Take it away, with all that it brought to the outside. `places` None: the router is not open.

        Raises: OSError.
        """
        async with self._one_at_a_time:
            await asyncio.to_thread(self._leave_former)
            if places is not None:
                await places.outside.run(lambda: uplink.remove(self._config))
            elif self._claims.held():
                await self._remove_alone()
            self._is_made = False
            self._claims.give_back_all()

    async def _remove_alone(self) -> None:
        try:
            space = netns.NetNs(self._config.outside, "outside")
        except (OSError, EngineFailure) as error:
            log.warning("the outside is gone, and with it what led there: %s", error)
            return
        try:
            await space.run(lambda: uplink.remove(self._config))
        finally:
            space.close()

    async def _mend_at(self, changes: Changes, places: Places) -> None:
        async for _ in changes:
            async with self._one_at_a_time:
                number = next(iter(self._claims.held()), None) if self._is_made else None
                if number is not None and not await self._is_whole(places, number):
                    log.warning("somebody took a part of the sandboxes' way out away: it is put back")
                    await self._mend(places)

    async def _mend(self, places: Places) -> None:
        try:
            await self._make(places)
        except (OSError, EngineFailure) as error:
            # The next policy that leads out tries again, and so does the next change of the machine's.
            log.warning("it could not be put back: %s", error)

    async def _is_whole(self, places: Places, number: int) -> bool:
        try:
            return await places.outside.run(lambda: uplink.is_whole(self._config, number))
        except (OSError, EngineFailure) as error:
            log.warning("whether the sandboxes' way out is whole cannot be seen: %s", error)
            return True

    async def _make(self, places: Places) -> None:
        held = self._claims.held()
        number = held[0] if held else self._claims.take()
        await asyncio.to_thread(self._leave_former)
        self._config.outside_note.write_text(self._outside)
        is_there = await places.outside.run(lambda: uplink.is_there(self._config, number))
        is_there = is_there and await places.router.run(uplink.has_end)
        if not is_there:
            await self._make_pair(places, number)
        is_new = not is_there and not self._is_made
        await places.outside.run(lambda: uplink.finish_outside(self._config, number, is_new=is_new))
        await places.router.run(lambda: uplink.finish_router(number))

    def _leave_former(self) -> None:
        """Where it led elsewhere before (the operator named another outside), nothing of it stays there."""
        note = self._config.outside_note
        if note.exists() and note.read_text() != self._outside:
            try:
                uplink.remove_noted(self._config.instance, self._config.run_dir)
            except (OSError, EngineFailure) as error:
                log.warning("what led out by %s may still be there: %s", note.read_text() or "the machine", error)

    @property
    def _outside(self) -> str:
        """As it is noted."""
        return "" if self._config.outside is None else str(self._config.outside)

    async def _make_pair(self, places: Places, number: int) -> None:
        fd = await places.outside.run(lambda: os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        try:
            await places.outside.run(lambda: uplink.clear(self._config))
            await places.router.run(lambda: uplink.make_pair(self._config, fd, number))
        finally:
            os.close(fd)
