"""The bytes of one layer on their way out of its file: decompressed, hashed on both sides, held against the limits.

Standard library only; runs inside.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from typing import IO

from cove.engine.confined.tarstream import LayerError

CHUNK = 1024 * 1024
NOBODY = 65534
RATIO_SLACK = 64 * 1024 * 1024
BLOCK_BYTES = 4096
REPORT_S = 0.2


def say(message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


class Budget:
    """What all layers together may use. `most_files` counts every entry that is made."""

    def __init__(self, most_bytes: int, most_files: int, most_ratio: int) -> None:
        self.most_bytes, self.most_files, self.most_ratio = most_bytes, most_files, most_ratio
        self.bytes = self.files = 0

    def add_file(self) -> None:
        self.files += 1
        if self.files > self.most_files:
            raise LayerError(f"the image has more than {self.most_files} files", "limit")
        self.add_bytes(BLOCK_BYTES)

    def add_bytes(self, count: int) -> None:
        self.bytes += count
        if self.bytes > self.most_bytes:
            raise LayerError(f"the image unpacks to more than {self.most_bytes >> 20} MiB", "limit")


class Layer:
    """The bytes of one layer: decompressed in a thread of its own, counted and hashed on both sides."""

    def __init__(self, path: str, budget: Budget, report: Reporter) -> None:
        self._budget = budget
        self._report = report
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by `close`
        self._raw, self._plain = hashlib.sha256(), hashlib.sha256()
        self._in = self._out = 0
        self._chunks: queue.Queue[bytes | LayerError | None] = queue.Queue(8)
        self._stop = False
        self._rest = memoryview(b"")
        self._is_over = False
        self._zstd: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._produce, daemon=True)
        magic = os.pread(self._file.fileno(), 4, 0)
        self._is_gzip = magic[:2] == b"\x1f\x8b"
        if magic == b"\x28\xb5\x2f\xfd":
            # Before the chroot, as the program lies outside of it; and as nobody, who may do nothing at all.
            self._zstd = subprocess.Popen(
                ["/usr/bin/zstd", "-dcq", "--memory=256MB"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                user=NOBODY,
                group=NOBODY,
                extra_groups=[],
            )

    def start(self) -> None:
        self._thread.start()

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end."""
        if size <= len(self._rest):
            part, self._rest = self._rest[:size], self._rest[size:]
            return bytes(part)
        parts = [bytes(self._rest)]
        missing = size - len(self._rest)
        self._rest = memoryview(b"")
        while missing and (chunk := self._next()):
            part, self._rest = memoryview(chunk)[:missing], memoryview(chunk)[missing:]
            parts.append(bytes(part))
            missing -= len(part)
        return b"".join(parts)

    def finish(self) -> tuple[str, str]:
        """Read what follows the archive's end. Returns the digests of the file and of what was in it."""
        self._rest = memoryview(b"")
        while self._next():
            pass
        self._thread.join()
        return f"sha256:{self._raw.hexdigest()}", f"sha256:{self._plain.hexdigest()}"

    def close(self) -> None:
        # A decompressor that still runs is nobody's and cannot be signalled; it ends with this process, process 1.
        self._stop = True

    def _next(self) -> bytes:
        if self._is_over:
            return b""
        chunk = self._chunks.get()
        if isinstance(chunk, LayerError):
            raise chunk
        if chunk is None:
            self._is_over = True
            return b""
        self._out += len(chunk)
        if self._out > self._in * self._budget.most_ratio + RATIO_SLACK:
            raise LayerError(f"a layer is packed more than {self._budget.most_ratio}-fold: a bomb", "limit")
        if self._out > self._budget.most_bytes + RATIO_SLACK:
            raise LayerError(f"the image unpacks to more than {self._budget.most_bytes >> 20} MiB", "limit")
        self._plain.update(chunk)
        return chunk

    def _produce(self) -> None:
        try:
            for chunk in self._decompressed():
                if chunk:
                    self._put(chunk)
            self._put(None)
        except (zlib.error, OSError, LayerError) as error:
            self._put(error if isinstance(error, LayerError) else LayerError("a layer is damaged: it does not unpack"))

    def _put(self, chunk: bytes | LayerError | None) -> None:
        while not self._stop:
            with contextlib.suppress(queue.Full):
                self._chunks.put(chunk, timeout=0.5)
                return

    def _packed(self) -> Iterator[bytes]:
        while chunk := self._file.read(CHUNK // 4):
            self._raw.update(chunk)
            self._in += len(chunk)
            self._report.add(len(chunk))
            yield chunk

    def _decompressed(self) -> Iterator[bytes]:
        if self._zstd is not None:
            yield from self._from_zstd(self._zstd)
        elif self._is_gzip:
            yield from self._from_gzip()
        else:
            yield from self._packed()

    def _from_gzip(self) -> Iterator[bytes]:
        stream = zlib.decompressobj(31)
        for packed in self._packed():
            data = packed
            while data:
                if stream.eof:
                    if not data.strip(b"\0"):
                        break  # padding behind the last member
                    stream = zlib.decompressobj(31)
                yield stream.decompress(data, CHUNK)
                data = stream.unconsumed_tail or stream.unused_data
        yield stream.flush()
        if not stream.eof:
            raise LayerError("a layer is cut off")

    def _from_zstd(self, program: subprocess.Popen[bytes]) -> Iterator[bytes]:
        feeder = threading.Thread(target=self._feed, args=(program.stdin,), daemon=True)
        feeder.start()
        while program.stdout is not None and (chunk := os.read(program.stdout.fileno(), CHUNK)):
            yield chunk
        feeder.join()
        if program.wait() != 0:
            raise LayerError("a layer is damaged: it does not unpack")

    def _feed(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError):  # the program ended: its exit code says why
            for chunk in self._packed():
                pipe.write(chunk)
        with contextlib.suppress(OSError):
            pipe.close()


class Reporter:
    """Says from time to time how far it is."""

    def __init__(self) -> None:
        self._done = 0
        self._said_at = 0.0

    def add(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._said_at > REPORT_S:
            self._said_at = now
            say({"done": self._done})
