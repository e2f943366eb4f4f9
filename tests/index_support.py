"""A package index for sandboxes in a test's world: what pip and npm ask for, with real packages.

The packages come from the indexes that this machine's own pip and npm are configured for, when a test is set up; the
index serves them at `http://packages.example:3141` of a `World`, as PyPI's simple index and as npm's registry.

`with serving_packages(world, folder) as index:` and in the sandbox `index.env`; its network needs `index.rule`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import world_dns_support as dns
from cove.server.setup.commands import Runner
from cove.server.setup.npm import find_npm
from world_support import OTHER, World

HOST: Final = "packages.example"
PORT: Final = 3141
WHEEL: Final = "tabulate"
"""A wheel without dependencies."""
MODULE: Final = "is-odd"
"""An npm package that depends on another one."""
_MODULES: Final = ("is-odd@3.0.1", "is-number@6.0.0")


@dataclass(frozen=True)
class Index:
    """What it has, by path, and which paths were asked for."""

    files: dict[str, bytes]
    asked: list[str] = field(default_factory=list)

    url = f"http://{HOST}:{PORT}"
    rule = f"{HOST}:{PORT}"

    @property
    def env(self) -> dict[str, str]:
        """What pip and npm in a sandbox have to be told."""
        return {
            "PIP_INDEX_URL": f"{self.url}/simple/",
            "PIP_TRUSTED_HOST": f"{HOST}:{PORT}",
            "NPM_CONFIG_REGISTRY": f"{self.url}/",
            "NPM_CONFIG_AUDIT": "false",
            "NPM_CONFIG_FUND": "false",
        }


def fetch_packages(folder: Path) -> Index:
    """Fetch the packages with the machine's own clients."""
    wheels, modules = folder / "wheels", folder / "modules"
    wheels.mkdir()
    modules.mkdir()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
    subprocess.run([*pip, "--only-binary=:all:", "--dest", wheels, WHEEL], check=True, timeout=300)
    npm = find_npm(Runner(), folder)
    cache = ["--pack-destination", modules, "--cache", folder / "cache", "--loglevel=error"]
    subprocess.run([*npm, "pack", *_MODULES, *cache], check=True, timeout=300, cwd=modules, stdout=subprocess.DEVNULL)
    files: dict[str, bytes] = {}
    for wheel in wheels.iterdir():
        _add_wheel(files, wheel)
    for archive in modules.glob("*.tgz"):
        _add_module(files, archive)
    return Index(files)


def _add_wheel(files: dict[str, bytes], wheel: Path) -> None:
    content = wheel.read_bytes()
    name = wheel.name.partition("-")[0].lower()
    link = f'<a href="/wheels/{wheel.name}#sha256={hashlib.sha256(content).hexdigest()}">{wheel.name}</a>'
    files[f"/wheels/{wheel.name}"] = content
    files[f"/simple/{name}/"] = f"<!DOCTYPE html><html><body>{link}</body></html>".encode()


def _add_module(files: dict[str, bytes], archive: Path) -> None:
    content = archive.read_bytes()
    with tarfile.open(archive) as tar:
        described = tar.extractfile("package/package.json")
        assert described is not None
        facts = json.load(described)
    name, version = facts["name"], facts["version"]
    path = f"/{name}/-/{name}-{version}.tgz"
    files[path] = content
    facts["dist"] = {
        "tarball": f"http://{HOST}:{PORT}{path}",
        "integrity": f"sha512-{base64.b64encode(hashlib.sha512(content).digest()).decode()}",
    }
    document = {"name": name, "dist-tags": {"latest": version}, "versions": {version: facts}}
    files[f"/{name}"] = json.dumps(document).encode()


@contextlib.contextmanager
def serving_packages(world: World, folder: Path) -> Iterator[Index]:
    """Fetch and serve them in the world, under their name."""
    index = fetch_packages(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            index.asked.append(path)
            content = index.files.get(path)
            self.send_response(404 if content is None else 200)
            kind = {"/simple": "text/html", "/wheels": "application/zip"}.get("/" + path.split("/")[1])
            self.send_header("Content-Type", kind or "application/json")
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def address_string(self) -> str:
            return "sandbox"

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer((OTHER, PORT), Handler, bind_and_activate=False)
    server.daemon_threads = True
    server.socket.close()
    server.socket = world.net.listener("0.0.0.0", PORT)  # noqa: S104 - of a namespace of its own
    server.socket.setblocking(True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    world.dns.names[HOST] = dns.addresses(OTHER)
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
