"""Rows of templates. Reads run on the loop, writes in the writer's thread; durable, for names are relied upon."""

from __future__ import annotations

from typing import Final, cast

from cove.model.template import Template
from cove.store.reader import Reader, Value
from cove.store.writer import Writer

_COLUMNS: Final = "project, name, snapshot, ready, created_at, created_by"
_ALL: Final = f"SELECT {_COLUMNS} FROM templates ORDER BY created_at"  # noqa: S608 - constants only, here and below
_OF_PROJECT: Final = f"SELECT {_COLUMNS} FROM templates WHERE project = ? ORDER BY name"  # noqa: S608
_OF_SNAPSHOT: Final = f"SELECT {_COLUMNS} FROM templates WHERE snapshot = ? ORDER BY name"  # noqa: S608
_ONE: Final = f"SELECT {_COLUMNS} FROM templates WHERE project = ? AND name = ?"  # noqa: S608
_SAVE: Final = f"""
INSERT INTO templates ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (project, name) DO UPDATE SET snapshot = excluded.snapshot, ready = excluded.ready
"""  # noqa: S608
_REMOVE: Final = "DELETE FROM templates WHERE project = ? AND name = ?"


class TemplateRows:
    """The table of templates."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    def all(self) -> list[Template]:
        """Every one, oldest first."""
        return [_template(row) for row in self._reader.all(_ALL, ())]

    def of_project(self, project: str) -> list[Template]:
        """A project's, by name."""
        return [_template(row) for row in self._reader.all(_OF_PROJECT, (project,))]

    def of_snapshot(self, snapshot_id: str) -> list[Template]:
        """Those that are made of a snapshot."""
        return [_template(row) for row in self._reader.all(_OF_SNAPSHOT, (snapshot_id,))]

    def get(self, project: str, name: str) -> Template | None:
        """One of a project."""
        row = self._reader.one(_ONE, (project, name))
        return None if row is None else _template(row)

    async def save(self, template: Template) -> None:
        """Insert it, or give the one of this name another snapshot and number. Durable."""
        row = (
            template.project, template.name, template.snapshot, template.ready, template.created_at,
            template.created_by,
        )  # fmt: skip
        await self._writer.write(lambda db: db.execute(_SAVE, row).rowcount, durable=True)

    async def remove(self, project: str, name: str) -> bool:
        """Forget one; whether there was one. Durable."""
        return await self._writer.write(lambda db: db.execute(_REMOVE, (project, name)).rowcount > 0, durable=True)


def _template(row: tuple[Value, ...]) -> Template:
    project, name, snapshot, ready, created_at, created_by = row
    return Template(
        project=cast("str", project),
        name=cast("str", name),
        snapshot=cast("str", snapshot),
        ready=cast("int", ready),
        created_at=cast("float", created_at),
        created_by=cast("str", created_by),
    )
