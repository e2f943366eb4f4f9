"""A connection to one server, synchronous: sends calls, retries what may be retried, opens streams.

Nobody has to hold one: `cove.create` and its siblings use the default client of the process. `cove.connect(url=…)`
makes another for a second server.
"""

from __future__ import annotations

import builtins
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from cove.sdk import calls, config, server_calls, ssh_calls
from cove.sdk.errors import BadAnswer, Error, Unreachable, from_answer
from cove.sdk.transport import STREAM_SILENCE_S, Call, Lost, Response, Retries, Transport
from cove.sdk.units import UNSET, Duration, Size, Unset

if TYPE_CHECKING:
    from cove.sdk.account_models import Quota
    from cove.sdk.accounts import Account
    from cove.sdk.audit import Audit
    from cove.sdk.credential_calls import Wishes
    from cove.sdk.credentials import ProjectCredentials, Services
    from cove.sdk.images import Images
    from cove.sdk.models import Image, Key, Project, SshKey
    from cove.sdk.network_calls import Policy
    from cove.sdk.networks import NetworkProfiles
    from cove.sdk.sandbox import Sandbox
    from cove.sdk.snapshots import Snapshots
    from cove.sdk.templates import Templates
    from cove.sdk.webhooks import Webhooks
    from cove.sdk.websocket import WebSocket

T = TypeVar("T")

SUCCESS: Final = range(200, 300)
"""Everything else is an error, redirects too: a key is not carried to where an answer points."""


class Client:
    """A server and a key to it. Safe to use from several threads. Close it, or use it in a `with`.

    Args:
        url: `http://…`, `https://…` or `unix:/path`; None: as configured (see docs/reference/sdk.md, "Where").
        api_key: the key; None: as configured. A local socket needs none.

    Raises: BadRequest (a configuration file or address is wrong), Unauthorized (a key would go where it must not).
    """

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        self.target = config.resolve(url, api_key)
        self.last_headers: Mapping[str, str] = {}
        self._transport = _transport(self.target)

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
    ) -> Sandbox:
        """Make a sandbox and return when a command can run in it. See `cove.create`."""
        from cove.sdk.sandbox import Sandbox

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
        info = self.call(call)
        return Sandbox(info.id, client=self, info=info, keep=keep)

    def get(self, ref: str) -> Sandbox:
        """Return the sandbox with this id or name. Leaving a `with` on it does not delete it.

        Raises: NotFound. An ended sandbox is found for 30 days, and its `state` says so.
        """
        from cove.sdk.sandbox import Sandbox

        info = self.call(calls.get(ref))
        return Sandbox(info.id, client=self, info=info, keep=True)

    def list(  # noqa: PLR0913 - one keyword for each filter
        self,
        *,
        state: str | Sequence[str] | None = None,
        image: str | None = None,
        driver: str | None = None,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        page_size: int = 100,
    ) -> Iterator[Sandbox]:
        """Yield the sandboxes that match, newest first; further pages are fetched as the iteration reaches them.

        `state` None: all that have not ended.
        """
        from cove.sdk import models
        from cove.sdk.sandbox import Sandbox

        cursor: str | None = None
        while True:
            page, cursor = self.call(
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

    def images(self) -> builtins.list[Image]:
        """Return the images that sandboxes can be made from."""
        from cove.sdk import image_calls

        return self.call(image_calls.images())

    @property
    def image(self) -> Images:
        """What can be done with images: pull, build, import, export, verify, remove."""
        from cove.sdk.images import Images

        return Images(self)

    @property
    def account(self) -> Account:
        """What was used, what it costs, and who may use how much."""
        from cove.sdk.accounts import Account

        return Account(self)

    @property
    def credentials(self) -> ProjectCredentials:
        """Keys that a project keeps for its sandboxes: list, set, remove."""
        from cove.sdk.credentials import ProjectCredentials

        return ProjectCredentials(self)

    @property
    def services(self) -> Services:
        """The HTTPS APIs that credentials can be for: list, put, remove."""
        from cove.sdk.credentials import Services

        return Services(self)

    @property
    def audit(self) -> Audit:
        """The audit trail: read it, follow it, export and verify it."""
        from cove.sdk.audit import Audit

        return Audit(self)

    @property
    def network_profiles(self) -> NetworkProfiles:
        """Policies with a name, and what projects' sandboxes get unasked."""
        from cove.sdk.networks import NetworkProfiles

        return NetworkProfiles(self)

    @property
    def snapshots(self) -> Snapshots:
        """Sandboxes at one instant: list, restore, export and import, delete. `box.snapshot()` takes one."""
        from cove.sdk.snapshots import Snapshots

        return Snapshots(self)

    @property
    def templates(self) -> Templates:
        """Names for snapshots, with copies kept ready."""
        from cove.sdk.templates import Templates

        return Templates(self)

    @property
    def webhooks(self) -> Webhooks:
        """Who is told of the project's events by signed POSTs."""
        from cove.sdk.webhooks import Webhooks

        return Webhooks(self)

    def server(self) -> dict[str, Any]:
        """Return what the server says of itself: version, drivers, capacity, isolation."""
        return self.call(server_calls.server())

    def shutdown(self, *, all: bool = False) -> dict[str, Any]:  # noqa: A002 - the wire's word
        """Stop the server; returns how many `sandboxes` go on: the next start takes them over. With `all` none does."""
        return self.call(server_calls.shutdown(destroy_all=all))

    def create_key(  # noqa: PLR0913 - one keyword for each property of a key
        self,
        name: str,
        *,
        project: str | None = None,
        scopes: Sequence[str] | None = None,
        timeout: Duration | None = None,
        dialect: str | None = None,
        quota: Quota | None = None,
    ) -> Key:
        """Make an API key. Its secret, `.key`, is shown only in this answer. What it does counts for yours, too."""
        return self.call(
            server_calls.create_key(name, project=project, scopes=scopes, timeout=timeout, dialect=dialect, quota=quota)
        )

    def keys(self) -> builtins.list[Key]:
        """Return the keys, without their secrets."""
        return self.call(server_calls.list_keys())

    def revoke_key(self, key_id: str) -> None:
        """Make a key worthless, now."""
        self.call(server_calls.revoke_key(key_id))

    def ssh_keys(self) -> builtins.list[SshKey]:
        """Return the public keys that may log in to the project's sandboxes over SSH."""
        return self.call(ssh_calls.list_ssh_keys())

    def add_ssh_key(self, public_key: str, *, name: str | None = None, project: str | None = None) -> SshKey:
        """Let a public key, a line as in a `.pub` file, log in over SSH."""
        return self.call(ssh_calls.add_ssh_key(public_key, name=name, project=project))

    def remove_ssh_key(self, key_id: str) -> None:
        """Shut a public key out, for new logins."""
        self.call(ssh_calls.remove_ssh_key(key_id))

    def create_project(
        self, project_id: str, *, default_driver: str | None = None, drivers: Sequence[str] = ()
    ) -> Project:
        """Make a project (a tenant). `drivers`: what its sandboxes may use, empty: any."""
        return self.call(server_calls.create_project(project_id, default_driver=default_driver, drivers=drivers))

    def change_project(
        self, project_id: str, *, default_driver: str | Unset | None = UNSET, drivers: Sequence[str] | Unset = UNSET
    ) -> Project:
        """Change which drivers a project's new sandboxes may use, and which they get unasked."""
        return self.call(server_calls.change_project(project_id, default_driver=default_driver, drivers=drivers))

    def projects(self) -> builtins.list[Project]:
        """Return all projects."""
        return self.call(server_calls.list_projects())

    def call(self, call: Call[T]) -> T:
        """Send `call` and return its parsed answer. For the SDK's own parts.

        Raises: whatever `cove.sdk.errors` has for the answer; Unreachable.
        """
        retries = Retries(call.retry)
        while True:
            try:
                response = self._open(call, None)
                try:
                    body = b"".join(response.chunks())
                finally:
                    response.close()
            except Error as error:
                delay = retries.delay_s(error)
                if delay is None:
                    raise
                time.sleep(delay)
            else:
                return parsed(call, body)

    @contextmanager
    def open(self, call: Call[Any], *, events: bool = False) -> Generator[Response]:
        """Open an answer that is read as it arrives; leaving closes the connection. For the SDK's own parts."""
        over_tcp = events and not self.target.socket
        response = self._open(call, STREAM_SILENCE_S if over_tcp else None)
        try:
            yield response
        finally:
            response.close()

    def websocket(self, call: Call[Any]) -> WebSocket:
        """Open a WebSocket. For the SDK's own parts. Raises: as `call`."""
        from cove.sdk import websocket

        try:
            return websocket.connect(self.target, call)
        except Unreachable as error:
            error.hint = error.hint or unreachable_hint(self.target, error)
            raise
        except Error as error:
            raise with_key_hint(error, self.target) from error

    def close(self) -> None:
        """Close idle connections. The client can be used again."""
        self._transport.close()

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close idle connections."""
        self.close()

    def _open(self, call: Call[Any], silence_s: float | None) -> Response:
        try:
            response = self._transport.send(
                call.method, call.target(), call.head(self.target.key), call.payload(), silence_s
            )
        except Unreachable as error:
            error.hint = error.hint or unreachable_hint(self.target, error)
            raise
        self.last_headers = response.headers
        if response.status in SUCCESS:
            return response
        try:
            body = b"".join(response.chunks())
        finally:
            response.close()
        raise with_key_hint(from_answer(response.status, response.headers, body, self.target.url), self.target)


def parsed(call: Call[T], body: bytes) -> T:
    """Return the value of an answer's body. Raises: BadAnswer."""
    import json

    try:
        answer: T = call.parse(json.loads(body) if body else None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadAnswer(f"the server's answer cannot be read: {error!r}") from error
    return answer


def unreachable_hint(target: config.Target, error: BaseException) -> str:
    """Return what was tried, in order, and what to do about it."""
    if isinstance(error, Lost):
        return "what was asked may have been done: look before you ask again"
    if isinstance(error.__cause__, PermissionError):
        return "use sudo, or a key: sudo cove key create NAME, then set COVE_URL and COVE_API_KEY"
    tried = ", ".join(target.tried)
    if target.is_local:
        return f"start one: sudo cove serve    (tried, in order: {tried})"
    return f"the address is from {target.address.detail}    (tried, in order: {tried})"


def with_key_hint(error: Error, target: config.Target) -> Error:
    """Add to an error about the key where the key came from."""
    if error.code == "unauthorized":
        shown = f"the key is from {target.key_found.detail}" if target.key_found else "no key is set"
        error.hint = f"{shown}; make one on the server: sudo cove key create NAME, then set COVE_API_KEY"
    return error


def _transport(target: config.Target) -> Transport:
    if target.socket:
        from cove.sdk.local import LocalTransport

        return LocalTransport(target.socket)
    from cove.sdk.tcp import TcpTransport

    return TcpTransport(target.url)


_default: dict[tuple[int, config.Target], Client] = {}
"""By process too: a forked child must not speak on its parent's connections."""


def default_client() -> Client:
    """Return the process's client for what is configured now; a changed environment gives another one."""
    key = (os.getpid(), config.resolve())
    client = _default.get(key)
    if client is None:
        client = _default[key] = Client()
    return client


def close_default() -> None:
    """Close the idle connections of the default clients."""
    while _default:
        _default.popitem()[1].close()
