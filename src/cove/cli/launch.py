"""Starts a server on this machine when there is none: `cove run` on a fresh machine is one command.

Only for the local socket and only as root. The server runs in a session of its own, so Ctrl-C and a closed terminal do
not reach it; its log lies in the data directory. `cove down` stops it.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from cove.cli.failures import FAILED, UNREACHABLE, Failure
from cove.cli.progress import waiting
from cove.sdk import server_calls
from cove.sdk.config import DEFAULT_DATA_DIR
from cove.sdk.errors import Error, Unreachable

if TYPE_CHECKING:
    import subprocess

    from cove.cli.session import Session

T = TypeVar("T")
READY_LIMIT_S: Final = 60.0
STDERR_FD: Final = 2
LOG: Final = "server.log"
LOCK: Final = "launch.lock"


def with_server(session: Session, act: Callable[[], T]) -> tuple[T, bool]:
    """Do `act`; where no server runs on this machine, start one and do it then. Returns also whether one was started.

    Raises: Failure (we are not root), and whatever `act` raises.
    """
    try:
        with waiting("Waiting for a sandbox", quiet=session.quiet or session.json):
            return act(), False
    except Unreachable as error:
        if not session.client.target.is_local or isinstance(error.__cause__, PermissionError):
            raise
        require_root(error)
    start_server(session)
    return act(), True


def require_root(error: Unreachable) -> None:
    """Raises: Failure when we may not start a server."""
    if os.geteuid() != 0:
        raise Failure(
            "no server on this machine, and only root can start one",
            code=error.code,
            exit_code=UNREACHABLE,
            hint="sudo cove serve    (another machine's server: set COVE_URL and COVE_API_KEY)",
        ) from error


def data_dir() -> Path:
    """Return the data directory of this machine's server, as far as the environment tells."""
    return Path(os.environ.get("COVE_DATA_DIR") or DEFAULT_DATA_DIR)


def start_server(session: Session) -> None:
    """Set up what is missing, start `cove serve` in the background and wait until it answers.

    Two at a time start one server: the second one waits for the first one's. Raises: Failure with the end of its log.
    """
    where = data_dir()
    session.talk(f"No server on this machine yet: starting one (data in {where}).")
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (where / LOCK).open("w") as lock:
        with waiting("Another cove starts it: waiting", quiet=session.quiet or session.json):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not _answers(session):
            _start(session, where)


def _start(session: Session, where: Path) -> None:
    import subprocess

    if not (where / "images" / "base" / "current").exists() or not (where / "runtimes").exists():
        _set_up(quiet=session.quiet or session.json)
    log = where / LOG
    begin = log.stat().st_size if log.exists() else 0
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "cove.cli.main", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            cwd="/",
            close_fds=True,
        )
    with waiting("Waiting for the server", quiet=session.quiet or session.json):
        _wait_ready(session, process, log, begin)


def _set_up(*, quiet: bool) -> None:
    import subprocess

    argv = [sys.executable, "-m", "cove.cli.main", "setup", *(["--quiet"] if quiet else [])]
    code = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=STDERR_FD, check=False).returncode
    if code != 0:
        raise Failure("this machine could not be set up", code="setup-failed", exit_code=FAILED, hint="cove doctor")


def _wait_ready(session: Session, process: subprocess.Popen[bytes], log: Path, begin: int) -> None:
    deadline = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < deadline:
        if _answers(session):
            return
        if process.poll() is not None:
            raise _failed("the server ended at its start", log, begin)
        time.sleep(0.03)
    raise _failed(f"the server does not answer after {READY_LIMIT_S:.0f} s", log, begin)


def _answers(session: Session) -> bool:
    session.reconnect()
    try:
        session.client.call(server_calls.health())
    except Error:
        return False
    return True


def _failed(what: str, log: Path, begin: int) -> Failure:
    with log.open("rb") as file:
        file.seek(begin)
        said = file.read()[-8192:].decode("utf-8", "replace").strip().splitlines()
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    reason = (errors or said or ["it said nothing"])[-1]
    return Failure(f"{what}: {reason}", code="server-start", exit_code=FAILED, hint=f"cat {log}")
