"""What the tests of SSH share: a server that takes it, a user with a key, and the real clients."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests_support import RunningServer, free_port, make_server


def need(program: str) -> str:
    """The path of a client; a missing one fails with what helps."""
    found = shutil.which(program)
    if found is None:
        pytest.fail(f"{program} is not installed: apt-get install openssh-client rsync tmux")
    return found


@dataclass
class SshUser:
    """Somebody with a key pair and an ssh configuration for one server; box names are host names."""

    home: Path
    server: RunningServer
    port: int

    @property
    def config(self) -> Path:
        return self.home / "config"

    @property
    def public_key(self) -> str:
        return (self.home / "id.pub").read_text()

    def know(self, host_key: str) -> None:
        """Write the configuration, with that host key only."""
        (self.home / "known_hosts").write_text(f"cove {host_key}\n")
        options = {
            "HostName": "127.0.0.1",
            "Port": self.port,
            "User": "%n",
            "IdentityFile": self.home / "id",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "HostKeyAlias": "cove",
            "UserKnownHostsFile": self.home / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
        }
        lines = [f"  {name} {value}" for name, value in options.items() if name != "User"]
        self.config.write_text("Host *\n" + "\n".join(lines) + "\n")

    def argv(self, program: str, *words: str) -> list[str]:
        return [need(program), "-F", str(self.config), *words]

    def run(
        self, program: str, *words: str, stdin: bytes | None = b"", timeout: float = 60.0
    ) -> subprocess.CompletedProcess[bytes]:
        """One client to its end."""
        return subprocess.run(
            self.argv(program, *words), input=stdin, capture_output=True, check=False, timeout=timeout, cwd=self.home
        )

    def ssh(self, *words: str, stdin: bytes | None = b"", timeout: float = 60.0) -> subprocess.CompletedProcess[bytes]:
        return self.run("ssh", *words, stdin=stdin, timeout=timeout)


def make_key(home: Path, kind: str = "ed25519") -> str:
    """A key pair `id` in `home`; the public line."""
    subprocess.run([need("ssh-keygen"), "-q", "-t", kind, "-N", "", "-f", str(home / "id")], check=True)
    return (home / "id.pub").read_text()


def ssh_server(parent: Path, **env: str) -> tuple[RunningServer, int]:
    """A running server that takes SSH, and its port."""
    port = free_port()
    server = make_server(parent, COVE_SSH_PORT=str(port), **env)
    server.start()
    return server, port


def ssh_user(parent: Path, server: RunningServer, port: int, *, kind: str = "ed25519", known: bool = True) -> SshUser:
    """A user, whose key the default project knows unless not `known`."""
    home = parent
    home.mkdir(parents=True, exist_ok=True)
    line = make_key(home, kind)
    user = SshUser(home, server, port)
    with server.client() as client:
        if known:
            assert client.post("/ssh-keys", json={"public_key": line}).status_code == 201
        user.know(client.get("/server").json()["ssh"]["host_key"])
    return user
