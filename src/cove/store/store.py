"""The store as one object: open it, use its tables, close it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from cove.store.audit import AuditRows
from cove.store.credentials import CredentialRows, ServiceRows
from cove.store.database import BUSY_TIMEOUT_S, connect, migrate
from cove.store.executionsessions import ExecutionSessionRows
from cove.store.exposures import ExposureRows
from cove.store.forks import ForkRows
from cove.store.idempotency import IdempotencyRows
from cove.store.keys import KeyRows, ProjectRows
from cove.store.networks import NetworkRows
from cove.store.quotas import QuotaRows
from cove.store.reader import Reader
from cove.store.sandboxes import SandboxRows
from cove.store.snapshots import SnapshotRows
from cove.store.sshkeys import SshKeyRows
from cove.store.templates import TemplateRows
from cove.store.usage import UsageRows
from cove.store.webhooks import WebhookRows
from cove.store.writer import Writer, WriterStats

_META: Final = "SELECT value FROM meta WHERE key = ?"
_SET_META: Final = "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


class Store:
    """The tables of one database. Made only by `open_store`.

    `is_new`: the file was made just now, so that nothing found running on the machine can be known to it.
    """

    def __init__(self, reader: Reader, writer: Writer, reports: Reader, *, is_new: bool) -> None:
        self._reader = reader
        self._writer = writer
        self.is_new = is_new
        self.sandboxes = SandboxRows(reader, writer)
        self.keys = KeyRows(reader, writer)
        self.projects = ProjectRows(reader, writer)
        self.ssh_keys = SshKeyRows(reader, writer)
        self.idempotency = IdempotencyRows(reader, writer)
        self.exposures = ExposureRows(reader, writer)
        self.audit = AuditRows(reader, writer)
        self.webhooks = WebhookRows(reader, writer)
        self.credentials = CredentialRows(reader, writer)
        self.services = ServiceRows(reader, writer)
        self.usage = UsageRows(reader, writer, reports)
        self.quotas = QuotaRows(reader, writer)
        self.networks = NetworkRows(reader, writer)
        self.snapshots = SnapshotRows(reader, writer)
        self.forks = ForkRows(reader, writer)
        self.templates = TemplateRows(reader, writer)
        self.execution_sessions = ExecutionSessionRows(reader, writer)

    def meta(self, key: str) -> str | None:
        """A fact about this database, such as when it was made."""
        row = self._reader.one(_META, (key,))
        return None if row is None else row[0]

    async def set_meta(self, key: str, value: str) -> None:
        """Keep a fact about this database. Durable."""
        await self._writer.write(lambda db: db.execute(_SET_META, (key, value)).rowcount, durable=True)

    def stats(self) -> WriterStats:
        """Counts of the writer."""
        return self._writer.stats()


@asynccontextmanager
async def open_store(path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> AsyncGenerator[Store]:
    """Open `path`, made with mode 0600 if it is not there; what is queued at the end is still written.

    Blocks the loop for the migrations: it runs before the server serves. Raises: EngineFailure.
    """
    path.touch(mode=0o600, exist_ok=True)  # noqa: ASYNC240 - before the server serves
    writing = connect(path, busy_timeout_s=busy_timeout_s)
    try:
        is_new = migrate(writing) == 0
        reader = Reader(connect(path, busy_timeout_s=busy_timeout_s))
        reports = Reader(connect(path, busy_timeout_s=busy_timeout_s))
    except BaseException:
        writing.close()
        raise
    writer = Writer(writing)
    writer.start()
    try:
        yield Store(reader, writer, reports, is_new=is_new)
    finally:
        await writer.close()
        reader.close()
        reports.close()
