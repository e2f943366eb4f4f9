"""One SSH connection: who comes in by which key, and what may be opened on it. Every request is answered here.

Whatever is not granted, nobody can have: no password, no forwarding of agents, X11, tunnels or ports towards the
client, and no destination but the sandbox itself.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Coroutine
from typing import TYPE_CHECKING, Any, Final

import asyncssh
from asyncssh.constants import (
    DISC_BY_APPLICATION,
    DISC_NO_MORE_AUTH_METHODS_AVAILABLE,
    DISC_TOO_MANY_CONNECTIONS,
    OPEN_ADMINISTRATIVELY_PROHIBITED,
    OPEN_CONNECT_FAILED,
    OPEN_RESOURCE_SHORTAGE,
)

from cove.core.facade import Core
from cove.model.access import Principal
from cove.model.errors import BadRequest, Conflict, CoveError, RateLimited, SandboxError
from cove.model.origin import Origin, working_for
from cove.server.ssh.backlog import Backlog
from cove.server.ssh.channel import SessionChannel
from cove.server.ssh.forward import INSIDE, SOCKET_PATH_BYTES, PortForward, SocketForward

if TYPE_CHECKING:
    from cove.server.ssh.listener import Doorman

log = logging.getLogger(__name__)

CHANNELS: Final = 128
"""Open at a time on one connection."""

FAST_CHANNELS: Final = 8
WINDOW_BYTES: Final = 1024 * 1024
SMALL_WINDOW_BYTES: Final = 64 * 1024
PACKET_BYTES: Final = 32 * 1024

ATTEMPTS: Final = 24
"""Looks at a key before a connection has proven one: each key costs at most two, and an agent may hold many."""

ID_PREFIX: Final = "sb_"
"""What stands before an id in the native API, from which people copy it."""

CHECK_S: Final = 2.0
"""How often it is asked whether the sandbox still is there."""


class Visit:
    """Somebody who is in: which sandbox, as whom, and the tasks that work for them."""

    def __init__(
        self,
        doorman: Doorman,
        conn: asyncssh.SSHServerConnection,
        who: Principal,
        sandbox: str,
        *,
        backlog: Backlog,
    ) -> None:
        self._doorman = doorman
        self._conn = conn
        self.backlog = backlog
        self.who = who
        self.sandbox = sandbox
        peer: tuple[str, int] | None = conn.get_extra_info("peername")
        self._origin = Origin(
            request_id=f"ssh_{secrets.token_hex(8)}",
            address=peer[0] if peer else "",
            via="ssh",
            dialect="ssh",
            key=who.key_id,
            name=who.name,
            sandbox=sandbox,
        )
        self._channels = 0
        self._has_left = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._look = asyncio.Event()

    @property
    def core(self) -> Core:
        """What decides."""
        return self._doorman.core

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task of this connection; its failure is logged and ends nothing else."""
        with working_for(self._origin):
            task = self._doorman.spawn(work, name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def channel_opened(self) -> None:
        """Count one more. Raises: ChannelOpenError when there are too many."""
        if self._channels >= CHANNELS:
            raise asyncssh.ChannelOpenError(OPEN_RESOURCE_SHORTAGE, f"at most {CHANNELS} channels on one connection")
        if not self._doorman.channel_opened(self.who.project):
            raise asyncssh.ChannelOpenError(OPEN_RESOURCE_SHORTAGE, "your project has too many open channels")
        self._channels += 1

    def window(self) -> int:
        """How much the client may send ahead on the channel that was opened just now.

        A few channels get what a fast transfer over a long way needs. The others get little, because all of it may
        have to be held here at once.
        """
        is_fast = self._channels <= FAST_CHANNELS and self._doorman.has_fast_channel(self.who.project)
        return WINDOW_BYTES if is_fast else SMALL_WINDOW_BYTES

    def channel_closed(self) -> None:
        """Count one less."""
        if not self._has_left:
            self._channels -= 1
            self._doorman.channels_closed(self.who.project, 1)

    def check_soon(self) -> None:
        """Something says that the sandbox is gone."""
        self._look.set()

    async def watch(self) -> None:
        """End the connection when the sandbox has ended, for what hangs on it can do nothing any more, or its key."""
        while (why := self.core.ssh_keys.why_leave(self.who, self.sandbox)) is None:
            try:
                async with asyncio.timeout(CHECK_S):
                    await self._look.wait()
                self._look.clear()
                await asyncio.sleep(0.2)  # the last words of its channels go first, and its state follows its death
            except TimeoutError:
                pass
        self._conn.disconnect(DISC_BY_APPLICATION, why)

    def leave(self) -> None:
        """The connection is gone: so is all that was done for it, but the last hang-up."""
        self._has_left = True
        self._doorman.channels_closed(self.who.project, self._channels)
        for task in list(self._tasks):
            if task.get_name() != "ssh hang-up":
                task.cancel()


class Gate(asyncssh.SSHServer):
    """What asyncssh asks about a connection."""

    def __init__(self, doorman: Doorman) -> None:
        self._doorman = doorman
        self._conn: asyncssh.SSHServerConnection | None = None
        self._backlog: Backlog | None = None
        self._admitted: tuple[Principal, str] | None = None
        self._visit: Visit | None = None
        self._attempts = 0
        self._address = ""
        self._is_wrong = False

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Somebody knocks."""
        self._conn = conn
        self._backlog = Backlog(conn)
        self._address = str((conn.get_extra_info("peername") or ("",))[0])
        if not self._doorman.enter(self):
            conn.disconnect(DISC_TOO_MANY_CONNECTIONS, "this server has too many SSH connections")

    def connection_lost(self, exc: Exception | None) -> None:
        """They are gone."""
        del exc
        self._doorman.left(self)
        if self._is_wrong and self._visit is None:
            self._doorman.core.rate_limits.failed(self._address, "ssh")
        if self._backlog is not None:
            self._backlog.lose()
        if self._visit is not None:
            self._visit.leave()

    def say_goodbye(self) -> None:
        """The server stops."""
        if self._conn is not None:
            self._conn.disconnect(DISC_BY_APPLICATION, "the server is stopping")

    def drop(self) -> None:
        """They did not go by themselves."""
        if self._conn is not None:
            self._conn.abort()

    # Who comes in. A name that does not exist is asked for a key like any other.

    def begin_auth(self, username: str) -> bool:
        """Everybody must prove themselves."""
        del username
        return True

    def public_key_auth_supported(self) -> bool:
        """The only way."""
        return True

    def password_auth_supported(self) -> bool:
        """Never."""
        return False

    def kbdint_auth_supported(self) -> bool:
        """Never."""
        return False

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Whether this key may log in there; the signature is checked by asyncssh afterwards."""
        self._attempts += 1
        if self._attempts > ATTEMPTS:
            raise asyncssh.DisconnectError(DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "too many authentication failures")
        self._admitted = self._doorman.core.ssh_keys.admit(key.public_data, username.removeprefix(ID_PREFIX))
        self._is_wrong = self._is_wrong or self._admitted is None
        self._check_address()
        return self._admitted is not None

    def _check_address(self) -> None:
        """Where too many failed, only a key comes in that did before. Raises: DisconnectError."""
        key_id = None if self._admitted is None else self._admitted[0].key_id
        try:
            self._doorman.core.rate_limits.check_login(self._address, key_id, "ssh")
        except RateLimited as error:
            raise asyncssh.DisconnectError(DISC_NO_MORE_AUTH_METHODS_AVAILABLE, error.public) from error

    def auth_completed(self) -> None:
        """The signature was right: the last key that was admitted is the one that signed."""
        assert self._conn is not None  # noqa: S101 - made before anything else
        assert self._backlog is not None  # noqa: S101 - as it
        if self._admitted is None:
            self._conn.abort()
            return
        who, sandbox = self._admitted
        if not self._doorman.let_in(self, who.project):
            self._conn.disconnect(DISC_TOO_MANY_CONNECTIONS, "your project has too many SSH connections")
            return
        self._doorman.core.ssh_keys.used(who)
        self._doorman.core.rate_limits.succeeded(self._address, who.key_id)
        self._visit = Visit(self._doorman, self._conn, who, sandbox, backlog=self._backlog)
        self._visit.spawn(self._visit.watch(), "ssh watch")
        log.info("ssh: %s of project %s is in sandbox %s", who.key_id, who.project, sandbox)

    # What may be opened.

    def session_requested(self) -> tuple[asyncssh.SSHServerChannel[bytes], SessionChannel]:
        """A shell, a command, sftp."""
        visit, conn = self._opened()
        return conn.create_server_channel(None, "strict", visit.window(), PACKET_BYTES), SessionChannel(visit)

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> tuple[asyncssh.SSHTCPChannel[bytes], Awaitable[asyncssh.SSHTCPSession[bytes]]]:
        """A port, of the sandbox only."""
        del orig_host, orig_port
        if dest_host.lower() not in INSIDE:
            raise asyncssh.ChannelOpenError(
                OPEN_ADMINISTRATIVELY_PROHIBITED,
                "only ports of the sandbox itself are forwarded: use localhost",
            )
        visit, conn = self._opened()
        channel = conn.create_tcp_channel(None, "strict", visit.window(), PACKET_BYTES)
        return channel, PortForward(visit).open(dest_port)

    def unix_connection_requested(
        self, dest_path: str
    ) -> tuple[asyncssh.SSHUNIXChannel[bytes], asyncssh.SSHUNIXSession[bytes]]:
        """A unix socket inside."""
        if not dest_path.startswith("/") or "\0" in dest_path or len(dest_path.encode()) > SOCKET_PATH_BYTES:
            raise asyncssh.ChannelOpenError(
                OPEN_CONNECT_FAILED, f"a socket's path is absolute and has at most {SOCKET_PATH_BYTES} bytes"
            )
        visit, conn = self._opened()
        channel = conn.create_unix_channel(None, "strict", visit.window(), PACKET_BYTES)
        return channel, SocketForward(visit).start(dest_path)

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        """Nothing here listens for a client."""
        del listen_host, listen_port
        return False

    def unix_server_requested(self, listen_path: str) -> bool:
        """Nor on a socket."""
        del listen_path
        return False

    def tun_requested(self, unit: int | None) -> bool:
        """No tunnels."""
        del unit
        return False

    def tap_requested(self, unit: int | None) -> bool:
        """No tunnels."""
        del unit
        return False

    def _opened(self) -> tuple[Visit, Any]:
        """Who it is for, and the connection (Any: the types of its makers of channels are incomplete)."""
        if self._visit is None or self._conn is None:
            raise asyncssh.ChannelOpenError(OPEN_ADMINISTRATIVELY_PROHIBITED, "log in first")
        self._visit.channel_opened()
        return self._visit, self._conn


def report(name: str, error: BaseException) -> None:
    """Say in the log what a task of a connection failed with: a client's or sandbox's fault is no error of ours."""
    if isinstance(error, Conflict | BadRequest | SandboxError):
        log.debug("%s: %s", name, error)
    elif isinstance(error, CoveError):
        log.info("%s: %s %s", name, error, error.internal)
    elif isinstance(error, ConnectionError):
        log.debug("%s: %s", name, error)
    else:
        log.error("%s failed", name, exc_info=error)
