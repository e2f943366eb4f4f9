"""`cove code`: code in a context of a sandbox, a piece of it or at a prompt."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from cove.cli.coding import Show, Where, run_code
from cove.cli.execution import ends_on_sigterm
from cove.cli.failures import usage
from cove.cli.launch import with_server
from cove.cli.options import box_argument, pairs
from cove.cli.session import Session
from cove.cli.terminal import clean, paint, say
from cove.cli.tree import complete_image, verb
from cove.sdk.errors import Gone, NotFound

if TYPE_CHECKING:
    from cove.sdk.contexts import Context
    from cove.sdk.sandbox import Sandbox

FIELDS = (
    "event", "text", "data", "metadata", "main", "display_id", "update", "path", "name", "value", "traceback",
    "status", "count", "duration_ms", "context", "fresh", "detail",
)  # fmt: skip
IMAGE = "code"
STDIN = "-"


@verb("code", fields=FIELDS)
@click.option("-c", "code", metavar="CODE", help="Run this code.")
@click.option("-l", "--language", metavar="NAME", help="python, javascript, typescript, bash, … Default: python.")
@click.option("--context", metavar="ID", help="Run in this context. Default: the sandbox's own of the language.")
@click.option("--restart", is_flag=True, help="Start with a fresh kernel: what was defined is gone.")
@click.option("-t", "--timeout", metavar="TIME", help="Interrupt each run after so long: 30s, 2h. Default: never.")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Set a variable. May be repeated.")
@click.option("-o", "--output", metavar="DIR", help="Where pictures are written. Default: here.")
@click.option("--image", metavar="IMAGE", shell_complete=complete_image, help="Of a new sandbox. Default: code.")
@box_argument(required=False)
@click.argument("file", required=False)
def code_command(  # noqa: PLR0913 - one keyword for each option
    session: Session,
    *,
    box: str | None,
    file: str | None,
    code: str | None,
    language: str | None,
    context: str | None,
    restart: bool,
    timeout: str | None,
    env: tuple[str, ...],
    output: str | None,
    image: str | None,
) -> int:
    """Run code in a sandbox: -c CODE, a FILE, our input, or lines at a prompt.

    cove code otter

    cove code otter -c 'import platform; platform.node()'

    What it defines is there for the next run. The value of the last expression is printed, pictures are written to
    cove-output-N.png and the like, and their paths printed. The exit code is 1 when the code raised.

    At the prompt Ctrl-C interrupts what runs, Tab completes, Ctrl-D or exit leaves. Without BOX: the sandbox that
    .cove.toml names, else a new one, which is removed at the end.
    """
    if code is not None and file is not None:
        raise usage("give code either with -c or in a file")
    if image is not None and box is not None:
        raise usage("--image is for a new sandbox, and this one is there already", "cove new --image IMAGE")
    text = code if code is not None else _read(session, file)

    def work(sandbox: Sandbox) -> int:
        where = Where(sandbox, language=language, context=context, env=pairs(env, "--env"), timeout=timeout)
        if restart:
            with suppress(NotFound):  # it never ran: it will be fresh
                sandbox.contexts.get(where.context_id).restart()
        show = Show(session, output)
        return _sit(session, where, show) if text is None else run_code(where, text, show)

    if box is None and (image is not None or session.client.target.box is None):
        return _in_new_sandbox(session, image or IMAGE, work)
    return work(session.on_box(box, session.client.get))


def _read(session: Session, file: str | None) -> str | None:
    """Return the code of a file, or of our input; None where a person is to type it. Raises: Failure, OSError."""
    if file is not None and file != STDIN:
        try:
            with open(file, encoding="utf-8") as source:  # noqa: PTH123 - pathlib costs 4 ms
                return source.read()
        except UnicodeDecodeError as error:
            raise usage(f"{file} is no text in UTF-8") from error
    if file != STDIN and sys.stdin.isatty():
        if session.json:
            raise usage("--json goes with code that is given, not with a prompt", "cove code --json BOX -c CODE")
        return None
    return sys.stdin.buffer.read().decode("utf-8", "replace")


def _in_new_sandbox(session: Session, image: str, work: Callable[[Sandbox], int]) -> int:
    box, _ = with_server(session, lambda: session.client.create(image, keep=True))
    with ends_on_sigterm(), _removed(session, box):
        return work(box)


@contextmanager
def _removed(session: Session, box: Sandbox) -> Generator[None]:
    try:
        yield
    finally:
        with suppress(Gone, NotFound):
            box.destroy()
        session.talk(f"Removed {clean(box.name)}. Keep one: cove new --image {IMAGE}, then cove code BOX")


def _sit(session: Session, where: Where, show: Show) -> int:
    """Read, run and show until the person leaves."""
    from cove.cli.repl import Repl, equip, keep_history

    context = _begun(where)
    info = context.info
    session.talk(
        f"{clean(info.language)} {clean(info.version)} in {clean(where.box.name)}. Ctrl-C interrupts, Ctrl-D leaves."
    )
    for gap in () if info.rich else info.missing:
        session.talk(f"{paint('note:', 'yellow', sys.stderr)} {clean(gap)}")

    def run(code: str) -> None:
        try:
            run_code(where, code, show)
        except KeyboardInterrupt:
            say(f"\nIt does not stop. A fresh kernel: cove code {clean(where.box.name)} --restart")

    repl = Repl(info.language, run)
    equip(context, lambda: repl)
    try:
        repl.loop()
    finally:
        keep_history()
    return os.EX_OK


def _begun(where: Where) -> Context:
    """Return the context, with a kernel that runs."""
    if where.context is None:
        where.box.run_code("", language=where.language, check=True)
    return where.box.contexts.get(where.context_id)
