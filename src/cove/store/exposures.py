"""Rows of exposed ports. Their writes are durable: a port that was closed to the public must stay so."""

from __future__ import annotations

from typing import Final, cast

from cove.model.exposures import Access, Exposure
from cove.store.reader import Reader, Value
from cove.store.writer import Writer

_COLUMNS: Final = "sandbox, port, access, digest, host_port, created_at"
_SAVE: Final = f"""
INSERT INTO exposures ({_COLUMNS})
SELECT ?, ?, ?, ?, ?, ? WHERE EXISTS (SELECT 1 FROM sandboxes WHERE id = ? AND ended_at IS NULL)
ON CONFLICT (sandbox, port) DO UPDATE SET
    access = excluded.access, digest = excluded.digest, host_port = excluded.host_port
"""  # noqa: S608 - constants only, here and below
_ONE: Final = f"SELECT {_COLUMNS} FROM exposures WHERE sandbox = ? AND port = ?"  # noqa: S608
_OF_SANDBOX: Final = f"SELECT {_COLUMNS} FROM exposures WHERE sandbox = ? ORDER BY port"  # noqa: S608
_WITH_HOST_PORT: Final = f"SELECT {_COLUMNS} FROM exposures WHERE host_port IS NOT NULL ORDER BY host_port"  # noqa: S608
_COUNT_HOST_PORTS: Final = """
SELECT count(*) FROM exposures e JOIN sandboxes s ON s.id = e.sandbox WHERE e.host_port IS NOT NULL AND s.project = ?
"""
_REMOVE: Final = "DELETE FROM exposures WHERE sandbox = ? AND port = ?"


class ExposureRows:
    """The table of exposed ports. Those of a sandbox go with its end (`SandboxRows.save`)."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def save(self, exposure: Exposure) -> bool:
        """Insert or replace one row; False: the sandbox has ended. Durable. Raises: Conflict (a taken host port)."""
        row = (
            exposure.sandbox, exposure.port, exposure.access.value, exposure.digest, exposure.host_port,
            exposure.created_at, exposure.sandbox,
        )  # fmt: skip
        return await self._writer.write(lambda db: db.execute(_SAVE, row).rowcount > 0, durable=True)

    def get(self, sandbox_id: str, port: int) -> Exposure | None:
        """One port's row. 6 µs on the loop."""
        row = self._reader.one(_ONE, (sandbox_id, port))
        return None if row is None else _exposure(row)

    def of_sandbox(self, sandbox_id: str) -> list[Exposure]:
        """A sandbox's rows, by port."""
        return [_exposure(row) for row in self._reader.all(_OF_SANDBOX, (sandbox_id,))]

    def with_host_port(self) -> list[Exposure]:
        """Every row that has a port of the host."""
        return [_exposure(row) for row in self._reader.all(_WITH_HOST_PORT, ())]

    def count_host_ports(self, project: str) -> int:
        """How many ports of the host lead to sandboxes of a project."""
        row = self._reader.one(_COUNT_HOST_PORTS, (project,))
        return 0 if row is None else int(row[0])

    async def remove(self, sandbox_id: str, port: int) -> bool:
        """Forget one row; whether there was one. Durable."""
        return await self._writer.write(lambda db: db.execute(_REMOVE, (sandbox_id, port)).rowcount > 0, durable=True)


def _exposure(row: tuple[Value, ...]) -> Exposure:
    sandbox, port, access, digest, host_port, created_at = row
    return Exposure(
        sandbox=cast("str", sandbox),
        port=cast("int", port),
        access=Access(cast("str", access)),
        digest=cast("str | None", digest),
        host_port=cast("int | None", host_port),
        created_at=cast("float", created_at),
    )
