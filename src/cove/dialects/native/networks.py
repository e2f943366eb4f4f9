"""Operations on what sandboxes may reach."""

from __future__ import annotations

from typing import Final

from cove.dialects.native import wire_networks as wire
from cove.dialects.native.translate import sandbox_id, sandbox_ref
from cove.dialects.native.translate_networks import (
    explanation_view,
    network_view,
    profile_from,
    profile_view,
    refusal_view,
    request_from,
    wish_view,
)
from cove.edge.ops import Call, Json, Nothing, Op, Raw, empty
from cove.model.access import Scope
from cove.model.errors import Conflict, EngineFailure, Gone, NotFound, Unsupported
from cove.model.network import NetworkRequest, Protocol

TAG: Final = "Networks"


async def show_network(call: Call[None, Nothing]) -> Json:
    """Policy, address, bytes."""
    state = await call.core.networks.get(call.who, sandbox_ref(call.path["id"]))
    return Json(network_view(state, sandbox_id(state.sandbox)))


async def set_network(call: Call[wire.Wish, Nothing]) -> Json:
    """Another policy."""
    request = request_from(call.body) or NetworkRequest()
    state = await call.core.networks.set(call.who, sandbox_ref(call.path["id"]), request)
    return Json(network_view(state, sandbox_id(state.sandbox)))


async def list_refusals(call: Call[None, Nothing]) -> Json:
    """The last ones."""
    found = call.core.networks.refusals(call.who, sandbox_ref(call.path["id"]))
    return Json(wire.RefusalList(tuple(map(refusal_view, found))))


async def ask_why(call: Call[wire.Ask, Nothing]) -> Json:
    """What would happen."""
    body = call.body
    said = await call.core.networks.why(
        call.who, sandbox_ref(call.path["id"]), body.host, body.port, Protocol(body.protocol)
    )
    return Json(explanation_view(said))


async def list_profiles(call: Call[None, Nothing]) -> Json:
    """All."""
    found = await call.core.networks.profiles.list(call.who)
    return Json(wire.ProfileList(tuple(map(profile_view, found))))


async def show_profile(call: Call[None, Nothing]) -> Json:
    """One."""
    return Json(profile_view(await call.core.networks.profiles.get(call.who, call.path["profile"])))


async def set_profile(call: Call[wire.ProfileWish, Nothing]) -> Json:
    """Make or change one."""
    wanted = profile_from(call.path["profile"], call.body)
    return Json(profile_view(await call.core.networks.profiles.set(call.who, wanted)))


async def remove_profile(call: Call[None, Nothing]) -> Raw:
    """Forget one."""
    await call.core.networks.profiles.remove(call.who, call.path["profile"])
    return empty()


async def show_default(call: Call[None, Nothing]) -> Json:
    """A project's."""
    found = call.core.networks.default(call.who, call.path["project"])
    return Json(wire.Default(network=None if found is None else wish_view(found)))


async def set_default(call: Call[wire.Wish, Nothing]) -> Json:
    """Choose a project's."""
    project = call.path["project"]
    await call.core.networks.set_default(call.who, project, request_from(call.body))
    found = call.core.networks.default(call.who, project)
    return Json(wire.Default(network=None if found is None else wish_view(found)))


async def remove_default(call: Call[None, Nothing]) -> Raw:
    """None again."""
    await call.core.networks.set_default(call.who, call.path["project"], None)
    return empty()


OPS: Final = (
    Op(
        method="GET",
        path="/sandboxes/{id}/network",
        handler=show_network,
        summary="Show what a sandbox may reach",
        tag=TAG,
        answer=wire.Network,
        scopes=(Scope.READ,),
        errors=(NotFound,),
    ),
    Op(
        method="PUT",
        path="/sandboxes/{id}/network",
        handler=set_network,
        summary="Change what a sandbox may reach",
        description="The whole policy. It holds when the answer comes, and flows that it refuses are cut.",
        tag=TAG,
        body=wire.Wish,
        answer=wire.Network,
        scopes=(Scope.CREATE,),
        errors=(NotFound, Gone, Unsupported, EngineFailure),
    ),
    Op(
        method="GET",
        path="/sandboxes/{id}/network/refusals",
        handler=list_refusals,
        summary="List what was refused",
        description="The last 200 kinds of a live sandbox; all are in its audit trail.",
        tag=TAG,
        answer=wire.RefusalList,
        scopes=(Scope.READ,),
        errors=(NotFound, Gone),
    ),
    Op(
        method="POST",
        path="/sandboxes/{id}/network/why",
        handler=ask_why,
        summary="Say what would become of a connection",
        description="No connection is made. A name that the policy lets be resolved is asked of DNS.",
        tag=TAG,
        body=wire.Ask,
        answer=wire.Explanation,
        scopes=(Scope.READ,),
        errors=(NotFound, Gone),
    ),
    Op(
        method="GET",
        path="/network-profiles",
        handler=list_profiles,
        summary="List network profiles",
        tag=TAG,
        answer=wire.ProfileList,
        scopes=(Scope.READ,),
    ),
    Op(
        method="GET",
        path="/network-profiles/{profile}",
        handler=show_profile,
        summary="Show a network profile",
        tag=TAG,
        answer=wire.Profile,
        scopes=(Scope.READ,),
        errors=(NotFound,),
    ),
    Op(
        method="PUT",
        path="/network-profiles/{profile}",
        handler=set_profile,
        summary="Make or change a network profile",
        description="For what is made or changed afterwards: live sandboxes keep the policy they have.",
        tag=TAG,
        body=wire.ProfileWish,
        answer=wire.Profile,
        scopes=(Scope.ADMIN,),
    ),
    Op(
        method="DELETE",
        path="/network-profiles/{profile}",
        handler=remove_profile,
        summary="Remove a network profile",
        description="One that comes with Cove is again as it came.",
        tag=TAG,
        status=204,
        scopes=(Scope.ADMIN,),
        errors=(NotFound, Conflict),
    ),
    Op(
        method="GET",
        path="/projects/{project}/network",
        handler=show_default,
        summary="Show what a project's sandboxes reach unasked",
        tag=TAG,
        answer=wire.Default,
        scopes=(Scope.READ,),
        errors=(NotFound,),
    ),
    Op(
        method="PUT",
        path="/projects/{project}/network",
        handler=set_default,
        summary="Choose what a project's sandboxes reach unasked",
        description="For sandboxes made from now on that ask for no network of their own.",
        tag=TAG,
        body=wire.Wish,
        answer=wire.Default,
        scopes=(Scope.ADMIN,),
        errors=(NotFound,),
    ),
    Op(
        method="DELETE",
        path="/projects/{project}/network",
        handler=remove_default,
        summary="Give a project's sandboxes no network unasked",
        tag=TAG,
        status=204,
        scopes=(Scope.ADMIN,),
        errors=(NotFound,),
    ),
)
