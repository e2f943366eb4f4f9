"""What goes over the wire about public keys for SSH: frozen structs, nothing else. Pure."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from cove.dialects.native.wire import Label, Request


class NewSshKey(Request, frozen=True):
    """A public key to let in: a line as in a `.pub` file. `name` null: its comment; `project` null: the caller's."""

    public_key: Annotated[str, Meta(min_length=1, max_length=16384)]
    name: Annotated[str, Meta(min_length=1, max_length=63)] | None = None
    project: Label | None = None


class SshKey(Struct, frozen=True, kw_only=True):
    """A public key that may log in to the sandboxes of its project."""

    id: str
    name: str
    project: str
    type: str
    public_key: str
    fingerprint: str
    created_at: str
    last_used_at: str | None


class SshKeyList(Struct, frozen=True):
    """Keys of the caller's project, of all for an admin."""

    ssh_keys: tuple[SshKey, ...]
