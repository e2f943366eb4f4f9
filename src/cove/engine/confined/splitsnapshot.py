"""Takes the file of an exported snapshot apart: its manifest, then the parts that were asked for. Runs inside.

The file is `/archive`, a tar packed by zstd (see `engine/checkpoints/transfer.py`). One line of JSON comes in: `parts`
None for the manifest alone, or `[[name, size], ...]`; lines go out: `{"done": N}`, then `{"manifest": text}` or
`{"split": N}`, where part number I of the order is the file `/target/I`; or `{"error": kind, "text": ...}`. Nothing of
the file becomes a name on the disk, and no part may be longer than the order says, so nothing is unpacked that was not
declared.
"""

from __future__ import annotations

import errno
import json
import os
import sys

from cove.engine.confined.layer import CHUNK, Budget, Layer, Reporter, say
from cove.engine.confined.tarstream import REGULAR, LayerError, TarStream

ARCHIVE, TARGET = "/archive", "/target"
MANIFEST = b"cove-snapshot.json"
MOST_MANIFEST = 8 * 1024 * 1024
ANY_RATIO = 10**9
"""Memory may be packed to nothing: what bounds it is the size that was declared."""


def read_manifest(tar: TarStream) -> str:
    """The first entry's text. Raises: LayerError."""
    try:
        entry = next(tar.entries(), None)
    except LayerError as error:
        raise LayerError(f"it is no exported snapshot, or damaged: {error}", error.kind) from error
    if entry is None or entry.kind != REGULAR or entry.name != MANIFEST:
        raise LayerError("it is no exported snapshot")
    if entry.size > MOST_MANIFEST:
        raise LayerError("its manifest is larger than 8 MiB", "limit")
    data = b""
    while chunk := tar.read(CHUNK):
        data += chunk
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise LayerError("its manifest is no text") from None


def split(tar: TarStream, parts: list[tuple[str, int]]) -> int:
    """Write the parts in the order's order, pass over others. Raises: LayerError."""
    numbers = {name.encode(): number for number, (name, _) in enumerate(parts)}
    missing = set(numbers.values())
    for entry in tar.entries():
        number = numbers.get(entry.name)
        if number is None:
            continue
        if entry.kind != REGULAR or number not in missing or entry.size != parts[number][1]:
            raise LayerError("a part of it is not what its manifest says")
        missing.remove(number)
        keep(tar, f"{TARGET}/{number}")
    if missing:
        raise LayerError("a part of it is missing: it is cut off")
    return len(parts)


def keep(tar: TarStream, path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb", buffering=0) as file:
        while chunk := tar.read(CHUNK):
            while chunk:
                chunk = chunk[file.write(chunk) :]


def main() -> int:
    order = json.loads(sys.stdin.readline())
    try:
        layer = Layer(ARCHIVE, Budget(order["most_bytes"], 0, ANY_RATIO), Reporter())
        try:
            layer.start()
            tar = TarStream(layer.read)
            if order["parts"] is None:
                say({"manifest": read_manifest(tar)})
            else:
                count = split(tar, order["parts"])
                layer.finish()
                say({"split": count})
        finally:
            layer.close()
    except LayerError as error:
        say({"error": error.kind, "text": str(error).replace("a layer", "the file")})
    except MemoryError:
        say({"error": "limit", "text": "it needs too much memory to read"})
    except OSError as error:
        kind = "space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "bad"
        say({"error": kind, "text": f"it cannot be read: {os.strerror(error.errno or 0)}"})
    return 0
