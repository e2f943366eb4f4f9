"""Keys: making, listing, revoking them, for whoever may (the original's master key)."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from cove.dialects.isol8 import wire_auth
from cove.dialects.isol8.bodies import lenient, strict
from cove.dialects.isol8.times import timestamp
from cove.dialects.isol8.translate_keys import (
    TENANT,
    found_key,
    key_made,
    keys_shown,
    lifetime_s,
    logged_in,
    must_be_master,
    name_of,
    work_scopes,
)
from cove.edge.errors import Malformed, Where
from cove.edge.ops import Call, Json, Nothing, Op
from cove.model.access import Key, Scope
from cove.model.errors import BadRequest, NotFound

TAG: Final = "Keys"
DIALECT: Final = "isol8"


async def create_key(call: Call[None, Nothing]) -> Json:
    """Make one."""
    must_be_master(call.who)
    order = await strict(call, wire_auth.KeyOrder)
    key, text = await _mint(call, name_of(order), order)
    return Json(key_made(key, text), status=201)


async def log_in(call: Call[None, Nothing]) -> Json:
    """Make one for whoever logs in; a body that cannot be read counts as none."""
    must_be_master(call.who)
    order = await lenient(call, wire_auth.KeyOrder)
    key, text = await _mint(call, order.name or f"login-{timestamp(time.time())}", order)
    return Json(logged_in(key, text))


async def list_keys(call: Call[None, wire_auth.KeyQuery]) -> Json:
    """Show all, without their texts."""
    keys = call.core.keys.for_dialect(must_be_master(call.who), DIALECT)
    return Json(keys_shown(keys, call.query.tenant_id))


async def revoke_key(call: Call[None, Nothing]) -> Json:
    """Let one work no more."""
    wanted = call.path["id"]
    key = found_key(call.core.keys.for_dialect(must_be_master(call.who), DIALECT), wanted)
    await call.core.keys.revoke(call.who, key.id)
    return Json(wire_auth.KeyRevoked(ok=True, id=wanted))


async def _mint(call: Call[None, Nothing], name: str, order: wire_auth.KeyOrder) -> tuple[Key, str]:
    with _as_malformed():
        return await call.core.keys.mint(
            call.who,
            name,
            scopes=work_scopes(call.who),
            dialect=DIALECT,
            timeout_s=lifetime_s(order),
            label=order.tenant_id or TENANT,
        )


@contextmanager
def _as_malformed() -> Generator[None]:
    """What is wrong with a key's name or time is wrong with the request's form."""
    try:
        yield
    except BadRequest as error:
        raise Malformed(error.public, where=Where.BODY, field=error.field) from error


OPS: Final = (
    Op(
        method="POST",
        path="/auth/keys",
        handler=create_key,
        summary="Make a key",
        tag=TAG,
        answer=wire_auth.KeyMade,
        status=201,
        scopes=(Scope.KEYS,),
        errors=(BadRequest,),
        upload=True,
    ),
    Op(
        method="GET",
        path="/auth/keys",
        handler=list_keys,
        summary="List keys",
        tag=TAG,
        query=wire_auth.KeyQuery,
        answer=wire_auth.KeysShown,
        scopes=(Scope.KEYS,),
    ),
    Op(
        method="DELETE",
        path="/auth/keys/{id}",
        handler=revoke_key,
        summary="Revoke a key",
        tag=TAG,
        answer=wire_auth.KeyRevoked,
        scopes=(Scope.KEYS,),
        errors=(NotFound,),
    ),
    Op(
        method="POST",
        path="/auth/login",
        handler=log_in,
        summary="Get a key that expires",
        tag=TAG,
        answer=wire_auth.LoggedIn,
        scopes=(Scope.KEYS,),
        upload=True,
    ),
)
