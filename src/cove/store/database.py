"""Opens the database file and brings its schema up to date. It knows no table but `migrations`."""

from __future__ import annotations

import sqlite3
from importlib import resources
from pathlib import Path
from typing import Final

from cove.model.errors import EngineFailure

BUSY_TIMEOUT_S: Final = 5.0
"""How long a statement waits for another process's lock before it fails."""

_MIGRATIONS: Final = "CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY, name TEXT NOT NULL)"
_APPLIED: Final = "SELECT max(version) FROM migrations"


def connect(path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
    """A connection in autocommit, WAL and foreign keys on. May be used by another thread than the one that opened it.

    Raises: EngineFailure when the file cannot be opened or is no database.
    """
    connection = None
    try:
        connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise EngineFailure("the state database cannot be opened", internal=f"{path}: {error}") from error
    return connection


def migrate(connection: sqlite3.Connection) -> int:
    """Apply the migrations that are not yet applied, each in its own transaction; returns the version before, 0: new.

    Raises: EngineFailure, also when the database was written by a newer Cove.
    """
    steps = _steps()
    try:
        connection.execute(_MIGRATIONS)
        applied: int = connection.execute(_APPLIED).fetchone()[0] or 0
        if applied > len(steps):
            raise EngineFailure(
                "the state database was written by a newer Cove; start that version, or another data directory",
                internal=f"schema {applied}, this version knows {len(steps)}",
            )
        for version, (name, script) in enumerate(steps[applied:], start=applied + 1):
            # One script, one transaction: a crash in the middle leaves the schema as it was.
            mark = f"INSERT INTO migrations (version, name) VALUES ({version}, '{name}');"  # noqa: S608 - our file's name
            connection.executescript(f"BEGIN IMMEDIATE;\n{script}\n{mark}\nCOMMIT;")
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise EngineFailure("the state database cannot be brought up to date", internal=str(error)) from error
    return applied


def _steps() -> list[tuple[str, str]]:
    """(name, SQL) of each migration, in order. The numbers have no gaps."""
    folder = resources.files("cove.store") / "migrations"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    for number, file in enumerate(files, start=1):
        if not file.name.startswith(f"{number:04}_"):
            raise EngineFailure("a migration is missing from this installation", internal=f"{file.name} as {number:04}")
    return [(file.name.removesuffix(".sql"), file.read_text(encoding="utf-8")) for file in files]
