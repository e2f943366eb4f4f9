"""Snapshots, awaited. The twin of `cove.sdk.snapshots`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Final

from anyio import to_thread

from cove.sdk import models, snapshot_calls
from cove.sdk.aio.opening import Opening
from cove.sdk.aio.sending import pieces_of
from cove.sdk.files import replacing, size_of
from cove.sdk.models import Snapshot
from cove.sdk.snapshots import Progress, total_of
from cove.sdk.transport import Call
from cove.sdk.units import UNSET, Duration, Size, Unset

if TYPE_CHECKING:
    from cove.sdk.aio.client import Client
    from cove.sdk.aio.sandbox import Sandbox
    from cove.sdk.credential_calls import Wishes
    from cove.sdk.network_calls import Policy
    from cove.sdk.template_calls import Template

__all__ = ["Snapshots", "snapshots"]


class Snapshots:
    """`client.snapshots`; `cove.snapshots` for the configured server. One is named by its id, its name, or itself.

    `box.snapshot()` takes one.
    """

    def __init__(self, client: Client | None = None) -> None:
        self._given = client

    @property
    def _client(self) -> Client:
        from cove.sdk.aio.client import default_client

        return self._given or default_client()

    async def list(
        self,
        *,
        sandbox: str | None = None,
        name: str | None = None,
        state: str | Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
        page_size: int = 100,
    ) -> AsyncIterator[Snapshot]:
        """Yield the snapshots that match, newest first; further pages are fetched as the iteration reaches them.

        `sandbox`: of this one, by id or name; it may have ended.
        """
        cursor: str | None = None
        while True:
            page, cursor = await self._client.call(
                snapshot_calls.list_page(
                    sandbox=sandbox, name=name, state=state, tags=tags, limit=page_size, cursor=cursor
                )
            )
            for wire in page:
                yield models.snapshot(wire)
            if cursor is None:
                return

    async def get(self, snapshot: str | Snapshot) -> Snapshot:
        """Return one. Raises: NotFound."""
        return await self._client.call(snapshot_calls.get(snapshot))

    async def update(
        self, snapshot: str | Snapshot, *, name: str | None = None, tags: Mapping[str, str | None] | None = None
    ) -> Snapshot:
        """Change its name or tags; those are merged, None removes one. Raises: NotFound, Conflict (a taken name)."""
        return await self._client.call(snapshot_calls.update(snapshot, name=name, tags=tags))

    async def delete(self, snapshot: str | Snapshot) -> None:
        """Forget it; what was made of it goes on. Raises: NotFound, Conflict (it is in use)."""
        await self._client.call(snapshot_calls.delete(snapshot))

    def restore(  # noqa: PLR0913 - one keyword for each property of the sandbox
        self,
        snapshot: str | Snapshot | Template,
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
        timeout: Duration | None = None,
        timeout_counts: str | None = None,
        idle_timeout: Duration | Unset | None = UNSET,
        idle_action: str | None = None,
        auto_resume: bool | None = None,
        credentials: Wishes | None = None,
        inherit_credentials: bool = False,
        keep: bool = False,
        idempotency_key: str | None = None,
    ) -> Opening[Sandbox]:
        """Make a new sandbox that goes on from there, also after the source is gone; of a template: of its snapshot.

        What is None is as the source had it; the arguments are those of `box.fork`. In an `async with` it is deleted at
        the end unless `keep=True`. Raises: NotFound, Conflict (not ready), Unsupported (this machine cannot, and why).
        """
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
        return Opening(self._restore(snapshot_calls.restore(snapshot, body, idempotency_key), keep=keep))

    async def _restore(self, call: Call[models.SandboxInfo], *, keep: bool) -> Sandbox:
        from cove.sdk.aio.sandbox import Sandbox

        client = self._client
        info = await client.call(call)
        return Sandbox(info.id, client=client, info=info, keep=keep)

    async def export(
        self,
        snapshot: str | Snapshot,
        target: str | os.PathLike[str] | IO[bytes],
        *,
        on_progress: Progress | None = None,
    ) -> int:
        """Write it as one file, by path or open for writing; returns the bytes written.

        A break leaves the file at a local path as it was. Raises: NotFound; OSError for the local file.
        """
        if not isinstance(target, str | os.PathLike):
            return await self._copy(snapshot, target, on_progress)
        with replacing(os.fspath(target)) as file:
            return await self._copy(snapshot, file, on_progress)

    async def _copy(self, snapshot: str | Snapshot, file: IO[bytes], on_progress: Progress | None) -> int:
        done = 0
        async with self._client.open(snapshot_calls.export(snapshot)) as response:
            total = total_of(response.headers)
            async for piece in response.chunks():
                done += await to_thread.run_sync(file.write, piece)
                if on_progress is not None:
                    on_progress(done, total)
        return done

    async def import_(
        self,
        source: str | os.PathLike[str] | IO[bytes],
        *,
        name: str | None = None,
        on_progress: Progress | None = None,
    ) -> Snapshot:
        """Take a file that `export` wrote, here or on another machine. `name` None: as it was called.

        Raises: BadRequest (damaged), Unsupported (this machine cannot restore it, and why), Forbidden, Conflict (the
        name is taken), TooLarge; OSError for the local file.
        """
        if not isinstance(source, str | os.PathLike):
            return await self._send(source, None, name, on_progress)
        with await to_thread.run_sync(_open, source) as file:
            return await self._send(file, size_of(os.fstat(file.fileno())), name, on_progress)

    async def _send(
        self, file: IO[bytes], size: int | None, name: str | None, on_progress: Progress | None
    ) -> Snapshot:
        pieces = pieces_of(file) if on_progress is None else _counted(pieces_of(file), size or 0, on_progress)
        return await self._client.call(snapshot_calls.import_(pieces, name=name, size=size))


def _open(local: str | os.PathLike[str]) -> IO[bytes]:
    return open(local, "rb")  # noqa: PTH123 - takes both kinds of path; the caller closes it


async def _counted(pieces: AsyncIterable[bytes], total: int, on_progress: Progress) -> AsyncIterator[bytes]:
    done = 0
    async for piece in pieces:
        yield piece
        done += len(piece)
        on_progress(done, total)


snapshots: Final = Snapshots()
"""Those of the configured server."""
