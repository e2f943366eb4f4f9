"""What is said about sessions, their files and their end, in the order of the fields."""

from __future__ import annotations

from msgspec import Struct


class Session(Struct, frozen=True, kw_only=True, rename="camel"):
    """One session."""

    id: str
    is_active: bool
    last_accessed_at: str


class Sessions(Struct, frozen=True):
    """All of them, in the order in which they were made."""

    sessions: list[Session]


class Ok(Struct, frozen=True):
    """It is so."""

    ok: bool = True


class FilePut(Struct, frozen=True, kw_only=True, rename="camel"):
    """A file for a session. Without a session's id there is no such session."""

    session_id: str = ""
    path: str = ""
    content: str | None = None


class FileQuery(Struct, frozen=True, kw_only=True, rename="camel"):
    """Which file of which session."""

    session_id: str = ""
    path: str = ""


class FileContent(Struct, frozen=True):
    """A file, base64."""

    content: str


class CleanupOrder(Struct, frozen=True):
    """Whether images are to go, too."""

    images: bool | None = True


class Removed(Struct, frozen=True, kw_only=True):
    """What became of one kind of things."""

    removed: int
    failed: int
    errors: list[str]


class CleanedUp(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is gone."""

    ok: bool
    sessions: Removed
    containers: Removed
    images: Removed | None = None
