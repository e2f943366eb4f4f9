"""`cove ssh` and `cove ssh-config`: the system's own ssh, told where the server listens and which host key it has.

The host key comes over the API, so nobody is asked to trust a fingerprint at first sight.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from cove.cli.failures import FAILED, Failure
from cove.cli.options import box_argument
from cove.cli.session import Session, state_dir
from cove.cli.terminal import put
from cove.cli.tree import verb

ALIAS: Final = "cove"
_MARK: Final = "# cove: "


@dataclass(frozen=True, slots=True)
class Gate:
    """Where the server listens for SSH, and the file that has its host key under `alias`."""

    host: str
    port: int
    alias: str
    known_hosts: str

    def options(self) -> tuple[tuple[str, str], ...]:
        """What ssh must be told."""
        return (
            ("HostName", self.host),
            ("Port", str(self.port)),
            ("HostKeyAlias", self.alias),
            ("UserKnownHostsFile", _quoted(self.known_hosts)),
            ("GlobalKnownHostsFile", "/dev/null"),
            ("StrictHostKeyChecking", "yes"),
            ("ForwardAgent", "no"),
            ("ForwardX11", "no"),
        )


def gate(session: Session) -> Gate:
    """Ask the server for its SSH address and host key; the key goes to a file of the user's. Raises: Failure."""
    from urllib.parse import urlsplit

    ssh: dict[str, object] = session.client.server().get("ssh") or {}
    if not ssh.get("listening"):
        why = str(ssh.get("missing") or "this server has no SSH")
        raise Failure(f"SSH cannot be used here: {why}", code="unsupported", exit_code=FAILED, hint="cove doctor")
    port = int(str(ssh["port"]))
    host = urlsplit(session.client.target.url).hostname or _reachable(str(ssh.get("host") or ""))
    alias = f"{ALIAS}-{host.replace(':', '_')}-{port}"
    path = f"{state_dir()}/known_hosts-{alias}"
    try:
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        Path(path).write_text(f"{alias} {ssh['host_key']}\n", encoding="utf-8")
    except OSError as error:
        raise Failure(
            f"the host key cannot be written to {path}: {error.strerror}", code="io", exit_code=FAILED
        ) from error
    return Gate(host=host, port=port, alias=alias, known_hosts=path)


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in {"", "0.0.0.0", "::"} else host  # noqa: S104 - compared, not bound


def _quoted(path: str) -> str:
    return f'"{path}"' if " " in path else path


@verb("ssh", command_after=1, verbatim=True)
@box_argument()
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def ssh_command(session: Session, *, box: str, arguments: tuple[str, ...]) -> int:
    """Log in to a sandbox with the system's ssh, or run a command there.

    ARGUMENTS are ssh's own, options first: cove ssh BOX -L 8080:localhost:8080, cove ssh BOX make test.
    Your public key must be known: cove ssh-key add.
    """
    program = shutil.which("ssh")
    if program is None:
        raise Failure("there is no ssh on this machine", code="unsupported", exit_code=FAILED, hint="cove shell BOX")
    # The id: a name may be that of a sandbox in another project which has the same public key.
    box_id = session.on_box(box, lambda ref: session.client.get(ref).id)
    there = gate(session)
    told = [part for option, value in there.options() for part in ("-o", f"{option}={value}")]
    split = _options_end(arguments)
    line = [program, *told, *arguments[:split], f"{box_id}@{there.alias}", *arguments[split:]]
    os.execv(program, line)  # noqa: S606 - ssh takes our place: its terminal, signals and exit code are the user's


_VALUED: Final = frozenset("BbcDEeFIiJLlmOoPpQRSWw")


def _options_end(arguments: tuple[str, ...]) -> int:
    """How many of the words are options of ssh, with their values: the sandbox goes after them."""
    index = 0
    while index < len(arguments) and arguments[index].startswith("-") and arguments[index] != "--":
        letters = arguments[index][1:]
        place = next((at for at, letter in enumerate(letters) if letter in _VALUED), None)
        index += 2 if place is not None and place == len(letters) - 1 else 1
    return min(index, len(arguments))


@verb("ssh-config")
@click.option("--install", is_flag=True, help="Write it to ~/.ssh/cove_config and include that in ~/.ssh/config.")
def ssh_config_command(session: Session, *, install: bool) -> None:
    """Print what lets ssh, scp, rsync and VS Code reach every sandbox as BOX.cove.

    ssh otter.cove · rsync -a . otter.cove:work/ · code --remote ssh-remote+otter.cove /root

    One entry for each live sandbox, so run it again after a new one.
    """
    there = gate(session)
    names = [box.name for box in session.client.list(page_size=1000)]
    lines = [f"{_MARK}made by `cove ssh-config`; run it again after a new sandbox"]
    for name in names:
        lines += [f"Host {name}.cove", f"  User {name}"]
    lines += ["Host *.cove", *(f"  {option} {value}" for option, value in there.options())]
    text = "\n".join(lines)
    if not install:
        put(text)
        return
    _install(text)
    session.talk(f"Try: ssh {names[0] if names else 'BOX'}.cove")


def _install(text: str) -> None:
    directory = Path.home() / ".ssh"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        (directory / "cove_config").write_text(text + "\n", encoding="utf-8")
        config = directory / "config"
        old = config.read_text(encoding="utf-8") if config.exists() else ""
        if "Include cove_config" not in old:
            # In front: an Include below a Host line would belong to that.
            config.write_text(f"Include cove_config\n{old}", encoding="utf-8")
            config.chmod(0o600)
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"{directory} cannot be written: {error}", code="io", exit_code=FAILED) from error
