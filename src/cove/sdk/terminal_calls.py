"""The requests about terminals, as data; and how the frames of an attached one are read. No I/O.

The synchronous and the awaited surface use both. See `calls.py` for the rules.
"""

from __future__ import annotations

import codecs
import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from cove.sdk.calls import Command
from cove.sdk.errors import BadAnswer, BadRequest, CapacityExceeded, Error, Unreachable, from_problem
from cove.sdk.results import Chunk, Exit
from cove.sdk.transport import Call, Lost, Retry
from cove.sdk.wire import box_path, checked, items_of, nothing, quoted

if TYPE_CHECKING:
    from cove.sdk.models import TerminalInfo

INPUT_BYTES: Final = 32 * 1024
"""Input goes in messages of at most this size."""
POLL_S: Final = 30.0
"""How long the server is asked to wait for output in one request."""


def _terminal(wire: Any) -> TerminalInfo:
    from cove.sdk import models

    return models.terminal(checked(wire))


def open_body(  # noqa: PLR0913 - one keyword for each property of a terminal
    command: Command | None,
    *,
    cols: int,
    rows: int,
    env: Mapping[str, str] | None,
    cwd: str | None,
    user: str | None,
    keep_bytes: int | None,
) -> dict[str, Any]:
    """Return the body of a new terminal. No command: the user's login shell; a str goes through the shell."""
    if isinstance(command, bytes) or (command is not None and not command):
        raise BadRequest("command: give a str for the shell, or a list of str, or None", field="command")
    words = command if command is None or isinstance(command, str) else [str(word) for word in command]
    body: dict[str, Any] = {
        "command": words,
        "cols": cols,
        "rows": rows,
        "env": dict(env) if env else None,
        "cwd": cwd,
        "user": user,
        "keep_bytes": keep_bytes,
    }
    return {name: value for name, value in body.items() if value is not None}


def open_terminal(ref: str, body: dict[str, Any]) -> Call[TerminalInfo]:
    """POST …/terminals."""
    return Call("POST", box_path(ref, "/terminals"), _terminal, json=body)


def terminals(ref: str) -> Call[list[TerminalInfo]]:
    """GET …/terminals."""
    return Call("GET", box_path(ref, "/terminals"), items_of("terminals", _terminal), retry=Retry.LOST)


def path(ref: str, terminal: str, rest: str = "") -> str:
    """Return the path of a terminal."""
    if not terminal or terminal in {".", ".."}:
        raise BadRequest(f'"{terminal}" names no terminal', field="id")
    return box_path(ref, f"/terminals/{quoted(terminal)}{rest}")


def terminal(ref: str, terminal_id: str) -> Call[TerminalInfo]:
    """GET …/terminals/{tid}."""
    return Call("GET", path(ref, terminal_id), _terminal, retry=Retry.LOST)


def forget(ref: str, terminal_id: str) -> Call[None]:
    """DELETE …/terminals/{tid}: hung up, killed and forgotten."""
    return Call("DELETE", path(ref, terminal_id), nothing, retry=Retry.LOST)


def resize(ref: str, terminal_id: str, cols: int, rows: int) -> Call[None]:
    """POST …/resize. Doing it twice is harmless."""
    body = {"cols": cols, "rows": rows}
    return Call("POST", path(ref, terminal_id, "/resize"), nothing, json=body, retry=Retry.LOST)


def signal(ref: str, terminal_id: str, number: str | int) -> Call[None]:
    """POST …/signal."""
    return Call("POST", path(ref, terminal_id, "/signal"), nothing, json={"signal": number})


def output(ref: str, terminal_id: str, *, cursor: int, wait_s: float) -> Call[dict[str, Any]]:
    """GET …/output: what is there from `cursor`, a little of it, waiting at most `wait_s` for the first byte."""
    query = {"cursor": str(cursor), "limit": "4096", "encoding": "base64", "wait_s": f"{wait_s:g}"}
    return Call("GET", path(ref, terminal_id, "/output"), checked, query=query, retry=Retry.LOST)


def attach(ref: str, terminal_id: str, *, cursor: int) -> Call[None]:
    """GET …/attach: a WebSocket."""
    return Call("GET", path(ref, terminal_id, "/attach"), nothing, query={"cursor": str(cursor)})


class TerminalReader:
    """Reads the messages of an attached terminal, over as many connections as it takes.

    Attributes:
        cursor: bytes of output up to here are known, or known to be lost.
        exit: set by the last message.
    """

    def __init__(self, cursor: int) -> None:
        self.cursor = cursor
        self.exit: Exit | None = None
        self._lost = 0
        self._text = codecs.getincrementaldecoder("utf-8")("replace")

    def read(self, message: bytes | str) -> Chunk | None:
        """Take a message; returns the output in it, if it is any.

        Raises: the Error that the terminal ends in; BadAnswer.
        """
        if isinstance(message, bytes):
            self.cursor += len(message)
            lost, self._lost = self._lost, 0
            return Chunk("stdout", message, self._text.decode(message), lost)
        fields = _fields(message)
        match fields.get("type"):
            case "attached":
                self.cursor = int(fields.get("cursor") or 0)
            case "gap":
                lost = int(fields.get("lost") or 0)
                self.cursor += lost
                self._lost += lost
                self._text.reset()
            case "exit":
                self.exit = exit_of(fields)
            case "error":
                raise from_problem(fields, status=int(fields.get("status") or 0))
            case _:  # a later server may say more
                pass
        return None


def exit_of(fields: Mapping[str, Any]) -> Exit:
    """Read how a terminal's program ended, from its last message."""
    code = fields.get("exit")
    if isinstance(code, Mapping):
        return Exit.from_wire(dict(code))  # pyright: ignore[reportUnknownArgumentType]
    return Exit.from_wire({"exit_code": code, **fields})


class Patience:
    """Decides how long a lost terminal is attached to again: with growing pauses, for a minute. Then it gives up."""

    LIMIT_S: Final = 60.0
    STEADY_S: Final = 10.0
    """A connection that held for so long, or brought output, worked: its break is a new one."""
    _FIRST_S: Final = 0.1
    _LONGEST_S: Final = 2.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._attached_at: float | None = None
        self._next_s = self._FIRST_S

    def attached(self) -> None:
        """Take note that an attempt succeeded, so far."""
        self._attached_at = self._clock()

    def reset(self) -> None:
        """Take note that it works again."""
        self._since, self._attached_at, self._next_s = None, None, self._FIRST_S

    def delay_s(self, error: Error) -> float | None:
        """Return how long to wait before the next attempt, None to give up."""
        now = self._clock()
        if self._attached_at is not None and now - self._attached_at > self.STEADY_S:
            self.reset()
        self._attached_at = None
        since = self._since = now if self._since is None else self._since
        if not may_come_back(error) or now - since > self.LIMIT_S:
            return None
        delay = max(self._next_s, min(error.retry_after_s or 0.0, self._LONGEST_S))
        self._next_s = min(self._next_s * 2, self._LONGEST_S)
        return delay


def may_come_back(error: Error) -> bool:
    """Whether the same terminal may be attached to a moment later: a restart, a full machine, a proxy in between."""
    is_proxy = isinstance(error, BadAnswer) and error.status in {502, 503, 504}
    return isinstance(error, Unreachable | CapacityExceeded) or is_proxy or error.code == "server-stopping"


def is_first_refusal(error: Error) -> bool:
    """Whether nobody was there at the first attempt: then waiting would only hide it."""
    return isinstance(error, Unreachable) and not isinstance(error, Lost)


def _fields(message: str) -> dict[str, Any]:
    try:
        fields = json.loads(message)
    except ValueError as error:
        raise BadAnswer("the server sent a message that is not JSON") from error
    return fields if isinstance(fields, dict) else {}  # pyright: ignore[reportUnknownVariableType]
