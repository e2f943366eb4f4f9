"""Commands of a run: to their end, or as a stream."""

from __future__ import annotations

from typing import Final

from cove.dialects.isorun import wire
from cove.dialects.isorun.translate import event_encoder, exec_of, result_answer, run_ref, timeout_of
from cove.edge.ops import Answer, Call, Op
from cove.edge.patient import Patient
from cove.edge.sse import Events
from cove.model.access import Scope
from cove.model.errors import AgentTimeout, AgentViolation, Conflict, NotFound, SandboxGone

TAG: Final = "Commands"
ERRORS: Final = (NotFound, Conflict, SandboxGone, AgentTimeout, AgentViolation)


async def run_command(call: Call[wire.Exec, wire.Ignored]) -> Answer:
    """Run to the end."""
    execs, ref = call.core.execs, run_ref(call.path["id"])
    share = execs.output_share()
    call.exchange.releases.append(share.release)

    async def finish() -> Answer:
        result = await execs.run(call.who, ref, exec_of(call.body), share=share)
        return result_answer(result, timeout_of(call.body))

    return Patient(finish)


async def stream_command(call: Call[wire.Exec, wire.Ignored]) -> Answer:
    """Run and stream."""
    source = call.core.execs.stream(call.who, run_ref(call.path["id"]), exec_of(call.body))
    return Events(source, event_encoder(timeout_of(call.body)))


OPS: Final = (
    Op(
        method="POST",
        path="/v1/runs/{id}/exec",
        handler=run_command,
        summary="Run a command",
        description="`sh -c` as root. After its time it is killed, and `exit_code` is 124. An answer that takes long "
        "begins early, with spaces before the JSON.",
        tag=TAG,
        body=wire.Exec,
        query=wire.Ignored,
        answer=wire.ExecResult,
        scopes=(Scope.EXEC,),
        errors=ERRORS,
    ),
    Op(
        method="POST",
        path="/v1/runs/{id}/exec/stream",
        handler=stream_command,
        summary="Run a command and stream its output",
        description="Events `stdout` and `stderr`, and last `exit`. Closing the connection kills the command.",
        tag=TAG,
        body=wire.Exec,
        query=wire.Ignored,
        media_type="text/event-stream",
        scopes=(Scope.EXEC,),
        errors=ERRORS,
    ),
)
