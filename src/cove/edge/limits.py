"""What one request and one connection may use. One frozen struct, built by the server, passed down whole."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

MIB: Final = 1024 * 1024


class EdgeLimits(Struct, frozen=True, kw_only=True):
    """Sizes in bytes, times in seconds.

    `json_body_bytes`: a larger JSON body is refused with 413, before it is read where its length is announced.
    `body_stall_s`: a body of which nothing arrives for so long ends with 408.
    `reader_stall_s`: an answer of which nothing is taken for so long is cut: no slow reader holds a buffer for ever.
    `ping_s`: a silent event stream gets a comment that often.
    `patience_s`: after so long an answer that may take long begins, so that its client goes on waiting.
    `proxy_s`: how long a program in a sandbox may take to begin its answer to a proxied request.
    `connections`: further ones are answered 503 and closed. `head_bytes`, `head_s`: of request line and headers.
    `websocket_message_bytes`: a larger message of a client is refused (1009). `websocket_ping_s`: how often a client is
    pinged; one that has not answered the last one then is gone. `websocket_close_s`: how long its half of the closing
    handshake is waited for. `websocket_linger_s`: how long what it sent may still take after it has gone.
    """

    json_body_bytes: int = 2 * MIB
    body_stall_s: float = 60.0
    reader_stall_s: float = 600.0
    ping_s: float = 15.0
    patience_s: float = 100.0
    connections: int = 4096
    head_bytes: int = 64 * 1024
    head_s: float = 20.0
    idle_connection_s: float = 75.0
    stop_grace_s: float = 5.0
    websocket_message_bytes: int = MIB
    websocket_ping_s: float = 20.0
    websocket_close_s: float = 10.0
    websocket_linger_s: float = 5.0
    proxy_s: float = 120.0
