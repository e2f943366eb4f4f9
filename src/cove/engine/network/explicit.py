"""The proxy that programs are told of (`HTTP_PROXY`): CONNECT, and requests for whole http addresses.

Here a name is known before anything is dialled, at any port, so rules with patterns (`re:`) work for all of them. What
passes in a tunnel is judged once more, by the name that it says itself.
"""

from __future__ import annotations

import asyncio
from typing import Final

import h11

from cove.engine.network.exits import Asked, Exits, Flow, Refused, Unreachable
from cove.engine.network.httpflow import HttpFlow, failure_text, plain, refusal_text, say
from cove.engine.network.httphead import HEAD_BYTES, BadRequest, is_folded, read_connect, read_proxied
from cove.engine.network.transparent import Serve
from cove.engine.network.tunnels import GREETING_S, serve_tunnel

_NOWHERE: Final = Asked(name=None, address=None, port=0)
_ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"


def serve_explicit(exits: Exits) -> Serve:
    """Serves one connection to the proxy's port."""

    async def serve(box: str, flow: Flow) -> None:
        client = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        try:
            request = await _request(flow, client)
            if request is None:
                return
            if request.method != b"CONNECT":
                served = HttpFlow(exits, box, flow, read=read_proxied, believed=_NOWHERE, answers=True)
                await served.run(client, request)
                return
            asked = read_connect(request)
            if not isinstance(client.next_event(), h11.EndOfMessage):
                raise BadRequest("CONNECT has no body")
        except (BadRequest, ValueError, h11.RemoteProtocolError) as error:
            await say(flow.near, 400, plain(f"this request is not passed on: {error}"))
            return
        await _tunnel(exits, box, flow, client, asked)

    return serve


async def _request(flow: Flow, client: h11.Connection) -> h11.Request | None:
    async with asyncio.timeout(GREETING_S):
        while True:
            if is_folded(client.trailing_data[0]):
                raise BadRequest("a header goes on in another line")
            event = client.next_event()
            if event is not h11.NEED_DATA:
                return event if isinstance(event, h11.Request) else None
            client.receive_data(await flow.near.read(GREETING_S))


async def _tunnel(exits: Exits, box: str, flow: Flow, client: h11.Connection, asked: Asked) -> None:
    try:
        far = await exits.enter(box, flow, asked, "CONNECT")
    except Refused as refused:
        await say(flow.near, 403, refusal_text(exits.words(box), refused, f"CONNECT to {asked.name or asked.address}"))
        return
    except Unreachable as unreachable:
        await say(flow.near, 502, failure_text(exits.words(box), unreachable, asked))
        return
    flow.near.unread(client.trailing_data[0])
    await flow.near.write(_ESTABLISHED)
    await serve_tunnel(exits, box, flow, far, asked)
