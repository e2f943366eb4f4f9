"""`cove pause`, `resume`, `hibernate`, `restore`, `fork`, `rollback`: what happens to a sandbox's state."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from cove.cli.commands.snapshot import on_snapshot
from cove.cli.networking import network_of, network_options
from cove.cli.options import (
    IDLE_ACTIONS,
    SANDBOX_FIELDS,
    box_argument,
    life_counts_option,
    memory_of,
    memory_options,
    pairs,
    wishes,
)
from cove.cli.progress import waiting
from cove.cli.session import Session
from cove.cli.terminal import clean, duration
from cove.cli.tree import complete_snapshot, verb
from cove.sdk import calls

if TYPE_CHECKING:
    from cove.sdk.models import SandboxInfo
    from cove.sdk.sandbox import Sandbox

SHOWN: Final = 3
"""So many names of a fork's children stand in what is said; stdout has all."""


@verb("pause", fields=SANDBOX_FIELDS)
@box_argument(required=False)
def pause_command(session: Session, *, box: str | None) -> None:
    """Pause a sandbox; its memory is kept.

    Its processes stand still and use no processor time. cove resume lets it go on where it was, and so does any
    command or file operation, unless it was made with --no-auto-resume. To free its memory too: cove hibernate. To end
    it: cove rm.
    """
    info = session.on_box(box, lambda ref: session.client.call(calls.pause(ref)))
    session.emit(info.raw)
    session.talk(f"Paused {clean(info.name)}; its memory is kept. Go on: cove resume {clean(info.name)}")


@verb("resume", fields=SANDBOX_FIELDS)
@click.option("--files-only", is_flag=True, help="A hibernated one anew, when its kept memory is damaged.")
@box_argument(required=False)
def resume_command(session: Session, *, box: str | None, files_only: bool) -> None:
    """Let a paused or hibernated sandbox go on. One that runs already stays as it is."""
    memory = False if files_only else None
    with waiting("Resuming", quiet=session.quiet or session.json):
        info = session.on_box(box, lambda ref: session.client.call(calls.resume(ref, memory=memory)))
    session.emit(info.raw)
    session.talk(f"{clean(info.name)} runs.")
    if info.kept is not None and not info.kept.memory:
        session.talk(f"note: its processes were not kept when it was hibernated: {clean(info.kept.reason or '?')}")


@verb("hibernate", fields=SANDBOX_FIELDS)
@memory_options
@box_argument(required=False)
def hibernate_command(session: Session, *, box: str | None, files_only: bool, need_memory: bool) -> None:
    """Put a sandbox on the disk: no process and no memory of it is left.

    It keeps its name, files, processes, shells and terminals, also over a reboot of the machine. cove resume lets it go
    on where it was, and so does any command or file operation, unless it was made with --no-auto-resume.
    """
    from cove.sdk import snapshot_calls

    memory = memory_of(files_only=files_only, need_memory=need_memory)
    with waiting("Hibernating", quiet=session.quiet or session.json):
        info = session.on_box(box, lambda ref: session.client.call(snapshot_calls.hibernate(ref, memory=memory)))
    session.emit(info.raw)
    name = clean(info.name)
    kept = info.kept
    is_whole = kept is None or kept.memory
    session.talk(f"Hibernated {name}, {'memory and files' if is_whole else 'files only'}. Go on: cove resume {name}")
    if kept is not None and not is_whole and memory is None:
        session.talk(_not_kept(kept.reason))


def _not_kept(reason: str | None) -> str:
    return f"note: processes and memory were not kept: {clean(reason or '?')}"


def made_options(function: Any) -> Any:
    """Add the options of a sandbox that is made of another's state."""
    function = network_options(function, "as the source")
    for option in reversed(
        (
            click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Set a variable, for new commands."),
            click.option("--cpus", type=float, metavar="N", help="Processor cores. Default: as the source."),
            click.option("--memory", metavar="SIZE", help="Memory limit: 512m, 4g. Default: as the source."),
            click.option("--disk", metavar="SIZE", help="Limit of what it writes. Default: as the source."),
            click.option("--pids", type=int, metavar="N", help="Most processes at a time. Default: as the source."),
            click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Labels, in place of the source's."),
            click.option("--life", metavar="TIME", help="End it after so long: 30m, 2h, never. Default: never."),
            life_counts_option,
            click.option("--idle", metavar="TIME", help="Idle for so long, --idle-action happens. never: never."),
            click.option(
                "--idle-action",
                type=click.Choice(IDLE_ACTIONS),
                metavar="ACTION",
                help="What happens when it is idle: pause, hibernate, terminate or none.",
            ),
            click.option(
                "--credential",
                "credentials",
                multiple=True,
                metavar="SERVICE[=@VAR]",
                help="As of cove new. Without: none.",
            ),
            click.option("--inherit-credentials", is_flag=True, help="Also those of the source."),
        )
    ):
        function = option(function)
    return memory_options(function)


def _properties(options: dict[str, Any]) -> dict[str, Any]:
    """Turn the options of `made_options` into what the SDK takes."""
    from cove.sdk.units import UNSET

    wanted = [options.pop(name) for name in ("network", "allow", "deny", "link")]
    idle, life, limit = options.pop("idle"), options.pop("life"), options.pop("memory")
    memory = memory_of(files_only=options.pop("files_only"), need_memory=options.pop("need_memory"))
    return {
        **options,
        "network": network_of(*wanted),
        "env": pairs(options["env"], "--env"),
        "metadata": pairs(options["metadata"], "--metadata") or None,
        "credentials": wishes(options["credentials"]),
        "memory": memory,
        "memory_limit": limit,
        "timeout": life,
        "idle_timeout": UNSET if idle is None else idle,
        "keep": True,
    }


@verb("restore", fields=SANDBOX_FIELDS)
@made_options
@click.argument("snapshot", shell_complete=complete_snapshot)
@click.argument("name", required=False)
@click.option("--template", is_flag=True, help="SNAPSHOT is a template's name: take a copy that is ready.")
def restore_command(session: Session, *, snapshot: str, name: str | None, template: bool, **options: Any) -> None:
    """Make a sandbox of a snapshot and print its name.

    cove restore before · cove restore before second --memory 1g

    It goes on from where the snapshot was taken, and is a sandbox of its own: another id, host name and address, none
    of the source's credentials and connections. The source may run, or be gone.
    """
    properties = _properties(options)
    client = session.client
    with waiting("Restoring", quiet=session.quiet or session.json):
        if template:
            box = client.snapshots.restore(client.templates.get(snapshot), name=name, **properties)
        else:
            box = on_snapshot(session, snapshot, lambda ref: client.snapshots.restore(ref, name=name, **properties))
    session.remember(box.id)
    session.emit(box.info.raw, clean(box.name))
    session.talk(
        f"Ready in {duration((box.info.create_ms or 0) / 1000)}, with {_what_came(box.info)}. "
        f"In it: cove exec {clean(box.name)} -- COMMAND"
    )
    _tell_lost(session, [box], properties["memory"])


@verb("fork", fields=SANDBOX_FIELDS)
@made_options
@click.option("--name", metavar="NAME", help="A name; of several: NAME-1, NAME-2, … Default: by the sandbox's.")
@box_argument()
@click.argument("count", type=click.IntRange(1, 100), default=1)
def fork_command(session: Session, *, box: str, count: int, name: str | None, **options: Any) -> None:
    """Make sandboxes that go on from where this one is, and print their names.

    cove fork otter · cove fork otter 8 --json name

    All of them or none. Each is a sandbox of its own: another id, host name and address, other random numbers, none of
    the credentials and connections. The sandbox itself goes on.
    """
    properties = _properties(options)
    begin = time.monotonic()
    with waiting("Forking", quiet=session.quiet or session.json):
        children = session.on_box(box, _forking(session, count, {"name": name, **properties}))
    for child in children:
        session.emit(child.info.raw, clean(child.name))
    names = ", ".join(clean(child.name) for child in children[:SHOWN]) + (", …" if len(children) > SHOWN else "")
    session.talk(
        f"{names}: ready in {duration(time.monotonic() - begin)}, with {_what_came(children[0].info)}. "
        f"In one: cove exec {clean(children[0].name)} -- COMMAND"
    )
    _tell_lost(session, children, properties["memory"])


def _forking(session: Session, count: int, properties: dict[str, Any]) -> Callable[[str], list[Sandbox]]:
    def act(ref: str) -> list[Sandbox]:
        from cove.sdk.sandbox import Sandbox

        return Sandbox(ref, client=session.client).fork(count, **properties)

    return act


def _what_came(info: SandboxInfo) -> str:
    return "memory and files" if info.came_from is None or info.came_from.memory else "files only"


def _tell_lost(session: Session, made: Sequence[Sandbox], memory: bool | None) -> None:  # noqa: FBT001 - as asked
    """Say why processes did not come along, unless just that was asked for."""
    lost = [one.info.came_from for one in made if one.info.came_from is not None and not one.info.came_from.memory]
    if lost and memory is None:
        session.talk(_not_kept(lost[0].reason))


@verb("rollback", fields=SANDBOX_FIELDS)
@memory_options
@box_argument()
@click.argument("snapshot", shell_complete=complete_snapshot)
def rollback_command(session: Session, *, box: str, snapshot: str, files_only: bool, need_memory: bool) -> None:
    """Take a sandbox back to one of its snapshots.

    cove rollback otter before

    In place: it keeps its id, name and address. What was done in it since is gone; keep that with cove snapshot first.
    """
    from cove.sdk import snapshot_calls

    memory = memory_of(files_only=files_only, need_memory=need_memory)

    def act(ref: str) -> SandboxInfo:
        session.client.call(calls.get(ref))  # so that what is not found below is the snapshot
        return on_snapshot(
            session,
            snapshot,
            lambda found: session.client.call(snapshot_calls.rollback(ref, found, memory=memory)),
            of=ref,
        )

    with waiting("Rolling back", quiet=session.quiet or session.json):
        info = session.on_box(box, act)
    session.emit(info.raw)
    session.talk(f"{clean(info.name)} is as it was when the snapshot {clean(snapshot)} was taken.")
