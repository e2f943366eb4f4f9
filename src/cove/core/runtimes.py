"""The languages of executions as data: how a program of each is started, and how packages for it are installed.

To add one: a row in `RUNTIMES`. A program is given inline only where nothing stands beside it; else it is a file.
"""

from __future__ import annotations

import posixpath
import shlex
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from cove.model.errors import BadRequest
from cove.model.execution import HOME, ExecutionSpec

AGENT: Final = "agent"
AGENT_PROGRAM: Final = "pi"

_NOTE: Final = (
    "You are running inside a sandbox. Your working directory is /sandbox, which you may write, as you may /tmp; the "
    "rest of the file system may be read-only. Only the hosts that the network policy allows can be reached."
)

_PIP: Final = (
    *("pip", "install", "--user", "--no-cache-dir", "--break-system-packages", "--disable-pip-version-check"),
    *("--retries", "0", "--timeout", "15"),
)
_DENO: Final = (
    *("deno", "run", "--allow-read=/sandbox,/tmp", "--allow-write=/sandbox,/tmp", "--allow-env", "--allow-net"),
)
_SYSTEM_PACKAGES: Final = (
    'if command -v apk >/dev/null; then exec apk add --no-cache "$@"; fi; '
    'apt-get update -qq && DEBIAN_FRONTEND=noninteractive exec apt-get install -qqy --no-install-recommends "$@"'
)

ENVIRONMENT: Final = MappingProxyType(
    {
        "HOME": HOME,
        "USER": "sandbox",
        "LOGNAME": "sandbox",
        "PATH": "/sandbox/.local/bin:/sandbox/.npm-global/bin:/sandbox/.bun-global/bin:/usr/local/bin:/usr/bin:/bin",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUSERBASE": "/sandbox/.local",
        "NPM_CONFIG_PREFIX": "/sandbox/.npm-global",
        "NODE_PATH": "/usr/local/lib/node_modules:/sandbox/.npm-global/lib/node_modules:/sandbox/node_modules",
        "DENO_DIR": "/sandbox/.deno",
    },
)
"""What every program of an execution has."""

INSTALL_ENVIRONMENT: Final = MappingProxyType(
    {
        "npm_config_cache": "/sandbox/.npm-cache",
        "BUN_INSTALL_GLOBAL_DIR": "/sandbox/.bun-global",
        "BUN_INSTALL_CACHE_DIR": "/sandbox/.bun-cache",
        "BUN_INSTALL_BIN": "/sandbox/.bun-global/bin",
    },
)
"""What installs have beside it: nothing of theirs lies outside of HOME."""


class Runtime(Struct, frozen=True, kw_only=True):
    """One language.

    `images`: the first of these that the server has. `inline` goes before the program's text, None: it is always a
    file; `file` before its path. `install` goes before the packages, or before each of them with `one_by_one`;
    `as_root`: it is no work for the execution's own user.
    """

    name: str
    images: tuple[str, ...]
    extension: str
    file: tuple[str, ...]
    inline: tuple[str, ...] | None = None
    install: tuple[str, ...] = ()
    one_by_one: bool = False
    as_root: bool = False


_ALL: Final = (
    Runtime(
        name="python",
        images=("python", "base"),
        extension=".py",
        inline=("python3", "-c"),
        file=("python3",),
        install=_PIP,
    ),
    Runtime(
        name="node",
        images=("node",),
        extension=".mjs",
        inline=("node", "-e"),
        file=("node",),
        install=("npm", "install", "--prefix", HOME),
    ),
    Runtime(
        name="bun",
        images=("bun",),
        extension=".ts",
        inline=("bun", "-e"),
        file=("bun", "run"),
        install=("bun", "install", "-g", "--global-dir=/sandbox/.bun-global"),
    ),
    Runtime(
        name="bash",
        images=("base",),
        extension=".sh",
        inline=("bash", "-c"),
        file=("bash",),
        install=("sh", "-c", _SYSTEM_PACKAGES, "install"),
        as_root=True,
    ),
    Runtime(name="deno", images=("deno",), extension=".mts", file=_DENO, install=("deno", "cache"), one_by_one=True),
    Runtime(
        name=AGENT,
        images=("agent", "node"),
        extension=".txt",
        inline=(AGENT_PROGRAM,),
        file=(AGENT_PROGRAM,),
        install=("npm", "install", "-g"),
    ),
)

RUNTIMES: Final = MappingProxyType({one.name: one for one in _ALL})
"""By name, in the order in which they are told."""


def runtime_of(name: str) -> Runtime:
    """The runtime of that name. Raises: BadRequest, with the sentence that names all."""
    found = RUNTIMES.get(name)
    if found is None:
        raise BadRequest(f'Unknown runtime: "{name[:100]}". Available: {", ".join(RUNTIMES)}', field="runtime")
    return found


def command_of(runtime: Runtime, spec: ExecutionSpec, code: str, path: str | None) -> tuple[str, ...]:
    """The command that runs the program: of its text `code`, or of the file that it lies in."""
    if spec.command is not None:
        return ("bash", "-c", spec.command)
    if runtime.name == AGENT:
        return ("bash", "-c", _prompt(spec.flags, code))
    if path is None and runtime.inline is not None:
        return (*runtime.inline, code)
    return (*runtime.file, path or "")


def installs_of(runtime: Runtime, packages: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The commands that install the packages, each as one argument: no shell reads their names."""
    if not runtime.one_by_one:
        return [(*runtime.install, *packages)] if packages else []
    return [(*runtime.install, package) for package in packages]


def work_directory(wanted: str) -> str:
    """Where the program runs. Raises: BadRequest (not below HOME)."""
    found = posixpath.normpath(posixpath.join(HOME, wanted))
    if found != HOME and not found.startswith(f"{HOME}/"):
        raise BadRequest("Working directory must be inside /sandbox", field="workdir")
    return found


def _prompt(flags: str, code: str) -> str:
    """The coding agent's command line: `flags` is shell text, as its callers mean it to be."""
    return (
        f"{AGENT_PROGRAM} --no-session --append-system-prompt {shlex.quote(_NOTE)} "
        f"{flags + ' ' if flags else ''}-p {shlex.quote(code)}"
    )
