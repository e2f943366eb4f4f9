"""Operations on commands."""

from __future__ import annotations

from typing import Final

from cove.dialects.native import wire
from cove.dialects.native.translate import (
    command_view,
    event_encoder,
    exec_of,
    output_view,
    result_answer,
    sandbox_ref,
    signal_of,
)
from cove.edge.ops import Answer, Call, Json, Nothing, Op, Raw, empty
from cove.edge.sse import LAST_EVENT_ID, Events, resumed_at
from cove.model.access import Scope
from cove.model.errors import AgentTimeout, AgentViolation, Conflict, Gone, NotFound, SandboxGone

RUN: Final = "Running commands"
BACKGROUND: Final = "Background commands"
ERRORS: Final = (NotFound, Gone, SandboxGone, AgentTimeout, AgentViolation)
EVENT_STREAM: Final = "text/event-stream"


async def run_command(call: Call[wire.Exec, Nothing]) -> Answer:
    """Run to the end."""
    execs = call.core.execs
    share = execs.output_share()
    call.exchange.releases.append(share.release)
    result = await execs.run(call.who, sandbox_ref(call.path["id"]), exec_of(call.body), share=share)
    return result_answer(result, call.body.encoding)


async def stream_command(call: Call[wire.Exec, Nothing]) -> Answer:
    """Run and stream."""
    source = call.core.execs.stream(call.who, sandbox_ref(call.path["id"]), exec_of(call.body))
    return Events(source, event_encoder(call.body.encoding))


async def start_command(call: Call[wire.Start, Nothing]) -> Json:
    """Start in the background."""
    body = call.body
    made = await call.core.execs.start(
        call.who, sandbox_ref(call.path["id"]), exec_of(body), keep_bytes=body.keep_bytes, stdin_open=body.stdin_open
    )
    where = f"/api/v1/sandboxes/{call.path['id']}/commands/{made.id}"
    return Json(command_view(made), status=201, headers=[(b"location", where.encode())])


async def list_commands(call: Call[None, Nothing]) -> Json:
    """All it knows."""
    found = await call.core.execs.list(call.who, sandbox_ref(call.path["id"]))
    return Json(wire.CommandList(tuple(map(command_view, found))))


async def get_command(call: Call[None, Nothing]) -> Json:
    """One."""
    ref = sandbox_ref(call.path["id"])
    return Json(command_view(await call.core.execs.get(call.who, ref, call.path["command"])))


async def remove_command(call: Call[None, Nothing]) -> Raw:
    """Kill and forget."""
    await call.core.execs.remove(call.who, sandbox_ref(call.path["id"]), call.path["command"])
    return empty()


async def read_output(call: Call[None, wire.OutputQuery]) -> Answer:
    """Kept output: a page, or followed."""
    query = call.query
    cursor = resumed_at(call.exchange.text_header(LAST_EVENT_ID), query.cursor)
    source = call.core.execs.output(
        call.who,
        sandbox_ref(call.path["id"]),
        call.path["command"],
        cursor=cursor,
        follow=query.follow,
        limit_bytes=0 if query.follow else query.limit,
        wait_s=query.wait_s,
    )
    if query.follow:
        return Events(source, event_encoder(query.encoding, cursor))
    async with source as events:
        return Json(output_view([one async for one in events], query.encoding, cursor))


async def write_stdin(call: Call[None, wire.StdinQuery]) -> Json:
    """Feed its input."""
    written = await call.core.execs.stdin(
        call.who, sandbox_ref(call.path["id"]), call.path["command"], call.typed(), close=call.query.close
    )
    return Json(wire.Written(written))


async def signal_command(call: Call[wire.Signal, Nothing]) -> Raw:
    """Signal its process group."""
    ref = sandbox_ref(call.path["id"])
    await call.core.execs.signal(call.who, ref, call.path["command"], signal_of(call.body))
    return empty()


async def wait_command(call: Call[wire.Wait, Nothing]) -> Json:
    """Wait for its end."""
    ref = sandbox_ref(call.path["id"])
    found = await call.core.execs.wait(call.who, ref, call.path["command"], timeout_s=call.body.timeout_s)
    return Json(command_view(found))


OPS: Final = (
    Op(
        method="POST",
        path="/sandboxes/{id}/exec",
        handler=run_command,
        summary="Run a command",
        description="Answers at its end. A non-zero exit is a result. `why`: exited, killed, timeout, oom or "
        "sandbox-gone. Each stream is kept to 10 MiB, the tail wins.",
        tag=RUN,
        body=wire.Exec,
        answer=wire.ExecResult,
        scopes=(Scope.EXEC,),
        errors=ERRORS,
        watched=True,
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/exec/stream",
        handler=stream_command,
        summary="Run a command and stream its output",
        description="Events `started`, `stdout`, `stderr`, `gap`, and last `exit` or `error`. Closing the connection "
        "kills the command.",
        tag=RUN,
        body=wire.Exec,
        media_type=EVENT_STREAM,
        scopes=(Scope.EXEC,),
        errors=ERRORS,
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/commands",
        handler=start_command,
        summary="Start a background command",
        description="It outlives this connection and the server; its last `keep_bytes` of output are kept.",
        tag=BACKGROUND,
        body=wire.Start,
        answer=wire.Command,
        status=201,
        scopes=(Scope.EXEC,),
        errors=ERRORS,
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/commands",
        handler=list_commands,
        summary="List background commands",
        tag=BACKGROUND,
        answer=wire.CommandList,
        scopes=(Scope.READ,),
        errors=ERRORS,
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/commands/{command}",
        handler=get_command,
        summary="Show a background command",
        tag=BACKGROUND,
        answer=wire.Command,
        scopes=(Scope.READ,),
        errors=ERRORS,
    ),
    Op(
        method="DELETE",
        path="/sandboxes/{id}/commands/{command}",
        handler=remove_command,
        summary="Kill and forget a background command",
        tag=BACKGROUND,
        status=204,
        scopes=(Scope.EXEC,),
        errors=ERRORS,
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/commands/{command}/output",
        handler=read_output,
        summary="Read kept output from a cursor",
        description="With `follow=true` an event stream as of exec, each event with its cursor as `id`, and "
        "`exit` also with `cursor`. Closing it stops nothing.",
        tag=BACKGROUND,
        query=wire.OutputQuery,
        answer=wire.Output,
        headers=((LAST_EVENT_ID, "The `id` of the last event seen; wins over `cursor`."),),
        scopes=(Scope.READ,),
        errors=ERRORS,
        watched=True,
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/commands/{command}/stdin",
        handler=write_stdin,
        summary="Write to a command's stdin",
        description="The raw body goes in as it arrives, however slowly. It waits while the command does not read.",
        tag=BACKGROUND,
        query=wire.StdinQuery,
        answer=wire.Written,
        scopes=(Scope.EXEC,),
        errors=(*ERRORS, Conflict),
        upload=True,
        watched=True,
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/commands/{command}/signal",
        handler=signal_command,
        summary="Send a signal",
        tag=BACKGROUND,
        body=wire.Signal,
        status=204,
        scopes=(Scope.EXEC,),
        errors=(*ERRORS, Conflict),
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/commands/{command}/wait",
        handler=wait_command,
        summary="Wait for a command's end",
        description="`running` still true: the time was over.",
        tag=BACKGROUND,
        body=wire.Wait,
        answer=wire.Command,
        scopes=(Scope.READ,),
        errors=ERRORS,
        watched=True,
    ),
)
