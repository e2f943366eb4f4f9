"""Templates on the wire: docs/reference/native-api.md."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType


class TemplateWish(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A template to be. `snapshot`: its id or name; absent: as it is. `ready` likewise; of a new one 0."""

    snapshot: Annotated[str, Meta(min_length=1, max_length=63)] | None = None
    ready: Annotated[int, Meta(ge=0, le=1000)] | UnsetType = UNSET


class Template(Struct, frozen=True, kw_only=True):
    """A name for a snapshot. `ready` copies of it are wanted, `ready_now` are there; `reason`: why there are none.

    `claimed`, `missed`: since the start of the server, how many sandboxes found a copy ready and how many did not.
    """

    name: str
    snapshot: str
    snapshot_name: str | None
    ready: int
    ready_now: int
    claimed: int
    missed: int
    reason: str | None
    created_at: str
    created_by: str


class TemplateList(Struct, frozen=True):
    """The project's, by name."""

    templates: tuple[Template, ...]
