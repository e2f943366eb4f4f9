"""Manifests and blobs from a registry, by skopeo in a closed world whose only way out is an `Outlet`.

skopeo sees a directory of the project's blobs, the certificates of this machine and, in memory, the login. What it
brings is checked again: manifests and configurations here, layers when they are unpacked. A blob has its final name
only when it is whole, so a pull that was cut goes on at the layer it had reached.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import json
import os
import re
import shutil
import stat
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

from cove.engine.clock import Clock, sleep
from cove.engine.confined.process import Confinement, confined
from cove.engine.images import manifests
from cove.engine.images.addresses import RegistryRules, split_host
from cove.engine.images.manifests import Configuration, Descriptor, Manifest, digest_of
from cove.engine.images.outlet import Outlet
from cove.engine.images.settings import ImageSettings
from cove.model.errors import (
    BadRequest,
    CapacityExceeded,
    CoveError,
    EngineFailure,
    Forbidden,
    NotFound,
    RegistryError,
    RegistryUnreachable,
    TooLarge,
)
from cove.model.image import Credentials
from cove.model.reference import Reference

SKOPEO: Final = Path("/usr/bin/skopeo")
_PROXY_PORTS: Final = (3128, 3129)
_POLICY: Final = json.dumps({"default": [{"type": "insecureAcceptAnything"}]})
_HOSTS: Final = "127.0.0.1 localhost\n::1 localhost\n"
_CERTIFICATES: Final = ("/etc/ssl/certs", "/etc/pki", "/etc/containers/certs.d")
_POLL_S: Final = 0.2
_MOST_ERROR: Final = 8192
_MOST_RAW: Final = manifests.MAX_MANIFEST + 1
_RETRIES: Final = 2
_SLACK_BYTES: Final = 16 * 1024**2
_RESERVE: Final = 512 * 1024**2
"""What a download leaves of the disk."""


class Resolution(Struct, frozen=True, kw_only=True):
    """What a reference means: `digest` of what was named, and the manifest for this machine with its digest."""

    digest: str
    manifest_digest: str
    manifest: Manifest

    @property
    def size_bytes(self) -> int:
        """Sum of the packed layers."""
        return sum(layer.size for layer in self.manifest.layers)


class Fetched(Struct, frozen=True, kw_only=True):
    """An image whose blobs are all there, in `directory`, each named by its digest's digits."""

    directory: Path
    configuration: Configuration
    layers: tuple[Descriptor, ...]
    blobs: tuple[str, ...]


class Transfer:
    """One pull's dealings with one registry. `directory` holds the project's blobs; `job` is a fresh name in it."""

    def __init__(  # noqa: PLR0913 - made in one place, all by name
        self,
        reference: Reference,
        *,
        settings: ImageSettings,
        clock: Clock,
        directory: Path,
        job: str,
        credentials: Credentials | None,
    ) -> None:
        self._reference = reference
        self._settings = settings
        self._clock = clock
        self._directory = directory
        self._job = job
        self._credentials = credentials
        self._rules = RegistryRules(settings.registries, settings.insecure_registries)
        self._outlet = Outlet(self._rules, clock, connect_s=settings.connect_s)

    @property
    def downloaded_bytes(self) -> int:
        """What came over the network."""
        return self._outlet.bytes

    async def resolve(self) -> Resolution:
        """Ask what the reference means. Raises: CoveError, RegistryUnreachable among them."""
        self._rules.check(self._reference.registry)
        raw = await self._inspect(self._reference)
        digest = digest_of(raw)
        self._must_be(self._reference.digest, digest)
        manifest = manifests.read_manifest(raw)
        if manifest.manifests is None:
            return Resolution(digest=digest, manifest_digest=digest, manifest=manifest)
        chosen = manifests.choose_platform(manifest)
        raw = await self._inspect(_at_digest(self._reference, chosen.digest))
        self._must_be(chosen.digest, digest_of(raw))
        manifest = manifests.read_manifest(raw)
        if manifest.manifests is not None:
            raise BadRequest("this image cannot be used: its index points to another index", field="image")
        return Resolution(digest=digest, manifest_digest=chosen.digest, manifest=manifest)

    async def fetch(self, resolution: Resolution, progress: Callable[[int], None]) -> Fetched:
        """Bring every blob that is not there yet. `progress` gets the packed bytes that are there.

        Cancelling keeps the blobs that are whole. Raises: CoveError.
        """
        source = _at_digest(self._reference, resolution.manifest_digest)
        argv = (
            "copy",
            "--quiet",
            "--retry-times",
            str(_RETRIES),
            *self._source_options("--src-tls-verify=false", "--src-no-creds"),
            "--dest-shared-blob-dir",
            "/pull/blobs",
            f"docker://{_named(source)}",
            f"oci:/pull/{self._job}:image",
        )
        job = self._directory / self._job
        job.mkdir(mode=0o700)
        try:
            async with self._skopeo(argv, writable=True) as process:
                await self._output(process, resolution, progress)
            return await asyncio.to_thread(self._collect, resolution, job)
        finally:
            await asyncio.to_thread(shutil.rmtree, job, ignore_errors=True)

    async def _inspect(self, reference: Reference) -> bytes:
        argv = ("inspect", "--raw", "--retry-times", "0", *self._source_options("--tls-verify=false", "--no-creds"))
        async with self._skopeo((*argv, f"docker://{_named(reference)}"), writable=False) as process:
            return await self._output(process, None, lambda _: None)

    async def _output(self, process: Process, resolution: Resolution | None, progress: Callable[[int], None]) -> bytes:
        """What the program prints, once it has ended well. Raises: CoveError."""
        assert process.stdout is not None  # noqa: S101 - pipes were asked for
        assert process.stderr is not None  # noqa: S101
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(self._watch(process, resolution, progress))
            out, said = await asyncio.gather(_most(process.stdout, _MOST_RAW), _most(process.stderr, _MOST_ERROR))
            code = await process.wait()
            watch.cancel()
        failure = None if watch.cancelled() else watch.result()
        if failure is None and code != 0:
            failure = self._failure(said.decode(errors="replace"), code)
        if failure is not None:
            raise failure
        return out

    async def _watch(
        self, process: Process, resolution: Resolution | None, progress: Callable[[int], None]
    ) -> CoveError:
        """Report, and end the program when the registry stalls or sends more than it said: then returns the failure."""
        last, since = -1, self._clock.monotonic()
        while True:
            await sleep(self._clock, _POLL_S)
            there, loose = (0, 0) if resolution is None else await asyncio.to_thread(self._measure, resolution)
            progress(there)
            now = self._clock.monotonic()
            if there + loose != last:
                last, since = there + loose, now
            failure: CoveError | None = None
            if now - max(since, self._outlet.last_byte_at) > self._settings.stall_s:
                failure = RegistryError(f"the registry {self._reference.registry} stalled", retry_after_s=60)
            elif resolution is not None and shutil.disk_usage(self._directory).free < _RESERVE:
                failure = CapacityExceeded("the disk is full: no image can be pulled", retry_after_s=60)
            elif resolution is not None and loose > resolution.size_bytes + _SLACK_BYTES:
                failure = RegistryError("the registry sent more than the image's manifest says")
            if failure is not None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                return failure

    def _measure(self, resolution: Resolution) -> tuple[int, int]:
        """Packed bytes of this image that are there, and the bytes of half-fetched blobs among them."""
        loose = 0
        with contextlib.suppress(OSError):
            for path in (self._directory / self._job).iterdir():
                with contextlib.suppress(OSError):
                    loose += path.stat().st_size
        whole = sum(
            layer.size
            for layer in {layer.digest: layer for layer in resolution.manifest.layers}.values()
            if self._blob(layer.digest).exists()
        )
        return min(whole + loose, resolution.size_bytes), loose

    def _collect(self, resolution: Resolution, job: Path) -> Fetched:
        """Read what skopeo wrote, and hold it against what the registry's manifest says."""
        config = resolution.manifest.config
        if config is None:
            raise BadRequest("this image cannot be used: it has no configuration", field="image")
        try:
            raw = self._read_blob(config.digest)
            index = manifests.read_manifest(_read_most(job / "index.json"))
            written = next(iter(index.manifests or ()), None)
            if written is None:
                raise EngineFailure("the image was not fetched completely", internal="index.json is empty")
            manifest = manifests.read_manifest(self._read_blob(written.digest))
        except OSError as error:
            raise EngineFailure("the image was not fetched completely", internal=repr(error)) from error
        configuration = manifests.read_configuration(raw, layers=len(manifest.layers))
        # skopeo packs layers that were plain; then their digests are its own, and the diff ids hold them to the image.
        blobs = {config.digest, written.digest, *(layer.digest for layer in manifest.layers)}
        directory = self._directory / "blobs" / "sha256"
        return Fetched(
            directory=directory, configuration=configuration, layers=manifest.layers, blobs=tuple(sorted(blobs))
        )

    def _read_blob(self, digest: str) -> bytes:
        path = self._blob(digest)
        data = _read_most(path)
        if digest_of(data) != digest:
            path.unlink(missing_ok=True)
            raise RegistryError("what came from the registry is not what its digest says")
        return data

    def _blob(self, digest: str) -> Path:
        return self._directory / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def _must_be(self, wanted: str | None, found: str) -> None:
        if wanted is not None and wanted != found:
            raise RegistryError("what came from the registry is not what its digest says")

    def _source_options(self, no_verify: str, no_credentials: str) -> tuple[str, ...]:
        host, port = split_host(self._reference.registry, 443)
        options = ["--authfile", "/etc/auth.json"] if self._credentials is not None else [no_credentials]
        if self._rules.is_plain(host, port):
            options.append(no_verify)
        return tuple(options)

    @asynccontextmanager
    async def _skopeo(self, argv: tuple[str, ...], *, writable: bool) -> AsyncGenerator[Process]:
        if not SKOPEO.exists():
            raise EngineFailure("skopeo is not installed: run `cove setup`")
        forward = self._forward()
        port = next(one for one in _PROXY_PORTS if forward is None or forward[1] != one)
        listen = (("127.0.0.1", port), *([] if forward is None else [("127.0.0.1", forward[1])]))
        files = {"/etc/policy.json": _POLICY, "/etc/hosts": _HOSTS}
        if self._credentials is not None:
            files["/etc/auth.json"] = auth_file(self._reference.registry, self._credentials)
        binds = _certificates()
        proxy = f"http://127.0.0.1:{port}"
        spec = Confinement(
            argv=(str(SKOPEO), "--policy", "/etc/policy.json", "--tmpdir", "/tmp", *argv),  # noqa: S108 - its own
            binds=(*binds, (self._directory, "/pull", True)) if writable else tuple(binds),
            files=files,
            env={"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "GOMAXPROCS": "2"},
            listen=listen,
            limits={"RLIMIT_FSIZE": self._settings.limits.most_bytes + _SLACK_BYTES, "RLIMIT_NOFILE": 1024},
        )
        self._outlet.touch()
        async with confined(spec) as (process, sockets), self._outlet.serving(sockets, [forward] if forward else []):
            yield process

    def _forward(self) -> tuple[str, int] | None:
        """Where a registry on this machine's loopback is: Go asks no proxy for those, so it gets a wire of its own."""
        for default in (443, 80):
            host, port = split_host(self._reference.registry, default)
            if host == "localhost" or host.startswith("127."):
                if not self._rules.is_named(host, port):
                    raise Forbidden(
                        f"{self._reference.registry} is in an address range that is closed to pulls", field="image"
                    )
                return ("127.0.0.1" if host == "localhost" else host), port
        return None

    def _failure(self, said: str, code: int) -> CoveError:
        """What skopeo's last words mean. They are for the log: they may hold a URL with a signature."""
        registry, outlet = self._reference.registry, self._outlet
        if outlet.refused:
            return Forbidden(outlet.refused, field="image", internal=said)
        if outlet.unreachable and not outlet.has_connected:
            return RegistryUnreachable(
                f"the registry {registry} could not be reached", internal=f"{outlet.unreachable}; {said}"
            )
        for pattern, make in _MEANINGS:
            if re.search(pattern, said, re.IGNORECASE):
                return make(registry, said)
        return RegistryError(f"the image could not be fetched from {registry}", internal=f"skopeo exit {code}: {said}")


def auth_file(registry: str, credentials: Credentials) -> str:
    """The login as skopeo reads it (containers-auth.json(5))."""
    pair = f"{credentials.username}:{credentials.password}"
    entry = {"auth": base64.b64encode(pair.encode()).decode()}
    if credentials.token:
        entry = {"auth": base64.b64encode(b"<token>:").decode(), "identitytoken": credentials.token}
    key = "https://index.docker.io/v1/" if registry == "docker.io" else registry
    return json.dumps({"auths": {key: entry}})


_MEANINGS: Final[tuple[tuple[str, Callable[[str, str], CoveError]], ...]] = (
    (
        r"unauthorized|authentication required|invalid username/password|denied|403 \(forbidden\)|status:? 40[13]",
        lambda registry, said: RegistryError(
            f"the registry {registry} refuses: it wants a login, or this login may not have the image", internal=said
        ),
    ),
    (
        r"manifest unknown|name unknown|not found|404",
        lambda registry, said: NotFound(f"the registry {registry} has no such image", field="image", internal=said),
    ),
    (
        r"digest.*did not match|does not match|digest mismatch|invalid checksum|unexpected digest",
        lambda _, said: RegistryError("what came from the registry is not what its digest says", internal=said),
    ),
    (
        r"toomanyrequests|429",
        lambda registry, said: RegistryError(
            f"the registry {registry} answers: too many requests", retry_after_s=60, internal=said
        ),
    ),
    (
        r"x509|certificate",
        lambda registry, said: RegistryError(
            f"the certificate of the registry {registry} is not trusted by this machine", internal=said
        ),
    ),
    (
        r"file too large",
        lambda _, said: TooLarge("this image cannot be used: a layer is too large", field="image", internal=said),
    ),
    (
        r"EOF|reset by peer|connection refused|broken pipe|Gateway Timeout",
        lambda registry, said: RegistryError(
            f"the connection to the registry {registry} broke; what was fetched is kept", retry_after_s=5, internal=said
        ),
    ),
)


def _certificates() -> list[tuple[Path, str, bool]]:
    return [(Path(path), path, False) for path in _CERTIFICATES if Path(path).is_dir()]


def _at_digest(reference: Reference, digest: str) -> Reference:
    return Reference(registry=reference.registry, path=reference.path, tag=None, digest=digest)


def _named(reference: Reference) -> str:
    """As skopeo takes it: a tag or a digest, not both."""
    if reference.digest is not None:
        return f"{reference.repository}@{reference.digest}"
    return str(reference)


async def _most(stream: asyncio.StreamReader, limit: int) -> bytes:
    """The stream's bytes, `limit` of them at most; the rest is read and dropped."""
    kept = bytearray()
    while chunk := await stream.read(65536):
        kept += chunk[: limit - len(kept)]
    return bytes(kept)


def _read_most(path: Path) -> bytes:
    """At most so much of a file that skopeo wrote. Raises: OSError, also for whatever is no regular file."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a file", os.fspath(path))
        return file.read(_MOST_RAW)
