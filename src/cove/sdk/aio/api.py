"""The module-level functions of `cove.aio`: the same as a client's, on this event loop's default client."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Mapping, Sequence

from cove.sdk.aio.client import Client, close_default, default_client
from cove.sdk.aio.opening import Opening
from cove.sdk.aio.sandbox import Sandbox
from cove.sdk.credential_calls import Wishes
from cove.sdk.models import Image
from cove.sdk.network_calls import Policy
from cove.sdk.units import UNSET, Duration, Size, Unset


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
) -> Opening[Sandbox]:
    """Make a sandbox: `await` it, or `async with` it; then a command can run in it.

    In an `async with` it is deleted at the end, unless `keep=True`. What is None is the server's default: 1 cpu,
    512 MiB of memory, 4 GiB of disk, no end, paused after 30 idle minutes.

    The arguments are those of `cove.create`.

    Cancelling it drops the request; a sandbox that the server had made by then is deleted by its idle timer or by you.

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


async def get(ref: str) -> Sandbox:
    """Return the sandbox with this id or name. Raises: NotFound."""
    return await default_client().get(ref)


def list(  # noqa: A001, PLR0913 - `cove.list` is the name people expect; one keyword for each filter
    *,
    state: str | Sequence[str] | None = None,
    image: str | None = None,
    driver: str | None = None,
    name: str | None = None,
    metadata: Mapping[str, str] | None = None,
    page_size: int = 100,
) -> AsyncIterator[Sandbox]:
    """Yield the sandboxes that match, newest first. `state` None: all that have not ended."""
    return default_client().list(
        state=state, image=image, driver=driver, name=name, metadata=metadata, page_size=page_size
    )


async def images() -> builtins.list[Image]:
    """Return the images that sandboxes can be made from."""
    return await default_client().images()


async def close() -> None:
    """Close the idle connections of this event loop's default client; best before the loop ends."""
    await close_default()
