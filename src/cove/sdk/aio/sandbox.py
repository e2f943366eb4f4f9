"""One sandbox, awaited. The twin of `cove.sdk.sandbox`; a test compares the two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import anyio

from cove.sdk import calls, ports, shell_calls, tcp_calls, terminal_calls, watch_calls
from cove.sdk.aio.coding import Coding
from cove.sdk.aio.connections import Connection
from cove.sdk.aio.credentials import Credentials
from cove.sdk.aio.files import Files
from cove.sdk.aio.forwarding import Forward
from cove.sdk.aio.jobs import Job, Running
from cove.sdk.aio.life import Life
from cove.sdk.aio.opening import Opening, Starting
from cove.sdk.aio.shells import Shell
from cove.sdk.aio.terminals import Terminal
from cove.sdk.aio.watches import Watch
from cove.sdk.calls import Command
from cove.sdk.errors import Error, Gone, NotFound
from cove.sdk.models import CommandInfo, Isolation, SandboxInfo, TerminalInfo, Usage
from cove.sdk.ports import Port
from cove.sdk.results import Result, checked
from cove.sdk.shell_calls import ShellInfo
from cove.sdk.transport import Call
from cove.sdk.units import Duration
from cove.sdk.watch_calls import WatchInfo

if TYPE_CHECKING:
    from cove.sdk.aio.client import Client
    from cove.sdk.aio.networks import Network


class Sandbox(Coding, Life):
    """A sandbox on the server. Get one from `cove.create`, `cove.get` or `cove.list`.

    In a `with`, one from `create` is deleted at the end unless `keep=True`; one from `get` or `list` stays. Properties
    are as of the last answer: `refresh()` asks again. Every method raises `cove.Error`s; `Gone` says that it has ended.
    """

    def __init__(
        self, ref: str, *, client: Client | None = None, info: SandboxInfo | None = None, keep: bool = True
    ) -> None:
        if client is None:
            from cove.sdk.aio.client import default_client

            client = default_client()
        self.keep = keep
        self._ref = ref
        self._client = client
        self._info = info

    @classmethod
    def create(cls, image: str = "base", **settings: Any) -> Opening[Sandbox]:
        """Make a sandbox: the same as `cove.aio.create`, which has the settings."""
        from cove.sdk.aio.client import default_client

        return default_client().create(image, **settings)

    # ---- facts

    @property
    def info(self) -> SandboxInfo:
        """All facts, as of the last answer. Raises: RuntimeError (there was none yet: await `refresh()`)."""
        if self._info is None:
            raise RuntimeError("nothing is known of this sandbox yet: await box.refresh()")
        return self._info

    @property
    def id(self) -> str:
        """The id, such as `sb_0123456789abcdef`."""
        return self.info.id

    @property
    def name(self) -> str:
        """The name, such as `brave-otter`."""
        return self.info.name

    @property
    def state(self) -> str:
        """`pending`, `running`, `paused`, `hibernated`, `stopping`, `terminated` or `failed`, as of the last answer."""
        return self.info.state

    @property
    def isolation(self) -> Isolation | None:
        """The isolation it really has; `.missing` says what this machine could not give."""
        return self.info.isolation

    @property
    def metadata(self) -> dict[str, str]:
        """Your own labels."""
        return self.info.metadata

    @property
    def files(self) -> Files:
        """Its files."""
        return Files(self._ref, self._client)

    @property
    def credentials(self) -> Credentials:
        """Keys that it uses and never has: list, set, remove."""
        return Credentials(self._ref, self._client)

    @property
    def network(self) -> Network:
        """What it may reach."""
        from cove.sdk.aio.networks import Network

        return Network(self._ref, self._client)

    async def refresh(self) -> SandboxInfo:
        """Ask the server again."""
        self._info = await self._client.call(calls.get(self._ref))
        return self._info

    async def usage(self) -> Usage:
        """Return what it has used up to now."""
        return (await self.refresh()).usage

    # ---- commands

    async def run(  # noqa: PLR0913 - one keyword for each property of a command
        self,
        command: Command,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: Duration | None = None,  # noqa: ASYNC109 - the command's, kept by the server
        stdin: str | bytes | None = None,
        check: bool = False,
    ) -> Result:
        """Run a command to its end and return its result. A str goes through `/bin/sh -c`, a list is an argv.

        An exit code never raises, unless `check=True`: then CommandFailed carries the result. `timeout` None means what
        it says: no limit. Each output stream keeps its last 10 MiB (`r.out_dropped`): `stream` has no such limit.
        Cancelling drops the connection, and the server kills the command then.
        """
        body = calls.exec_body(command, env=env, cwd=cwd, user=user, timeout=timeout, stdin=stdin)
        result = await self._client.call(calls.run(self._ref, body))
        return checked(result) if check else result

    def stream(  # noqa: PLR0913 - one keyword for each property of a command
        self,
        command: Command,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: Duration | None = None,
        stdin: str | bytes | None = None,
    ) -> Running:
        """Run a command and read its output as it is written, all of it; it is killed when you stop reading.

        `async with box.stream("make") as running: async for chunk in running: …`, then `running.result`. The command
        starts when the `async with`, or without one the iteration, begins.
        """
        body = calls.exec_body(command, env=env, cwd=cwd, user=user, timeout=timeout, stdin=stdin)
        return Running(self._client, calls.stream(self._ref, body))

    def start(  # noqa: PLR0913 - one keyword for each property of a command
        self,
        command: Command,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: Duration | None = None,
        stdin: bool = False,
        keep_bytes: int | None = None,
    ) -> Starting:
        """Start a background command that outlives this program: `await` it, `async with` it or `async for` over it.

        `stdin=True` keeps its input open for `job.write`.

        The sandbox keeps the last `keep_bytes` of its output (4 KiB to 16 MiB, 1 MiB if None), both streams together.
        """
        body = calls.exec_body(command, env=env, cwd=cwd, user=user, timeout=timeout)
        if stdin:
            body["stdin_open"] = True
        if keep_bytes is not None:
            body["keep_bytes"] = keep_bytes
        return Starting(self._start(calls.start(self._ref, body)))

    async def _start(self, call: Call[CommandInfo]) -> Job:
        info = await self._client.call(call)
        return Job(self._ref, info.id, client=self._client, info=info)

    async def attach(self, job_id: str, *, after: int = 0) -> Job:
        """Return a background command by its id; iterating it yields the output from cursor `after` on.

        Raises: NotFound.
        """
        info = await self._client.call(calls.job(self._ref, job_id))
        return Job(self._ref, job_id, client=self._client, seen=after, info=info)

    async def jobs(self) -> list[Job]:
        """Return the background commands that the sandbox still knows, running or ended."""
        infos = await self._client.call(calls.jobs(self._ref))
        return [Job(self._ref, info.id, client=self._client, info=info) for info in infos]

    # ---- shells

    def shell(
        self,
        *,
        program: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
    ) -> Opening[Shell]:
        """Open a shell whose directory, variables, functions and jobs last: `await` it, or `async with` it.

        `program` is `bash` or `sh`; None: bash, or sh in an image that has no bash.

        Raises: Conflict (64 shells are open), Unsupported (the sandbox was made by an older server).
        """
        return Opening(self._shell(shell_calls.open_shell(self._ref, program=program, env=env, cwd=cwd, user=user)))

    async def _shell(self, call: Call[ShellInfo]) -> Shell:
        info = await self._client.call(call)
        return Shell(self._ref, info.id, client=self._client, info=info)

    async def shells(self) -> list[Shell]:
        """Return the shells of the sandbox; an ended one is there until it is closed."""
        infos = await self._client.call(shell_calls.shells(self._ref))
        return [Shell(self._ref, info.id, client=self._client, info=info) for info in infos]

    # ---- watches

    def watch(
        self,
        path: str,
        *,
        recursive: bool = True,
        kinds: Iterable[str] | None = None,
        glob: str | None = None,
        keep_events: int | None = None,
    ) -> Opening[Watch]:
        """Watch a directory: what happens from now on is kept, and yielded by iterating. An `async with` ends it.

        `kinds`: some of `create`, `modify`, `attributes`, `remove`, `move`; None: all. `glob`: `"*.py"` by name,
        `"src/**/*.py"` by path below it. The last `keep_events` are kept (16 to 65536, 4096 if None).

        Raises: FileMissing (no such directory), Conflict (64 watches, or too many directories).
        """
        return Opening(
            self._watch(
                watch_calls.start(self._ref, path, recursive=recursive, kinds=kinds, glob=glob, keep_events=keep_events)
            )
        )

    async def _watch(self, call: Call[WatchInfo]) -> Watch:
        info = await self._client.call(call)
        return Watch(self._ref, info.id, client=self._client, info=info)

    async def watches(self) -> list[Watch]:
        """Return the watches of the sandbox, ended ones too; each would yield from its beginning."""
        infos = await self._client.call(watch_calls.watches(self._ref))
        return [Watch(self._ref, info.id, client=self._client, info=info) for info in infos]

    # ---- ports
    async def ports(self) -> list[Port]:
        """Return the ports on which something listens, and those that are exposed."""
        return await self._client.call(ports.ports(self._ref))

    async def expose(self, port: int, *, access: str | None = None, host_port: int | bool | None = None) -> Port:
        """Choose who may reach a port: `public`, whoever has a new `token` (`.link` has it), or `key` holders alone.

        `host_port`: a port of the server's machine that leads there, for raw TCP and without a key: this one, True for
        any that is free, False for none. What is None stays as it is; without anything it is opened to the `public`.
        """
        if access is None and host_port is None:
            access = "public"
        return await self._client.call(ports.expose(self._ref, port, access, host_port=host_port))

    async def unexpose(self, port: int) -> None:
        """Let only keys of the project reach a port again. Its token ends."""
        await self._client.call(ports.unexpose(self._ref, port))

    async def url(self, port: int) -> str:
        """Return the address of a port: HTTP and WebSockets, under a host name of its own."""
        return (await self._client.call(ports.port(self._ref, port))).url

    # ---- terminals

    def terminal(  # noqa: PLR0913 - one keyword for each property of a terminal
        self,
        command: Command | None = None,
        *,
        cols: int = 80,
        rows: int = 24,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        keep_bytes: int | None = None,
        keep: bool = False,
    ) -> Opening[Terminal]:
        """Run a program on a terminal of its own: the user's login shell, or `command`.

        `await` it or `async with` it. Leaving the `async with` ends it unless `keep=True`. The sandbox
        keeps the last `keep_bytes` of its output (4 KiB to 16 MiB, 1 MiB if None) for those who attach later.
        """
        body = terminal_calls.open_body(
            command, cols=cols, rows=rows, env=env, cwd=cwd, user=user, keep_bytes=keep_bytes
        )
        return Opening(self._terminal(terminal_calls.open_terminal(self._ref, body), keep=keep))

    async def _terminal(self, call: Call[TerminalInfo], *, keep: bool) -> Terminal:
        info = await self._client.call(call)
        return Terminal(self._ref, info.id, client=self._client, info=info, keep=keep)

    async def attach_terminal(self, terminal_id: str, *, after: int = 0) -> Terminal:
        """Return a terminal by its id; iterating it yields the output from cursor `after` on, what is kept of it.

        Leaving an `async with` on it does not end it. Raises: NotFound.
        """
        info = await self._client.call(terminal_calls.terminal(self._ref, terminal_id))
        return Terminal(self._ref, terminal_id, client=self._client, cursor=after, info=info)

    async def terminals(self) -> list[Terminal]:
        """Return the terminals that the sandbox still knows, their programs running or ended."""
        infos = await self._client.call(terminal_calls.terminals(self._ref))
        return [Terminal(self._ref, info.id, client=self._client, info=info) for info in infos]

    # ---- ports

    def connect(self, port: int) -> Opening[Connection]:
        """Open a TCP connection to a port of the sandbox. Raises: Conflict (nothing listens there)."""
        return Opening(self._connect(Connection(self._ref, port, client=self._client)))

    async def _connect(self, made: Connection) -> Connection:
        return await made.__aenter__()

    def forward(self, port: int, *, local_port: int = 0, host: str = "127.0.0.1") -> Opening[Forward]:
        """Let a port of this machine lead to a port of the sandbox, for every program here: databases, SSH, HTTP.

        `async with box.forward(5432) as local: …` with `local.host`, `local.port`. 0 takes any local port that is free.
        Raises: Conflict (the local port is taken).
        """
        return Opening(self._forward(tcp_calls.port_of(port), host, local_port))

    async def _forward(self, port: int, host: str, local_port: int) -> Forward:
        info = await self.refresh()
        return await Forward(self._client.target, info.id, port, host=host, local_port=local_port).__aenter__()

    # ---- its end

    async def __aenter__(self) -> Self:
        """Return the sandbox itself."""
        return self

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Delete the sandbox unless `keep`; one that has ended by itself is no error.

        An error on its way out of the `with` is not replaced by a failure to delete: that becomes a note of it.
        """
        if self.keep:
            return
        try:
            with anyio.CancelScope(shield=True):
                await self.destroy()
        except (Gone, NotFound):
            pass
        except Error as failure:
            if error is None:
                raise
            error.add_note(f"sandbox {self._ref} was not deleted: {failure}")

    def __repr__(self) -> str:
        """Name, id and last known state."""
        if self._info is None:
            return f"<Sandbox {self._ref}>"
        return f"<Sandbox {self._info.name} {self._info.id} {self._info.state}>"
