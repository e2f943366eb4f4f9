"""Operations on code in contexts."""

from __future__ import annotations

from typing import Final

from cove.dialects.native import wire_code
from cove.dialects.native.commands import ERRORS, EVENT_STREAM
from cove.dialects.native.translate import sandbox_ref
from cove.dialects.native.translate_code import (
    code_of,
    completion_view,
    context_spec_of,
    context_view,
    execution_view,
    language_view,
    run_event,
)
from cove.edge.ops import Answer, Call, Json, Nothing, Op, Raw, empty
from cove.edge.sse import Events
from cove.model.access import Scope
from cove.model.errors import CapacityExceeded, Conflict, SandboxError, TooLarge, Unsupported

TAG: Final = "Code"
_ERRORS: Final = (*ERRORS, SandboxError)
_RUN_ERRORS: Final = (*_ERRORS, Unsupported, CapacityExceeded, TooLarge)


async def run_code(call: Call[wire_code.RunCode, Nothing]) -> Answer:
    """Run to the end."""
    share = call.core.contexts.output_share()
    call.exchange.releases.append(share.release)
    ref, spec = sandbox_ref(call.path["id"]), code_of(call.body)
    return Json(execution_view(await call.core.contexts.execute(call.who, ref, spec, share=share)))


async def stream_code(call: Call[wire_code.RunCode, Nothing]) -> Answer:
    """Run and stream."""
    source = call.core.contexts.run(call.who, sandbox_ref(call.path["id"]), code_of(call.body))
    return Events(source, run_event)


async def list_languages(call: Call[None, Nothing]) -> Json:
    """What there is."""
    found = await call.core.contexts.languages(call.who, sandbox_ref(call.path["id"]))
    return Json(wire_code.LanguageList(tuple(map(language_view, found))))


async def create_context(call: Call[wire_code.NewContext, Nothing]) -> Json:
    """Make one."""
    made = await call.core.contexts.create(call.who, sandbox_ref(call.path["id"]), context_spec_of(call.body))
    where = f"/api/v1/sandboxes/{call.path['id']}/contexts/{made.id}"
    return Json(context_view(made), status=201, headers=[(b"location", where.encode())])


async def list_contexts(call: Call[None, Nothing]) -> Json:
    """All it knows."""
    found = await call.core.contexts.list(call.who, sandbox_ref(call.path["id"]))
    return Json(wire_code.ContextList(tuple(map(context_view, found))))


async def get_context(call: Call[None, Nothing]) -> Json:
    """One."""
    ref = sandbox_ref(call.path["id"])
    return Json(context_view(await call.core.contexts.get(call.who, ref, call.path["context"])))


async def remove_context(call: Call[None, Nothing]) -> Raw:
    """End and forget."""
    await call.core.contexts.remove(call.who, sandbox_ref(call.path["id"]), call.path["context"])
    return empty()


async def interrupt_context(call: Call[None, Nothing]) -> Raw:
    """Interrupt what runs."""
    await call.core.contexts.interrupt(call.who, sandbox_ref(call.path["id"]), call.path["context"])
    return empty()


async def restart_context(call: Call[None, Nothing]) -> Json:
    """Begin anew."""
    ref = sandbox_ref(call.path["id"])
    return Json(context_view(await call.core.contexts.restart(call.who, ref, call.path["context"])))


async def complete_code(call: Call[wire_code.Complete, Nothing]) -> Json:
    """What may stand at the cursor."""
    ref, body = sandbox_ref(call.path["id"]), call.body
    context = call.path["context"]
    found = await call.core.contexts.complete(call.who, ref, body.code, body.cursor, context=context)
    return Json(completion_view(found))


OPS: Final = (
    Op(
        method="POST",
        path="/sandboxes/{id}/code",
        handler=run_code,
        summary="Run code",
        description="Answers at its end. What the code raises is a result: `status` is ok, error, interrupted, "
        "timeout, kernel-died or sandbox-gone. Runs of a context queue, at most 64; closing the connection "
        "interrupts the code.",
        tag=TAG,
        body=wire_code.RunCode,
        answer=wire_code.Execution,
        scopes=(Scope.EXEC,),
        errors=_RUN_ERRORS,
        watched=True,
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/code/stream",
        handler=stream_code,
        summary="Run code and stream what comes of it",
        description="Events: `started`, `stdout`, `stderr`, `result`, `clear`, `error`, and at last `done`. Closing "
        "the connection interrupts the code.",
        tag=TAG,
        body=wire_code.RunCode,
        media_type=EVENT_STREAM,
        scopes=(Scope.EXEC,),
        errors=_RUN_ERRORS,
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/languages",
        handler=list_languages,
        summary="List the languages of a sandbox",
        description="What its image offers now, and what is missing for the others.",
        tag=TAG,
        answer=wire_code.LanguageList,
        scopes=(Scope.READ,),
        errors=_ERRORS,
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/contexts",
        handler=create_context,
        summary="Make a context",
        description="An interpreter of its own beside the one that the sandbox has for each language. At most 32.",
        tag=TAG,
        body=wire_code.NewContext,
        answer=wire_code.CodeContext,
        status=201,
        scopes=(Scope.EXEC,),
        errors=(*_ERRORS, Conflict, Unsupported),
        watched=True,
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/contexts",
        handler=list_contexts,
        summary="List contexts",
        tag=TAG,
        answer=wire_code.ContextList,
        scopes=(Scope.READ,),
        errors=_ERRORS,
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/contexts/{context}",
        handler=get_context,
        summary="Show a context",
        tag=TAG,
        answer=wire_code.CodeContext,
        scopes=(Scope.READ,),
        errors=_ERRORS,
    ),
    Op(
        method="DELETE",
        path="/sandboxes/{id}/contexts/{context}",
        handler=remove_context,
        summary="End a context and its state",
        tag=TAG,
        status=204,
        scopes=(Scope.EXEC,),
        errors=_ERRORS,
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/contexts/{context}/interrupt",
        handler=interrupt_context,
        summary="Interrupt what runs in a context",
        description="As Ctrl-C does. State is kept.",
        tag=TAG,
        status=204,
        scopes=(Scope.EXEC,),
        errors=(*_ERRORS, Conflict),
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/contexts/{context}/restart",
        handler=restart_context,
        summary="Restart a context",
        description="Its interpreter is killed and another started: state is gone, id and settings stay.",
        tag=TAG,
        answer=wire_code.CodeContext,
        scopes=(Scope.EXEC,),
        errors=(*_ERRORS, Unsupported),
        watched=True,
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/contexts/{context}/complete",
        handler=complete_code,
        summary="Complete code",
        description="What may stand at the cursor, as the context knows it now.",
        tag=TAG,
        body=wire_code.Complete,
        answer=wire_code.Completed,
        scopes=(Scope.EXEC,),
        errors=(*_ERRORS, Conflict, Unsupported, TooLarge),
        watched=True,
    ),
)
