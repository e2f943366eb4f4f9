"""Templates: a project's name for a snapshot that sandboxes are made of, some of them ahead. No I/O."""

from __future__ import annotations

from msgspec import Struct


class Template(Struct, frozen=True, kw_only=True):
    """A template as the store knows it. `snapshot`: a core id. `ready`: how many copies are kept ready."""

    project: str
    name: str
    snapshot: str
    ready: int
    created_at: float
    created_by: str


class TemplateState(Struct, frozen=True, kw_only=True):
    """A template and what there is of it now. `reason`: why no copies are kept ready though they are wanted."""

    template: Template
    snapshot_name: str
    ready_now: int = 0
    claimed: int = 0
    missed: int = 0
    reason: str | None = None
