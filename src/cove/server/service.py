"""Cove as a systemd service: writes the unit, enables it, removes it. `cove service` calls this; nothing else does.

`Delegate=yes` gives Cove its part of the cgroup tree, so systemd leaves sandboxes' cgroups alone. `KillMode=process`
ends the server alone: sandboxes live on and the next start adopts them. To change the unit: `unit_text`, its test, and
`docs/guides/service.md`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from msgspec import Struct

from cove.model.errors import BadRequest, EngineFailure, Forbidden, Unsupported

NAME: Final = "cove"
UNIT_DIR: Final = Path("/etc/systemd/system")
_SYSTEMD_RUNS: Final = Path("/run/systemd/system")  # sd_booted(3)
_MARK: Final = "# Written by `cove service install`; `cove service uninstall` removes it."
_SYSTEMCTL_LIMIT_S: Final = 60


class ServiceSettings(Struct, frozen=True, kw_only=True):
    """What the unit says. `environment` holds the `COVE_*` settings that the service starts with; no secrets.

    `name` is the unit's name without `.service`: a second server with another data directory needs another one.
    """

    program: Path
    environment: dict[str, str] = {}
    name: str = NAME
    unit_dir: Path = UNIT_DIR

    @property
    def path(self) -> Path:
        """The unit's file."""
        return self.unit_dir / f"{self.name}.service"


def default_program() -> Path:
    """The `cove` beside the Python that runs us."""
    return Path(sys.executable).with_name("cove")


def unit_text(settings: ServiceSettings) -> str:
    """The unit. Raises: BadRequest for a path or value that a unit cannot hold."""
    environment = "".join(
        f"Environment={_quoted(f'{key}={value}', key)}\n" for key, value in sorted(settings.environment.items())
    )
    return f"""{_MARK}
[Unit]
Description=Cove sandboxes
After=network.target local-fs.target
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=simple
ExecStart={_quoted(str(settings.program), "program").replace("$", "$$")} serve
{environment}Delegate=yes
KillMode=process
Restart=on-failure
RestartSec=1
TimeoutStopSec=30
LimitNOFILE=1048576
TasksMax=infinity
OOMScoreAdjust=-500
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def install(settings: ServiceSettings) -> str:
    """Write the unit, enable it and start it; an older one of ours is replaced. Returns what was done, in a sentence.

    Raises: Forbidden (not root), Unsupported (no systemd), BadRequest, EngineFailure (systemctl refused).
    """
    _require_root_and_systemd()
    text = unit_text(settings)
    if settings.path.exists() and not _is_ours(settings.path):
        raise BadRequest(f"{settings.path} exists and is not Cove's: move it away first", field="name")
    changed = _write(settings.path, text)
    _systemctl("daemon-reload")
    _systemctl("enable", settings.path.name)
    # A restart ends the server alone (KillMode=process); running sandboxes are adopted by the new one.
    _systemctl("restart" if changed else "start", settings.path.name)
    return f"Installed and started {settings.path.name}. Its log: journalctl -u {settings.name}"


def uninstall(settings: ServiceSettings) -> str:
    """Stop, disable and remove the unit; sandboxes live on until `cove down`. A unit that is not there is no error.

    Raises: Forbidden, Unsupported, BadRequest (the file is not ours), EngineFailure.
    """
    _require_root_and_systemd()
    if not settings.path.exists():
        return f"There is no {settings.path.name}."
    if not _is_ours(settings.path):
        raise BadRequest(f"{settings.path} is not Cove's, so it is left alone", field="name")
    _systemctl("disable", "--now", settings.path.name)
    settings.path.unlink()
    _systemctl("daemon-reload")
    return f"Removed {settings.path.name}; running sandboxes live on. End them: cove down --all"


def status(settings: ServiceSettings) -> str:
    """One of `active`, `inactive`, `failed`, ... as systemd says, `not installed`, or `no systemd`."""
    if not is_systemd():
        return "no systemd"
    if not settings.path.exists():
        return "not installed"
    done = _run_systemctl("is-active", settings.path.name)
    return done.stdout.strip() or "unknown"


def is_systemd() -> bool:
    """Whether systemd runs this machine."""
    return _SYSTEMD_RUNS.is_dir() and shutil.which("systemctl") is not None


def _require_root_and_systemd() -> None:
    if not is_systemd():
        raise Unsupported(
            "systemd does not run this machine; `cove service install --print` shows the unit, "
            "whose ExecStart line is what your own init has to start"
        )
    if os.geteuid() != 0:
        raise Forbidden("a service is installed by root: sudo cove service install")


def _quoted(value: str, field: str) -> str:
    """`value` as one word of a unit file (systemd.syntax(7), "Quoting"; `%` starts a specifier)."""
    if any(ord(character) < ord(" ") for character in value):
        raise BadRequest(f"{field} holds a control character", field=field)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _is_ours(path: Path) -> bool:
    return path.read_text(encoding="utf-8", errors="replace").startswith(_MARK)


def _write(path: Path, text: str) -> bool:
    """Put `text` at `path` in one step. False: it was there already."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise EngineFailure(f"{path} could not be written: {error.strerror}") from error
    return True


def _systemctl(*args: str) -> None:
    done = _run_systemctl(*args)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise EngineFailure(f"systemctl {' '.join(args)} failed: {said[-500:] or done.returncode}", internal=said)


def _run_systemctl(*args: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["systemctl", *args],  # noqa: S607 - the one on root's PATH
            capture_output=True,
            check=False,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_SYSTEMCTL_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineFailure(f"systemctl {' '.join(args)} did not end: {error}") from error
