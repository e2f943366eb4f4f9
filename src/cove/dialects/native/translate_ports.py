"""Between the native wire format of ports and the core's values. Pure."""

from __future__ import annotations

import re
from typing import Final

from msgspec import UNSET, UnsetType

from cove.dialects.native import wire_ports
from cove.dialects.native.times import timestamp
from cove.dialects.native.translate import sandbox_id, sandbox_ref
from cove.edge.errors import Malformed, Where
from cove.edge.ops import ServerFacts
from cove.edge.portforms import PathForm
from cove.model.exposures import Access, PortState
from cove.model.ids import is_core_id

_LABEL_PREFIX: Final = "sb-"
"""`sb_`, where no underscore may be: in a host name."""

_PATTERN: Final = re.compile(
    rb"(?P<prefix>/api/v1/sandboxes/(?P<ref>[A-Za-z0-9_-]{1,80})/ports/(?P<port>[0-9]{1,5})/http)(?P<rest>/.*)?",
    re.DOTALL,
)


def port_of(text: str) -> int:
    """The port in a path. Raises: Malformed."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 65535:  # noqa: PLR2004 - TCP's own
        raise Malformed("port must be 1 to 65535", where=Where.PATH, field="port")
    return int(text)


def wish_of(body: wire_ports.Expose) -> tuple[Access | UnsetType, int | bool | UnsetType]:
    """What shall change: who may come in, and the port of the host."""
    if body.access is UNSET:
        return (Access.KEY if body.host_port is UNSET else UNSET), body.host_port
    return Access(body.access), body.host_port


def label_ref(text: str) -> str:
    """The core's reference for `sb-…`, 16 hex digits or a name, as in a host name. Raises: NotFound."""
    bare = text.removeprefix(_LABEL_PREFIX)
    return bare if is_core_id(bare) else sandbox_ref(text)


def port_view(state: PortState, facts: ServerFacts, token: str | None = None) -> wire_ports.Port:
    """A port as it is shown."""
    row = state.exposure
    return wire_ports.Port(
        port=row.port,
        access=row.access.value,
        host_port=row.host_port,
        url=facts.port_url(f"{row.port}-{_LABEL_PREFIX}{row.sandbox}"),
        path=f"/api/v1/sandboxes/{sandbox_id(row.sandbox)}/ports/{row.port}/http/",
        listening=state.listening,
        address=state.address,
        created_at=timestamp(row.created_at) if row.created_at else None,
        token=token or UNSET,
    )


FORM: Final = PathForm(_PATTERN, b"/ports/", sandbox_ref, label_ref)
