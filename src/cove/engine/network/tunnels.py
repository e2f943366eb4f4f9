"""A client's connection before it is known what it speaks: TLS, HTTP, or something else; both proxies begin here.

TLS is judged by its server name and passed on unopened, HTTP by the host of each request, anything else by its address.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from cove.engine.network.exits import Asked, Exits, Flow, Refused
from cove.engine.network.httpflow import HttpFlow
from cove.engine.network.httphead import could_be_http, read_direct
from cove.engine.network.relay import Wire, join
from cove.engine.network.sni import Hello, NotHello, Repeated, is_tls, read_hello
from cove.model.hostname import canonical_host

GREETING_S: Final = 15.0
"""For a client to say what it wants, once it is connected."""

_ACCESS_DENIED: Final = bytes.fromhex("15 0303 0002 02 31")
"""A fatal TLS alert (RFC 8446 section 6): clients say so instead of trying again, as they would after a reset."""


async def serve_direct(exits: Exits, box: str, flow: Flow, address: str, port: int) -> None:
    """A client that believes to speak to `address`:`port`. Raises: Refused, Unreachable, OSError (cut it)."""
    near = flow.near
    asked = Asked(name=None, address=address, port=port)
    match await _spoken(near):
        case "tls":
            try:
                hello = await _hello(near)
                named = Asked(name=_name_of(hello), address=address, port=port)
                far = await exits.enter(box, flow, named, "CONNECT")
            except (NotHello, ValueError) as error:
                exits.refuse(box, asked, f"names: {error}")
                await _deny(near)
                return
            except Refused:
                await _deny(near)
                return
            await _join_tls(exits, box, (near, far), hello, named)
        case "http":
            read = partial(read_direct, address=address, port=port)
            await HttpFlow(exits, box, flow, read=read, believed=asked, answers=False).run()
        case _:
            await join(near, await exits.enter(box, flow, asked, "TCP"))


async def serve_tunnel(exits: Exits, box: str, flow: Flow, far: Wire, asked: Asked) -> None:
    """A client that asked a proxy for a tunnel to `asked`, which is dialled and stands.

    What it says in the tunnel is judged too. A server that speaks first makes it neither TLS nor HTTP.

    Raises: Refused, Unreachable, OSError (cut it).
    """
    near = flow.near
    spoken = await _spoken(near, far)
    if spoken == "tls":
        try:
            hello = await _hello(near)
            name = _name_of(hello)
        except (NotHello, ValueError) as error:
            raise exits.refuse(box, asked, f"names: {error}") from error
        if name is not None and name != asked.name:
            exits.check_name(box, name, flow)
        await _join_tls(exits, box, (near, far), hello, asked)
        return
    if spoken == "http":
        address = flow.destinations[0].address or ""
        far.reset()
        read = partial(read_direct, address=address, port=asked.port)
        await HttpFlow(exits, box, flow, read=read, believed=asked, answers=True).run()
        return
    await join(near, far)


async def _deny(near: Wire) -> None:
    """Tell a TLS client."""
    near.send(_ACCESS_DENIED)
    await near.finish()


async def _spoken(near: Wire, far: Wire | None = None) -> str:
    """`tls`, `http`, or empty: something else, or nothing before the server spoke. Raises: TimeoutError."""
    async with asyncio.timeout(GREETING_S):
        while True:
            data = near.held
            if is_tls(data):
                return "tls"
            http = could_be_http(data)
            if data and http is not None:
                return "http" if http else ""
            if not await _wait_more(near, far, len(data)):
                return "http" if http and data else ""


async def _wait_more(near: Wire, far: Wire | None, held: int) -> bool:
    if far is None:
        return await near.wait_more(held)
    async with asyncio.TaskGroup() as tasks:
        waits = [tasks.create_task(near.wait_more(held)), tasks.create_task(far.wait_more())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
    return len(near.held) > held


async def _join_tls(exits: Exits, box: str, sides: tuple[Wire, Wire], hello: Hello, asked: Asked) -> None:
    try:
        await join(*sides, Repeated(hello))
    except NotHello as error:
        raise exits.refuse(box, asked, f"names: {error}") from error


async def _hello(near: Wire) -> Hello:
    """What a TLS client says first. Raises: NotHello, TimeoutError."""
    async with asyncio.timeout(GREETING_S):
        while (hello := read_hello(near.held)) is None:
            if not await near.wait_more(len(near.held)):
                raise NotHello("a TLS greeting that breaks off")
    return hello


def _name_of(hello: Hello) -> str | None:
    """Its canonical server name. Raises: ValueError."""
    return None if hello.name is None else canonical_host(hello.name)
