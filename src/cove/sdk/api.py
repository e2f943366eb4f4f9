"""The module-level functions of `cove`: the same as a client's, on the default client."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from cove.sdk.client import Client, close_default, default_client
from cove.sdk.units import UNSET, Duration, Size, Unset

if TYPE_CHECKING:
    from cove.sdk.credential_calls import Wishes
    from cove.sdk.models import Image
    from cove.sdk.network_calls import Policy
    from cove.sdk.sandbox import Sandbox


def connect(url: str | None = None, api_key: str | None = None) -> Client:
    """Return a client for another server than the configured one, or to hold one of your own."""
    return Client(url, api_key)


def create(  # noqa: PLR0913 - one keyword for each property of a sandbox
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
    """Make a sandbox and return when a command can run in it.

    In a `with` it is deleted at the end, unless `keep=True`. What is None is the server's default.

    Args:
        image: name of an image (`cove image ls`).
        name: a name of your own; None: two words.
        cpus: processor cores, fractions allowed.
        memory: a hard limit, `"512m"` or bytes.
        disk: a hard limit for what the sandbox writes, likewise.
        pids: most processes and threads at a time.
        env: environment of every command.
        hostname: the host name inside; None: the name.
        metadata: labels of your own, for `cove.list(metadata=…)`.
        timeout: life from now, seconds or `"2h"`; None: no end.
        timeout_counts: `always`, or `running`: the timeout stands still while it is paused or hibernated.
        idle_timeout: so long without a command or file operation, `idle_action` happens; None or `"never"`: never.
        idle_action: `pause`, `hibernate`, `terminate` or `none`.
        auto_resume: work in it resumes it when it is paused or hibernated; False: that raises Conflict until you do.
        driver: the isolation driver; None: the project's or the operator's choice.
        run_entrypoint: start the program that the image names, as the background command `entrypoint`.
        credentials: keys by service (`{"openai": "sk-…"}`), which stay on the server; `["github"]`: the project's.
        io_read: bytes per second from the disk.
        io_write: bytes per second to the disk.
        network: `"none"`, `"open"`, a profile, `["api.example.com"]`, `{"rules": […]}` (docs/guides/network.md); None:
            the project's default, which is none unless changed.
        keep: do not delete at the end of a `with`.
        idempotency_key: None: made for you, so that a request that had to be repeated never makes two sandboxes.

    Raises: CapacityExceeded, QuotaExceeded, NotFound (image), BadRequest, Unreachable.
    """
    return default_client().create(
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
        keep=keep,
        idempotency_key=idempotency_key,
    )


def get(ref: str) -> Sandbox:
    """Return the sandbox with this id or name. Raises: NotFound."""
    return default_client().get(ref)


def list(  # noqa: A001, PLR0913 - `cove.list` is the name people expect; one keyword for each filter
    *,
    state: str | Sequence[str] | None = None,
    image: str | None = None,
    driver: str | None = None,
    name: str | None = None,
    metadata: Mapping[str, str] | None = None,
    page_size: int = 100,
) -> Iterator[Sandbox]:
    """Yield the sandboxes that match, newest first. `state` None: all that have not ended."""
    return default_client().list(
        state=state, image=image, driver=driver, name=name, metadata=metadata, page_size=page_size
    )


def images() -> builtins.list[Image]:
    """Return the images that sandboxes can be made from."""
    return default_client().images()


def close() -> None:
    """Close the default client's idle connections."""
    close_default()
