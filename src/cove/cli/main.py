"""The tree of commands and the frame around each: what is loaded, how failures end, which exit code.

A command's module is imported when the command is used. `cove exec BOX COMMAND…` without options does not even load
click (docs/decisions: the budget of 80 ms). To add a command: see the package's docstring.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    import click

COMMANDS: Final = {
    "run": "execute",
    "exec": "execute",
    "shell": "shell",
    "code": "code",
    "new": "sandbox",
    "ls": "sandbox",
    "show": "sandbox",
    "rm": "sandbox",
    "pause": "state",
    "resume": "state",
    "hibernate": "state",
    "snapshot": "snapshot",
    "restore": "state",
    "fork": "state",
    "rollback": "state",
    "cp": "cp",
    "logs": "logs",
    "watch": "watch",
    "port": "port",
    "forward": "forward",
    "network": "network",
    "open": "open",
    "serve": "serve",
    "down": "down",
    "setup": "machine",
    "doctor": "machine",
    "service": "service",
    "key": "key",
    "ssh": "ssh",
    "ssh-key": "ssh_key",
    "ssh-config": "ssh",
    "project": "project",
    "quota": "quota",
    "usage": "usage",
    "credential": "credential",
    "audit": "audit",
    "template": "template",
    "webhook": "webhook",
    "file": "file",
    "image": "image",
    "config": "config",
    "completion": "completion",
    "help": "help",
}
"""Command -> module below `cove.cli.commands`, in the order of `cove --help`. The module names it NAME_command."""


def run() -> NoReturn:
    """Run the program: the entry point of the package."""
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Run one command line and return the exit code."""
    from cove.cli import failures

    try:
        return _dispatch(argv)
    except failures.PipeClosed:
        _drop_stdout()
        return failures.BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the outermost frame: every failure is told
        return failures.tell(error, json=wants_json(argv) and not is_plain_exec(argv))


def _dispatch(argv: Sequence[str]) -> int:
    if is_plain_exec(argv):
        from cove.cli.execution import execute
        from cove.cli.session import Session
        from cove.sdk import calls

        command = list(argv[3:] if argv[2] == "--" else argv[2:])
        body = calls.exec_body(command, env=None, cwd=None, user=None, timeout=None)
        session = Session()
        return session.on_box(argv[1], lambda ref: execute(session, ref, body))
    return _click(argv)


def is_plain_exec(argv: Sequence[str]) -> bool:
    """Whether this is `exec BOX [--] COMMAND…` without any option of ours."""
    if len(argv) < 3 or argv[0] != "exec" or (argv[1].startswith("-") and argv[1] != "-"):  # noqa: PLR2004 - 3 words
        return False
    return len(argv) > 3 if argv[2] == "--" else not argv[2].startswith("-")  # noqa: PLR2004 - as above


def _click(argv: Sequence[str]) -> int:
    import click

    from cove.cli.failures import USAGE, Interrupted, PipeClosed, tell, usage
    from cove.cli.session import Session
    from cove.cli.terminal import say
    from cove.cli.tree import root

    session = Session()
    try:
        done: object = root().main(args=list(argv), prog_name="cove", standalone_mode=False, obj=session)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        return USAGE
    except click.UsageError as error:
        path = error.ctx.command_path.strip() if error.ctx else "cove"
        raise usage(error.format_message(), f"{path} --help") from error
    except click.Abort as error:
        raise Interrupted from error
    except PipeClosed:
        raise
    except Exception as error:  # noqa: BLE001 - told here, where it is known whether JSON was asked for
        return tell(error, json=session.json)
    return done if isinstance(done, int) else 0


def wants_json(argv: Sequence[str]) -> bool:
    """Whether `--json` stands among our own options, as far as that can be told of a line that may be wrong."""
    for word in argv:
        if word == "--":
            return False
        if word == "--json" or word.startswith("--json="):
            return True
    return False


def _drop_stdout() -> None:
    """Let the interpreter's last flush go nowhere: the reader has gone."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def commands() -> click.Group:
    """Return the tree. For the reference page and tests."""
    from cove.cli.tree import root

    return root()


if __name__ == "__main__":
    run()
