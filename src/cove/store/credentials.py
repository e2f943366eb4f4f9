"""Rows of credentials, their keys encrypted, and of the operator's services. Durable: what was revoked must stay so."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Final, cast

import msgspec

from cove.model.credentials import PROJECT, Credential, EndpointRule, Service
from cove.model.request import Idempotency
from cove.model.sandbox import Sandbox
from cove.store.idempotency import saving_both
from cove.store.reader import Reader, Value
from cove.store.sandboxes import saving
from cove.store.writer import Writer

_COLUMNS: Final = "sandbox, project, service, sealed, endpoints, created_at, changed_at"
_UPSERT: Final = """
ON CONFLICT (sandbox, project, service) DO UPDATE SET
    sealed = excluded.sealed, endpoints = excluded.endpoints, changed_at = excluded.changed_at
"""
_SAVE: Final = f"""
INSERT INTO credentials ({_COLUMNS})
SELECT ?, ?, ?, ?, ?, ?, ?
WHERE ? = '' OR EXISTS (SELECT 1 FROM sandboxes WHERE id = ? AND ended_at IS NULL) {_UPSERT}
"""  # noqa: S608 - constants only, here and below
_ONE: Final = f"SELECT {_COLUMNS} FROM credentials WHERE sandbox = ? AND project = ? AND service = ?"  # noqa: S608
_OF: Final = f"SELECT {_COLUMNS} FROM credentials WHERE sandbox = ? AND project = ? ORDER BY service"  # noqa: S608
_REMOVE: Final = "DELETE FROM credentials WHERE sandbox = ? AND project = ? AND service = ?"
_SEALED: Final = f"SELECT {_COLUMNS} FROM credentials WHERE sealed IS NOT NULL"  # noqa: S608
_RESEAL: Final = "UPDATE credentials SET sealed = ? WHERE sandbox = ? AND project = ? AND service = ?"
_USERS: Final = "SELECT DISTINCT sandbox FROM credentials WHERE service = ? AND sandbox <> ''"
_SERVICES: Final = "SELECT record FROM services ORDER BY name"
_SERVICE: Final = "SELECT record FROM services WHERE name = ?"
_SAVE_SERVICE: Final = """
INSERT INTO services (name, record) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET record = excluded.record
"""
_REMOVE_SERVICE: Final = "DELETE FROM services WHERE name = ?"

_encode = msgspec.json.Encoder().encode
_decode_rules = msgspec.json.Decoder(tuple[EndpointRule, ...]).decode
_decode_service = msgspec.json.Decoder(Service).decode


class CredentialRows:
    """The table of credentials. Those of a sandbox go with its end (`SandboxRows.save`)."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def save(self, credential: Credential) -> bool:
        """Insert or replace one row; False: the sandbox has ended. Durable."""
        row = (*_row(credential), credential.sandbox, credential.sandbox)
        return await self._writer.write(lambda db: db.execute(_SAVE, row).rowcount > 0, durable=True)

    async def save_with(
        self, sandbox: Sandbox, credentials: Sequence[Credential], idempotency: Idempotency | None
    ) -> None:
        """Save the intent of a sandbox with its credentials and the key that asked for it: all or nothing."""
        first = saving(sandbox) if idempotency is None else saving_both(sandbox, idempotency)
        rows = [(*_row(one), one.sandbox, one.sandbox) for one in credentials]

        def save_all(db: sqlite3.Connection) -> None:
            first(db)
            db.executemany(_SAVE, rows)

        await self._writer.write(save_all)

    def get(self, sandbox: str, project: str, service: str) -> Credential | None:
        """One row. 6 µs on the loop."""
        row = self._reader.one(_ONE, (sandbox, project, service))
        return None if row is None else _credential(row)

    def of_sandbox(self, sandbox: str, project: str) -> list[Credential]:
        """A sandbox's rows by service; with `PROJECT` those that the project keeps."""
        return [_credential(row) for row in self._reader.all(_OF, (sandbox, project))]

    def of_project(self, project: str) -> list[Credential]:
        """The rows that the project keeps, by service."""
        return self.of_sandbox(PROJECT, project)

    def users(self, service: str) -> list[str]:
        """The sandboxes that have a credential for a service."""
        return [row[0] for row in self._reader.all(_USERS, (service,))]

    async def remove(self, sandbox: str, project: str, service: str) -> bool:
        """Forget one row; whether there was one. Durable."""
        values = (sandbox, project, service)
        return await self._writer.write(lambda db: db.execute(_REMOVE, values).rowcount > 0, durable=True)

    def sealed(self) -> list[Credential]:
        """Every row that has a key."""
        return [_credential(row) for row in self._reader.all(_SEALED, ())]

    async def reseal(self, change: Callable[[Credential], str | None]) -> int:
        """Replace every sealed key by what `change` makes of its row (None: it stays). One transaction, durable."""

        def reseal_all(db: sqlite3.Connection) -> int:
            found = [_credential(row) for row in db.execute(_SEALED).fetchall()]
            made = [(change(one), one.sandbox, one.project, one.service) for one in found]
            changed = [row for row in made if row[0] is not None]
            db.executemany(_RESEAL, changed)
            return len(changed)

        return await self._writer.write(reseal_all, durable=True)


class ServiceRows:
    """The table of the operator's services."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def save(self, service: Service) -> None:
        """Insert or replace one. Durable."""
        row = (service.name, _encode(service).decode())
        await self._writer.write(lambda db: db.execute(_SAVE_SERVICE, row).rowcount, durable=True)

    def get(self, name: str) -> Service | None:
        """One, by its name."""
        row = self._reader.one(_SERVICE, (name,))
        return None if row is None else _decode_service(row[0])

    def list(self) -> list[Service]:
        """All, by name."""
        return [_decode_service(row[0]) for row in self._reader.all(_SERVICES, ())]

    async def remove(self, name: str) -> bool:
        """Forget one; whether there was one. Durable."""
        return await self._writer.write(lambda db: db.execute(_REMOVE_SERVICE, (name,)).rowcount > 0, durable=True)


def _row(credential: Credential) -> tuple[Value, ...]:
    return (
        credential.sandbox, credential.project, credential.service, credential.sealed,
        _encode(credential.endpoints).decode(), credential.created_at, credential.changed_at,
    )  # fmt: skip


def _credential(row: tuple[Value, ...]) -> Credential:
    sandbox, project, service, sealed, endpoints, created_at, changed_at = row
    return Credential(
        sandbox=cast("str", sandbox),
        project=cast("str", project),
        service=cast("str", service),
        sealed=cast("str | None", sealed),
        endpoints=_decode_rules(cast("str", endpoints)),
        created_at=cast("float", created_at),
        changed_at=cast("float", changed_at),
    )
