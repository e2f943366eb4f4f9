"""`cove image`: what sandboxes are made from."""

from __future__ import annotations

from cove.cli.session import Session
from cove.cli.terminal import put, size, table
from cove.cli.tree import noun, verb

FIELDS = ("name", "digest", "size_bytes", "status")


@verb("ls", fields=FIELDS)
def ls_command(session: Session) -> None:
    """List the images that sandboxes can be made from."""
    images = session.client.images()
    for one in images:
        session.emit({name: getattr(one, name) for name in FIELDS})
    if not session.json:
        rows = [(one.name, one.status, size(one.size_bytes), one.digest[:12]) for one in images]
        put(table(("NAME", "STATUS", "SIZE", "DIGEST"), rows, lambda _column, _cell: None))


image_command = noun("image", "Images.", ls_command)
