"""Spans of a request's trace, for whoever measures where time goes. Nothing acts here: `server/tracing.py` exports.

What a span says is chosen where it is opened: names and ids, never commands, paths, queries or secrets.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from cove.model.origin import current_origin

Attribute = str | int | float | bool


class Trace(Protocol):
    """One request's span, while it is open."""

    def child(self, name: str, attributes: Mapping[str, Attribute]) -> AbstractContextManager[None]:
        """A span within it; an exception that leaves the body marks it as failed, by its class alone."""
        ...

    def end(self, name: str, attributes: Mapping[str, Attribute], *, failed: bool) -> None:
        """Close it, under the name that is known by now."""
        ...


class Tracer(Protocol):
    """Opens a trace for each request."""

    def begin(self, headers: Mapping[str, str]) -> Trace:
        """A span that starts now; `headers` may name the caller's own as its parent (W3C Trace Context)."""
        ...


@contextmanager
def span(name: str, **attributes: Attribute) -> Generator[None]:
    """A part of the request in hand. Costs 1 µs where nobody traces."""
    trace = current_origin().trace
    if trace is None:
        yield
        return
    with trace.child(name, attributes):
        yield
