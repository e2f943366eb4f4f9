"""A dialect as data: what `dialects/NAME/routes.py` exports and `server/` mounts. No behaviour.

To add a dialect: one folder, one row in the table of `dialects/__init__.py`, tests, one page of docs.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from cove.edge.auth import bearer_or_x_api_key
from cove.edge.errors import ErrorTable
from cove.edge.exchange import Exchange
from cove.edge.ops import Op
from cove.edge.portforms import PathForm
from cove.model.keyform import KeyForm


class Dialect(Struct, frozen=True, kw_only=True):
    """One wire protocol.

    `prefix` is where it is mounted, and `roots` the further prefixes under which the original's exact URLs work ("" for
    the server's root). `key_prefixes` and `claims_header` (lowercase) help to tell whose request a shared path is.
    `ports`: where it has the ports of sandboxes; they are proxied beside its operations.
    `key_of` finds the key in a request; `new_key` is how the keys look that are made for this dialect alone. None: as
    all others. `keys_first`: without a key not even a path that is none is told of.
    """

    name: str
    prefix: str
    ops: tuple[Op, ...]
    errors: ErrorTable
    roots: tuple[str, ...] = ()
    key_prefixes: tuple[str, ...] = ()
    claims_header: bytes | None = None
    ports: PathForm | None = None
    key_of: Callable[[Exchange], str | None] = bearer_or_x_api_key
    new_key: KeyForm | None = None
    keys_first: bool = False
