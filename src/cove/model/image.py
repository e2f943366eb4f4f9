"""Images as a caller sees them. Frozen values, no I/O."""

from __future__ import annotations

from msgspec import Struct


class ImageInfo(Struct, frozen=True, kw_only=True):
    """One image. `status` is `ready`, `building` or `failed`; `digest` names the content, empty until it is ready."""

    name: str
    digest: str
    size_bytes: int
    status: str = "ready"
