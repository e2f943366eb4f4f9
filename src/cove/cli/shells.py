"""`cove exec --in`: commands as lines of a long-lived shell. No click here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cove.cli.execution import Output, finish, relay
from cove.cli.failures import NOT_FOUND, Failure, usage
from cove.cli.terminal import clean
from cove.sdk import shell_calls

if TYPE_CHECKING:
    from cove.cli.session import Session

NEW: Final = "new"
LATEST: Final = "-"


@dataclass(frozen=True, slots=True)
class Line:
    """What is to be run, and in which shell: an id, NEW or LATEST. `env`, `cwd`, `user` are those of a new one."""

    words: Sequence[str]
    shell: str
    timeout: str | None
    detach: bool
    env: Mapping[str, str] | None
    cwd: str | None
    user: str | None

    @property
    def text(self) -> str:
        """The line: one word as it is, several as one program and its arguments."""
        return self.words[0] if len(self.words) == 1 else shlex.join(self.words)


def run_in_shell(session: Session, ref: str, line: Line) -> int:
    """Run the line and return its exit code; detached: print its id. Raises: whatever the SDK raises, Failure."""
    shell_id = _shell_of(session, ref, line)
    if line.detach:
        info = session.client.call(shell_calls.start(ref, shell_id, line.text, timeout=line.timeout, keep_bytes=None))
        session.emit(info.raw, clean(info.id))
        session.talk(f"Running as {clean(info.id)}. Its output: cove logs -f {ref} {clean(info.id)}")
        return 0
    output = Output(session)
    exit_ = relay(session.client, shell_calls.stream(ref, shell_id, line.text, timeout=line.timeout), output)
    return finish(session, exit_, output, line.words)


def _shell_of(session: Session, ref: str, line: Line) -> str:
    if line.shell == NEW:
        call = shell_calls.open_shell(ref, program=None, env=line.env, cwd=line.cwd, user=line.user)
        found = session.client.call(call).id
        session.talk(f"Shell {clean(found)}. Again in it: cove exec --in {clean(found)} {ref} -- COMMAND")
        return found
    if line.env or line.cwd or line.user:
        raise usage("--env, --cwd and --user are for a new shell", f"cove exec --in {NEW} …")
    if line.shell != LATEST:
        return line.shell
    alive = [one for one in session.client.call(shell_calls.shells(ref)) if one.exit is None]
    if not alive:
        hint = f"cove exec --in {NEW} {ref} -- COMMAND"
        raise Failure("the sandbox has no shell", code="not-found", exit_code=NOT_FOUND, hint=hint)
    return alive[-1].id
