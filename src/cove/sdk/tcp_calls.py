"""The request of a TCP connection to a port of a sandbox, as data; and what its text messages say. Pure."""

from __future__ import annotations

import json
from typing import Any, Final, cast

from cove.sdk.errors import BadAnswer, BadRequest, from_problem
from cove.sdk.transport import Call
from cove.sdk.wire import box_path, nothing

EOF: Final = '{"type":"eof"}'
"""No more bytes come from who sends this."""

PIECE_BYTES: Final = 256 * 1024
"""Bytes go in messages of at most this size."""

PORTS: Final = range(1, 65536)


def port_of(port: int, field: str = "port") -> int:
    """Return `port` if it can be one. Raises: BadRequest."""
    if port not in PORTS:
        raise BadRequest(f"{field}: {port} is no port: 1 to 65535", field=field)
    return port


def connect(ref: str, port: int) -> Call[None]:
    """GET …/ports/{port}/tcp: a WebSocket."""
    return Call("GET", box_path(ref, f"/ports/{port_of(port)}/tcp"), nothing)


def check_end(text: str) -> None:
    """Take a text message for the other side's half-close. Raises: the error it tells, BadAnswer."""
    try:
        said: Any = json.loads(text)
    except ValueError:
        said = None
    if isinstance(said, dict):
        fields = cast("dict[str, Any]", said)
        kind = fields.pop("type", None)
        if kind == "eof":
            return
        if kind == "error":
            raise from_problem(fields)
    raise BadAnswer("the server sent a message about a TCP connection that cannot be read")
