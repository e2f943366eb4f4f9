"""Operations on shells."""

from __future__ import annotations

from typing import Final

from cove.dialects.native import wire, wire_shells
from cove.dialects.native.commands import ERRORS, EVENT_STREAM
from cove.dialects.native.translate import command_view, event_encoder, result_answer, sandbox_ref, signal_of
from cove.dialects.native.translate_shells import shell_command_of, shell_spec_of, shell_view
from cove.edge.ops import Answer, Call, Json, Nothing, Op, Raw, empty
from cove.edge.sse import Events
from cove.model.access import Scope
from cove.model.errors import Conflict, Unsupported

TAG: Final = "Shells"


async def open_shell(call: Call[wire_shells.OpenShell, Nothing]) -> Json:
    """Open one."""
    made = await call.core.shells.open(call.who, sandbox_ref(call.path["id"]), shell_spec_of(call.body))
    where = f"/api/v1/sandboxes/{call.path['id']}/shells/{made.id}"
    return Json(shell_view(made), status=201, headers=[(b"location", where.encode())])


async def list_shells(call: Call[None, Nothing]) -> Json:
    """All it knows."""
    found = await call.core.shells.list(call.who, sandbox_ref(call.path["id"]))
    return Json(wire_shells.ShellList(tuple(map(shell_view, found))))


async def get_shell(call: Call[None, Nothing]) -> Json:
    """One."""
    ref = sandbox_ref(call.path["id"])
    return Json(shell_view(await call.core.shells.get(call.who, ref, call.path["shell"])))


async def close_shell(call: Call[None, Nothing]) -> Raw:
    """End and forget."""
    await call.core.shells.close(call.who, sandbox_ref(call.path["id"]), call.path["shell"])
    return empty()


async def run_in_shell(call: Call[wire_shells.ShellRun, Nothing]) -> Answer:
    """Run to the end."""
    share = call.core.execs.output_share()
    call.exchange.releases.append(share.release)
    ref, command = sandbox_ref(call.path["id"]), shell_command_of(call.body)
    result = await call.core.shells.run(call.who, ref, call.path["shell"], command, share=share)
    return result_answer(result, call.body.encoding)


async def stream_in_shell(call: Call[wire_shells.ShellRun, Nothing]) -> Answer:
    """Run and stream."""
    ref, command = sandbox_ref(call.path["id"]), shell_command_of(call.body)
    source = call.core.shells.stream(call.who, ref, call.path["shell"], command)
    return Events(source, event_encoder(call.body.encoding))


async def start_in_shell(call: Call[wire_shells.ShellStart, Nothing]) -> Json:
    """Queue."""
    ref, command = sandbox_ref(call.path["id"]), shell_command_of(call.body)
    made = await call.core.shells.start(call.who, ref, call.path["shell"], command, keep_bytes=call.body.keep_bytes)
    where = f"/api/v1/sandboxes/{call.path['id']}/commands/{made.id}"
    return Json(command_view(made), status=201, headers=[(b"location", where.encode())])


async def signal_shell(call: Call[wire.Signal, Nothing]) -> Raw:
    """Signal what runs."""
    ref = sandbox_ref(call.path["id"])
    await call.core.shells.signal(call.who, ref, call.path["shell"], signal_of(call.body))
    return empty()


OPS: Final = (
    Op(
        method="POST",
        path="/sandboxes/{id}/shells",
        handler=open_shell,
        summary="Open a shell",
        description="One bash, or sh, that runs one command after the other: directory, variables, functions and jobs "
        "last. It outlives this connection and the server. At most 64 for a sandbox.",
        tag=TAG,
        body=wire_shells.OpenShell,
        answer=wire_shells.Shell,
        status=201,
        scopes=(Scope.EXEC,),
        errors=(*ERRORS, Conflict, Unsupported),
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/shells",
        handler=list_shells,
        summary="List shells",
        tag=TAG,
        answer=wire_shells.ShellList,
        scopes=(Scope.READ,),
        errors=ERRORS,
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/shells/{shell}",
        handler=get_shell,
        summary="Show a shell",
        tag=TAG,
        answer=wire_shells.Shell,
        scopes=(Scope.READ,),
        errors=ERRORS,
    ),
    Op(
        method="DELETE",
        path="/sandboxes/{id}/shells/{shell}",
        handler=close_shell,
        summary="End a shell and what it started",
        tag=TAG,
        status=204,
        scopes=(Scope.EXEC,),
        errors=ERRORS,
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/shells/{shell}/run",
        handler=run_in_shell,
        summary="Run a command in a shell",
        description="Answers at its end, as exec does; it waits for its turn first. `why` is also `canceled`: the "
        "shell ended before its turn.",
        tag=TAG,
        body=wire_shells.ShellRun,
        answer=wire.ExecResult,
        scopes=(Scope.EXEC,),
        errors=(*ERRORS, Conflict),
        watched=True,
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/shells/{shell}/run/stream",
        handler=stream_in_shell,
        summary="Run a command in a shell and stream its output",
        description="Events as of exec; `started` when its turn has come. Closing the connection ends the command.",
        tag=TAG,
        body=wire_shells.ShellRun,
        media_type=EVENT_STREAM,
        scopes=(Scope.EXEC,),
        errors=(*ERRORS, Conflict),
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/shells/{shell}/commands",
        handler=start_in_shell,
        summary="Queue a command in a shell",
        description="It is a background command: output, wait, signal and removal go by its id. At most 64 wait.",
        tag=TAG,
        body=wire_shells.ShellStart,
        answer=wire.Command,
        status=201,
        scopes=(Scope.EXEC,),
        errors=(*ERRORS, Conflict),
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/shells/{shell}/signal",
        handler=signal_shell,
        summary="Send a signal to what runs in a shell",
        description="As from a terminal: INT is Ctrl-C. The shell lives on.",
        tag=TAG,
        body=wire.Signal,
        status=204,
        scopes=(Scope.EXEC,),
        errors=(*ERRORS, Conflict),
    ),
)
