"""The requests about public keys for SSH, as data. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cove.sdk.transport import Call, Retry
from cove.sdk.wire import API, checked, items_of, nothing, quoted

if TYPE_CHECKING:  # its dataclasses cost 7 ms, which `cove exec` does not have
    from cove.sdk.models import SshKey


def _ssh_key(wire: Any) -> SshKey:
    from cove.sdk import models

    return models.ssh_key(checked(wire))


def add_ssh_key(public_key: str, *, name: str | None, project: str | None) -> Call[SshKey]:
    """POST /ssh-keys."""
    body: dict[str, Any] = {"public_key": public_key}
    if name is not None:
        body["name"] = name
    if project is not None:
        body["project"] = project
    return Call("POST", f"{API}/ssh-keys", _ssh_key, json=body)


def list_ssh_keys() -> Call[list[SshKey]]:
    """GET /ssh-keys."""
    return Call("GET", f"{API}/ssh-keys", items_of("ssh_keys", _ssh_key), retry=Retry.LOST)


def remove_ssh_key(key_id: str) -> Call[None]:
    """DELETE /ssh-keys/{ssh_key}."""
    return Call("DELETE", f"{API}/ssh-keys/{quoted(key_id)}", nothing, retry=Retry.LOST)
