"""`cove forward`: ports of this machine that lead to ports of a sandbox."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import click

from cove.cli.failures import usage
from cove.cli.options import box_argument
from cove.cli.session import Session
from cove.cli.terminal import clean
from cove.cli.tree import verb
from cove.sdk.errors import Error, Gone, NotFound

if TYPE_CHECKING:
    from cove.sdk.sandbox import Sandbox

FIELDS = ("address", "local_port", "port")


@verb("forward", fields=FIELDS)
@click.option(
    "--address",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Where to listen here. Whoever reaches it reaches the sandbox's port, without a key.",
)
@box_argument()
@click.argument("ports", metavar="PORT", nargs=-1, required=True)
def forward_command(session: Session, *, box: str, ports: tuple[str, ...], address: str) -> None:
    """Let ports of this machine lead to ports of a sandbox, until Ctrl-C.

    cove forward otter 5432 8080:80

    Every TCP protocol goes through: databases, SSH, HTTP. Each PORT may be LOCAL:PORT, where LOCAL is the port here:
    the same one if it is not given, with 0 any that is free. While the server restarts, new connections wait for it.
    """
    pairs = [_pair(word) for word in ports]
    sandbox = session.on_box(box, session.client.get)
    asyncio.run(_Forwarding(session, sandbox).run(pairs, address))


def _pair(word: str) -> tuple[int, int]:
    """Read `[LOCAL:]PORT` as (local, port). Raises: Failure."""
    local, _, port = word.rpartition(":")
    if not all(one.isascii() and one.isdigit() for one in (local or port, port)):
        raise usage(f'"{clean(word)}" is not [LOCAL:]PORT', "cove forward BOX 5432 or cove forward BOX 8080:80")
    return int(local or port), int(port)


class _Forwarding:
    """One run of the command."""

    def __init__(self, session: Session, sandbox: Sandbox) -> None:
        self._session = session
        self._sandbox = sandbox
        self._stop = asyncio.Event()
        self._last = ""
        self._end: Error | None = None

    async def run(self, pairs: list[tuple[int, int]], address: str) -> None:
        """Listen, say where, and go on until a signal or the sandbox's end. Raises: Error."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        async with AsyncExitStack() as stack:
            for local, port in pairs:
                await self._listen(stack, local, port, address)
            if not _is_loopback(address):
                self._session.talk(f"Whoever reaches {clean(address)} reaches these ports, without a key.")
            await self._stop.wait()
        if self._end is not None:
            raise self._end

    async def _listen(self, stack: AsyncExitStack, local: int, port: int, address: str) -> None:
        from cove.sdk.aio.forwarder import Forwarder

        def failed(error: Error) -> None:
            self._tell(port, error)

        work = Forwarder(self._session.client.target, self._sandbox.id, port, on_failure=failed)
        await work.listen(address, local)
        stack.push_async_callback(work.close)
        if self._session.json:
            self._session.emit({"address": work.host, "local_port": work.port, "port": port})
        else:
            self._session.talk(f"{work.address} leads to port {port} of {clean(self._sandbox.name)}")

    def _tell(self, port: int, error: Error) -> None:
        """Say why a connection failed, once in a row; the sandbox's end ends the command."""
        text = f"port {port}: {clean(error.message)}"
        if text != self._last:
            self._session.talk(text)
        self._last = text
        if isinstance(error, Gone | NotFound):
            self._end = error
            self._stop.set()


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
