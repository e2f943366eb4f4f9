"""Long-lived shells, synchronous. The awaited twin is `aio/shells.py`; a test compares the two."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Self

from cove.sdk import shell_calls
from cove.sdk.errors import Error, Gone, NotFound, SandboxGone
from cove.sdk.jobs import Job, Running
from cove.sdk.results import Result, checked
from cove.sdk.units import Duration

if TYPE_CHECKING:
    from cove.sdk.client import Client
    from cove.sdk.shell_calls import ShellInfo


class Shell:
    """One bash, or sh, in a sandbox: directory, variables, functions and jobs last from one command to the next.

    Get one from `box.shell()`, which a `with` ends, or from `box.shells()`. Commands run one after the other, in the
    order in which they came; several threads may call. It outlives this program and the server's restarts.
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
        """The shell as it was when the server last answered."""
        return self._info or self.refresh()

    def refresh(self) -> ShellInfo:
        """Ask the server again.

        Raises: NotFound (closed), Gone (the sandbox has ended).
        """
        self._info = self._client.call(shell_calls.shell(self._ref, self._id))
        return self._info

    def cwd(self) -> str:
        """Return the directory that it is in now."""
        return self.refresh().cwd

    def run(self, command: str, *, timeout: Duration | None = None, check: bool = False) -> Result:
        """Run a command to its end, after those that came before; as `box.run`, but here and with this shell's state.

        Its input is empty. `timeout` counts from its turn; then the command is ended, and the shell lives on. After
        `exit` the shell has ended: `why` of what waited is `canceled`.

        Raises: Conflict (the shell has ended, or 64 commands wait), CommandFailed (with `check`).
        """
        result = self._client.call(shell_calls.run(self._ref, self._id, command, timeout=timeout))
        return checked(result) if check else result

    def stream(self, command: str, *, timeout: Duration | None = None) -> Running:
        """Run a command and read its output as it is written, all of it; it is ended when you stop reading."""
        return Running(self._client, shell_calls.stream(self._ref, self._id, command, timeout=timeout))

    def start(self, command: str, *, timeout: Duration | None = None, keep_bytes: int | None = None) -> Job:
        """Queue a command and return at once. Its `Job` is that of `box.start`; killed while it waits, it never runs.

        The sandbox keeps the last `keep_bytes` of its output (4 KiB to 16 MiB, 1 MiB if None), both streams together.
        """
        call = shell_calls.start(self._ref, self._id, command, timeout=timeout, keep_bytes=keep_bytes)
        info = self._client.call(call)
        return Job(self._ref, info.id, client=self._client, info=info)

    def signal(self, signal: str | int = "INT") -> None:
        """Send a signal to what runs, as from a terminal: INT is Ctrl-C. The shell lives on.

        Raises: Conflict (nothing runs).
        """
        self._client.call(shell_calls.signal(self._ref, self._id, signal))

    def close(self) -> None:
        """End the shell and all that it started; closed already: nothing happens."""
        with suppress(NotFound, Gone, SandboxGone):
            self._client.call(shell_calls.close(self._ref, self._id))

    def __enter__(self) -> Self:
        """Return the shell itself."""
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """End the shell. An error on its way out of the `with` is not replaced by a failure to."""
        try:
            self.close()
        except Error as failure:
            if error is None:
                raise
            error.add_note(f"shell {self._id} was not closed: {failure}")

    def __repr__(self) -> str:
        """Return id and program."""
        return f"<Shell {self._id}{f' {self._info.program}' if self._info else ''}>"
