"""`cove snapshot`: take one of a sandbox, and what can be done with them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from cove.cli.failures import NOT_FOUND, Failure, usage
from cove.cli.options import box_argument, memory_of, memory_options, pairs
from cove.cli.progress import Status, waiting
from cove.cli.session import Session
from cove.cli.terminal import clean, duration, facts, put, size, table
from cove.cli.tree import MakingNoun, complete_snapshot, verb
from cove.sdk.errors import NotFound

if TYPE_CHECKING:
    from cove.sdk.models import Snapshot

T = TypeVar("T")
FIELDS: Final = (
    "id", "name", "project", "state", "failure", "memory", "reason", "tags", "sandbox", "sandbox_name", "parent",
    "driver", "image", "image_used", "image_digest", "cpus", "memory_mib", "disk_mib", "pids", "metadata",
    "timeout_counts", "idle_timeout_s", "idle_action", "auto_resume", "memory_bytes", "disk_bytes", "processes",
    "stopped_ms", "took_ms", "created_at", "created_by", "dialect", "imported",
)  # fmt: skip
_BAR: Final = 24
_COLOURS: Final = {"ready": "green", "creating": "yellow", "failed": "red", "deleting": "dim"}


def on_snapshot(session: Session, ref: str, act: Callable[[str], T], *, of: str | None = None) -> T:
    """Do `act` with the snapshot that `ref` stands for: an id, a name, or a prefix of either that fits only one.

    `act` gets the reference as given first, so it must fail with NotFound before it does anything. `of`: only those of
    this sandbox are what a prefix may mean. Raises: Failure.
    """
    if not ref:
        raise usage("an empty name names no snapshot", "cove snapshot ls")
    try:
        return act(ref)
    except NotFound as error:
        if error.field not in {None, "snapshot"}:
            raise
        known = list(session.client.snapshots.list(sandbox=of, page_size=1000))
        found = [one for one in known if one.name.startswith(ref) or one.id.startswith((ref, f"sn_{ref}"))]
        if len(found) == 1 and ref not in {found[0].id, found[0].name}:
            return act(found[0].id)
        if len(found) > 1:
            names = ", ".join(one.name for one in found[:5]) + (", …" if len(found) > 5 else "")  # noqa: PLR2004
            raise usage(f'"{ref}" may be any of {names}', "cove snapshot ls") from error
        raise _unknown(ref, [one.name for one in known], error) from error


def _unknown(ref: str, names: list[str], error: NotFound) -> Failure:
    import difflib

    near = difflib.get_close_matches(ref, names, 1)
    hint = f"did you mean {near[0]}?  cove snapshot ls" if near else "cove snapshot ls"
    return Failure(f'no snapshot "{ref}"', code=error.code, exit_code=NOT_FOUND, hint=hint)


@verb("snapshot", fields=FIELDS)
@memory_options
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A tag. May be repeated.")
@box_argument()
@click.argument("name", required=False)
@click.pass_context
def take_command(  # noqa: PLR0913 - one keyword for each option
    ctx: click.Context,
    session: Session,
    *,
    box: str,
    name: str | None,
    tags: tuple[str, ...],
    files_only: bool,
    need_memory: bool,
) -> None:
    """Take a snapshot of a sandbox and print its name."""
    snapshot_command.check(ctx, box)
    from cove.sdk import calls, snapshot_calls

    memory = memory_of(files_only=files_only, need_memory=need_memory)
    labels = pairs(tags, "--tag")
    key = calls.new_key()
    with waiting("Taking a snapshot", quiet=session.quiet or session.json):
        made = session.on_box(
            box,
            lambda ref: session.client.call(
                snapshot_calls.take(ref, name=name, tags=labels, memory=memory, idempotency_key=key)
            ),
        )
    session.emit(made.raw, clean(made.name))
    session.talk(
        f"{clean(made.sandbox_name)} at this moment: {_holds(made)}, {size(made.memory_bytes + made.disk_bytes)}; "
        f"it stood still for {duration(made.stopped_ms / 1000)}. Another from it: cove restore {clean(made.name)}"
    )
    if not made.memory and memory is None:
        session.talk(f"note: processes and memory were not kept: {clean(made.reason or '?')}")


def _holds(one: Snapshot) -> str:
    if not one.memory:
        return "files only"
    return f"{_count(one.processes, 'process', 'es')} and files" if one.processes else "files, no process"


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else plural}"


@verb("ls", fields=FIELDS)
@click.option("--of", "box", metavar="BOX", help="Only those of this sandbox; an ended one by its id.")
@click.option("--state", multiple=True, metavar="STATE", help="Only this state. May be repeated.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Only with this tag. May be repeated.")
def ls_command(session: Session, *, box: str | None, state: tuple[str, ...], tags: tuple[str, ...]) -> None:
    """List snapshots, newest first, all of them."""
    sandbox = None if box is None else session.meant(box)
    found = session.client.snapshots.list(
        sandbox=sandbox, state=state, tags=pairs(tags, "--tag") or None, page_size=1000
    )
    if session.json:
        for one in found:
            session.emit(one.raw)
        return
    rows = [_row(one) for one in found]
    if not rows:
        session.talk("No snapshots. Take one: cove snapshot BOX")
        return
    head = ("NAME", "STATE", "OF", "HOLDS", "SIZE", "DRIVER", "IMAGE", "AGE", "TAGS")
    put(table(head, rows, lambda i, cell: _COLOURS.get(cell) if i == 1 else None))


def _row(one: Snapshot) -> tuple[str, ...]:
    age = duration((datetime.now(UTC) - one.created_at).total_seconds()) if one.created_at else "-"
    tags = " ".join(f"{key}={value}" for key, value in sorted(one.tags.items()))
    total = size(one.memory_bytes + one.disk_bytes)
    return (one.name, one.state, one.sandbox_name, _holds(one), total, one.driver, one.image, age, tags or "-")


@verb("show", fields=FIELDS)
@click.argument("snapshot", shell_complete=complete_snapshot)
def show_command(session: Session, *, snapshot: str) -> None:
    """Show a snapshot: what it holds, of which sandbox, how large it is."""
    found = on_snapshot(session, snapshot, session.client.snapshots.get)
    session.emit(found.raw)
    if not session.json:
        put(facts(found.raw))


@verb("set", fields=FIELDS)
@click.argument("snapshot", shell_complete=complete_snapshot)
@click.option("--name", metavar="NAME", help="Another name.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Set a tag. May be repeated.")
@click.option("--untag", multiple=True, metavar="KEY", help="Remove a tag. May be repeated.")
def set_command(
    session: Session, *, snapshot: str, name: str | None, tags: tuple[str, ...], untag: tuple[str, ...]
) -> None:
    """Change a snapshot's name and tags."""
    changed: dict[str, str | None] = {**pairs(tags, "--tag"), **dict.fromkeys(untag)}
    if name is None and not changed:
        raise usage("say what to change", "cove snapshot set SNAPSHOT --tag KEY=VALUE")
    made = on_snapshot(
        session, snapshot, lambda ref: session.client.snapshots.update(ref, name=name, tags=changed or None)
    )
    session.emit(made.raw, clean(made.name))


@verb("rm", fields=("id", "name"))
@click.argument("snapshots", nargs=-1, required=True, metavar="SNAPSHOT…", shell_complete=complete_snapshot)
def rm_command(session: Session, *, snapshots: tuple[str, ...]) -> None:
    """Delete snapshots. What was made of them goes on."""
    for ref in snapshots:
        one = on_snapshot(session, ref, session.client.snapshots.get)
        session.client.snapshots.delete(one)
        session.emit({"id": one.id, "name": one.name})
        session.talk(f"Deleted {clean(one.name)}.")


@verb("export", fields=("name", "bytes"))
@click.argument("snapshot", shell_complete=complete_snapshot)
@click.argument("file", type=click.Path(), required=False)
def export_command(session: Session, *, snapshot: str, file: str | None) -> None:
    """Write a snapshot to one file, for another machine.

    cove snapshot export before · cove snapshot export before - | ssh other cove snapshot import -

    Without FILE: NAME.cove in this directory. `-` is stdout. The file holds the memory of its processes, with all
    secrets in it.
    """
    if file == "-" and sys.stdout.isatty():
        raise usage("stdout is a terminal", "cove snapshot export NAME FILE")
    one = on_snapshot(session, snapshot, session.client.snapshots.get)
    target = f"{one.name}.cove" if file is None else file
    begin = time.monotonic()
    with waiting(f"Exporting {clean(one.name)}", quiet=session.quiet or session.json) as status:
        count = session.client.snapshots.export(
            one, sys.stdout.buffer if target == "-" else target, on_progress=_watcher(status)
        )
    if target != "-":
        session.emit({"name": one.name, "bytes": count}, clean(target))
    session.talk(
        f"Exported {clean(one.name)}, {size(count)}, in {duration(time.monotonic() - begin)}. "
        f"Elsewhere: cove snapshot import {clean(target)}"
    )


@verb("import", fields=FIELDS)
@click.argument("file", type=click.Path())
@click.option("--name", metavar="NAME", help="What it is called. Default: as it was.")
def import_command(session: Session, *, file: str, name: str | None) -> None:
    """Take a snapshot that was exported, here or elsewhere, and print its name.

    cove snapshot import before.cove · cove snapshot import - --name other <before.cove

    One that this machine cannot restore is refused, with the reason. `-` is stdin.
    """
    if file == "-" and sys.stdin.isatty():
        raise usage("stdin is a terminal", "cove snapshot import FILE")
    begin = time.monotonic()
    with waiting(f"Importing {clean(file)}", quiet=session.quiet or session.json) as status:
        made = session.client.snapshots.import_(
            sys.stdin.buffer if file == "-" else file, name=name, on_progress=_watcher(status)
        )
    session.emit(made.raw, clean(made.name))
    session.talk(
        f"Imported {clean(made.name)}, {_holds(made)}, in {duration(time.monotonic() - begin)}. "
        f"A sandbox of it: cove restore {clean(made.name)}"
    )


def _watcher(status: Status) -> Callable[[int, int], None]:
    def watch(done: int, total: int) -> None:
        if total <= 0:
            status.how_far = size(done)
            return
        if done >= total:
            status.how_far = f"{size(total)}, being checked"
            return
        bar = ("#" * round(min(done / total, 1.0) * _BAR)).ljust(_BAR, ".")
        status.how_far = f"[{bar}] {size(done)} of {size(total)}"

    return watch


_HELP: Final = """Take a snapshot of a sandbox and print its name, or do something with those there are.

cove snapshot otter · cove snapshot otter before --tag run=7 · cove snapshot ls

It holds the files and, where driver and machine can, the processes with their memory, all of one instant; the sandbox
goes on. cove restore makes a sandbox of it, cove rollback takes this one back to it. NAME is chosen where none is
given. A sandbox that is called as a verb below: cove snapshot -- ls.
"""
_VERBS: Final[tuple[Any, ...]] = (ls_command, show_command, set_command, rm_command, export_command, import_command)

snapshot_command = MakingNoun(
    "snapshot",
    help=_HELP,
    making=take_command,
    commands={one.name: one for one in _VERBS},
    no_args_is_help=True,
    subcommand_metavar="BOX [NAME] | COMMAND [ARGS]...",
)
