"""What a command gives back: its end, its output, its chunks. Frozen values, no I/O."""

from __future__ import annotations

import builtins
from base64 import b64decode
from dataclasses import dataclass
from typing import Any, Literal

from cove.sdk.errors import CommandFailed

StreamName = Literal["stdout", "stderr"]


@dataclass(frozen=True, slots=True)
class Exit:
    """How a command ended. An exit code is a result, never an exception.

    Attributes:
        exit: the exit code; 128 + signal when a signal ended it, 124 after its timeout, 127 or 126 when it could not
            start.
        why: `exited`, `killed`, `timeout`, `oom`, `sandbox-gone`, or `canceled` (it waited in a shell, and never ran).
        ms: how long it ran, in milliseconds.
        signal: the number of the signal that ended it, or None.
        cpu_ms: processor time used.
        memory_peak_bytes: the most memory it held.
    """

    exit: int
    why: str = "exited"
    ms: float = 0.0
    signal: int | None = None
    cpu_ms: float = 0.0
    memory_peak_bytes: int = 0

    @property
    def ok(self) -> bool:
        """Whether the command ended by itself with exit code 0."""
        return self.exit == 0 and self.why == "exited"

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Exit:
        """Read the exit object of the native API."""
        return cls(**_exit_facts(wire))


@dataclass(frozen=True, slots=True)
class Result(Exit):
    """A finished command with what it wrote. Each stream keeps its last 10 MiB; `*_dropped` counts what was cut."""

    out_bytes: bytes = b""
    err_bytes: bytes = b""
    out_dropped: int = 0
    err_dropped: int = 0

    @property
    def out(self) -> str:
        """Standard output as text; invalid UTF-8 becomes U+FFFD. `out_bytes` has it as it was."""
        return self.out_bytes.decode("utf-8", "replace")

    @property
    def err(self) -> str:
        """Standard error as text; invalid UTF-8 becomes U+FFFD. `err_bytes` has it as it was."""
        return self.err_bytes.decode("utf-8", "replace")

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Result:
        """Read the answer of a buffered exec."""
        encoding = str(wire.get("encoding", "utf-8"))
        return cls(
            **_exit_facts(wire),
            out_bytes=decode(wire.get("stdout", ""), encoding),
            err_bytes=decode(wire.get("stderr", ""), encoding),
            out_dropped=int(wire.get("stdout_dropped_bytes") or 0),
            err_dropped=int(wire.get("stderr_dropped_bytes") or 0),
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a command's output, in the order in which it was written.

    Attributes:
        stream: `stdout` or `stderr`.
        data: the bytes.
        text: the same as text. A character that a border cuts in two comes whole with the later piece; invalid UTF-8
            becomes U+FFFD.
        lost: bytes before this piece that are no longer kept: always 0 for a live stream; for a background command it
            is more when the reader came too late.
    """

    stream: StreamName
    data: bytes
    text: str
    lost: int = 0


class Tail:
    """Keeps the last `limit` bytes of what is added; `dropped` counts the rest."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()
        self._total = 0

    @property
    def dropped(self) -> int:
        """Bytes that are no longer there."""
        return max(0, self._total - self._limit)

    def add(self, data: bytes) -> None:
        """Add bytes. Cuts rarely, so that the whole costs linear time; holds twice the limit at most."""
        self._data += data
        self._total += len(data)
        if len(self._data) > 2 * self._limit:
            del self._data[: -self._limit]

    def bytes(self) -> builtins.bytes:
        """Return what is kept."""
        return builtins.bytes(self._data[-self._limit :])


def decode(data: object, encoding: str) -> bytes:
    """Return the bytes that a text field of the wire stands for."""
    text = data if isinstance(data, str) else ""
    return b64decode(text) if encoding == "base64" else text.encode()


def _code(code: object, signal: object) -> int:
    if isinstance(code, int):
        return code
    return 128 + signal if isinstance(signal, int) else -1


def _exit_facts(wire: dict[str, Any]) -> dict[str, Any]:
    signal = wire.get("signal")
    return {
        "exit": _code(wire.get("exit_code"), signal),
        "why": str(wire.get("why") or "exited"),
        "ms": float(wire.get("duration_ms") or 0.0),
        "signal": int(signal) if signal is not None else None,
        "cpu_ms": float(wire.get("cpu_ms") or 0.0),
        "memory_peak_bytes": int(wire.get("memory_peak_bytes") or 0),
    }


def checked(result: Result) -> Result:
    """Return a result that is ok. Raises: CommandFailed."""
    if result.ok:
        return result
    tail = result.err.strip()[-2000:]
    how = f"exit code {result.exit}" if result.why == "exited" else f"{result.why}, exit code {result.exit}"
    raise CommandFailed(f"the command failed: {how}{': ' if tail else ''}{tail}", result=result)
