"""The SSH server as a whole: opened beside the HTTP one, closed before the core is."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncssh

from cove.core.facade import Core
from cove.edge.ops import SshFacts
from cove.model.errors import EngineFailure
from cove.server.config import Settings
from cove.server.ssh.gate import Gate, report
from cove.server.ssh.hostkey import ensure_host_key, public_line

log = logging.getLogger(__name__)

CONNECTIONS: Final = 512
PER_PROJECT: Final = 128
"""So that one tenant cannot take all of them."""

PROJECT_CHANNELS: Final = 1024
PROJECT_FAST_CHANNELS: Final = 128
"""Of one project, on all its connections: what its clients send ahead is held here, 1 MiB each, or 64 KiB."""

STRANGERS: Final = 64
"""Connections that have not proven who they are: they cannot crowd out those that have."""

LOGIN_S: Final = 20
KEEPALIVE_S: Final = 15
KEEPALIVES: Final = 4
GOODBYE_S: Final = 3.0
BACKLOG: Final = 256

KEX: Final = (
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp521",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp256",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group18-sha512",
)
CIPHERS: Final = ("aes256-gcm@openssh.com", "aes128-gcm@openssh.com", "aes256-ctr", "aes128-ctr")
"""The client's order counts, and OpenSSH would take chacha20-poly1305 first: here it has half the speed of AES-GCM."""

MACS: Final = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")
SIGNATURES: Final = (
    "ssh-ed25519",
    "sk-ssh-ed25519@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
"""No SHA-1, no CBC, no DSA, and no compression, which would let 1 KB grow to 1 MB here."""


class Doorman:
    """All connections: how many there may be, and their tasks."""

    def __init__(self, core: Core, tasks: asyncio.TaskGroup) -> None:
        self.core = core
        self._tasks = tasks
        self._strangers: set[Gate] = set()
        self._known: dict[Gate, str] = {}
        self._channels: Counter[str] = Counter()
        self._is_closing = False
        self._changed = asyncio.Event()

    def enter(self, gate: Gate) -> bool:
        """Whether there is room for one more."""
        has_room = len(self._strangers) < STRANGERS and len(self._strangers) + len(self._known) < CONNECTIONS
        self._strangers.add(gate)
        return has_room and not self._is_closing

    def let_in(self, gate: Gate, project: str) -> bool:
        """It has proven who it is; whether its project has room for one more."""
        self._strangers.discard(gate)
        has_room = sum(of == project for of in self._known.values()) < PER_PROJECT
        self._known[gate] = project
        return has_room

    def left(self, gate: Gate) -> None:
        """It is gone."""
        self._strangers.discard(gate)
        self._known.pop(gate, None)
        self._changed.set()

    def channel_opened(self, project: str) -> bool:
        """Count one more of a project, if it may have one more."""
        if self._channels[project] >= PROJECT_CHANNELS:
            return False
        self._channels[project] += 1
        return True

    def has_fast_channel(self, project: str) -> bool:
        """Whether the channel that was counted last may have a large window."""
        return self._channels[project] <= PROJECT_FAST_CHANNELS

    def channels_closed(self, project: str, count: int) -> None:
        """Count so many less."""
        self._channels[project] -= count
        if self._channels[project] <= 0:
            del self._channels[project]

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task whose failure is logged and ends nothing else."""
        task = self._tasks.create_task(_guarded(work, name), name=name)
        task.add_done_callback(lambda _: work.close())  # one that was cancelled before it began
        return task

    async def close(self) -> None:
        """Say goodbye, and wait a moment for the connections to go."""
        self._is_closing = True
        for gate in (*self._strangers, *self._known):
            gate.say_goodbye()
        try:
            async with asyncio.timeout(GOODBYE_S):
                while self._strangers or self._known:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            for gate in (*self._strangers, *self._known):
                gate.drop()


async def _guarded(work: Coroutine[Any, Any, None], name: str) -> None:
    try:
        await work
    except Exception as error:  # noqa: BLE001 - the task's outermost frame: it must not end the server
        report(name, error)


@asynccontextmanager
async def open_ssh(settings: Settings, core: Core) -> AsyncGenerator[SshFacts]:
    """Take SSH connections for the body's time. A port that cannot be had is a warning: HTTP goes on without.

    Raises: EngineFailure when the host key cannot be made or read.
    """
    host = settings.ssh_host or settings.host
    if settings.ssh_port == 0:
        yield SshFacts()
        return
    key = ensure_host_key(settings.data_dir)
    try:
        sock = bind(host, settings.ssh_port)
    except OSError as error:
        why = f"port {settings.ssh_port} on {host} " + (
            "is in use by another program" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror}"
        )
        log.warning("no SSH: %s; choose another with COVE_SSH_PORT, or 0 for none", why)
        yield SshFacts(host=host, port=settings.ssh_port, host_key=public_line(key), missing=why)
        return
    # asyncssh logs commands and variables of the users, which may hold secrets.
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    async with asyncio.TaskGroup() as tasks:
        doorman = Doorman(core, tasks)
        acceptor = await _listen(sock, key, doorman)
        log.info("ssh: listening on %s port %d", host, settings.ssh_port)
        try:
            yield SshFacts(listening=True, host=host, port=settings.ssh_port, host_key=public_line(key), missing="")
        finally:
            acceptor.close()
            await doorman.close()


def bind(host: str, port: int) -> socket.socket:
    """The listening socket. Raises: OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


async def _listen(sock: socket.socket, key: asyncssh.SSHKey, doorman: Doorman) -> asyncssh.SSHAcceptor:
    try:
        return await asyncssh.listen(
            sock=sock,
            server_factory=lambda: Gate(doorman),
            server_host_keys=[key],
            server_version="Cove",
            config=None,
            kex_algs=KEX,
            encryption_algs=CIPHERS,
            mac_algs=MACS,
            compression_algs=("none",),
            signature_algs=SIGNATURES,
            login_timeout=LOGIN_S,
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=KEEPALIVES,
            public_key_auth=True,
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_host=None,
            x509_trusted_certs=None,
            agent_forwarding=False,
            x11_forwarding=False,
            allow_pty=True,
            line_editor=False,
            sftp_factory=None,
            allow_scp=False,
            encoding=None,
        )
    except (OSError, ValueError) as error:
        sock.close()
        raise EngineFailure("the SSH server could not be started", internal=str(error)) from error
