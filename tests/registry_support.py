"""A real registry (Debian's docker-registry) on the loopback, images made by hand for it, and wires that misbehave."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx2
import pytest

from tests_support import free_port

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
START_LIMIT_S = 60.0
USER, PASSWORD = "tester", "s3cret-of-the-test"
LOGIN_LINE = "tester:$2y$04$hjkAl0yaIf9vNmgJ9GzLMO4/lV0ijcwBouZmGtjRP9f0YeD0UNJs.\n"
"""Made by htpasswd(1) of that pair."""

TOOLS = Path(__file__).resolve().parents[1] / ".venv" / "tools"
"""Where `make setup-dev` unpacks programs that only tests need; installed, some of them would start a service."""


def tool(name: str) -> str:
    """The path of a program that a test needs."""
    places = [os.environ["PATH"], *(str(TOOLS / folder) for folder in ("bin", "usr/bin", "usr/sbin"))]
    found = shutil.which(name, path=os.pathsep.join(places))
    return found or pytest.fail(f"this test needs {name}: run `make setup-dev`")


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar of these members, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def member(name: str, content: bytes | str = b"", **facts: object) -> tuple[tarfile.TarInfo, bytes]:
    """A member; a name that ends in a slash is a directory. `facts` are fields of TarInfo."""
    info = tarfile.TarInfo(name.rstrip("/") if name != "/" else name)
    info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
    info.mode = 0o755 if name.endswith("/") else 0o644
    for key, value in facts.items():
        setattr(info, key, value)
    return info, content.encode() if isinstance(content, str) else content


def link(name: str, target: str, *, hard: bool = False) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.LNKTYPE if hard else tarfile.SYMTYPE, linkname=target)


class Layer:
    """A layer as a registry has it."""

    def __init__(self, tar: bytes, packing: str = "gzip") -> None:
        self.diff_id = digest_of(tar)
        match packing:
            case "gzip":
                self.data, self.media_type = gzip.compress(tar, 6, mtime=0), f"{OCI_LAYER}+gzip"
            case "zstd":
                done = subprocess.run(["zstd", "-qc"], input=tar, capture_output=True, check=True, timeout=60)
                self.data, self.media_type = done.stdout, f"{OCI_LAYER}+zstd"
            case _:
                self.data, self.media_type = tar, OCI_LAYER
        self.digest = digest_of(self.data)

    @property
    def descriptor(self) -> dict[str, object]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data)}


def image_config(layers: Sequence[Layer], *, architecture: str = ARCHITECTURE, **run: object) -> bytes:
    """An image's configuration; `run` are fields of its `config`."""
    return json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": run,
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
    ).encode()


class Registry:
    """A docker-registry process. `host` is how its images are called."""

    def __init__(self, directory: Path, *, login: bool = False) -> None:
        self.directory = directory
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.needs_login = login
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.directory / "registry.log").read_text(errors="replace")

    def start(self) -> None:
        config: dict[str, object] = {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {"filesystem": {"rootdirectory": str(self.directory / "data")}, "delete": {"enabled": True}},
            "http": {"addr": self.host},
        }
        if self.needs_login:
            (self.directory / "htpasswd").write_text(LOGIN_LINE)
            config["auth"] = {"htpasswd": {"realm": "tests", "path": str(self.directory / "htpasswd")}}
        (self.directory / "config.yml").write_text(json.dumps(config))  # JSON is YAML
        with (self.directory / "registry.log").open("ab") as log:
            self._process = subprocess.Popen(
                [tool("docker-registry"), "serve", str(self.directory / "config.yml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
            )
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            with contextlib.suppress(httpx2.HTTPError), self.client() as client:
                client.get("/v2/")
                return
            assert self._process.poll() is None, self.log[-2000:]
            assert time.monotonic() < deadline, self.log[-2000:]
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)

    def client(self) -> httpx2.Client:
        auth = (USER, PASSWORD) if self.needs_login else None
        return httpx2.Client(base_url=f"http://{self.host}", auth=auth, timeout=30)

    def put_blob(self, name: str, data: bytes) -> str:
        digest = digest_of(data)
        with self.client() as client:
            begun = client.post(f"/v2/{name}/blobs/uploads/")
            assert begun.status_code == 202, begun.text
            where = httpx2.URL(begun.headers["location"]).copy_merge_params({"digest": digest})
            done = client.put(where, content=data, headers={"Content-Type": "application/octet-stream"})
            assert done.status_code == 201, done.text
        return digest

    def put_manifest(self, name: str, tag: str, manifest: dict[str, object]) -> str:
        raw = json.dumps(manifest).encode()
        with self.client() as client:
            done = client.put(
                f"/v2/{name}/manifests/{tag}", content=raw, headers={"Content-Type": str(manifest["mediaType"])}
            )
            assert done.status_code == 201, done.text
        return digest_of(raw)

    def push(self, name: str, *layers: Layer, tag: str = "latest", config: bytes | None = None, **run: object) -> str:
        """Make an image; returns its manifest's digest."""
        raw = image_config(layers, **run) if config is None else config
        for layer in layers:
            self.put_blob(name, layer.data)
        config_digest = self.put_blob(name, raw)
        manifest: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": config_digest, "size": len(raw)},
            "layers": [layer.descriptor for layer in layers],
        }
        return self.put_manifest(name, tag, manifest)

    def blob_file(self, digest: str) -> Path:
        digits = digest.removeprefix("sha256:")
        return self.directory / "data/docker/registry/v2/blobs/sha256" / digits[:2] / digits / "data"

    def count_reads(self, digest: str) -> int:
        """How often a blob was asked for."""
        return sum(1 for line in self.log.splitlines() if '"GET ' in line and digest in line)


@contextlib.contextmanager
def running_registry(parent: Path, *, login: bool = False) -> Iterator[Registry]:
    registry = Registry(Path(tempfile.mkdtemp(prefix="registry-", dir=parent)), login=login)
    registry.start()
    try:
        yield registry
    finally:
        registry.stop()
        shutil.rmtree(registry.directory, ignore_errors=True)


class Wire:
    """A TCP wire to `port`. `cut_after`: it breaks after so many bytes of answers; `stall_after`: it falls silent."""

    def __init__(self, port: int, *, cut_after: int | None = None, stall_after: int | None = None) -> None:
        self._to = port
        self.cut_after = cut_after
        self.stall_after = stall_after
        self.passed = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(60)

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._to), timeout=60)
            far.settimeout(None)
            threading.Thread(target=self._up, args=(near, far), daemon=True).start()
            threading.Thread(target=self._down, args=(far, near), daemon=True).start()

    def _up(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                far.sendall(data)
            far.shutdown(socket.SHUT_WR)

    def _down(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(16384):
                self.passed += len(data)
                if self.cut_after is not None and self.passed > self.cut_after:
                    break
                if self.stall_after is not None and self.passed > self.stall_after:
                    self._stopped.wait(60)
                    break
                near.sendall(data)
        for side in (far, near):
            # A close alone waits for the other thread, which is reading.
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()


class Redirector:
    """An HTTP server that answers everything below `/v2/` with a redirect, and counts."""

    def __init__(self, target: Callable[[str], str]) -> None:
        self._target = target
        self.asked = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(60)

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with near, contextlib.suppress(OSError, IndexError, ValueError):
                near.settimeout(5)
                path = near.recv(65536).split(b" ", 2)[1].decode()
                self.asked += 1
                status = "200 OK" if path == "/v2/" else f"307 Temporary Redirect\r\nLocation: {self._target(path)}"
                near.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
