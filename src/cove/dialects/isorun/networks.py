"""Network policies with a name."""

from __future__ import annotations

from typing import Final

from cove.dialects.isorun import wire
from cove.dialects.networkforms import to_isorun
from cove.edge.ops import Call, Json, Op
from cove.model.access import Scope
from cove.model.network import NetworkProfile

TAG: Final = "Network"


def _view(profile: NetworkProfile) -> wire.Profile:
    allow, deny = to_isorun(profile)
    return wire.Profile(name=profile.name, description=profile.description, allow=allow, deny=deny)


async def list_profiles(call: Call[wire.Ignored, wire.Ignored]) -> Json:
    """All of them, without anything around."""
    found = await call.core.networks.profiles.list(call.who)
    return Json([_view(one) for one in found])


OPS: Final = (
    Op(
        method="GET",
        path="/v1/network-profiles",
        handler=list_profiles,
        summary="List network profiles",
        description="An array.",
        tag=TAG,
        body=wire.Ignored,
        query=wire.Ignored,
        scopes=(Scope.READ,),
    ),
)
