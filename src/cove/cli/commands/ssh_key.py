"""`cove ssh-key`: which public keys may log in to the project's sandboxes over SSH."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cove.cli.failures import NOT_FOUND, Failure, usage
from cove.cli.session import Session
from cove.cli.terminal import clean, duration, put, table
from cove.cli.tree import noun, verb

if TYPE_CHECKING:
    from cove.sdk.models import SshKey

FIELDS = ("id", "name", "project", "type", "public_key", "fingerprint", "created_at", "last_used_at")
DEFAULT_FILES: Final = ("id_ed25519.pub", "id_ecdsa.pub", "id_ed25519_sk.pub", "id_ecdsa_sk.pub", "id_rsa.pub")
_LONGEST: Final = 16 * 1024


def _wire(key: SshKey) -> dict[str, Any]:
    return {name: getattr(key, name) for name in FIELDS}


@verb("add", fields=FIELDS)
@click.argument("file", required=False)
@click.option("--name", metavar="NAME", help="What to call it. Default: the comment in the file.")
@click.option("--project", metavar="PROJECT", help="The project it is for. Default: your own.")
def add_command(session: Session, *, file: str | None, name: str | None, project: str | None) -> None:
    """Let a public key log in. FILE is a .pub file, - for stdin. Default: the first of your own in ~/.ssh."""
    key = session.client.add_ssh_key(_read(file), name=name, project=project)
    session.emit(_wire(key), clean(key.id))
    session.talk(f"{clean(key.name)} ({clean(key.fingerprint)}) may log in to {clean(key.project)}. Try: cove ssh BOX")


def _read(file: str | None) -> str:
    if file == "-":
        return sys.stdin.read(_LONGEST)
    path = Path(file) if file is not None else _own()
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(_LONGEST)
    except OSError as error:
        raise usage(f"{path}: {error.strerror}", "cove ssh-key add ~/.ssh/id_ed25519.pub") from error


def _own() -> Path:
    for name in DEFAULT_FILES:
        path = Path.home() / ".ssh" / name
        if path.is_file():
            return path
    raise usage(f"there is no public key in {Path.home() / '.ssh'}", "ssh-keygen -t ed25519")


@verb("ls", fields=FIELDS)
def ls_command(session: Session) -> None:
    """List the keys that may log in."""
    keys = session.client.ssh_keys()
    for key in keys:
        session.emit(_wire(key))
    if session.json:
        return
    rows = [(key.id, key.name, key.project, key.type, key.fingerprint, _ago(key.last_used_at)) for key in keys]
    put(table(("ID", "NAME", "PROJECT", "TYPE", "FINGERPRINT", "USED"), rows, lambda _column, _cell: None))


def _ago(when: datetime | None) -> str:
    return f"{duration((datetime.now(UTC) - when).total_seconds())} ago" if when else "-"


@verb("rm", fields=("id", "name"))
@click.argument("key")
def rm_command(session: Session, *, key: str) -> None:
    """Shut a key out; what it has open ends. By its id, name or fingerprint, or a prefix of one."""
    keys = session.client.ssh_keys()
    exact = [one for one in keys if key in {one.id, one.name, one.fingerprint}]
    near = exact or [one for one in keys if one.id.startswith(key) or one.name.startswith(key)]
    if not near:
        raise Failure(f'no SSH key "{key}"', code="not-found", exit_code=NOT_FOUND, hint="cove ssh-key ls")
    if len(near) > 1:
        raise usage(f'"{key}" may be any of {", ".join(one.id for one in near[:5])}', "cove ssh-key ls")
    session.client.remove_ssh_key(near[0].id)
    session.emit({"id": near[0].id, "name": near[0].name})
    session.talk(f"{clean(near[0].name)} ({clean(near[0].id)}) opens nothing from now on.")


ssh_key_command = noun(
    "ssh-key", "Public keys that may log in to your sandboxes over SSH.", add_command, ls_command, rm_command
)
