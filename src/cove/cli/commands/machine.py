"""`cove setup` and `cove doctor`: what this machine needs, and what it has."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from cove.cli.session import Session
from cove.cli.terminal import put
from cove.cli.tree import verb

if TYPE_CHECKING:
    from cove.server.setup import Progress


@verb("setup", fields=("data_dir", "images"))
@click.option("--refresh", is_flag=True, help="Make runtimes and images anew although they are there.")
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
def setup_command(session: Session, *, refresh: bool, images: tuple[str, ...]) -> None:
    """Install what sandboxes need on this machine.

    Asks nothing. With names, only those images are built. What is there already is left as it is, so a second run
    does nothing. As root.
    """
    from msgspec.structs import replace

    from cove.server.setup import SilentProgress, StderrProgress, run_setup, settings_from
    from cove.server.setup.steps import build_images

    settings = replace(settings_from(os.environ), refresh=refresh)
    progress: Progress = SilentProgress() if session.quiet else StderrProgress(sys.stderr)
    if images:
        build_images(settings, progress, list(images))
    else:
        run_setup(settings, progress)
    session.emit({"data_dir": str(settings.data_dir), "images": images or settings.images})
    session.talk("This machine is ready. Start the server: cove serve    Run something: cove run -- COMMAND")


@verb("doctor", fields=("name", "status", "fact", "cost", "cure"))
@click.option("--attack", "is_attack", is_flag=True, help="Attack fresh sandboxes of each driver and tell what held.")
@click.option("--driver", "drivers", multiple=True, metavar="NAME", help="With --attack: only this driver. Repeatable.")
@click.option("--only", metavar="WORD", default="", help="With --attack: only attacks whose name contains WORD.")
@click.option("--restored", "is_restored", is_flag=True, help="With --attack: sandboxes made of their kept memory.")
def doctor_command(session: Session, *, is_attack: bool, drivers: tuple[str, ...], only: str, is_restored: bool) -> int:
    """Tell what this machine offers and what is missing.

    Line by line, with what a gap costs and how to close it. Exit code 1 when sandboxes cannot run here. Changes
    nothing. With --attack: about a minute per driver; exit code 1 when a defence did not hold.
    """
    if is_attack:
        return _attack(session, drivers, only, is_restored=is_restored)
    from cove.server.doctor import examine, render
    from cove.server.setup import settings_from

    report = examine(settings_from(os.environ))
    for line in report.lines:
        session.emit({name: str(getattr(line, name)) for name in ("name", "status", "fact", "cost", "cure")})
    if not session.json:
        put(render(report))
    return 0 if report.is_usable else 1


def _attack(session: Session, drivers: tuple[str, ...], only: str, *, is_restored: bool) -> int:
    from msgspec import to_builtins

    from cove.engine.attacks.run import Verdict
    from cove.server.config import load
    from cove.server.doctor import attack
    from cove.server.setup import settings_from

    names = drivers or load(os.environ).settings.drivers
    verdicts: list[Verdict] = []
    for verdict in attack.attack(settings_from(os.environ), names, only, is_restored=is_restored):
        verdicts.append(verdict)
        session.emit(to_builtins(verdict))
        if not session.json:
            put(attack.line(verdict))
    if not session.json:
        put(attack.summary(verdicts))
    return 0 if attack.is_green(verdicts) else 1
