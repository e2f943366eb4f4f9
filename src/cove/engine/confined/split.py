"""Takes an uploaded archive apart: an image (docker-save or OCI), or one file of a tar. Runs inside (`enter.py`).

One line of JSON comes in (see `engine/images/archives.py`), lines of JSON go out: `{"done": N}` bytes read, then
`{"parts": {name: number}, "links": {name: name}}`, where the content of a part is the file `/target/NUMBER`;
`{"rootfs": true}` for an archive that is no image but a file system; or `{"error": kind, "text": ...}`. Nothing of an
archive becomes a name on the disk.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import re
import sys

from cove.engine.confined.layer import CHUNK, Budget, Layer, Reporter, say
from cove.engine.confined.tarstream import DIRECTORY, HARDLINK, REGULAR, SYMLINK, Entry, LayerError, TarStream
from cove.engine.confined.unpack import cleaned

ARCHIVE, TARGET = "/archive", "/target"
MAX_PARTS = 4096
_HEX = rb"[0-9a-f]{64}"
PART = re.compile(
    rb"oci-layout|index\.json|manifest\.json|repositories|blobs/sha256/%b|%b\.(?:json|tar)|%b/(?:json|VERSION|layer\.tar)"
    % (_HEX, _HEX, _HEX)
)
FOLDER = re.compile(rb"|blobs|blobs/sha256|%b" % _HEX)
"""What image archives consist of: OCI image-spec 1.1, image-layout.md; Docker's image-spec v1.2, "combined image"."""


class NoImage(Exception):
    """The archive has something that no image archive has."""


class Splitter:
    """Writes the wanted entries of one archive to numbered files."""

    def __init__(self, tar: TarStream, most_bytes: int) -> None:
        self._tar = tar
        self._left = most_bytes
        self.parts: dict[str, int] = {}
        self.links: dict[str, str] = {}
        self._count = 0

    def image(self) -> None:
        """Every part of an image archive. Raises: LayerError, NoImage."""
        for entry in self._tar.entries():
            name = cleaned(entry.name)
            if entry.kind == DIRECTORY and FOLDER.fullmatch(name):
                continue
            if entry.kind not in {REGULAR, HARDLINK, SYMLINK} or not PART.fullmatch(name):
                raise NoImage
            if entry.kind == REGULAR:
                self._keep(name)
            else:
                self.links[name.decode()] = _target(entry, name)
        if "manifest.json" not in self.parts and not {"oci-layout", "index.json"} <= self.parts.keys():
            raise NoImage

    def pick(self, wanted: bytes) -> None:
        """The one file `wanted`; the last of that name wins. Raises: LayerError."""
        for entry in self._tar.entries():
            if entry.kind == REGULAR and cleaned(entry.name) == wanted:
                self._keep(wanted)

    def _keep(self, name: bytes) -> None:
        self._count += 1
        if self._count > MAX_PARTS:
            raise LayerError(f"the archive has more than {MAX_PARTS} parts", "limit")
        fd = os.open(f"{TARGET}/{self._count}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb", buffering=0) as file:
            while chunk := self._tar.read(CHUNK):
                self._left -= len(chunk)
                if self._left < 0:
                    raise LayerError("what the archive has is too large", "limit")
                while chunk:
                    chunk = chunk[file.write(chunk) :]
        self.parts[name.decode(errors="replace")] = self._count


def _target(entry: Entry, name: bytes) -> str:
    link = posixpath.join(posixpath.dirname(name), entry.link) if entry.kind == SYMLINK else entry.link
    return cleaned(link).decode(errors="replace")


def main() -> int:
    order = json.loads(sys.stdin.readline())
    try:
        # A file is picked out of a context of any size, so the ratio is the bound there.
        layer = Layer(ARCHIVE, Budget(order["most_archive"], 0, order["most_ratio"]), Reporter())
        layer.start()
        try:
            splitter = Splitter(TarStream(layer.read), order["most_bytes"])
            if order["pick"] is None:
                splitter.image()
            else:
                splitter.pick(order["pick"].encode())
            layer.finish()
        finally:
            layer.close()
        say({"parts": splitter.parts, "links": splitter.links})
    except NoImage:
        say({"rootfs": True})
    except LayerError as error:
        say({"error": error.kind, "text": str(error)})
    except OSError as error:
        kind = "space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "bad"
        say({"error": kind, "text": f"the archive cannot be read: {os.strerror(error.errno or 0)}"})
    return 0
