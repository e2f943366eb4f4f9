"""Where the request that is being worked on comes from, for records and logs. Set once at the edge; read anywhere.

It travels with the task (contextvars), so nothing has to hand it through; background tasks see none or their maker's.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from cove.model.spans import Trace


class Origin(Struct, kw_only=True):
    """Who caused a piece of work.

    `address`: the client's, empty for the unix socket. `via`: `http`, `unix`, `ssh`; `cove`: the server's own acts.
    `key` and `name` are those of the caller's key once it is known, `cove` for the server itself. `sandbox` (a core
    id) is filled in by the first use of one, for the log lines that follow. `trace`: its span, where requests are
    traced.
    """

    request_id: str = ""
    address: str = ""
    via: str = "cove"
    dialect: str = ""
    key: str = "cove"
    name: str = "cove"
    sandbox: str = ""
    trace: Trace | None = None


_CURRENT: Final[ContextVar[Origin | None]] = ContextVar("cove_origin", default=None)


def current_origin() -> Origin:
    """The origin of the work in hand; the server's own if no request caused it."""
    return _CURRENT.get() or Origin()


@contextmanager
def working_for(origin: Origin) -> Generator[None]:
    """Within: everything that this task does, and tasks that it starts, is for `origin`."""
    token = _CURRENT.set(origin)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def note_sandbox(sandbox: str) -> None:
    """The request in hand works on `sandbox` (a core id)."""
    origin = _CURRENT.get()
    if origin is not None:
        origin.sandbox = sandbox


def own_context(sandbox: str) -> Context:
    """For a task that the server runs for a sandbox on its own account, whoever made it start."""
    context = Context()
    context.run(_CURRENT.set, Origin(sandbox=sandbox))
    return context
