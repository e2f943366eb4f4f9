"""HTTP/1 requests of one connection, one after the other: each judged by its host before a byte of it goes on.

Requests and answers are taken apart and written anew by h11, so a client and a server cannot agree on a border that we
did not see (smuggling). A body is passed on as it comes, at the slower side's speed. A request that becomes a WebSocket
ends this: from the server's 101 on, bytes pass both ways unread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import h11

from cove.engine.network.exits import Asked, Exits, Flow, Refused, Seen, Unreachable
from cove.engine.network.httphead import HEAD_BYTES, BadRequest, Wanted, answer_headers, is_folded
from cove.engine.network.relay import IDLE_S, Wire, join
from cove.model.network import ProxyWords

NEXT_S: Final = 120.0
"""For a client's next request on its connection, or the next piece of one."""

_SWITCHED: Final = 101
_WORDS: Final = 160

Read = Callable[[h11.Request], Wanted]


class HttpFlow:
    """One client's connection. `read` says what each request asks for; `believed`: where the client thinks it is.

    `answers`: the client knows that it speaks to a proxy, and is told in HTTP what it may not have. Another one would
    take our answer for the server's: its connection is reset.
    """

    def __init__(  # noqa: PLR0913 - what it works for, and three things by name
        self, exits: Exits, box: str, flow: Flow, *, read: Read, believed: Asked, answers: bool
    ) -> None:
        self._exits = exits
        self._box = box
        self._flow = flow
        self._read = read
        self._near = flow.near
        self._client = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._server = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
        self._far: Wire | None = None
        self._dialled = ("", 0)
        self._reached = believed
        self._answers = answers
        self._has_answered = False

    async def run(self, client: h11.Connection | None = None, first: h11.Request | None = None) -> None:
        """Serve requests until the connection has ended. `first`: a request that `client` has read already.

        Raises: ConnectionError, TimeoutError (nothing can be said to the client any more; cut it).
        """
        self._client = client or self._client
        try:
            request = first or await self._next_request()
            while request is not None and await self._pass_on(request):
                request = await self._next_request()
        except Refused as refused:
            host = self._reached.name or self._reached.address
            await self._fail(403, refusal_text(self._exits.words(self._box), refused, f"request to {host}"))
        except Unreachable as unreachable:
            await self._fail(502, failure_text(self._exits.words(self._box), unreachable, self._reached))
        except (BadRequest, ValueError, h11.RemoteProtocolError) as error:
            self._exits.refuse(self._box, self._reached, f"names: no plain HTTP ({error})"[:_WORDS])
            await self._fail(400, plain(f"this request is not passed on: {error}"))
        else:
            await self._near.finish()

    async def _next_request(self) -> h11.Request | None:
        while True:
            if is_folded(self._client.trailing_data[0]):
                raise BadRequest("a header goes on in another line")
            event = self._client.next_event()
            if isinstance(event, h11.Event):
                return event if isinstance(event, h11.Request) else None
            self._client.receive_data(await self._near.read(NEXT_S))

    async def _pass_on(self, request: h11.Request) -> bool:
        """One request and its answer; whether another may follow. Raises: what `run` catches."""
        if request.method == b"CONNECT":
            raise BadRequest("CONNECT is for the proxy")
        wanted = self._read(request)
        seen = self._exits.begin(
            self._box, wanted.asked, wanted.method.decode("ascii"), wanted.target.decode("latin-1")
        )
        try:
            far = await self._reach(wanted.asked)
        except Refused:
            seen.refused()
            raise
        head = h11.Request(method=wanted.method, target=wanted.target, headers=wanted.headers)
        await _to_far(far, self._server.send(head))
        failure: Exception | None = None
        switched = False
        async with asyncio.TaskGroup() as tasks:
            body = tasks.create_task(self._pass_body(far))
            try:
                switched = await self._pass_answer(far, seen)
            except (Unreachable, OSError) as error:
                failure = error
            body.cancel()
        if failure is not None:
            raise failure
        if switched:
            for wire, connection in ((self._near, self._client), (far, self._server)):
                wire.unread(connection.trailing_data[0])
            await join(self._near, far)
            return False
        return self._next_cycle()

    async def _reach(self, asked: Asked) -> Wire:
        """The server of `asked`: the one at hand, if it is that one, else another. Raises: Refused, Unreachable."""
        self._reached = asked
        route = await self._exits.route(self._box, asked)
        far = self._far
        if far is not None and not far.has_ended and self._dialled in {(one, asked.port) for one in route.addresses}:
            self._flow.destinations = route.destinations(self._dialled[0])
            return far
        if far is not None:
            far.reset()
        self._server = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
        far = self._far = await self._exits.dial(self._box, self._flow, route)
        self._dialled = (self._flow.destinations[0].address or "", asked.port)
        self._near.gone.add_done_callback(lambda _: far.reset())
        return far

    async def _pass_body(self, far: Wire) -> None:
        """The request's body. One that breaks off breaks the server's side off, which ends the answer too."""
        try:
            while True:
                event = await self._client_event()
                if isinstance(event, h11.ConnectionClosed):
                    raise ConnectionResetError("the client left within its request")
                is_over = isinstance(event, h11.EndOfMessage)
                # Without its trailers: some servers would take them for headers, a second Host among them.
                data = self._server.send(h11.EndOfMessage() if is_over else event)
                if data:
                    await far.write(data)
                if is_over:
                    return
        except (OSError, h11.ProtocolError):
            far.reset()

    async def _pass_answer(self, far: Wire, seen: Seen) -> bool:
        """The server's answer; whether the connection is now another protocol's. Raises: Unreachable, OSError."""
        while True:
            event = await self._server_event(far)
            seen.passes()
            if isinstance(event, h11.InformationalResponse | h11.Response):
                headers = answer_headers(event)
                kind = type(event)
                event = kind(status_code=event.status_code, headers=headers, reason=event.reason)
            self._has_answered = self._has_answered or isinstance(event, h11.Response)
            data = self._client.send(event)
            if data:
                await self._near.write(data)
            if isinstance(event, h11.InformationalResponse) and event.status_code == _SWITCHED:
                return True
            if isinstance(event, h11.EndOfMessage):
                return False

    def _next_cycle(self) -> bool:
        """Make ready for the client's next request; False: there is none on this connection."""
        if self._server.our_state is h11.DONE and self._server.their_state is h11.DONE:
            self._server.start_next_cycle()
        elif self._far is not None:
            self._far.reset()
            self._far = None
        if self._client.our_state is not h11.DONE or self._client.their_state is not h11.DONE:
            return False
        self._client.start_next_cycle()
        self._has_answered = False
        return True

    async def _client_event(self) -> h11.Event:
        while True:
            event = self._client.next_event()
            if isinstance(event, h11.Event):
                return event
            self._client.receive_data(await self._near.read(NEXT_S))

    async def _server_event(self, far: Wire) -> h11.Event:
        while True:
            try:
                event = self._server.next_event()
                if isinstance(event, h11.ConnectionClosed):
                    raise Unreachable("the server left without an answer")
                if isinstance(event, h11.Event):
                    return event
                self._server.receive_data(await far.read(IDLE_S))
            except (h11.RemoteProtocolError, OSError) as error:
                raise Unreachable("the server broke its answer off") from error

    async def _fail(self, status: int, text: str) -> None:
        """Say what went wrong; or cut the connection, which breaks off an answer that has begun."""
        if self._has_answered or not self._answers:
            self._near.reset()
        else:
            await say(self._near, status, text)


def plain(text: str) -> str:
    """A text of the proxy's own, as it is said."""
    return f"cove: {text}\n"


def refusal_text(words: ProxyWords | None, refused: Refused, asked: str) -> str:
    """What a client is told of a refusal. Host names come from it and may hold anything but braces."""
    if words is None:
        return plain(f"the sandbox's network policy refuses this: {refused.words}")
    return words.refused.replace("{asked}", asked)


def failure_text(words: ProxyWords | None, unreachable: Unreachable, asked: Asked) -> str:
    """What a client is told of a server that is not there."""
    return plain(str(unreachable)) if words is None else words.unreachable.replace("{there}", str(asked))


async def say(near: Wire, status: int, text: str) -> None:
    """An answer of the proxy's own, after which the connection ends. Raises: ConnectionError, TimeoutError."""
    body = text.encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    await near.write(head.encode("ascii") + body)
    await near.finish()


async def _to_far(far: Wire, data: bytes | None) -> None:
    try:
        await far.write(data or b"")
    except OSError as error:
        raise Unreachable("the server left without an answer") from error
