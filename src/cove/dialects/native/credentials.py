"""Operations on credentials, and on the services that they are for."""

from __future__ import annotations

from typing import Final

from msgspec import UNSET

from cove.dialects.native import wire_credentials as wire
from cove.dialects.native.translate import sandbox_ref
from cove.dialects.native.translate_credentials import (
    credential_view,
    given_rules,
    secret_of,
    service_of,
    service_view,
)
from cove.edge.ops import Call, Json, Nothing, Op, Raw, empty
from cove.model.access import Scope
from cove.model.errors import Forbidden, Gone, NotFound, Unsupported

TAG: Final = "Credentials"
OF_SANDBOX: Final = "/sandboxes/{id}/credentials"
SHARED: Final = "/credentials"
SERVICES: Final = "/credential-services"


async def list_credentials(call: Call[None, Nothing]) -> Json:
    """A sandbox's."""
    held = call.core.credentials.held(call.who, sandbox_ref(call.path["id"]))
    return Json(wire.CredentialList(tuple(map(credential_view, held))))


async def set_credential(call: Call[wire.Set, Nothing]) -> Json:
    """Give a sandbox one, or change it."""
    ref, service, body = sandbox_ref(call.path["id"]), call.path["service"], call.body
    key, endpoints = secret_of(body.key), given_rules(body.endpoints)
    return Json(credential_view(await call.core.credentials.set(call.who, ref, service, key=key, endpoints=endpoints)))


async def remove_credential(call: Call[None, Nothing]) -> Raw:
    """Take one away."""
    await call.core.credentials.remove(call.who, sandbox_ref(call.path["id"]), call.path["service"])
    return empty()


async def list_shared(call: Call[None, wire.ProjectQuery]) -> Json:
    """What a project keeps."""
    held = call.core.credentials.shared(call.who, call.query.project)
    return Json(wire.CredentialList(tuple(map(credential_view, held))))


async def set_shared(call: Call[wire.SetShared, Nothing]) -> Json:
    """Keep one for a project, or change it."""
    body = call.body
    held = await call.core.credentials.set_shared(
        call.who,
        call.path["service"],
        key=UNSET if body.key is UNSET else secret_of(body.key) or UNSET,
        endpoints=given_rules(body.endpoints),
        project=body.project,
    )
    return Json(credential_view(held))


async def remove_shared(call: Call[None, wire.ProjectQuery]) -> Raw:
    """Forget one of a project's."""
    await call.core.credentials.remove_shared(call.who, call.path["service"], project=call.query.project)
    return empty()


async def list_services(call: Call[None, Nothing]) -> Json:
    """All."""
    return Json(wire.ServiceList(tuple(map(service_view, call.core.services.list(call.who)))))


async def put_service(call: Call[wire.PutService, Nothing]) -> Json:
    """Add or change one."""
    return Json(service_view(await call.core.services.put(call.who, call.path["service"], service_of(call.body))))


async def remove_service(call: Call[None, Nothing]) -> Raw:
    """Forget one of the operator's."""
    await call.core.services.remove(call.who, call.path["service"])
    return empty()


async def rekey(call: Call[None, Nothing]) -> Json:
    """Seal all secrets by a new key."""
    return Json(wire.Rekeyed(await call.core.credentials.rekey(call.who)))


OPS: Final = (
    Op(
        method="GET",
        path=OF_SANDBOX,
        handler=list_credentials,
        summary="List a sandbox's credentials",
        description="Services, rules and times. No answer has a key.",
        tag=TAG,
        answer=wire.CredentialList,
        scopes=(Scope.READ,),
        errors=(NotFound,),
    ),
    Op(
        method="PUT",
        path=f"{OF_SANDBOX}/{{service}}",
        handler=set_credential,
        summary="Give a sandbox a credential, or change it",
        description="It holds for the next request. A changed key lets requests under way end by themselves, changed "
        "rules cut them. `env` of the answer is what points a program to the broker; a running sandbox's own "
        "environment does not change.",
        tag=TAG,
        body=wire.Set,
        answer=wire.Credential,
        scopes=(Scope.CREATE,),
        errors=(NotFound, Gone, Unsupported),
    ),
    Op(
        method="DELETE",
        path=f"{OF_SANDBOX}/{{service}}",
        handler=remove_credential,
        summary="Take a credential away",
        description="Requests and streams under way with it are cut. Again: the same answer.",
        tag=TAG,
        status=204,
        scopes=(Scope.CREATE,),
        errors=(NotFound,),
    ),
    Op(
        method="GET",
        path=SHARED,
        handler=list_shared,
        summary="List what a project keeps",
        description="Credentials that its sandboxes may use by the name of the service.",
        tag=TAG,
        query=wire.ProjectQuery,
        answer=wire.CredentialList,
        scopes=(Scope.READ,),
        errors=(NotFound,),
    ),
    Op(
        method="PUT",
        path=f"{SHARED}/{{service}}",
        handler=set_shared,
        summary="Keep a credential for a project, or change it",
        description="Sandboxes that use it send the new key from their next request on. Its rules and those of the "
        "sandbox must both allow a request.",
        tag=TAG,
        body=wire.SetShared,
        answer=wire.Credential,
        scopes=(Scope.KEYS,),
        errors=(NotFound, Forbidden),
    ),
    Op(
        method="DELETE",
        path=f"{SHARED}/{{service}}",
        handler=remove_shared,
        summary="Forget a credential of a project",
        description="What uses it is cut. Again: the same answer.",
        tag=TAG,
        query=wire.ProjectQuery,
        status=204,
        scopes=(Scope.KEYS,),
        errors=(NotFound, Forbidden),
    ),
    Op(
        method="GET",
        path=SERVICES,
        handler=list_services,
        summary="List services",
        description="The HTTPS APIs that credentials can be for.",
        tag=TAG,
        answer=wire.ServiceList,
        scopes=(Scope.READ,),
    ),
    Op(
        method="PUT",
        path=f"{SERVICES}/{{service}}",
        handler=put_service,
        summary="Add a service, or change one",
        description="The operator's own; one of the catalogue is replaced by it. Requests under way to it are cut.",
        tag=TAG,
        body=wire.PutService,
        answer=wire.Service,
        scopes=(Scope.ADMIN,),
        errors=(Forbidden,),
    ),
    Op(
        method="DELETE",
        path=f"{SERVICES}/{{service}}",
        handler=remove_service,
        summary="Forget a service of your own",
        description="One of the catalogue that it replaced is back.",
        tag=TAG,
        status=204,
        scopes=(Scope.ADMIN,),
        errors=(Forbidden, NotFound),
    ),
    Op(
        method="POST",
        path="/server/rekey",
        handler=rekey,
        summary="Put a new key into secrets.key",
        description="Every secret in the database is sealed by it, the old key is forgotten.",
        tag=TAG,
        answer=wire.Rekeyed,
        scopes=(Scope.ADMIN,),
        errors=(Forbidden,),
    ),
)
