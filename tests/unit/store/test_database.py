from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from cove.model.errors import EngineFailure
from cove.store import database
from cove.store.database import connect, migrate


def test_a_new_database_gets_every_migration_once(tmp_path: Path) -> None:
    connection = connect(tmp_path / "a.db")
    assert migrate(connection) == 0
    versions = migrate(connection)
    assert versions == len(database._steps()) > 0
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables >= {"projects", "keys", "sandboxes", "idempotency", "meta", "migrations"}
    connection.close()


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    connection = connect(tmp_path / "a.db")
    migrate(connection)
    connection.execute("INSERT INTO migrations (version, name) VALUES (999, 'later')")
    with pytest.raises(EngineFailure, match="newer Cove"):
        migrate(connection)
    connection.close()


def test_a_migration_that_fails_in_the_middle_leaves_the_schema_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = connect(tmp_path / "a.db")
    migrate(connection)
    steps = [*database._steps(), ("9999_bad", "CREATE TABLE good (x INTEGER); CREATE TABLE good (x INTEGER);")]
    monkeypatch.setattr(database, "_steps", lambda: steps)
    with pytest.raises(EngineFailure):
        migrate(connection)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'good'").fetchone()[0] == 0
    connection.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"not a database at all, but long enough to be looked at" * 100)
    with pytest.raises(EngineFailure, match="cannot be opened"):
        connect(tmp_path / "a.db")


def test_connections_write_ahead_and_hold_foreign_keys(tmp_path: Path) -> None:
    connection = connect(tmp_path / "a.db")
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert connection.execute("PRAGMA foreign_keys").fetchone()[0] == 1
    connection.close()


def test_statements_are_such_that_postgresql_takes_them_too() -> None:
    sources = Path(database.__file__).parent
    text = "".join(path.read_text() for path in sources.rglob("*.sql"))
    text += "".join(path.read_text() for path in sources.glob("*.py") if path.name != "database.py")
    for word in ("AUTOINCREMENT", "INSERT OR ", "REPLACE INTO", "json_extract", " rowid", "datetime('now')", "IFNULL"):
        assert word not in text


def test_a_file_in_use_can_be_opened_again(tmp_path: Path) -> None:
    first = connect(tmp_path / "a.db")
    second = connect(tmp_path / "a.db")
    migrate(first)
    assert second.execute("SELECT count(*) FROM sandboxes").fetchone()[0] == 0
    first.close()
    second.close()
    assert sqlite3.connect(tmp_path / "a.db").close() is None
