"""Who may do what to which object: the two questions every core call asks first. Pure."""

from __future__ import annotations

from typing import Final

from cove.model.access import DEFAULT_PROJECT, FULL, Principal, Scope
from cove.model.errors import Forbidden

LOCAL: Final = Principal(key_id="local", name="local", project=DEFAULT_PROJECT, scopes=FULL)
"""Whoever may open the root-owned unix socket: the operator."""


def require(who: Principal, scope: Scope) -> None:
    """Raises: Forbidden when `who` lacks `scope`."""
    if not who.can(scope):
        raise Forbidden(f"this key lacks the scope `{scope.value}`")


def may_see(who: Principal, project: str) -> bool:
    """Whether objects of `project` exist for `who`: its own, and for an admin those of all."""
    return project == who.project or who.can(Scope.ADMIN)
