"""The operator's extra CA certificates (setting `extra_ca`): read, and added to the tree of an image.

For networks whose TLS is opened on the way, or whose registries and indexes have certificates of their own authority.
Nothing of the tree is executed and no link leads out of it, so it may be anybody's; but nobody else may be changing it,
and it must not yet be in use. A tree without a trust store gets the files and no store: a store with only our
certificates would make programs refuse all others.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import ssl
import stat
import subprocess
from pathlib import Path
from typing import Final

from msgspec import Struct

from cove.engine import kernel
from cove.model.errors import BadRequest

BUNDLE: Final = "/etc/ssl/cove-extra-ca.pem"
"""Where an image has the extra certificates alone, as one file."""

_ANCHORS: Final = (
    "/usr/local/share/ca-certificates"  # update-ca-certificates(8) of Debian and Alpine takes them from here
)
_HASHED: Final = "/etc/ssl/certs"
# Trust stores as one file, of Debian and Alpine, Fedora, SUSE, Alpine. The first one found is named in variables.
_STORES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# Python's own, pip's and requests' (both bring a store of their own), and that of OpenSSL's users in general.
_STORE_VARIABLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT")
_BUNDLE_VARIABLE: Final = "NODE_EXTRA_CA_CERTS"
VARIABLES: Final = frozenset({*_STORE_VARIABLES, _BUNDLE_VARIABLE})
"""All that `add_certificates` may return."""
_CERTIFICATE: Final = re.compile(r"-----BEGIN CERTIFICATE-----\s.*?-----END CERTIFICATE-----", re.DOTALL)
_MOST_BYTES: Final = 1024 * 1024
_SAME_HASH: Final = 10
# What a strange tree answers where we want a directory or a file. Anything else, such as a full disk, is an error.
_IN_THE_WAY: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO}
)


class Certificate(Struct, frozen=True):
    """One certificate in PEM form. `subject_hash` is OpenSSL's, empty where the machine has no openssl to tell it."""

    pem: str
    subject_hash: str


class ExtraCa(Struct, frozen=True):
    """All extra certificates, without doubles, in a fixed order."""

    certificates: tuple[Certificate, ...] = ()

    @property
    def digest(self) -> str:
        """Names the set; empty when there is none."""
        if not self.certificates:
            return ""
        return hashlib.sha256("".join(each.pem for each in self.certificates).encode()).hexdigest()

    @property
    def bundle(self) -> bytes:
        """All of them as one file."""
        return "".join(each.pem for each in self.certificates).encode()


def read_extra_ca(path: Path | None) -> ExtraCa:
    """Read the certificates of a PEM file, or of all `.crt` and `.pem` files of a directory. None: no certificates.

    Only certificates are taken: a key in the file goes nowhere. Blocks, ~5 ms per certificate.
    Raises: BadRequest (field `extra_ca`) when it cannot be read, or holds no certificate or a damaged one.
    """
    if path is None:
        return ExtraCa()
    try:
        files = sorted(p for p in path.iterdir() if p.suffix in {".crt", ".pem"}) if path.is_dir() else [path]
        texts = [file.read_text(encoding="utf-8", errors="replace")[:_MOST_BYTES] for file in files]
    except OSError as error:
        raise BadRequest(f"COVE_EXTRA_CA: {path} cannot be read: {error.strerror}", field="extra_ca") from error
    found = {_normal(block, path) for text in texts for block in _CERTIFICATE.findall(text)}
    if not found:
        raise BadRequest(f"COVE_EXTRA_CA: {path} holds no certificate in PEM form", field="extra_ca")
    return ExtraCa(tuple(Certificate(pem, _subject_hash(pem)) for pem in sorted(found)))


def add_certificates(rootfs: int, extra: ExtraCa) -> dict[str, str]:
    """Add the certificates to the tree that the descriptor `rootfs` is the top of. Not to be repeated on one tree.

    Returns the variables that programs with a trust store of their own need; what the image itself sets should win.
    Blocks for a few milliseconds. A place that is not there, or is not what it should be, is left out.
    Raises: OSError when the disk is full.
    """
    if not extra.certificates:
        return {}
    variables: dict[str, str] = {}
    for number, certificate in enumerate(extra.certificates):
        name = f"{_ANCHORS}/cove-extra-{number}.crt"
        if _write(rootfs, name, certificate.pem.encode()) and certificate.subject_hash:
            _link_by_hash(rootfs, certificate.subject_hash, name)
    if _write(rootfs, BUNDLE, extra.bundle):
        variables[_BUNDLE_VARIABLE] = BUNDLE
    stores = _append(rootfs, extra.bundle)
    if stores:
        variables |= dict.fromkeys(_STORE_VARIABLES, stores[0])
    return variables


def _normal(block: str, path: Path) -> str:
    try:
        der = ssl.PEM_cert_to_DER_cert(block.strip())
        ssl.create_default_context(cadata=ssl.DER_cert_to_PEM_cert(der))
    except (ValueError, ssl.SSLError) as error:
        raise BadRequest(f"COVE_EXTRA_CA: a certificate in {path} is damaged", field="extra_ca") from error
    return ssl.DER_cert_to_PEM_cert(der)


def _subject_hash(pem: str) -> str:
    argv = ["openssl", "x509", "-noout", "-subject_hash"]
    try:
        done = subprocess.run(argv, input=pem, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    found = done.stdout.strip()
    return found if re.fullmatch(r"[0-9a-f]{8}", found) else ""


def _write(rootfs: int, path: str, content: bytes) -> bool:
    """Make the file anew, with the directories above it. Returns whether the tree let us."""
    folder, _, name = path.rpartition("/")
    try:
        directory = _make_directory(rootfs, folder)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o644, dir_fd=directory)
        finally:
            os.close(directory)
    except OSError as error:
        return _left_out(error)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        os.fchmod(fd, 0o644)  # whatever our umask is
    return True


def _make_directory(rootfs: int, path: str) -> int:
    """A descriptor of the directory `path` in the tree, made where it is missing."""
    here = os.dup(rootfs)
    walked = ""
    for name in path.strip("/").split("/"):
        walked += f"/{name}"
        try:
            is_new = True
            try:
                os.mkdir(name, dir_fd=here)
            except FileExistsError:
                is_new = False
            below = kernel.open_in_root(rootfs, walked, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            os.close(here)
        here = below
        if is_new:
            os.fchmod(here, 0o755)
    return here


def _append(rootfs: int, content: bytes) -> list[str]:
    """Add to every trust store that is one file, once to each file. Returns the names of those there are."""
    found: list[str] = []
    done: set[tuple[int, int]] = set()
    for path in _STORES:
        try:
            # Only a name until we know what it is: opening a device or a pipe could do something, or wait.
            named = kernel.open_in_root(rootfs, path, os.O_PATH)
        except OSError as error:
            _left_out(error)
            continue
        try:
            facts = os.fstat(named)
            if not stat.S_ISREG(facts.st_mode):
                continue
            found.append(path)
            if (facts.st_dev, facts.st_ino) not in done:
                done.add((facts.st_dev, facts.st_ino))
                with open(f"/proc/self/fd/{named}", "ab") as file:  # noqa: PTH123 - the file of the descriptor
                    file.write(b"\n" + content)
        finally:
            os.close(named)
    return found


def _link_by_hash(rootfs: int, subject_hash: str, target: str) -> None:
    """Let OpenSSL find the certificate in its directory, which it searches by names made of hashes."""
    try:
        directory = kernel.open_in_root(rootfs, _HASHED, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        _left_out(error)
        return
    try:
        for number in range(_SAME_HASH):
            with contextlib.suppress(FileExistsError):
                os.symlink(target, f"{subject_hash}.{number}", dir_fd=directory)
                return
    finally:
        os.close(directory)


def _left_out(error: OSError) -> bool:
    """False for an error that means that the tree has no such place; any other is raised again."""
    if error.errno not in _IN_THE_WAY:
        raise error
    return False
