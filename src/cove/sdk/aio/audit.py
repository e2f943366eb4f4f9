"""The audit trail, awaited. The twin of `cove.sdk.audit`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import datetime
from typing import IO, TYPE_CHECKING

import anyio
from anyio import to_thread

from cove.sdk import audit_calls
from cove.sdk.audit import Audit as Blocking
from cove.sdk.audit_calls import AuditLine, LineReader
from cove.sdk.errors import Error
from cove.sdk.files import replacing
from cove.sdk.transport import Call, Lost, Retries, Retry

if TYPE_CHECKING:
    from cove.model.auditchain import AuditVerdict
    from cove.sdk.aio.client import Client


class Audit:
    """`client.audit`. `sandbox` is an id or a name, `event` a beginning (`exec.`), `project` for admins another one."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def lines(  # noqa: PLR0913 - one keyword for each filter
        self,
        *,
        sandbox: str | None = None,
        event: str | None = None,
        since: datetime | None = None,
        newest: bool = False,
        project: str | None = None,
        page_size: int = audit_calls.PAGE,
    ) -> AsyncIterator[AuditLine]:
        """Yield lines, oldest first (`newest`: newest first); fetched in pages as the iteration reaches them."""
        cursor: int | None = None
        while True:
            page, cursor = await self._client.call(
                audit_calls.page(
                    project=project,
                    sandbox=sandbox,
                    event=event,
                    since=since,
                    newest=newest,
                    limit=page_size,
                    cursor=cursor,
                )
            )
            for line in page:
                yield line
            if cursor is None:
                return

    async def follow(
        self, *, sandbox: str | None = None, event: str | None = None, project: str | None = None
    ) -> AsyncIterator[AuditLine]:
        """Yield lines as they come, without end; after a broken connection it goes on where it was.

        Raises: Unreachable (the connection could not be made again), NotFound.
        """
        reader, retries = LineReader(), Retries(Retry.LOST, Retries.FOLLOW_LIMIT)
        while True:
            before = reader.seen
            try:
                call = audit_calls.follow(project=project, sandbox=sandbox, event=event, cursor=before)
                reader.restart()
                async with self._client.open(call, events=True) as response:
                    async for piece in response.chunks():
                        for line in reader.feed(piece):
                            yield line
                raise Lost("the stream ended")
            except Error as error:
                if reader.seen != before:  # it worked in between: this is another break
                    retries = Retries(Retry.LOST, Retries.FOLLOW_LIMIT)
                delay = retries.delay_s(error)
                if delay is None:
                    raise
                await anyio.sleep(delay)

    async def export(
        self, target: str | os.PathLike[str] | IO[bytes], *, sandbox: str | None = None, project: str | None = None
    ) -> int:
        """Write all that is kept, with its signed head, to a local file, by path or open; returns the lines written.

        A break leaves the file at a local path as it was. Raises: NotFound, Unreachable; OSError for the local file.
        """
        call = audit_calls.export(project=project, sandbox=sandbox)
        if not isinstance(target, str | os.PathLike):
            return await self._copy(call, target)
        with replacing(os.fspath(target)) as file:
            return await self._copy(call, file)

    async def _copy(self, call: Call[None], file: IO[bytes]) -> int:
        reader, count = LineReader(), 0
        async with self._client.open(call, events=True) as response:
            async for piece in response.chunks():
                lines = list(reader.raw(piece))
                await to_thread.run_sync(file.writelines, lines)
                count += len(lines)
        reader.finish()
        return count

    async def key(self, *, project: str | None = None) -> str:
        """Return the key that verifies the project's exports, as hex. It could also forge them: keep it apart."""
        return await self._client.call(audit_calls.key(project))

    @staticmethod
    async def verify(source: str | os.PathLike[str], key: str, *, earlier: AuditVerdict | None = None) -> AuditVerdict:
        """Check an export, offline. `earlier`: the verdict on an older export that this one must continue.

        Raises: ValueError (it is no key), OSError.
        """
        return await to_thread.run_sync(lambda: Blocking.verify(source, key, earlier=earlier))
