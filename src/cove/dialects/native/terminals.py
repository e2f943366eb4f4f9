"""Operations on terminals."""

from __future__ import annotations

from typing import Final

from cove.core.terminals import TerminalStream
from cove.dialects.native import wire, wire_terminals
from cove.dialects.native.attached import Attached
from cove.dialects.native.commands import ERRORS
from cove.dialects.native.translate import event_encoder, output_view, sandbox_ref, signal_of
from cove.dialects.native.translate_terminals import size_of, terminal_spec, terminal_view
from cove.edge.ops import Answer, Call, Json, Nothing, Op, Raw, empty
from cove.edge.sse import LAST_EVENT_ID, Events, resumed_at
from cove.edge.websocket import WebSocket
from cove.model.access import Scope
from cove.model.errors import Conflict, Unsupported

TERMINALS: Final = "Terminals"


async def open_terminal(call: Call[wire_terminals.Open, Nothing]) -> Json:
    """Start."""
    body = call.body
    made = await call.core.terminals.open(
        call.who,
        sandbox_ref(call.path["id"]),
        terminal_spec(body),
        size=size_of(body),
        keep_bytes=body.keep_bytes,
    )
    where = f"/api/v1/sandboxes/{call.path['id']}/terminals/{made.id}"
    return Json(terminal_view(made), status=201, headers=[(b"location", where.encode())])


async def list_terminals(call: Call[None, Nothing]) -> Json:
    """All it knows."""
    found = await call.core.terminals.list(call.who, sandbox_ref(call.path["id"]))
    return Json(wire_terminals.TerminalList(tuple(map(terminal_view, found))))


async def get_terminal(call: Call[None, Nothing]) -> Json:
    """One."""
    ref = sandbox_ref(call.path["id"])
    return Json(terminal_view(await call.core.terminals.get(call.who, ref, call.path["terminal"])))


async def remove_terminal(call: Call[None, Nothing]) -> Raw:
    """Hang up and forget."""
    await call.core.terminals.remove(call.who, sandbox_ref(call.path["id"]), call.path["terminal"])
    return empty()


async def read_terminal(call: Call[None, wire.OutputQuery]) -> Answer:
    """Kept output: a page, perhaps after a wait, or followed."""
    query = call.query
    cursor = resumed_at(call.exchange.text_header(LAST_EVENT_ID), query.cursor)
    source = call.core.terminals.output(
        call.who,
        sandbox_ref(call.path["id"]),
        call.path["terminal"],
        cursor=cursor,
        follow=query.follow,
        limit_bytes=0 if query.follow else query.limit,
        wait_s=query.wait_s,
    )
    if query.follow:
        return Events(source, event_encoder(query.encoding, cursor))
    async with source as events:
        return Json(output_view([one async for one in events], query.encoding, cursor))


async def type_into_terminal(call: Call[None, Nothing]) -> Json:
    """Type."""
    ref = sandbox_ref(call.path["id"])
    return Json(wire.Written(await call.core.terminals.input(call.who, ref, call.path["terminal"], call.typed())))


async def resize_terminal(call: Call[wire_terminals.Resize, Nothing]) -> Raw:
    """Change its window."""
    ref = sandbox_ref(call.path["id"])
    await call.core.terminals.resize(call.who, ref, call.path["terminal"], size_of(call.body))
    return empty()


async def signal_terminal(call: Call[wire.Signal, Nothing]) -> Raw:
    """Signal what is in the foreground."""
    ref = sandbox_ref(call.path["id"])
    await call.core.terminals.signal(call.who, ref, call.path["terminal"], signal_of(call.body))
    return empty()


async def attach_terminal(call: Call[None, wire_terminals.AttachQuery]) -> WebSocket[TerminalStream]:
    """Look and type."""
    ref, terminal, core = sandbox_ref(call.path["id"]), call.path["terminal"], call.core.terminals
    source = core.attach(call.who, ref, terminal, cursor=call.query.cursor)
    return WebSocket(source, Attached(core, call.who, ref, terminal).run)


OPS: Final = (
    Op(
        method="POST",
        path="/sandboxes/{id}/terminals",
        handler=open_terminal,
        summary="Open a terminal",
        description="It outlives this connection and the server; its last `keep_bytes` of output are kept.",
        tag=TERMINALS,
        body=wire_terminals.Open,
        answer=wire_terminals.Terminal,
        status=201,
        scopes=(Scope.EXEC,),
        errors=(*ERRORS, Conflict, Unsupported),
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/terminals",
        handler=list_terminals,
        summary="List terminals",
        tag=TERMINALS,
        answer=wire_terminals.TerminalList,
        scopes=(Scope.READ,),
        errors=ERRORS,
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/terminals/{terminal}",
        handler=get_terminal,
        summary="Show a terminal",
        tag=TERMINALS,
        answer=wire_terminals.Terminal,
        scopes=(Scope.READ,),
        errors=ERRORS,
    ),
    Op(
        method="DELETE",
        path="/sandboxes/{id}/terminals/{terminal}",
        handler=remove_terminal,
        summary="Hang up and forget a terminal",
        description="What runs on it gets SIGHUP, and a second later SIGKILL.",
        tag=TERMINALS,
        status=204,
        scopes=(Scope.EXEC,),
        errors=ERRORS,
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/terminals/{terminal}/output",
        handler=read_terminal,
        summary="Read a terminal's output from a cursor",
        description="As of a background command; with `wait_s` it waits for the first byte. Escape sequences and cut "
        "characters come through exactly with `encoding=base64`.",
        tag=TERMINALS,
        query=wire.OutputQuery,
        answer=wire.Output,
        headers=((LAST_EVENT_ID, "The `id` of the last event seen; wins over `cursor`."),),
        scopes=(Scope.READ,),
        errors=ERRORS,
        watched=True,
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/terminals/{terminal}/input",
        handler=type_into_terminal,
        summary="Type into a terminal",
        description="The raw body goes in as it arrives, however slowly. It waits while the programs do not read.",
        tag=TERMINALS,
        answer=wire.Written,
        scopes=(Scope.EXEC,),
        errors=ERRORS,
        upload=True,
        watched=True,
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/terminals/{terminal}/resize",
        handler=resize_terminal,
        summary="Resize a terminal",
        tag=TERMINALS,
        body=wire_terminals.Resize,
        status=204,
        scopes=(Scope.EXEC,),
        errors=(*ERRORS, Conflict),
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/terminals/{terminal}/signal",
        handler=signal_terminal,
        summary="Signal what runs in the foreground of a terminal",
        tag=TERMINALS,
        body=wire.Signal,
        status=204,
        scopes=(Scope.EXEC,),
        errors=(*ERRORS, Conflict),
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/terminals/{terminal}/attach",
        handler=attach_terminal,
        summary="Attach to a terminal",
        description="A WebSocket: binary messages are output and input. Text messages from the server: first "
        '`{"type":"attached","cursor","cols","rows"}`, `{"type":"gap","lost"}`, last '
        '`{"type":"exit","exit","why","signal","cursor"}`, then it closes with 1000; from the client: '
        '`{"type":"resize","cols","rows"}`, `{"type":"signal","signal"}`. Without `cursor` the kept output comes '
        "first. Closing it leaves the terminal as it is; after 1012 attach again with the cursor that was reached.",
        tag=TERMINALS,
        query=wire_terminals.AttachQuery,
        scopes=(Scope.EXEC,),
        errors=(*ERRORS, Unsupported),
        websocket=True,
    ),
)
