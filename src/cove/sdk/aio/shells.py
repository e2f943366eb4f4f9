"""Long-lived shells, awaited. The twin of `cove.sdk.shells`; a test compares the two."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Self

import anyio

from cove.sdk import shell_calls
from cove.sdk.aio.jobs import Job, Running
from cove.sdk.aio.opening import Starting
from cove.sdk.errors import Error, Gone, NotFound, SandboxGone
from cove.sdk.models import CommandInfo
from cove.sdk.results import Result, checked
from cove.sdk.shell_calls import ShellInfo
from cove.sdk.transport import Call
from cove.sdk.units import Duration

if TYPE_CHECKING:
    from cove.sdk.aio.client import Client


class Shell:
    """One bash, or sh, in a sandbox: directory, variables, functions and jobs last from one command to the next.

    Get one from `box.shell()`, which an `async with` ends, or from `box.shells()`. Commands run one after the other, in
    the order in which they came; several tasks may call. It outlives this program and the server's restarts.
    """

    def __init__(self, ref: str, shell_id: str, *, client: Client, info: ShellInfo | None = None) -> None:
        self._id = shell_id
        self._ref = ref
        self._client = client
        self._info = info

    @property
    def id(self) -> str:
        """Such as `s0123456789ab`."""
        return self._id

    @property
    def info(self) -> ShellInfo:
        """The shell as it was when the server last answered. Raises: RuntimeError (it has not yet)."""
        if self._info is None:
            raise RuntimeError("nothing is known of this shell yet: await shell.refresh()")
        return self._info

    async def refresh(self) -> ShellInfo:
        """Ask the server again.

        Raises: NotFound (closed), Gone (the sandbox has ended).
        """
        self._info = await self._client.call(shell_calls.shell(self._ref, self._id))
        return self._info

    async def cwd(self) -> str:
        """Return the directory that it is in now."""
        return (await self.refresh()).cwd

    async def run(
        self,
        command: str,
        *,
        timeout: Duration | None = None,  # noqa: ASYNC109 - the command's, kept by the server
        check: bool = False,
    ) -> Result:
        """Run a command to its end, after those that came before; as `box.run`, but here and with this shell's state.

        Its input is empty. `timeout` counts from its turn; then the command is ended, and the shell lives on. After
        `exit` the shell has ended: `why` of what waited is `canceled`. Cancelling ends the command.

        Raises: Conflict (the shell has ended, or 64 commands wait), CommandFailed (with `check`).
        """
        result = await self._client.call(shell_calls.run(self._ref, self._id, command, timeout=timeout))
        return checked(result) if check else result

    def stream(self, command: str, *, timeout: Duration | None = None) -> Running:
        """Run a command and read its output as it is written, all of it; it is ended when you stop reading."""
        return Running(self._client, shell_calls.stream(self._ref, self._id, command, timeout=timeout))

    def start(self, command: str, *, timeout: Duration | None = None, keep_bytes: int | None = None) -> Starting:
        """Queue a command: `await` it for its `Job`, or use it in `async with` or `async for` right away.

        Its `Job` is that of `box.start`; killed while it waits, it never runs. The sandbox keeps the last `keep_bytes`
        of its output (4 KiB to 16 MiB, 1 MiB if None), both streams together.
        """
        call = shell_calls.start(self._ref, self._id, command, timeout=timeout, keep_bytes=keep_bytes)
        return Starting(self._start(call))

    async def _start(self, call: Call[CommandInfo]) -> Job:
        info = await self._client.call(call)
        return Job(self._ref, info.id, client=self._client, info=info)

    async def signal(self, signal: str | int = "INT") -> None:
        """Send a signal to what runs, as from a terminal: INT is Ctrl-C. The shell lives on.

        Raises: Conflict (nothing runs).
        """
        await self._client.call(shell_calls.signal(self._ref, self._id, signal))

    async def close(self) -> None:
        """End the shell and all that it started; closed already: nothing happens."""
        with suppress(NotFound, Gone, SandboxGone):
            await self._client.call(shell_calls.close(self._ref, self._id))

    async def __aenter__(self) -> Self:
        """Return the shell itself."""
        return self

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """End the shell, also when the task is cancelled. An error on its way out is not replaced by a failure to."""
        try:
            with anyio.CancelScope(shield=True):
                await self.close()
        except Error as failure:
            if error is None:
                raise
            error.add_note(f"shell {self._id} was not closed: {failure}")

    def __repr__(self) -> str:
        """Return id and program."""
        return f"<Shell {self._id}{f' {self._info.program}' if self._info else ''}>"
