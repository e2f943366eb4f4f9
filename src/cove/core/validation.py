"""Ranges and forms of what callers send: one place, so that every dialect refuses the same. Pure.

A check raises BadRequest (TooLarge for sizes) that names the field in the core's vocabulary. The ranges are documented
in `docs/reference/native-api.md`; change both together.
"""

from __future__ import annotations

import math
import re
from typing import Final, NoReturn

from msgspec import UNSET, UnsetType

from cove.model.code import CodeSpec, ContextSpec
from cove.model.errors import BadRequest, NotFound, TooLarge
from cove.model.execs import OUTPUT_LIMIT_BYTES, ExecSpec
from cove.model.ids import is_core_id, is_name
from cove.model.request import PAGE_LIMIT, Idempotency, SandboxChange
from cove.model.sandbox import MIB, Limits, SandboxSpec
from cove.model.shells import ShellCommand, ShellSpec
from cove.model.snapshot import SnapshotSpec
from cove.model.terminals import TERMINAL_SIDE, TerminalSize

CPUS: Final = (0.05, 64.0)
MEMORY_BYTES: Final = (32 * MIB, 1048576 * MIB)
DISK_BYTES: Final = (16 * MIB, 1048576 * MIB)
PIDS: Final = (16, 65536)
IO_BPS: Final = (MIB, 1048576 * MIB)
TIMEOUT_S: Final = (1.0, 10 * 365 * 86400.0)
EXEC_TIMEOUT_S: Final = (0.01, TIMEOUT_S[1])
KEEP_BYTES: Final = (4096, 16 * MIB)
ENV_ENTRIES: Final = 1000
ENV_BYTES: Final = 128 * 1024
METADATA_TOTAL: Final = 16 * 1024
METADATA_ENTRIES: Final = 64
METADATA_KEY: Final = 63
METADATA_VALUE_BYTES: Final = 1024
PATH_BYTES: Final = 4096
ARGUMENT_BYTES: Final = 128 * 1024 - 1
"""The kernel's MAX_ARG_STRLEN less its NUL (execve(2)): a longer one could never start."""

COMMAND_BYTES: Final = 512 * 1024
"""All arguments together: so that a call fits into one frame of the agent's protocol (1 MiB)."""

CONTEXT_PREFIX: Final = "k-"
"""Of the commands and shells that are contexts (`engine/kernels.py`): they have operations of their own."""

SHELL_TEXT_BYTES: Final = 128 * 1024
STDIN_BYTES: Final = 16 * MIB

_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}(:[0-9]{1,10})?")
_COMMAND_ID: Final = re.compile(r"[a-z0-9_-]{1,32}")
_TERMINAL_ID: Final = re.compile(r"t[0-9a-f]{12}")
_CONTEXT_ID: Final = re.compile(r"[a-z0-9_-]{1,30}")
_LANGUAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+#-]{0,62}")
_IDEMPOTENCY_KEY: Final = re.compile(r"[!-~]{1,255}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def check_spec(spec: SandboxSpec) -> None:
    """A sandbox as asked for."""
    check_limits(spec.limits)
    check_env(spec.env)
    check_metadata(spec.metadata)
    for name, value in (("name", spec.name), ("hostname", spec.hostname)):
        if value is not None:
            check_name(value, name)
    _text(spec.image, "image", limit=255)
    if spec.driver is not None:
        _text(spec.driver, "driver", limit=63)
    check_timeout(spec.timeout_s, "timeout_s")
    check_timeout(spec.idle_timeout_s, "idle_timeout_s")


def check_change(change: SandboxChange) -> None:
    """A change of a live sandbox."""
    for field, value, bounds in (
        ("cpus", change.cpus, CPUS),
        ("memory_bytes", change.memory_bytes, MEMORY_BYTES),
        ("pids", change.pids, PIDS),
    ):
        if not isinstance(value, UnsetType):
            _range(value, bounds, field)
    if change.timeout_s is not UNSET:
        check_timeout(change.timeout_s, "timeout_s")
    if change.idle_timeout_s is not UNSET:
        check_timeout(change.idle_timeout_s, "idle_timeout_s")
    if change.name is not UNSET:
        check_name(change.name, "name")
    if change.metadata is not UNSET:
        check_metadata({key: value or "" for key, value in change.metadata.items()})


def check_limits(limits: Limits) -> None:
    """Every resource limit."""
    _range(limits.cpus, CPUS, "cpus")
    _range(limits.memory_bytes, MEMORY_BYTES, "memory_bytes")
    _range(limits.disk_bytes, DISK_BYTES, "disk_bytes")
    _range(limits.pids, PIDS, "pids")
    for field, value in (("io_read_bps", limits.io_read_bps), ("io_write_bps", limits.io_write_bps)):
        if value is not None:
            _range(value, IO_BPS, field)


def check_timeout(value: float | None, field: str, bounds: tuple[float, float] = TIMEOUT_S) -> None:
    """A duration in seconds; None is never."""
    if value is not None:
        _range(value, bounds, field)


def check_name(value: str, field: str) -> None:
    """A name or hostname."""
    if not is_name(value):
        raise BadRequest(f"{field} must be 1-63 of a-z, 0-9 and inner hyphens", field=field)
    if is_core_id(value):
        raise BadRequest(f"{field} must not look like an id (16 hex digits)", field=field)


def check_env(env: dict[str, str]) -> None:
    """Environment variables, of a sandbox or of one command. A value is never repeated in the error."""
    if len(env) > ENV_ENTRIES:
        raise TooLarge(f"env has {len(env)} entries, the limit is {ENV_ENTRIES}", field="env")
    total = 0
    for name, value in env.items():
        if _ENV_NAME.fullmatch(name) is None:
            raise BadRequest(
                "a variable's name must be letters, digits and _, and must not begin with a digit", field="env"
            )
        if "\0" in value:
            raise BadRequest(f"the value of {name[:64]} has a NUL", field="env")
        total += len(name) + len(_utf8(value, "env")) + 2
    if total > ENV_BYTES:
        raise TooLarge(f"env takes {total} bytes, the limit is {ENV_BYTES}", field="env")


def check_metadata(metadata: dict[str, str], field: str = "metadata") -> None:
    """Labels that callers attach to a sandbox, or to a snapshot (its tags)."""
    if len(metadata) > METADATA_ENTRIES:
        raise TooLarge(f"{field} has {len(metadata)} entries, the limit is {METADATA_ENTRIES}", field=field)
    if sum(len(_utf8(text, field)) for pair in metadata.items() for text in pair) > METADATA_TOTAL:
        # Kept for 30 days after the sandbox's end: entries at their limit would be 64 KiB of history for each create.
        raise TooLarge(f"{field} has at most {METADATA_TOTAL} bytes in all", field=field)
    for key, value in metadata.items():
        if not 1 <= len(key) <= METADATA_KEY:
            raise BadRequest(f"a key of {field} has 1-{METADATA_KEY} characters", field=field)
        if "\0" in key + value:
            raise BadRequest(f"{field} has a NUL", field=field)
        _utf8(key, field)
        if len(_utf8(value, field)) > METADATA_VALUE_BYTES:
            raise TooLarge(f"a value of {field} has at most {METADATA_VALUE_BYTES} bytes", field=field)


def check_snapshot(spec: SnapshotSpec) -> None:
    """A snapshot as asked for."""
    if spec.name is not None:
        check_name(spec.name, "name")
    check_metadata(spec.tags, "tags")


def check_exec(spec: ExecSpec) -> None:
    """One command."""
    if (spec.argv is None) == (spec.shell is None):
        raise BadRequest("a command is either a text for the shell or a list of arguments", field="command")
    _check_words(spec.argv if spec.argv is not None else (spec.shell or "",))
    _check_surroundings(spec)


def check_terminal(spec: ExecSpec, size: TerminalSize) -> None:
    """A command on a terminal, or the user's shell where there is none."""
    if spec.argv is not None or spec.shell is not None:
        check_exec(spec)
    else:
        _check_surroundings(spec)
    if spec.stdin is not None:
        raise BadRequest("a terminal has no stdin to give: type into it", field="stdin")
    check_terminal_size(size)


def check_terminal_size(size: TerminalSize) -> None:
    """A terminal's window."""
    _range(size.cols, TERMINAL_SIDE, "cols")
    _range(size.rows, TERMINAL_SIDE, "rows")


def _check_words(words: tuple[str, ...]) -> None:
    if not words or not words[0]:
        raise BadRequest("the command is empty", field="command")
    total = 0
    for word in words:
        if "\0" in word:
            raise BadRequest("the command has a NUL", field="command")
        size = len(_utf8(word, "command"))
        if size > ARGUMENT_BYTES:
            raise TooLarge(f"one argument has {size} bytes, the kernel's limit is {ARGUMENT_BYTES}", field="command")
        total += size + 1
    if total > COMMAND_BYTES:
        raise TooLarge(f"the command has {total} bytes, the limit is {COMMAND_BYTES}", field="command")


def _check_surroundings(spec: ExecSpec) -> None:
    _check_setting(spec)
    check_timeout(spec.timeout_s, "timeout_s", EXEC_TIMEOUT_S)
    if spec.stdin is not None and len(spec.stdin) > STDIN_BYTES:
        raise TooLarge(f"stdin has more than {STDIN_BYTES // MIB} MiB", field="stdin")
    _range(spec.output_limit_bytes, (0, OUTPUT_LIMIT_BYTES), "output_limit_bytes")


def _check_setting(spec: ExecSpec | ShellSpec) -> None:
    check_env(spec.env)
    if spec.cwd is not None:
        check_path(spec.cwd, "cwd")
    if spec.user is not None and _USER.fullmatch(spec.user) is None:
        raise BadRequest("user is a name or uid[:gid]", field="user")


def check_shell_spec(spec: ShellSpec) -> None:
    """A shell."""
    _check_setting(spec)


def check_shell_command(command: ShellCommand) -> None:
    """A command of a shell."""
    if not command.text.strip(" \t\n"):
        raise BadRequest("the command is empty", field="command")
    if "\0" in command.text:
        raise BadRequest("the command has a NUL", field="command")
    size = len(_utf8(command.text, "command"))
    if size > SHELL_TEXT_BYTES:
        raise TooLarge(f"the command has {size} bytes, a shell takes {SHELL_TEXT_BYTES}", field="command")
    check_timeout(command.timeout_s, "timeout_s", EXEC_TIMEOUT_S)
    _range(command.output_limit_bytes, (0, OUTPUT_LIMIT_BYTES), "output_limit_bytes")


def check_code(spec: CodeSpec) -> None:
    """A run of code."""
    _utf8(spec.code, "code")
    check_language(spec.language)
    if spec.context is not None:
        check_context_id(spec.context)
    check_env(spec.env)
    check_timeout(spec.timeout_s, "timeout_s", EXEC_TIMEOUT_S)


def check_context(spec: ContextSpec) -> None:
    """A context."""
    check_language(spec.language)
    _check_setting(ExecSpec(cwd=spec.cwd, user=spec.user))
    check_timeout(spec.idle_timeout_s, "idle_timeout_s")


def check_language(value: str | None) -> None:
    """The name of a language."""
    if value is not None and _LANGUAGE.fullmatch(value) is None:
        raise BadRequest(
            "language is 1-63 letters, digits and _.+#-, and begins with a letter or digit", field="language"
        )


def check_context_id(value: str) -> None:
    """The id of a context."""
    if _CONTEXT_ID.fullmatch(value) is None:
        raise BadRequest("a context's id is 1-30 of a-z, 0-9, _ and -", field="context")


def check_path(path: str, field: str = "path") -> None:
    """A path inside a sandbox: absolute, without NUL and without `..`, which no file operation needs."""
    if not path.startswith("/"):
        raise BadRequest(f"{field} must be absolute", field=field)
    if "\0" in path:
        raise BadRequest(f"{field} has a NUL", field=field)
    if len(_utf8(path, field)) > PATH_BYTES:
        raise TooLarge(f"{field} has more than {PATH_BYTES} bytes", field=field)
    if ".." in path.split("/"):
        raise BadRequest(f"{field} has a `..`", field=field)


def check_mode(mode: int, field: str = "mode") -> None:
    """Permission bits, set-id and sticky bits included; -1: as it is."""
    _range(mode, (-1, 0o7777), field)


def check_owner(value: int, field: str) -> None:
    """A user or group id inside; -1: as it is."""
    _range(value, (-1, 65535), field)


def check_principal(value: str, field: str) -> None:
    """A user's or group's name or number inside; "": none."""
    if len(_utf8(value, field)) > 255 or any(c in value for c in "\0\n:"):  # noqa: PLR2004 - as NAME_MAX
        raise BadRequest(f"{field} is a name or a number", field=field)


def check_command_id(value: str) -> None:
    """The id of a command, as the agent takes it."""
    if _COMMAND_ID.fullmatch(value) is None:
        raise BadRequest("a command's id is 1-32 of a-z, 0-9, _ and -", field="id")
    if _TERMINAL_ID.fullmatch(value) is not None or value.startswith(CONTEXT_PREFIX):
        raise NotFound("no such command")


def check_terminal_id(value: str) -> None:
    """The id of a terminal. Raises: NotFound: whatever else it is, no terminal has it."""
    if _TERMINAL_ID.fullmatch(value) is None:
        raise NotFound("no such terminal")


def check_shell_id(value: str) -> None:
    """The id of a shell, as the agent takes it."""
    if _COMMAND_ID.fullmatch(value) is None:
        raise BadRequest("a shell's id is 1-32 of a-z, 0-9, _ and -", field="shell")
    if value.startswith(CONTEXT_PREFIX):
        raise NotFound("no such shell")


def check_page(limit: int, field: str = "limit") -> None:
    """How many entries of a list are wanted."""
    _range(limit, (1, PAGE_LIMIT), field)


def check_count(value: int, bounds: tuple[int, int], field: str) -> None:
    """Any other whole number in a range."""
    _range(value, bounds, field)


def check_idempotency(idempotency: Idempotency) -> None:
    """An idempotency key and the hash of what it promises."""
    if _IDEMPOTENCY_KEY.fullmatch(idempotency.key) is None:
        raise BadRequest("an idempotency key is 1-255 visible ASCII characters", field="idempotency_key")
    if _SHA256.fullmatch(idempotency.body_sha256) is None:
        raise BadRequest("body_sha256 is 64 hex digits", field="idempotency_key")


def check_label(value: str, field: str, *, limit: int = 63) -> None:
    """A short text for people, such as the name of a key."""
    _text(value, field, limit=limit)


def _text(value: str, field: str, *, limit: int) -> None:
    if not value or len(value) > limit or not value.isprintable():
        raise BadRequest(f"{field} has 1-{limit} printable characters", field=field)


def _utf8(value: str, field: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        _not_text(field)


def _not_text(field: str) -> NoReturn:
    raise BadRequest(f"{field} is no valid Unicode text", field=field)


def _range(value: float, bounds: tuple[float, float], field: str) -> None:
    if not math.isfinite(value) or not bounds[0] <= value <= bounds[1]:
        raise BadRequest(f"{field} must be {_number(bounds[0])} to {_number(bounds[1])}", field=field)


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:g}"
