"""Where programs in sandboxes install packages from: the indexes that the machine's own pip and npm are configured for.

Cove names none. An address with a user name or a password is the operator's own and stays outside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

from msgspec.structs import replace

from cove.engine.clock import Clock
from cove.engine.network.registries import ask_indexes, registry_rules
from cove.model.network import NetworkMode, NetworkRequest

AGE_S: Final = 600.0
"""How old an answer of the machine's clients may be."""

Ask = Callable[[], Awaitable[Mapping[str, tuple[str, ...]]]]


class PackageIndexes:
    """What installs in sandboxes are told, and may reach."""

    def __init__(self, clock: Clock, tasks: asyncio.TaskGroup, *, ask: Ask = ask_indexes) -> None:
        self._clock = clock
        self._tasks = tasks
        self._ask = ask
        self._asking = asyncio.Lock()
        self._known: Mapping[str, tuple[str, ...]] | None = None
        self._asked_at = 0.0

    async def env(self) -> dict[str, str]:
        """Variables for pip and npm, where the machine's clients say something. Never raises."""
        known = await self._indexes()
        env: dict[str, str] = {}
        if pip := known.get("pip"):
            env["PIP_INDEX_URL"] = pip[0]
            plain = [urlsplit(url).netloc for url in pip if urlsplit(url).scheme == "http"]
            if plain:
                env["PIP_TRUSTED_HOST"] = " ".join(plain)
        if npm := known.get("npm"):
            env["NPM_CONFIG_REGISTRY"] = npm[0]
        return env

    async def opened(self, network: NetworkRequest | None) -> NetworkRequest | None:
        """The network for a sandbox that is to install something: where it has rules, the indexes pass behind them.

        So what a rule denies stays denied, and a sandbox without network gets none.
        """
        if network is None or network.mode is not NetworkMode.POLICY:
            return network
        known = await self._indexes()
        urls = [url for urls in known.values() for url in urls]
        return replace(network, rules=(*network.rules, *registry_rules(urls)))

    async def _indexes(self) -> Mapping[str, tuple[str, ...]]:
        """Who needs it first waits for it; it is asked for again behind a later use."""
        if self._known is None:
            async with self._asking:
                if self._known is None:
                    await self._renew()
        elif self._clock.monotonic() - self._asked_at > AGE_S and not self._asking.locked():
            self._tasks.create_task(self._renew_again())
        return self._known or {}

    async def _renew_again(self) -> None:
        async with self._asking:
            if self._clock.monotonic() - self._asked_at > AGE_S:
                await self._renew()

    async def _renew(self) -> None:
        found = await self._ask()
        self._known = {name: tuple(url for url in urls if _is_public(url)) for name, urls in found.items()}
        self._asked_at = self._clock.monotonic()


def _is_public(url: str) -> bool:
    """Whether it can be told in a sandbox: an address of the web, without a user in it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and "@" not in parts.netloc
