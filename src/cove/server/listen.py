"""Listening: TCP for everybody with a key, a unix socket for the local operator, both on one application.

The sockets are ours, bound before anything else starts, so that a port in use is a sentence at once; uvicorn only
serves them. Signals are ours too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Generator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from cove.edge.auth import LOCAL_MARK
from cove.edge.broker import CONNECTIONS
from cove.edge.limits import EdgeLimits
from cove.edge.protocol import LimitedProtocol, protocol_class
from cove.model.errors import Conflict, EngineFailure
from cove.server.config import Settings

BACKLOG = 2048


ACCEPTED_AT_ONCE = 32
"""The event loop takes one connection per turn and listening descriptor (libuv). Behind a loop that is busy with other
requests, a client with 32 connections waited for seconds; so each socket is listened on through so many descriptors."""


class Listener(uvicorn.Server):
    """uvicorn without its own signal handling, which accepts newcomers as fast as they come."""

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until `should_exit`; the sockets are closed then."""
        await super().serve([one for sock in sockets or () for one in (sock, *_again(sock))])

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave signals alone."""
        yield


def _again(sock: socket.socket) -> list[socket.socket]:
    return [sock.dup() for _ in range(ACCEPTED_AT_ONCE - 1)]


class LocalOperator:
    """Marks what comes over the unix socket as the local operator's."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Mark and pass on."""
        scope[LOCAL_MARK] = True
        await self._app(scope, receive, send)


def bind_tcp(settings: Settings) -> socket.socket:
    """The TCP socket. Raises: Conflict (in use), EngineFailure."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _notice_vanished(sock)
    try:
        sock.bind((settings.host, settings.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"port {settings.port} on {settings.host} is in use by another program: choose another with "
                f"COVE_PORT, or find it with `ss -ltnp 'sport = :{settings.port}'`"
            ) from error
        raise EngineFailure(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}") from error
    sock.setblocking(False)
    return sock


def _notice_vanished(sock: socket.socket) -> None:
    """Let connections of this listener end within two minutes after their client's machine is gone (tcp(7)).

    Without a FIN nothing else tells: a request that waits for a command would wait, and keep its sandbox awake, for as
    long as that runs. Accepted sockets inherit it.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


def bind_unix(run_dir: Path) -> socket.socket:
    """The unix socket `api.sock` that only root may connect to. Raises: EngineFailure.

    The data directory's lock is held, so an old socket there is a leftover.
    """
    path = run_dir / "api.sock"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Traversable: sandboxes reach their own root file systems below it. The socket itself is root's alone.
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
        path.unlink(missing_ok=True)
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise EngineFailure(f"cannot listen on {path}: {error.strerror or error}") from error
    sock.setblocking(False)
    return sock


def listeners(app: ASGIApp, settings: Settings, limits: EdgeLimits) -> tuple[Listener, Listener]:
    """One server for TCP, one for the unix socket."""
    tls = settings.tls_cert is not None
    tcp = _listener(
        app,
        limits,
        local_only=False,
        ssl_certfile=os.fspath(settings.tls_cert) if settings.tls_cert else None,
        ssl_keyfile=os.fspath(settings.tls_key) if tls and settings.tls_key else None,
    )
    return tcp, _listener(LocalOperator(app), limits, local_only=True, ssl_certfile=None, ssl_keyfile=None)


def broker_listener(app: ASGIApp, limits: EdgeLimits) -> Listener:
    """For the credentials broker: one sandbox has so many connections and no more."""
    return Listener(_config(app, limits, protocol_class(limits, per_address=CONNECTIONS)))


def _listener(
    app: ASGIApp, limits: EdgeLimits, *, local_only: bool, ssl_certfile: str | None, ssl_keyfile: str | None
) -> Listener:
    config = _config(app, limits, protocol_class(limits, local_only=local_only))
    config.ssl_certfile = ssl_certfile
    config.ssl_keyfile = ssl_keyfile
    return Listener(config)


def _config(app: ASGIApp, limits: EdgeLimits, protocol: type[LimitedProtocol]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(limits.idle_connection_s),
        timeout_graceful_shutdown=int(limits.stop_grace_s),
    )
