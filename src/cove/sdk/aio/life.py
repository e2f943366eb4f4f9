"""What can be done with a sandbox as a whole: change, pause, hibernate, snapshot, fork, roll back, delete.

A part of `Sandbox`, awaited. The twin of `cove.sdk.life`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cove.sdk import calls, snapshot_calls
from cove.sdk.units import UNSET, Duration, Size, Unset

if TYPE_CHECKING:
    from cove.sdk.aio.client import Client
    from cove.sdk.aio.sandbox import Sandbox
    from cove.sdk.credential_calls import Wishes
    from cove.sdk.models import SandboxInfo, Snapshot
    from cove.sdk.network_calls import Policy


class Life:
    """What `Sandbox` has for its own life."""

    _ref: str
    _client: Client
    _info: SandboxInfo | None

    async def update(  # noqa: PLR0913 - one keyword for each property that can change
        self,
        *,
        timeout: Duration | Unset | None = UNSET,  # noqa: ASYNC109 - the sandbox's life
        idle_timeout: Duration | Unset | None = UNSET,
        idle_action: str | Unset = UNSET,
        auto_resume: bool | Unset = UNSET,
        name: str | Unset = UNSET,
        metadata: Mapping[str, str | None] | Unset = UNSET,
        cpus: float | Unset = UNSET,
        memory: Size | Unset = UNSET,
        pids: int | Unset = UNSET,
    ) -> SandboxInfo:
        """Change what is given. `timeout` counts from now, None is never; `metadata` is merged, None removes a key."""
        call = calls.update(
            self._ref,
            timeout=timeout,
            idle_timeout=idle_timeout,
            idle_action=idle_action,
            auto_resume=auto_resume,
            name=name,
            metadata=metadata,
            cpus=cpus,
            memory=memory,
            pids=pids,
        )
        self._info = await self._client.call(call)
        return self._info

    async def pause(self) -> SandboxInfo:
        """Freeze it: memory and processes stay, no processor time is used. Paused already: nothing happens."""
        self._info = await self._client.call(calls.pause(self._ref))
        return self._info

    async def hibernate(self, *, memory: bool | None = None) -> SandboxInfo:
        """Put all of it on the disk: processes, memory, files, terminals. It outlives a reboot of the server's machine.

        The answer's `kept` says whether the memory was kept, and if not why. `memory` False: files alone are wanted;
        True: raise Unsupported rather than lose a process. Hibernated already: nothing happens.
        """
        self._info = await self._client.call(snapshot_calls.hibernate(self._ref, memory=memory))
        return self._info

    async def resume(self, *, memory: bool | None = None) -> SandboxInfo:
        """Let a paused or hibernated sandbox go on. Running already: nothing happens.

        `memory` False: a hibernated one begins anew, with its files only; for one whose kept memory is damaged.
        """
        self._info = await self._client.call(calls.resume(self._ref, memory=memory))
        return self._info

    async def snapshot(
        self,
        name: str | None = None,
        *,
        tags: Mapping[str, str] | None = None,
        memory: bool | None = None,
        idempotency_key: str | None = None,
    ) -> Snapshot:
        """Keep this instant of it, memory and files, while it goes on. It may end afterwards: the snapshot stays.

        The answer's `memory` says whether its processes were kept, and `reason` why not. `memory` False: files alone
        are wanted; True: raise Unsupported rather than take files alone.
        """
        call = snapshot_calls.take(self._ref, name=name, tags=tags, memory=memory, idempotency_key=idempotency_key)
        return await self._client.call(call)

    async def fork(  # noqa: PLR0913 - one keyword for each property of the children
        self,
        count: int = 1,
        *,
        name: str | None = None,
        memory: bool | None = None,
        env: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        network: Policy | None = None,
        cpus: float | None = None,
        memory_limit: Size | None = None,
        disk: Size | None = None,
        pids: int | None = None,
        timeout: Duration | None = None,  # noqa: ASYNC109 - the children's life
        timeout_counts: str | None = None,
        idle_timeout: Duration | Unset | None = UNSET,
        idle_action: str | None = None,
        auto_resume: bool | None = None,
        credentials: Wishes | None = None,
        inherit_credentials: bool = False,
        keep: bool = False,
        idempotency_key: str | None = None,
    ) -> list[Sandbox]:
        """Make `count` (1 to 100) sandboxes that go on from where this one is: all of them, or an error and none.

        What is None is as this one has it; `env` is added, for what is started from then on. With several, `name`
        is followed by a number. In an `async with` a child is deleted at the end unless `keep=True`. Credentials are
        not inherited unless `inherit_credentials`. `memory` is about processes: None: with them where that can be had
        (`child.info.came_from` says), True: else raise Unsupported, False: files alone. `memory_limit` is the size.
        """
        from cove.sdk.aio.sandbox import Sandbox

        body = snapshot_calls.wanted(
            name=name,
            memory=memory,
            env=env,
            metadata=metadata,
            network=network,
            cpus=cpus,
            memory_limit=memory_limit,
            disk=disk,
            pids=pids,
            timeout=timeout,
            timeout_counts=timeout_counts,
            idle_timeout=idle_timeout,
            idle_action=idle_action,
            auto_resume=auto_resume,
            credentials=credentials,
            inherit_credentials=inherit_credentials,
        )
        infos = await self._client.call(snapshot_calls.fork(self._ref, count, body, idempotency_key))
        return [Sandbox(info.id, client=self._client, info=info, keep=keep) for info in infos]

    async def rollback(self, snapshot: str | Snapshot, *, memory: bool | None = None) -> SandboxInfo:
        """Take it back to one of its own snapshots, in place: the same id, what was done since is gone.

        If that fails it goes on as it was. Raises: NotFound, Conflict (a snapshot of another sandbox).
        """
        self._info = await self._client.call(snapshot_calls.rollback(self._ref, snapshot, memory=memory))
        return self._info

    async def destroy(self) -> SandboxInfo:
        """Delete it, now; returns its last facts with the final usage. Deleted already: the same answer."""
        self._info = await self._client.call(calls.destroy(self._ref))
        return self._info
