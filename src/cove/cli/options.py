"""Options and arguments that several commands share, and how they become values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cove.cli.failures import usage
from cove.cli.networking import network_of, network_options
from cove.cli.terminal import clean
from cove.cli.tree import complete_box, complete_image
from cove.sdk.errors import NotFound, RegistryError

if TYPE_CHECKING:
    from cove.sdk.client import Client
    from cove.sdk.sandbox import Sandbox

KEY_BYTES = 8192
IDLE_ACTIONS = ("pause", "hibernate", "terminate", "none")
F = TypeVar("F", bound=Callable[..., Any])
SANDBOX_FIELDS = (
    "id", "name", "project", "state", "state_note", "image", "image_used", "image_digest", "image_note", "driver",
    "isolation", "cpus", "memory_mib", "disk_mib", "pids", "io_read_mbps", "io_write_mbps", "metadata", "dialect",
    "created_by", "created_at", "expires_at", "timeout_counts", "time_left_s", "idle_timeout_s", "idle_action",
    "auto_resume", "last_active_at", "create_ms", "source", "ended_at", "end_reason", "end_detail", "came_from",
    "rolled_back_to", "rolled_back_at", "kept", "kept_bytes", "usage",
)  # fmt: skip
"""Fields of a sandbox as the API names them (docs/reference/native-api.md)."""


def box_argument(*, required: bool = True, nargs: int = 1) -> Callable[[F], F]:
    """Add the argument BOX, completed from the live sandboxes."""
    name = "box" if nargs == 1 else "boxes"
    return click.argument(name, metavar="BOX", required=required, nargs=nargs, shell_complete=complete_box)


life_counts_option = click.option(
    "--life-counts",
    "timeout_counts",
    type=click.Choice(["always", "running"]),
    metavar="WHEN",
    help="running: --life stands still while it is paused or hibernated. Default: the server's, or the source's.",
)


def create_options(function: Any) -> Any:
    """Add the options of a new sandbox."""
    function = network_options(function)
    for option in reversed(
        (
            click.option(
                "--image",
                metavar="IMAGE",
                default="base",
                show_default=True,
                shell_complete=complete_image,
                help="See cove image ls. What is not here is pulled.",
            ),
            click.option("--name", metavar="NAME", help="A name of your own. Default: two words."),
            click.option("--cpus", type=float, metavar="N", help="Processor cores, fractions allowed. Default: 1."),
            click.option("--memory", metavar="SIZE", help="Memory limit: 512m, 4g. Default: 512m."),
            click.option("--disk", metavar="SIZE", help="Limit of what it writes. Default: 4g."),
            click.option("--pids", type=int, metavar="N", help="Most processes at a time. Default: 512."),
            click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Set a variable. May be repeated."),
            click.option("--hostname", metavar="NAME", help="The host name inside. Default: sandbox."),
            click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="A label. May be repeated."),
            click.option("--life", metavar="TIME", help="End it after so long: 30m, 2h, never. Default: never."),
            life_counts_option,
            click.option(
                "--idle", metavar="TIME", help="Idle for so long, --idle-action happens. never: never. Default: 30m."
            ),
            click.option(
                "--idle-action",
                type=click.Choice(IDLE_ACTIONS),
                metavar="ACTION",
                help="What happens when it is idle: pause, hibernate, terminate or none. Default: pause.",
            ),
            click.option(
                "--no-auto-resume",
                "auto_resume",
                is_flag=True,
                flag_value=False,
                default=True,
                help="Refuse work in it while it is paused or hibernated. Default: work resumes it.",
            ),
            click.option("--driver", metavar="NAME", help="The isolation driver. Default: the project's."),
            click.option(
                "--credential",
                "credentials",
                multiple=True,
                metavar="SERVICE[=@VAR]",
                help="Let it use a service by a key that it never has: the project's, that in the variable VAR, or "
                "with =- one that is asked for. May be repeated.",
            ),
            click.option(
                "--run-entrypoint", is_flag=True, help="Start the image's own program (cove logs BOX entrypoint)."
            ),
        )
    ):
        function = option(function)
    return function


def memory_options(function: F) -> F:
    """Add what says whether processes come along."""
    function = click.option("--files-only", is_flag=True, help="Files without processes: quicker, smaller.")(function)
    return click.option("--need-memory", is_flag=True, help="Fail rather than lose processes and memory.")(function)


def memory_of(*, files_only: bool, need_memory: bool) -> bool | None:
    """Return what `memory_options` say: None: processes where they can be had. Raises: Failure."""
    if files_only and need_memory:
        raise usage("--files-only and --need-memory exclude each other")
    return False if files_only else need_memory or None


def sandbox_of(client: Client, **properties: Any) -> Sandbox:
    """Create the sandbox that `create_options` describe."""
    from cove.sdk.units import UNSET

    idle = properties.pop("idle")
    life = properties.pop("life")
    env, metadata = properties.pop("env"), properties.pop("metadata")
    credentials = wishes(properties.pop("credentials"))
    image = properties.pop("image")
    wanted = [properties.pop(name) for name in ("network", "allow", "deny", "link")]
    try:
        return client.create(
            image,
            network=network_of(*wanted),
            env=pairs(env, "--env"),
            metadata=pairs(metadata, "--metadata"),
            credentials=credentials,
            timeout=life,
            idle_timeout=UNSET if idle is None else idle,
            keep=True,
            **properties,
        )
    except (NotFound, RegistryError) as error:
        if isinstance(error, RegistryError) or error.field == "image":
            error.hint = _nearest_image(client, image)
        raise


def wishes(words: Sequence[str]) -> dict[str, str | None] | None:
    """Read `SERVICE`, `SERVICE=@VAR` and `SERVICE=-` words. Raises: Failure."""
    if not words:
        return None
    found: dict[str, str | None] = {}
    for word in words:
        name, has_source, source = word.partition("=")
        found[name] = read_key(name, source) if has_source else None
    return found


def read_key(name: str, source: str) -> str:
    """Read a key from where `source` says: `@VAR` or `-`. Raises: Failure, which never repeats what may be a key."""
    import os
    import sys

    shown = clean(name)[:64]
    if source == "-":
        if sys.stdin.isatty():
            import getpass

            key = getpass.getpass(f"Key for {shown}: ", stream=sys.stderr)
        else:
            key = sys.stdin.readline(KEY_BYTES)
    elif source.startswith("@"):
        if source[1:] not in os.environ:
            raise usage(f"there is no variable {clean(source[1:])[:64]} with the key for {shown}")
        key = os.environ[source[1:]]
    else:
        # What stands on a command line is seen by every user of the machine.
        raise usage(
            f"a key never stands on the command line: {shown}=@VARIABLE, or {shown}=-", "cove credential --help"
        )
    if not key.strip():
        raise usage(f"the key for {shown} is empty")
    return key.strip()


def _nearest_image(client: Client, image: str) -> str:
    import difflib

    near = difflib.get_close_matches(image, [one.name for one in client.images()], 1)
    return f"did you mean {near[0]}?  cove image ls" if near else "cove image ls"


def pairs(words: Sequence[str], option: str) -> dict[str, str]:
    """Read `NAME=VALUE` words. Raises: Failure."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise usage(f'{option}: "{word}" is not NAME=VALUE')
        found[name] = value
    return found
