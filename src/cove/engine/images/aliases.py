"""Built-in images that stand in for well-known ones while a registry cannot be reached. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from cove.model.reference import DEFAULT_REGISTRY, Reference


def find_alias(reference: Reference, aliases: Sequence[tuple[str, str]]) -> str | None:
    """The built-in image that stands in for `reference`, else None. Never for a digest: that asks for exact bytes.

    A pattern without `/` means the official images: `python:*` is `docker.io/library/python:*`.
    """
    if reference.digest is not None:
        return None
    canonical = str(reference)
    for pattern, image in aliases:
        full = pattern if "/" in pattern else f"{DEFAULT_REGISTRY}/library/{pattern}"
        if fnmatchcase(canonical, full if ":" in full.rpartition("/")[2] else f"{full}:*"):
            return image
    return None
