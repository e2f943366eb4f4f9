"""Operations on ports. What goes to a port itself is no operation: `edge/portforms.py` forwards it whole."""

from __future__ import annotations

from typing import Final

from cove.dialects.native import wire_ports
from cove.dialects.native.translate import sandbox_ref
from cove.dialects.native.translate_ports import port_of, port_view, wish_of
from cove.edge.ops import Call, Json, Nothing, Op, Raw, empty
from cove.model.access import Scope
from cove.model.errors import CapacityExceeded, Conflict, Gone, NotFound, SandboxGone, Unsupported
from cove.model.exposures import PortState

TAG: Final = "Ports"
ERRORS: Final = (NotFound, Gone, SandboxGone)
PATH: Final = "/sandboxes/{id}/ports/{port}"


async def list_ports(call: Call[None, Nothing]) -> Json:
    """Exposed and listening ones."""
    found = await call.core.exposures.list(call.who, sandbox_ref(call.path["id"]))
    return Json(wire_ports.PortList(tuple(port_view(state, call.services.facts) for state in found)))


async def get_port(call: Call[None, Nothing]) -> Json:
    """One, exposed or not."""
    ref, port = sandbox_ref(call.path["id"]), port_of(call.path["port"])
    return Json(port_view(await call.core.exposures.look(call.who, ref, port), call.services.facts))


async def expose_port(call: Call[wire_ports.Expose, Nothing]) -> Json:
    """Choose who may reach it."""
    ref, port = sandbox_ref(call.path["id"]), port_of(call.path["port"])
    access, host_port = wish_of(call.body)
    row, token = await call.core.exposures.set(call.who, ref, port, access, host_port=host_port)
    state = PortState(exposure=row, listening=None)
    return Json(port_view(state, call.services.facts, token))


async def close_port(call: Call[None, Nothing]) -> Raw:
    """Back to keys alone."""
    await call.core.exposures.remove(call.who, sandbox_ref(call.path["id"]), port_of(call.path["port"]))
    return empty()


OPS: Final = (
    Op(
        method="GET",
        path="/sandboxes/{id}/ports",
        handler=list_ports,
        summary="List ports",
        description="Those that are exposed, and those on which something listens now. A paused sandbox is not woken.",
        tag=TAG,
        answer=wire_ports.PortList,
        scopes=(Scope.READ,),
        errors=ERRORS,
    ),
    Op(
        method="GET",
        path=PATH,
        handler=get_port,
        summary="Show how a port is reached",
        description="HTTP and WebSockets go to `url`, or below `path`: all methods, paths and queries as they are.",
        tag=TAG,
        answer=wire_ports.Port,
        scopes=(Scope.READ,),
        errors=ERRORS,
    ),
    Op(
        method="PUT",
        path=PATH,
        handler=expose_port,
        summary="Expose a port",
        description="`key`: a key of the project opens it, as without this call. `token`: also a token, which is shown "
        "here only; again makes a new one and ends the old. `public`: anybody. `host_port` (a number or `true`): a TCP "
        "port of the host leads there, without a key; not given, it stays as it is.",
        tag=TAG,
        body=wire_ports.Expose,
        answer=wire_ports.Port,
        scopes=(Scope.CREATE,),
        errors=(*ERRORS, Conflict, CapacityExceeded, Unsupported),
    ),
    Op(
        method="DELETE",
        path=PATH,
        handler=close_port,
        summary="Close a port",
        description="Keys of the project go on opening it. What is open stays until it ends.",
        tag=TAG,
        status=204,
        scopes=(Scope.CREATE,),
        errors=ERRORS,
    ),
)
