"""A connection to one server, awaited. The twin of `cove.sdk.client`."""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
from anyio.lowlevel import RunVar

from cove.sdk import calls, config, image_calls, models, server_calls, ssh_calls
from cove.sdk.aio.opening import Opening
from cove.sdk.client import SUCCESS, parsed, unreachable_hint, with_key_hint
from cove.sdk.errors import Error, Unreachable, from_answer
from cove.sdk.models import Image, Key, Project, SshKey
from cove.sdk.transport import STREAM_SILENCE_S, AsyncResponse, Call, Retries
from cove.sdk.units import UNSET, Duration, Size, Unset

if TYPE_CHECKING:
    from cove.sdk.account_models import Quota
    from cove.sdk.aio.accounts import Account
    from cove.sdk.aio.audit import Audit
    from cove.sdk.aio.credentials import ProjectCredentials, Services
    from cove.sdk.aio.images import Images
    from cove.sdk.aio.networks import NetworkProfiles
    from cove.sdk.aio.sandbox import Sandbox
    from cove.sdk.aio.snapshots import Snapshots
    from cove.sdk.aio.templates import Templates
    from cove.sdk.aio.transport import AioTransport
    from cove.sdk.aio.webhooks import Webhooks
    from cove.sdk.aio.websocket import WebSocket
    from cove.sdk.credential_calls import Wishes
    from cove.sdk.network_calls import Policy

T = TypeVar("T")


class Client:
    """A server and a key to it, for one event loop. Close it, or use it in an `async with`.

    Args:
        url: `http://…`, `https://…` or `unix:/path`; None: as configured (see docs/reference/sdk.md, "Where").
        api_key: the key; None: as configured. A local socket needs none.

    Raises: BadRequest (a configuration file or address is wrong), Unauthorized (a key would go where it must not).
    """

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        self.target = config.resolve(url, api_key)
        self.last_headers: Mapping[str, str] = {}
        self._transport: AioTransport | None = None

    def create(  # noqa: PLR0913 - one keyword for each property of a sandbox
        self,
        image: str = "base",
        *,
        name: str | None = None,
        cpus: float | None = None,
        memory: Size | None = None,
        disk: Size | None = None,
        pids: int | None = None,
        env: Mapping[str, str] | None = None,
        hostname: str | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: Duration | None = None,
        timeout_counts: str | None = None,
        idle_timeout: Duration | Unset | None = UNSET,
        idle_action: str | None = None,
        auto_resume: bool = True,
        driver: str | None = None,
        run_entrypoint: bool = False,
        credentials: Wishes | None = None,
        io_read: Size | None = None,
        io_write: Size | None = None,
        network: Policy | None = None,
        keep: bool = False,
        idempotency_key: str | None = None,
    ) -> Opening[Sandbox]:
        """Make a sandbox; await it, or `async with` it. See `cove.create`."""
        call = calls.create(
            image,
            name=name,
            cpus=cpus,
            memory=memory,
            disk=disk,
            pids=pids,
            env=env,
            hostname=hostname,
            metadata=metadata,
            timeout=timeout,
            timeout_counts=timeout_counts,
            idle_timeout=idle_timeout,
            idle_action=idle_action,
            auto_resume=auto_resume,
            driver=driver,
            run_entrypoint=run_entrypoint,
            credentials=credentials,
            io_read=io_read,
            io_write=io_write,
            network=network,
            idempotency_key=idempotency_key,
        )
        return Opening(self._create(call, keep=keep))

    async def _create(self, call: Call[models.SandboxInfo], *, keep: bool) -> Sandbox:
        from cove.sdk.aio.sandbox import Sandbox

        info = await self.call(call)
        return Sandbox(info.id, client=self, info=info, keep=keep)

    async def get(self, ref: str) -> Sandbox:
        """Return the sandbox with this id or name. Leaving an `async with` on it does not delete it.

        Raises: NotFound. An ended sandbox is found for 30 days, and its `state` says so.
        """
        from cove.sdk.aio.sandbox import Sandbox

        info = await self.call(calls.get(ref))
        return Sandbox(info.id, client=self, info=info, keep=True)

    async def list(  # noqa: PLR0913 - one keyword for each filter
        self,
        *,
        state: str | Sequence[str] | None = None,
        image: str | None = None,
        driver: str | None = None,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        page_size: int = 100,
    ) -> AsyncIterator[Sandbox]:
        """Yield the sandboxes that match, newest first; further pages are fetched as the iteration reaches them.

        `state` None: all that have not ended.
        """
        from cove.sdk.aio.sandbox import Sandbox

        cursor: str | None = None
        while True:
            page, cursor = await self.call(
                calls.list_page(
                    state=state,
                    image=image,
                    driver=driver,
                    name=name,
                    metadata=metadata,
                    limit=page_size,
                    cursor=cursor,
                )
            )
            for wire in page:
                info = models.sandbox(wire)
                yield Sandbox(info.id, client=self, info=info, keep=True)
            if cursor is None:
                return

    async def images(self) -> builtins.list[Image]:
        """Return the images that sandboxes can be made from."""
        return await self.call(image_calls.images())

    @property
    def image(self) -> Images:
        """What can be done with images: pull, build, import, export, verify, remove."""
        from cove.sdk.aio.images import Images

        return Images(self)

    @property
    def account(self) -> Account:
        """What was used, what it costs, and who may use how much."""
        from cove.sdk.aio.accounts import Account

        return Account(self)

    @property
    def credentials(self) -> ProjectCredentials:
        """Keys that a project keeps for its sandboxes: list, set, remove."""
        from cove.sdk.aio.credentials import ProjectCredentials

        return ProjectCredentials(self)

    @property
    def services(self) -> Services:
        """The HTTPS APIs that credentials can be for: list, put, remove."""
        from cove.sdk.aio.credentials import Services

        return Services(self)

    @property
    def audit(self) -> Audit:
        """The audit trail: read it, follow it, export and verify it."""
        from cove.sdk.aio.audit import Audit

        return Audit(self)

    @property
    def network_profiles(self) -> NetworkProfiles:
        """Policies with a name, and what projects' sandboxes get unasked."""
        from cove.sdk.aio.networks import NetworkProfiles

        return NetworkProfiles(self)

    @property
    def snapshots(self) -> Snapshots:
        """Sandboxes at one instant: list, restore, export and import, delete. `box.snapshot()` takes one."""
        from cove.sdk.aio.snapshots import Snapshots

        return Snapshots(self)

    @property
    def templates(self) -> Templates:
        """Names for snapshots, with copies kept ready."""
        from cove.sdk.aio.templates import Templates

        return Templates(self)

    @property
    def webhooks(self) -> Webhooks:
        """Who is told of the project's events by signed POSTs."""
        from cove.sdk.aio.webhooks import Webhooks

        return Webhooks(self)

    async def server(self) -> dict[str, Any]:
        """Return what the server says of itself: version, drivers, capacity, isolation."""
        return await self.call(server_calls.server())

    async def shutdown(self, *, all: bool = False) -> dict[str, Any]:  # noqa: A002 - the wire's word
        """Stop the server; returns how many `sandboxes` go on: the next start takes them over. With `all` none does."""
        return await self.call(server_calls.shutdown(destroy_all=all))

    async def create_key(  # noqa: PLR0913 - one keyword for each property of a key
        self,
        name: str,
        *,
        project: str | None = None,
        scopes: Sequence[str] | None = None,
        timeout: Duration | None = None,  # noqa: ASYNC109 - the life of the key
        dialect: str | None = None,
        quota: Quota | None = None,
    ) -> Key:
        """Make an API key. Its secret, `.key`, is shown only in this answer. What it does counts for yours, too."""
        return await self.call(
            server_calls.create_key(name, project=project, scopes=scopes, timeout=timeout, dialect=dialect, quota=quota)
        )

    async def keys(self) -> builtins.list[Key]:
        """Return the keys, without their secrets."""
        return await self.call(server_calls.list_keys())

    async def revoke_key(self, key_id: str) -> None:
        """Make a key worthless, now."""
        await self.call(server_calls.revoke_key(key_id))

    async def ssh_keys(self) -> builtins.list[SshKey]:
        """Return the public keys that may log in to the project's sandboxes over SSH."""
        return await self.call(ssh_calls.list_ssh_keys())

    async def add_ssh_key(self, public_key: str, *, name: str | None = None, project: str | None = None) -> SshKey:
        """Let a public key, a line as in a `.pub` file, log in over SSH."""
        return await self.call(ssh_calls.add_ssh_key(public_key, name=name, project=project))

    async def remove_ssh_key(self, key_id: str) -> None:
        """Shut a public key out, for new logins."""
        await self.call(ssh_calls.remove_ssh_key(key_id))

    async def create_project(
        self, project_id: str, *, default_driver: str | None = None, drivers: Sequence[str] = ()
    ) -> Project:
        """Make a project (a tenant). `drivers`: what its sandboxes may use, empty: any."""
        return await self.call(server_calls.create_project(project_id, default_driver=default_driver, drivers=drivers))

    async def change_project(
        self, project_id: str, *, default_driver: str | Unset | None = UNSET, drivers: Sequence[str] | Unset = UNSET
    ) -> Project:
        """Change which drivers a project's new sandboxes may use, and which they get unasked."""
        return await self.call(server_calls.change_project(project_id, default_driver=default_driver, drivers=drivers))

    async def projects(self) -> builtins.list[Project]:
        """Return all projects."""
        return await self.call(server_calls.list_projects())

    async def call(self, call: Call[T]) -> T:
        """Send `call` and return its parsed answer. For the SDK's own parts.

        Raises: whatever `cove.sdk.errors` has for the answer; Unreachable.
        """
        retries = Retries(call.retry)
        while True:
            try:
                response = await self._open(call, None)
                try:
                    body = b"".join([piece async for piece in response.chunks()])
                finally:
                    await response.close()
            except Error as error:
                delay = retries.delay_s(error)
                if delay is None:
                    raise
                await anyio.sleep(delay)
            else:
                return parsed(call, body)

    @asynccontextmanager
    async def open(self, call: Call[Any], *, events: bool = False) -> AsyncGenerator[AsyncResponse]:
        """Open an answer that is read as it arrives; leaving closes the connection. For the SDK's own parts."""
        over_tcp = events and not self.target.socket
        response = await self._open(call, STREAM_SILENCE_S if over_tcp else None)
        try:
            yield response
        finally:
            await response.close()

    async def websocket(self, call: Call[Any]) -> WebSocket:
        """Open a WebSocket. For the SDK's own parts. Raises: as `call`."""
        from cove.sdk.aio import websocket

        try:
            return await websocket.connect(self.target, call)
        except Unreachable as error:
            error.hint = error.hint or unreachable_hint(self.target, error)
            raise
        except Error as error:
            raise with_key_hint(error, self.target) from error

    async def close(self) -> None:
        """Close idle connections. The client can be used again."""
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close idle connections."""
        await self.close()

    async def _open(self, call: Call[Any], silence_s: float | None) -> AsyncResponse:
        if self._transport is None:
            from cove.sdk.aio.transport import AioTransport

            self._transport = AioTransport(self.target)
        try:
            response = await self._transport.send(
                call.method, call.target(), call.head(self.target.key), call.payload(), silence_s
            )
        except Unreachable as error:
            error.hint = error.hint or unreachable_hint(self.target, error)
            raise
        self.last_headers = response.headers
        if response.status in SUCCESS:
            return response
        try:
            body = b"".join([piece async for piece in response.chunks()])
        finally:
            await response.close()
        raise with_key_hint(from_answer(response.status, response.headers, body, self.target.url), self.target)


_default: RunVar[dict[config.Target, Client]] = RunVar("cove.aio clients")
"""One client for each event loop: connections cannot move between loops."""


def default_client() -> Client:
    """Return this event loop's client for what is configured now."""
    clients = _clients()
    target = config.resolve()
    client = clients.get(target)
    if client is None:
        client = clients[target] = Client()
    return client


async def close_default() -> None:
    """Close the idle connections of this event loop's default clients."""
    clients = _clients()
    while clients:
        await clients.popitem()[1].close()


def _clients() -> dict[config.Target, Client]:
    try:
        return _default.get()
    except LookupError:
        clients: dict[config.Target, Client] = {}
        _default.set(clients)
        return clients
