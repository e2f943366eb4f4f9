"""`cove audit`: who did what, and whether the record of it is whole."""

from __future__ import annotations

import itertools
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from cove.cli.execution import ends_on_sigterm
from cove.cli.failures import PipeClosed, usage
from cove.cli.options import box_argument
from cove.cli.session import Session
from cove.cli.terminal import clean
from cove.cli.tree import noun, verb

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import BinaryIO

    from cove.model.auditchain import AuditVerdict
    from cove.sdk.audit_calls import AuditLine

FIELDS: Final = ("seq", "at", "project", "sandbox", "sandbox_seq", "event", "actor", "data", "sandbox_hmac", "hmac")
VERDICT: Final = ("good", "count", "project", "sandbox", "first_seq", "reason", "at", "line", "wrong")
WHY_NOT_WHOLE: Final = {
    "retention": "older lines were removed by retention",
    "key": "older lines were signed by another key, which was lost",
}
_EVENT = click.option("--event", metavar="PREFIX", help="Only events that begin so: exec. sandbox. file.")
_PROJECT = click.option("--project", metavar="PROJECT", help="Of another project (admins). _server: the server's own.")
_KEY_LIMIT: Final = 4096
_LINE_LIMIT: Final = 128 * 1024


@verb("show", fields=FIELDS)
@box_argument(required=False)
@_EVENT
@click.option("--since", metavar="TIME", help="Not older than: 30m, 2h, 7d.")
@click.option("-n", "--lines", "count", type=click.IntRange(1), metavar="N", help="The last N lines. Default: 50.")
@click.option("--all", "is_all", is_flag=True, help="All lines that are kept.")
@_PROJECT
def show_command(  # noqa: PLR0913 - one keyword for each option
    session: Session,
    *,
    box: str | None,
    event: str | None,
    since: str | None,
    count: int | None,
    is_all: bool,
    project: str | None,
) -> None:
    """Print the last lines of the audit trail, of a sandbox or of the project.

    cove audit show otter · cove audit show --event key. --since 7d

    A sandbox that has ended is named by its id.
    """
    from itertools import islice

    from cove.sdk.units import parse_seconds

    if is_all and count is not None:
        raise usage("--all and --lines: one of them")
    age = parse_seconds(since, "since")
    start = None if age is None else datetime.now(UTC) - timedelta(seconds=age)
    most = None if is_all else count or 50
    found = session.client.audit.lines(
        sandbox=_ref(session, box),
        event=event,
        since=start,
        newest=not is_all,
        project=project,
        page_size=min(most or 1000, 1000),
    )
    lines = found if most is None else reversed(list(islice(found, most)))
    _print_all(session, lines)


@verb("tail", fields=FIELDS)
@box_argument(required=False)
@_EVENT
@_PROJECT
def tail_command(session: Session, *, box: str | None, event: str | None, project: str | None) -> None:
    """Print lines as they come, until Ctrl-C."""
    session.talk("Waiting for what happens. Ctrl-C ends it.")
    with ends_on_sigterm():
        _print_all(session, session.client.audit.follow(sandbox=_ref(session, box), event=event, project=project))


@verb("export", fields=("file", "lines"))
@click.argument("file")
@click.option("--box", metavar="BOX", help="Only the lines of this sandbox.")
@_PROJECT
def export_command(session: Session, *, file: str, box: str | None, project: str | None) -> None:
    """Write all lines that are kept, with their signed end, to FILE (- for stdout).

    cove audit export audit.ndjson

    What it was, nobody can alter unseen: cove audit verify.
    """
    sandbox = _ref(session, box)
    if file == "-":
        session.client.audit.export(sys.stdout.buffer, sandbox=sandbox, project=project)
        return
    lines = session.client.audit.export(file, sandbox=sandbox, project=project)
    session.emit({"file": file, "lines": lines})
    session.talk(f"{lines} lines are in {clean(file)}. Check them: cove audit verify {clean(file)} --key KEYFILE")


@verb("key", fields=("key",))
@_PROJECT
def key_command(session: Session, *, project: str | None) -> None:
    """Print the key that verifies a project's exports.

    cove audit key >audit.key

    Whoever has it can verify exports, and forge them: give it to those who check, and keep it off the server.
    """
    key = session.client.audit.key(project=project)
    session.emit({"key": key}, clean(key))


@verb("verify", fields=VERDICT)
@click.argument("file")
@click.option("--key", "key_file", metavar="KEYFILE", required=True, help="What cove audit key printed, in a file.")
@click.option("--after", metavar="EARLIER", help="An older export, which this one must continue.")
def verify_command(session: Session, *, file: str, key_file: str, after: str | None) -> int:
    """Check an export, without a server: nothing altered, removed, inserted or reordered.

    cove audit verify audit.ndjson --key audit.key --after last-month.ndjson

    Also what GET /v1/runs/ID/audit of the isorun API gave, which has a chain of its own.

    Exit code 0: it is whole. 1: it is not, and the first bad line is named.
    """
    key = _read(key_file)[:_KEY_LIMIT].strip()
    earlier = None
    if after is not None:
        earlier = _checked(after, key, None)
        if not earlier.is_good:
            return _tell(session, after, earlier)
    return _tell(session, file, _checked(file, key, earlier))


def _checked(file: str, key: str, earlier: AuditVerdict | None) -> AuditVerdict:
    try:
        if file == "-":
            return _verdict(sys.stdin.buffer, key, earlier)
        with open(file, "rb") as stream:  # noqa: PTH123 - pathlib costs 4 ms
            return _verdict(stream, key, earlier)
    except OSError as error:
        raise usage(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise usage("the key file holds no key", "cove audit key >KEYFILE") from error


def _verdict(stream: BinaryIO, key: str, earlier: AuditVerdict | None) -> AuditVerdict:
    """By the form that the first line has: ours, or the isorun API's."""
    from cove.model import eventchain
    from cove.sdk import audit_calls

    first = b"\n"
    while first == b"\n":  # the heartbeat of the stream that it was
        first = stream.readline(_LINE_LIMIT)
    lines = itertools.chain([first], stream)
    if not eventchain.looks_like(first):
        return audit_calls.verify(lines, key, earlier=earlier)
    if earlier is not None:
        raise usage("the trail of one run has no earlier export", "leave --after out")
    return eventchain.verify(lines, key)


def _tell(session: Session, file: str, verdict: AuditVerdict) -> int:
    fields: dict[str, Any] = {name: getattr(verdict, name, None) for name in VERDICT}
    fields["good"] = verdict.is_good
    names = {"project": verdict.project, "sandbox": verdict.sandbox}
    whose = ", ".join(f"{noun} {clean(name)}" for noun, name in names.items() if name)
    if not verdict.is_good:
        session.emit(fields, f"{clean(file)}: BAD: line {verdict.line} {clean(verdict.wrong)}")
        return 1
    session.emit(fields, f"{clean(file)}: good: {verdict.count} lines of {whose}, {_until(verdict)}")
    if verdict.reason in WHY_NOT_WHOLE:
        session.talk(f"It begins with line {verdict.first_seq}: {WHY_NOT_WHOLE[verdict.reason]}.")
    return 0


def _until(verdict: AuditVerdict) -> str:
    return f"signed at {clean(verdict.at)}" if verdict.project else f"the last of {clean(verdict.at)}"


def _read(file: str) -> str:
    try:
        with open(file, encoding="ascii") as stream:  # noqa: PTH123 - pathlib costs 4 ms
            return stream.read(_KEY_LIMIT)
    except OSError as error:
        raise usage(f"{file}: {error.strerror}", "cove audit key >KEYFILE") from error
    except UnicodeDecodeError as error:
        raise usage("the key file holds no key", "cove audit key >KEYFILE") from error


def _ref(session: Session, box: str | None) -> str | None:
    return None if box is None else session.meant(box)


def _print_all(session: Session, lines: Iterable[AuditLine]) -> None:
    try:
        for line in lines:
            session.emit(line.raw, _shown(line))
    except BrokenPipeError as error:
        raise PipeClosed from error


def _shown(line: AuditLine) -> str:
    at = "-" if line.at is None else f"{line.at.astimezone():%Y-%m-%d %H:%M:%S}"
    who = line.name or line.key
    source = f" from {line.address}" if line.address else ""
    facts = " ".join(f"{name}={_value(value)}" for name, value in line.data.items() if value is not None)
    return (
        f"{at}  {clean(line.event):<18} {clean(line.sandbox or '-'):<19}  {clean(who)}{clean(source)}  {facts}".rstrip()
    )


def _value(value: object) -> str:
    text = clean(value)
    return f'"{text}"' if " " in text else text


audit_command = noun(
    "audit",
    "Who did what, in a record that nobody can alter unseen.",
    show_command,
    tail_command,
    export_command,
    key_command,
    verify_command,
)
