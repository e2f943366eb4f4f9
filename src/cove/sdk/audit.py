"""The audit trail: who did what, in lines that nobody can alter unseen. The awaited twin is `aio/audit.py`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime
from typing import IO, TYPE_CHECKING

from cove.sdk import audit_calls
from cove.sdk.audit_calls import AuditLine, LineReader
from cove.sdk.errors import Error
from cove.sdk.files import replacing
from cove.sdk.transport import Call, Lost, Retries, Retry

if TYPE_CHECKING:
    from cove.model.auditchain import AuditVerdict
    from cove.sdk.client import Client

__all__ = ["Audit", "AuditLine"]


class Audit:
    """`client.audit`. `sandbox` is an id or a name, `event` a beginning (`exec.`), `project` for admins another one."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def lines(  # noqa: PLR0913 - one keyword for each filter
        self,
        *,
        sandbox: str | None = None,
        event: str | None = None,
        since: datetime | None = None,
        newest: bool = False,
        project: str | None = None,
        page_size: int = audit_calls.PAGE,
    ) -> Iterator[AuditLine]:
        """Yield lines, oldest first (`newest`: newest first); fetched in pages as the iteration reaches them."""
        cursor: int | None = None
        while True:
            page, cursor = self._client.call(
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
            yield from page
            if cursor is None:
                return

    def follow(
        self, *, sandbox: str | None = None, event: str | None = None, project: str | None = None
    ) -> Iterator[AuditLine]:
        """Yield lines as they come, without end; after a broken connection it goes on where it was.

        Raises: Unreachable (the connection could not be made again), NotFound.
        """
        reader, retries = LineReader(), Retries(Retry.LOST, Retries.FOLLOW_LIMIT)
        while True:
            before = reader.seen
            try:
                call = audit_calls.follow(project=project, sandbox=sandbox, event=event, cursor=before)
                reader.restart()
                with self._client.open(call, events=True) as response:
                    for piece in response.chunks():
                        yield from reader.feed(piece)
                raise Lost("the stream ended")
            except Error as error:
                if reader.seen != before:  # it worked in between: this is another break
                    retries = Retries(Retry.LOST, Retries.FOLLOW_LIMIT)
                delay = retries.delay_s(error)
                if delay is None:
                    raise
                time.sleep(delay)

    def export(
        self, target: str | os.PathLike[str] | IO[bytes], *, sandbox: str | None = None, project: str | None = None
    ) -> int:
        """Write all that is kept, with its signed head, to a local file, by path or open; returns the lines written.

        A break leaves the file at a local path as it was. Raises: NotFound, Unreachable; OSError for the local file.
        """
        call = audit_calls.export(project=project, sandbox=sandbox)
        if not isinstance(target, str | os.PathLike):
            return self._copy(call, target)
        with replacing(os.fspath(target)) as file:
            return self._copy(call, file)

    def _copy(self, call: Call[None], file: IO[bytes]) -> int:
        reader, count = LineReader(), 0
        with self._client.open(call, events=True) as response:
            for piece in response.chunks():
                for line in reader.raw(piece):
                    file.write(line)
                    count += 1
        reader.finish()
        return count

    def key(self, *, project: str | None = None) -> str:
        """Return the key that verifies the project's exports, as hex. It could also forge them: keep it apart."""
        return self._client.call(audit_calls.key(project))

    @staticmethod
    def verify(source: str | os.PathLike[str], key: str, *, earlier: AuditVerdict | None = None) -> AuditVerdict:
        """Check an export, offline. `earlier`: the verdict on an older export that this one must continue.

        Raises: ValueError (it is no key), OSError.
        """
        with open(source, "rb") as file:  # noqa: PTH123 - takes both kinds of path
            return audit_calls.verify(file, key, earlier=earlier)
