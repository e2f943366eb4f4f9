"""Operations on public keys for SSH."""

from __future__ import annotations

from typing import Final

from cove.dialects.native import wire_ssh
from cove.dialects.native.times import optional_timestamp, timestamp
from cove.edge.ops import Call, Json, Nothing, Op, Raw, empty
from cove.model.access import Scope
from cove.model.errors import Conflict, Forbidden, NotFound
from cove.model.sshkey import SshKey

TAG: Final = "SSH"


def view(key: SshKey) -> wire_ssh.SshKey:
    """A key as the wire has it."""
    return wire_ssh.SshKey(
        id=key.id,
        name=key.name,
        project=key.project,
        type=key.type,
        public_key=f"{key.type} {key.public_key}",
        fingerprint=key.fingerprint,
        created_at=timestamp(key.created_at),
        last_used_at=optional_timestamp(key.last_used_at),
    )


async def add_ssh_key(call: Call[wire_ssh.NewSshKey, Nothing]) -> Json:
    """Let one in."""
    body = call.body
    return Json(
        view(await call.core.ssh_keys.add(call.who, body.public_key, name=body.name, project=body.project)), status=201
    )


async def list_ssh_keys(call: Call[None, Nothing]) -> Json:
    """All of the project."""
    return Json(wire_ssh.SshKeyList(tuple(map(view, call.core.ssh_keys.list(call.who)))))


async def remove_ssh_key(call: Call[None, Nothing]) -> Raw:
    """Shut one out."""
    await call.core.ssh_keys.remove(call.who, call.path["ssh_key"])
    return empty()


OPS: Final = (
    Op(
        method="POST",
        path="/ssh-keys",
        handler=add_ssh_key,
        summary="Let a public key log in over SSH",
        description="Its holder may run commands, use files and reach ports in the project's sandboxes.",
        tag=TAG,
        body=wire_ssh.NewSshKey,
        answer=wire_ssh.SshKey,
        status=201,
        scopes=(Scope.KEYS,),
        errors=(NotFound, Forbidden, Conflict),
    ),
    Op(
        method="GET",
        path="/ssh-keys",
        handler=list_ssh_keys,
        summary="List public keys",
        tag=TAG,
        answer=wire_ssh.SshKeyList,
        scopes=(Scope.KEYS,),
    ),
    Op(
        method="DELETE",
        path="/ssh-keys/{ssh_key}",
        handler=remove_ssh_key,
        summary="Shut a public key out",
        description="It opens nothing from now on, and connections that it opened end within seconds.",
        tag=TAG,
        status=204,
        scopes=(Scope.KEYS,),
        errors=(NotFound, Forbidden),
    ),
)
