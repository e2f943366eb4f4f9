"""Where the server is and which key to show it: arguments > environment > `.cove.toml` upward > user file > socket.

Reads files and the environment it is given; opens no connection. Every value keeps its origin, because an error must be
able to say what was tried, in order, and `cove config` prints it.

A key travels only to an address from a source at least as trusted as its own (argument, environment, user file, in this
order; `.cove.toml` last, because it comes with any repository that one clones). The user file's `[keys]` table names
keys by address and is therefore good for any source.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cove.sdk.errors import BadRequest, Unauthorized

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_DATA_DIR: Final = "/var/lib/cove"
RUN_ROOT: Final = "/run/cove"
PROJECT_FILE: Final = ".cove.toml"
_DEFAULT_INSTANCE: Final = "a0fe5c127479"
"""First 12 hex digits of SHA-256 of DEFAULT_DATA_DIR, spelled out: importing hashlib costs 3 ms of every command."""

ARGUMENT: Final = "argument"
ENVIRONMENT: Final = "environment"
USER: Final = "user file"
PROJECT: Final = PROJECT_FILE
LOCAL: Final = "local socket"
_TRUST: Final = (ARGUMENT, ENVIRONMENT, USER, PROJECT)


@dataclass(frozen=True, slots=True)
class Found:
    """A value and the source it came from; `detail` is the variable or the file."""

    value: str
    source: str
    detail: str


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go.

    Attributes:
        url: `http://…` or `https://…`; empty for a unix socket.
        socket: path of the unix socket; empty for TCP.
        key: the key to show, or None.
        tried: the sources that were looked at, in order, each as one phrase: for the hint of an error.
    """

    url: str
    socket: str
    key: str | None
    address: Found
    key_found: Found | None
    tried: tuple[str, ...]
    box: Found | None = None

    @property
    def is_local(self) -> bool:
        """Whether nothing was configured and the default local socket is used."""
        return self.address.source == LOCAL


@dataclass(frozen=True, slots=True)
class _Sources:
    environ: Mapping[str, str]
    project: dict[str, Any]
    project_path: str
    user: dict[str, Any]
    user_path: str

    def candidates(self, variable: str, field: str, argument: str | None) -> list[Found]:
        """All sources that have a value, strongest first."""
        return [
            found
            for found in (
                Found(argument or "", ARGUMENT, field),
                Found(self.environ.get(variable, ""), ENVIRONMENT, variable),
                Found(_string(self.project, field, self.project_path), PROJECT, self.project_path),
                Found(_string(self.user, field, self.user_path), USER, self.user_path),
            )
            if found.value
        ]


def instance_of(data_dir: str) -> str:
    """Return the name of the server that owns `data_dir`: the same rule as the engine's (a test compares them)."""
    real = os.path.realpath(data_dir)
    if real == DEFAULT_DATA_DIR:
        return _DEFAULT_INSTANCE
    import hashlib

    return hashlib.sha256(real.encode()).hexdigest()[:12]


def local_socket(environ: Mapping[str, str]) -> str:
    """Return the path of the local server's API socket (`COVE_DATA_DIR`, `COVE_RUN_DIR`: of another server's)."""
    run = environ.get("COVE_RUN_DIR") or RUN_ROOT
    return f"{run}/{instance_of(environ.get('COVE_DATA_DIR') or DEFAULT_DATA_DIR)}/api.sock"


def user_file(environ: Mapping[str, str]) -> str:
    """Return the path of the user's configuration file."""
    base = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".config")  # noqa: PTH111, PTH118 - pathlib costs 4 ms of every command
    return f"{base}/cove/config.toml"


def find_project_file(start: str) -> str:
    """Return the nearest `.cove.toml` from `start` upward, or an empty string."""
    directory = start
    while True:
        path = f"{directory.rstrip('/')}/{PROJECT_FILE}"
        if os.path.isfile(path):  # noqa: PTH113 - see user_file
            return path
        parent = os.path.dirname(directory)  # noqa: PTH120 - see user_file
        if parent == directory:
            return ""
        directory = parent


def resolve(
    url: str | None = None,
    api_key: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    directory: str | None = None,
) -> Target:
    """Find the server's address and the key.

    Raises: BadRequest (an unreadable file, an address that is none), Unauthorized (a key that must not go there).
    """
    environ = os.environ if environ is None else environ
    sources = _read_sources(environ, directory)
    addresses = sources.candidates("COVE_URL", "url", url)
    socket = local_socket(environ)
    address = addresses[0] if addresses else Found(socket, LOCAL, socket)
    where, socket_path = _split(address)
    key = None if address.source == LOCAL else _key_for(address, where, sources, api_key)
    box = _string(sources.project, "box", sources.project_path)
    return Target(
        url=where,
        socket=socket_path,
        key=key.value if key else None,
        address=address,
        key_found=key,
        tried=_tried(sources, socket),
        box=Found(box, PROJECT, sources.project_path) if box else None,
    )


def _read_sources(environ: Mapping[str, str], directory: str | None) -> _Sources:
    try:
        start = os.getcwd() if directory is None else directory  # noqa: PTH109 - see user_file
    except FileNotFoundError:  # the working directory was removed
        start = "/"
    project_path = find_project_file(start)
    user_path = user_file(environ)
    return _Sources(environ, _toml(project_path), project_path, _toml(user_path), user_path)


def _toml(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - see user_file
            import tomllib

            return tomllib.load(file)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}
    except (OSError, ValueError) as error:
        raise BadRequest(f"{path}: {error}", hint="correct or remove the file") from error


def _string(table: dict[str, Any], field: str, path: str) -> str:
    value = table.get(field, "")
    if not isinstance(value, str):
        raise BadRequest(f"{path}: {field} must be a string", field=field)
    return value


def _split(address: Found) -> tuple[str, str]:
    """Return (url, socket path); one of them is empty."""
    value = address.value
    if address.source == LOCAL:
        return "", value
    for prefix in ("unix://", "unix:"):
        if value.startswith(prefix):
            return "", value.removeprefix(prefix)
    rest = value.partition("://")[2]
    if value.startswith(("http://", "https://")) and (rest[:1].isalnum() or rest.startswith("[")):
        return value.rstrip("/").removesuffix("/api/v1"), ""
    hint = "write http://HOST:PORT, https://HOST or unix:/path/to/api.sock"
    raise BadRequest(f'"{value}" ({address.detail}) is no address', field="url", hint=hint)


def _key_for(address: Found, url: str, sources: _Sources, argument: str | None) -> Found | None:
    keys = sources.user.get("keys", {})
    if isinstance(keys, dict):
        named = keys.get(url)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if isinstance(named, str) and not argument:
            return Found(named, USER, f"{sources.user_path} [keys]")
    found = sources.candidates("COVE_API_KEY", "api_key", argument)
    if not found:
        return None
    if _TRUST.index(address.source) <= _TRUST.index(found[0].source) or address.source != PROJECT:
        return found[0]
    raise Unauthorized(
        f"the key from {found[0].detail} is not sent to {url}, which {address.detail} names",
        hint=f"trust that address with COVE_URL={url}, or put the key for it under [keys] in {sources.user_path}",
    )


def _tried(sources: _Sources, socket: str) -> tuple[str, ...]:
    return (
        "COVE_URL " + ("set" if sources.environ.get("COVE_URL") else "not set"),
        f"{sources.project_path or PROJECT_FILE + ' upward'} {_says(sources.project, sources.project_path)}",
        f"{sources.user_path} {_says(sources.user, '')}",
        f"socket {socket}",
    )


def _says(table: dict[str, Any], path: str) -> str:
    return "has url" if table.get("url") else "has no url" if table or path else "not found"
