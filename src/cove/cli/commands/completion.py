"""`cove completion`: completion of commands, options and sandbox names in the shell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import click
from click.shell_completion import get_completion_class

from cove.cli.failures import NOT_FOUND, Failure, usage
from cove.cli.session import Session
from cove.cli.terminal import put
from cove.cli.tree import noun, verb

SHELLS: Final = ("bash", "zsh", "fish")
SHELL = click.argument("shell", type=click.Choice(SHELLS), required=False)


def script(shell: str) -> str:
    """Return the completion script for a shell, as click writes it."""
    from cove.cli.main import commands

    kind = get_completion_class(shell)
    if kind is None:
        raise Failure(f"no completion for {shell}", code="not-found", exit_code=NOT_FOUND)
    return kind(commands(), {}, "cove", "_COVE_COMPLETE").source()


def place(shell: str) -> Path:
    """Return where a shell looks for a user's completions."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    match shell:
        case "bash":
            return data / "bash-completion" / "completions" / "cove"
        case "zsh":
            return data / "zsh" / "site-functions" / "_cove"
        case _:
            return config / "fish" / "completions" / "cove.fish"


def _meant(shell: str | None) -> str:
    name = shell or Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        raise usage("the shell cannot be told from SHELL: name it", "cove completion install bash")
    return name


@verb("install", fields=("shell", "path"))
@SHELL
def install_command(session: Session, *, shell: str | None) -> None:
    """Install completion for this user's shell: bash, zsh or fish."""
    name = _meant(shell)
    path = place(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script(name) + "\n", encoding="utf-8")
    session.emit({"shell": name, "path": str(path)})
    session.talk(f"Wrote {path}. It works in the next shell.")
    if name == "zsh":
        session.talk(f"In ~/.zshrc, before compinit: fpath+=({path.parent})")


@verb("show", fields=("shell", "script"))
@SHELL
def show_command(session: Session, *, shell: str | None) -> None:
    """Print the completion script."""
    name = _meant(shell)
    session.emit({"shell": name, "script": script(name)})
    if not session.json:
        put(script(name))


completion_command = noun("completion", "Completion in the shell.", install_command, show_command)
