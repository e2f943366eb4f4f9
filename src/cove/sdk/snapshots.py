"""Snapshots: sandboxes at one instant, to make others of. The awaited twin is `aio/snapshots.py`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Final

from cove.sdk import snapshot_calls
from cove.sdk.files import pieces_of, replacing, size_of
from cove.sdk.units import UNSET, Duration, Size, Unset

if TYPE_CHECKING:
    from cove.sdk.client import Client
    from cove.sdk.credential_calls import Wishes
    from cove.sdk.models import Snapshot
    from cove.sdk.network_calls import Policy
    from cove.sdk.sandbox import Sandbox
    from cove.sdk.template_calls import Template

__all__ = ["Progress", "Snapshots", "snapshots"]

Progress = Callable[[int, int], object]
"""Gets the bytes that were moved so far, and how many there are in all; 0 if nobody knows."""


class Snapshots:
    """`client.snapshots`; `cove.snapshots` for the configured server. One is named by its id, its name, or itself.

    `box.snapshot()` takes one.
    """

    def __init__(self, client: Client | None = None) -> None:
        self._given = client

    @property
    def _client(self) -> Client:
        from cove.sdk.client import default_client

        return self._given or default_client()

    def list(
        self,
        *,
        sandbox: str | None = None,
        name: str | None = None,
        state: str | Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
        page_size: int = 100,
    ) -> Iterator[Snapshot]:
        """Yield the snapshots that match, newest first; further pages are fetched as the iteration reaches them.

        `sandbox`: of this one, by id or name; it may have ended.
        """
        from cove.sdk import models

        cursor: str | None = None
        while True:
            page, cursor = self._client.call(
                snapshot_calls.list_page(
                    sandbox=sandbox, name=name, state=state, tags=tags, limit=page_size, cursor=cursor
                )
            )
            yield from map(models.snapshot, page)
            if cursor is None:
                return

    def get(self, snapshot: str | Snapshot) -> Snapshot:
        """Return one. Raises: NotFound."""
        return self._client.call(snapshot_calls.get(snapshot))

    def update(
        self, snapshot: str | Snapshot, *, name: str | None = None, tags: Mapping[str, str | None] | None = None
    ) -> Snapshot:
        """Change its name or tags; those are merged, None removes one. Raises: NotFound, Conflict (a taken name)."""
        return self._client.call(snapshot_calls.update(snapshot, name=name, tags=tags))

    def delete(self, snapshot: str | Snapshot) -> None:
        """Forget it; what was made of it goes on. Raises: NotFound, Conflict (it is in use)."""
        self._client.call(snapshot_calls.delete(snapshot))

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
    ) -> Sandbox:
        """Make a new sandbox that goes on from there, also after the source is gone; of a template: of its snapshot.

        What is None is as the source had it; the arguments are those of `box.fork`. In a `with` it is deleted at the
        end unless `keep=True`. Raises: NotFound, Conflict (not ready), Unsupported (this machine cannot, and why).
        """
        from cove.sdk.sandbox import Sandbox

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
        client = self._client
        info = client.call(snapshot_calls.restore(snapshot, body, idempotency_key))
        return Sandbox(info.id, client=client, info=info, keep=keep)

    def export(
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
            return self._copy(snapshot, target, on_progress)
        with replacing(os.fspath(target)) as file:
            return self._copy(snapshot, file, on_progress)

    def _copy(self, snapshot: str | Snapshot, file: IO[bytes], on_progress: Progress | None) -> int:
        done = 0
        with self._client.open(snapshot_calls.export(snapshot)) as response:
            total = total_of(response.headers)
            for piece in response.chunks():
                done += file.write(piece)
                if on_progress is not None:
                    on_progress(done, total)
        return done

    def import_(
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
            return self._send(source, None, name, on_progress)
        with open(source, "rb") as file:  # noqa: PTH123 - takes both kinds of path
            return self._send(file, size_of(os.fstat(file.fileno())), name, on_progress)

    def _send(self, file: IO[bytes], size: int | None, name: str | None, on_progress: Progress | None) -> Snapshot:
        pieces = pieces_of(file) if on_progress is None else _counted(pieces_of(file), size or 0, on_progress)
        return self._client.call(snapshot_calls.import_(pieces, name=name, size=size))


def total_of(headers: Mapping[str, str]) -> int:
    """Return how much is announced, 0 where nothing is."""
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0


def _counted(pieces: Iterable[bytes], total: int, on_progress: Progress) -> Iterator[bytes]:
    done = 0
    for piece in pieces:
        yield piece
        done += len(piece)
        on_progress(done, total)


snapshots: Final = Snapshots()
"""Those of the configured server."""
