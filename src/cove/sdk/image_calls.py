"""The requests about images, as data. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from cove.sdk.errors import BadRequest
from cove.sdk.transport import Call, Retry
from cove.sdk.units import Duration, Size, parse_mib, parse_seconds
from cove.sdk.wire import API, checked, nothing

if TYPE_CHECKING:  # its dataclasses cost 7 ms, which `cove exec` does not have
    from cove.sdk.models import Image

EVENTS: Final = "text/event-stream"


def _image(wire: Any) -> Image:
    from cove.sdk import models

    return models.image(checked(wire))


def images() -> Call[list[Image]]:
    """GET /images."""

    def parse(wire: Any) -> list[Image]:
        return [_image(each) for each in checked(wire).get("images") or ()]

    return Call("GET", f"{API}/images", parse, retry=Retry.LOST)


def get(name: str) -> Call[Image]:
    """GET /images/inspect."""
    return Call("GET", f"{API}/images/inspect", _image, query={"name": _named(name)}, retry=Retry.LOST)


def remove(name: str) -> Call[None]:
    """DELETE /images."""
    return Call("DELETE", f"{API}/images", nothing, query={"name": _named(name)})


def verify(name: str) -> Call[Image]:
    """POST /images/verify."""
    return Call("POST", f"{API}/images/verify", _image, query={"name": _named(name)}, retry=Retry.LOST)


def pull(reference: str, *, username: str | None, password: str | None, token: str | None) -> Call[None]:
    """POST /images/pull, as events."""
    body = {"reference": _named(reference), "username": username, "password": password, "token": token}
    given = {key: value for key, value in body.items() if value is not None}
    return Call("POST", f"{API}/images/pull", nothing, json=given, accept=EVENTS)


def import_(name: str, data: Any, *, size: int | None) -> Call[None]:
    """POST /images/import, as events. The archive is read only once."""
    return Call(
        "POST",
        f"{API}/images/import",
        nothing,
        query={"name": _named(name)},
        body=data,
        headers={} if size is None else {"content-length": str(size)},
        accept=EVENTS,
    )


def export(name: str) -> Call[None]:
    """GET /images/export: raw bytes."""
    return Call("GET", f"{API}/images/export", nothing, query={"name": _named(name)})


def build(  # noqa: PLR0913 - the wire's own options
    name: str,
    *,
    recipe: Mapping[str, Any] | None,
    context: Any,
    file: str | None,
    target: str | None,
    args: Mapping[str, str] | None,
    driver: str | None,
    cpus: float | None,
    memory: Size | None,
    disk: Size | None,
    timeout: Duration | None,
) -> Call[None]:
    """POST /images/build, as events. Either a recipe alone, or a context (a tar) with a file in it."""
    if (recipe is None) == (context is None):
        raise BadRequest("give either a recipe or a context, not both", field="recipe")
    seconds = parse_seconds(timeout, "timeout")
    query: dict[str, str | list[str] | None] = {
        "name": _named(name),
        "file": file,
        "target": target,
        "driver": driver,
        "cpus": None if cpus is None else f"{cpus:g}",
        "memory_mib": None if memory is None else str(parse_mib(memory, "memory")),
        "disk_mib": None if disk is None else str(parse_mib(disk, "disk")),
        "timeout_s": None if seconds is None else f"{seconds:g}",
        **{f"arg.{key}": value for key, value in (args or {}).items()},
    }
    return Call("POST", f"{API}/images/build", nothing, query=query, json=recipe, body=context, accept=EVENTS)


def _named(name: str) -> str:
    if not name:
        raise BadRequest("an empty name names no image", field="name")
    return name
