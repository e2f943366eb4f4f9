"""The client of one sandbox's agent: what the engine and the core use. No policy; it does what it is told.

The operations live in a module for each noun; here is the connection's life.
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import AbstractAsyncContextManager
from typing import Final

from cove.agentlink.channel import Refusal
from cove.agentlink.commands import CommandCalls
from cove.agentlink.connection import Connection
from cove.agentlink.dial import DialStream, PortsReply, dial, open_dial
from cove.agentlink.files import FileCalls, FileReader
from cove.agentlink.kernels import KernelCalls
from cove.agentlink.refusals import command_error
from cove.agentlink.shells import ShellCalls
from cove.agentlink.terminals import TerminalCalls, TerminalStream
from cove.agentlink.trees import TreeCalls
from cove.agentlink.watches import WatchCalls
from cove.agentlink.wire import AgentHello, AgentStats, ClaimedEnvironment, Empty, Revived
from cove.model.errors import AgentTimeout, Conflict, CoveError, SandboxGone, Unsupported

__all__ = [
    "AgentClient",
    "AgentHello",
    "AgentStats",
    "ClaimedEnvironment",
    "DialStream",
    "FileReader",
    "Revived",
    "TerminalStream",
]

FEATURE: Final = "session"
"""What an agent says that keeps calls over a suspension, and that knows `revive` and `environment`."""


class AgentClient(ShellCalls, TerminalCalls, KernelCalls, CommandCalls, FileCalls, TreeCalls, WatchCalls):
    """One connection to an agent. Made by `connect`; usable from one event loop; calls may run concurrently (1024)."""

    def __init__(self, connection: Connection, hello: AgentHello) -> None:
        self._connection = connection
        self.hello = hello

    @classmethod
    async def connect(cls, sock: socket.socket, *, timeout_s: float = 5.0) -> AgentClient:
        """Take over a connected, non-blocking socket and exchange HELLO. The socket is ours from here, also on failure.

        Raises: SandboxGone (closed), AgentTimeout (silent for `timeout_s`), AgentViolation.
        """
        connection = Connection()
        try:
            async with asyncio.timeout(timeout_s):
                await connection.connect(sock)
                hello = await connection.greet()
        except BaseException as error:
            connection.abort(SandboxGone("the sandbox is gone", internal="no HELLO"))
            if not connection.is_made:
                sock.close()
            if isinstance(error, TimeoutError):
                raise AgentTimeout("the sandbox did not answer in time", internal="no HELLO") from error
            if isinstance(error, OSError):
                raise SandboxGone("the sandbox is gone", internal=f"agent socket: {error}") from error
            raise
        return cls(connection, hello)

    @property
    def is_closed(self) -> bool:
        """Whether the connection can carry no more calls. Kept commands survive it.

        False while it is suspended: its calls, new ones too, wait for `resume_on`, so nobody may connect anew.
        """
        return self._connection.is_closed

    @property
    def is_suspended(self) -> bool:
        """Whether it is between `suspend` and `resume_on` or `drop`."""
        return self._connection.is_suspended

    async def wait_closed(self) -> None:
        """Return when the connection is gone. Cancelling leaves nothing behind."""
        await self._connection.wait_closed()

    def drop(self, reason: CoveError | None = None) -> None:
        """Close without waiting for it; open calls end with `reason`, None: SandboxGone. Idempotent."""
        self._connection.abort(reason or SandboxGone("the sandbox is gone", internal="dropped by us"))

    async def close(self) -> None:
        """Close; running attached commands are killed by the agent. Idempotent."""
        self._connection.abort(SandboxGone("the sandbox is gone", internal="closed by us"))
        await self._connection.wait_closed()

    async def ping(self, timeout_s: float = 2.0) -> float:
        """Seconds until the agent answered. Raises: AgentTimeout, SandboxGone, AgentViolation."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                await self._connection.ping()
        except TimeoutError as error:
            raise AgentTimeout("the sandbox did not answer in time", internal="ping") from error
        return time.perf_counter() - started

    async def claim(
        self, env: dict[str, str], workdir: str | None, hostname: str | None, user: str | None = None
    ) -> None:
        """Make an anonymous sandbox somebody's: default environment, working directory, host name, user. Once per life.

        Raises: Conflict (claimed before), BadRequest, AgentTimeout, SandboxGone, AgentViolation.
        """
        call: dict[str, object] = {"op": "claim", "env": env, "workdir": workdir, "hostname": hostname, "user": user}
        await self._command_call(call, Empty)

    def dial(self, port: int) -> AbstractAsyncContextManager[DialStream]:
        """A TCP connection to `port` inside. See `open_dial`."""
        return open_dial(self._connection, port)

    async def dial_stream(self, port: int) -> DialStream:
        """As `dial`, for a caller that closes the stream itself."""
        return await dial(self._connection, port)

    async def ports(self) -> PortsReply:
        """What listens inside where `dial` gets to. Raises: Unsupported (an agent that is older than the operation)."""
        if "ports" not in self.hello.features:
            raise Unsupported("this sandbox was made by an older Cove, whose agent cannot tell what listens")
        return await self._command_call({"op": "ports"}, PortsReply)

    async def suspend(self, timeout_s: float = 10.0) -> None:
        """Make the agent let go of its socket and this connection, with all calls of it open: nobody notices.

        The file `quiesce` must lie beside the socket before. Until `resume_on` or `drop`, calls wait, new ones within
        their own limits, and the limits of the others stand still. If this fails, the calls go on where the agent
        refused, and have ended otherwise. Other connections to this agent are closed.

        Raises: Conflict (an agent that is older than sessions, and calls in flight), AgentTimeout, SandboxGone,
        AgentViolation.
        """
        keeps = FEATURE in self.hello.features
        if not keeps and self._connection.has_calls:
            raise Conflict(
                "commands or transfers are under way in this sandbox, and its agent is of an older Cove, which cannot "
                "keep them: try again when they have ended",
            )
        try:
            await self._connection.suspend(timeout_s, keeps=keeps)
        except Refusal as refusal:
            raise command_error(refusal) from refusal

    async def resume_on(self, sock: socket.socket, timeout_s: float = 5.0) -> None:
        """Go on with a suspended session on a connected, non-blocking socket, which is ours from here.

        On failure every call has ended and the client is closed. Raises: AgentTimeout, SandboxGone (also: the agent
        does not know the session), AgentViolation.
        """
        await self._connection.resume(sock, timeout_s)

    async def revive(self, *, hostname: str | None, env: dict[str, str] | None, is_copy: bool) -> Revived:
        """In place of `claim`, after a restore: tell the agent what became of the sandbox.

        The calls that were in flight at the checkpoint are released: attached commands go on in the background, the
        others end. `is_copy`: it is another sandbox now. `env` is added to the default environment, `hostname` written
        where programs look for it, the machine id renewed, generators of random numbers told to reseed. Again with
        the same: nothing more happens.

        Raises: Conflict (revived before, with other data), BadRequest, Unsupported (an older agent), AgentTimeout,
        SandboxGone, AgentViolation.
        """
        call: dict[str, object] = {"op": "revive", "hostname": hostname, "env": env or {}, "copy": is_copy}
        return await self._command_call(call, Revived)

    async def environment(self) -> ClaimedEnvironment:
        """What commands start with. Raises: Unsupported (an older agent), AgentTimeout, SandboxGone, AgentViolation."""
        return await self._command_call({"op": "environment"}, ClaimedEnvironment)

    async def quiesce(self) -> None:
        """Make the agent drop its socket and connections, this one too, until the file `quiesce` is gone."""
        await self._command_call({"op": "quiesce"}, Empty)

    async def stats(self) -> AgentStats:
        """The agent's own use of its sandbox."""
        return await self._command_call({"op": "stats"}, AgentStats)
