"""Who may reach a port of a sandbox. Frozen values, no I/O."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from msgspec import Struct

TOKEN_PREFIX: Final = "ct_"  # noqa: S105 - how a token begins, not one
"""So that a token in a log or a file is known for what it is."""


class Access(StrEnum):
    """What a request to a port must bring: a key of the project, the port's own token, or nothing."""

    KEY = "key"
    TOKEN = "token"  # noqa: S105 - a word
    PUBLIC = "public"


class Exposure(Struct, frozen=True, kw_only=True):
    """How one port of one sandbox is reached. Without a row it is by key, and on no port of the host.

    `digest` is the SHA-256 of the token, 64 hex digits, None unless `access` is TOKEN; the token itself is nowhere.
    """

    sandbox: str
    port: int
    access: Access = Access.KEY
    digest: str | None = None
    host_port: int | None = None
    created_at: float = 0.0


class PortState(Struct, frozen=True, kw_only=True):
    """A port with how it is reached. `listening`: something listens there now; None: not looked, it is paused."""

    exposure: Exposure
    listening: bool | None
    address: str | None = None
