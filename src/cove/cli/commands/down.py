"""`cove down`: stops this machine's server, with `--all` everything that it made too."""

from __future__ import annotations

import os
import select
import socket as socket_module
import struct
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import click

from cove.cli.failures import FAILED, REFUSED, Failure
from cove.cli.launch import require_root, start_server
from cove.cli.progress import waiting
from cove.cli.session import Session
from cove.cli.tree import verb
from cove.sdk.client import Client
from cove.sdk.config import local_socket
from cove.sdk.errors import Unreachable

STOP_LIMIT_S = 120.0


@verb("down", fields=("server", "sandboxes", "all"))
@click.option("--all", "every", is_flag=True, help="End all sandboxes too, and remove pool, mounts and sockets.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before ending several sandboxes.")
def down_command(session: Session, *, every: bool, yes: bool) -> None:
    """Stop the server of this machine.

    Its sandboxes go on, and the next start takes them over; --all ends them.

    Always means the local server (COVE_DATA_DIR says which), never one that COVE_URL names. No server is no failure.
    """
    socket = local_socket(os.environ)
    client = Client(f"unix:{socket}")
    running = _is_running(client)
    if not running and not (every and Path(socket).parent.exists()):
        session.emit({"server": "not running", "sandboxes": 0, "all": every})
        session.talk("No server runs on this machine" + (", and nothing of one is left." if every else "."))
        return
    if not running:
        _start_quietly(client)
    if every and not yes and not session.json and sys.stdin.isatty():
        _ask(client)
    what = "Ending sandboxes" if every else "Stopping the server"
    with waiting(what, quiet=session.quiet or session.json), _waited_for(socket):
        answer = client.shutdown(all=every)
    left = int(answer.get("sandboxes") or 0)
    session.emit({"server": "stopped", "sandboxes": left, "all": every})
    if every:
        session.talk("Stopped the server and ended all sandboxes.")
    elif left:
        session.talk(
            f"Stopped the server. {left} sandbox{'es go' if left > 1 else ' goes'} on; end them too: cove down --all"
        )
    else:
        session.talk("Stopped the server.")


def _is_running(client: Client) -> bool:
    try:
        client.server()
    except Unreachable as error:
        if isinstance(error.__cause__, PermissionError):
            raise
        return False
    return True


def _start_quietly(client: Client) -> None:
    """Start a server over what a former one left: it adopts the sandboxes, and can then end them."""
    require_root(Unreachable("no server on this machine"))
    quiet = Session(quiet=True)
    if quiet.client.target.socket != client.target.socket:
        raise Failure(
            "the server of this machine has stopped, and COVE_URL names another one",
            code="conflict",
            exit_code=REFUSED,
            hint="env -u COVE_URL cove down --all",
        )
    start_server(quiet)


def _ask(client: Client) -> None:
    count = sum(1 for _ in client.list(page_size=1000))
    if count > 1:
        click.confirm(f"End {count} sandboxes and all that is in them?", abort=True, err=True)


@contextmanager
def _waited_for(socket: str) -> Generator[None]:
    """Wait after the body until the server's process has ended, which is later than its last answer."""
    pidfd = os.pidfd_open(_pid_behind(socket))
    try:
        yield
        if not select.select([pidfd], [], [], STOP_LIMIT_S)[0]:
            raise Failure("the server does not end", code="server-stop", exit_code=FAILED, hint="cove ls")
    finally:
        os.close(pidfd)


def _pid_behind(path: str) -> int:
    """Return who listens on a unix socket (unix(7), SO_PEERCRED: the credentials at listen(2))."""
    with socket_module.socket(socket_module.AF_UNIX) as probe:
        probe.connect(path)
        pid: int = struct.unpack("3i", probe.getsockopt(socket_module.SOL_SOCKET, socket_module.SO_PEERCRED, 12))[0]
    return pid
