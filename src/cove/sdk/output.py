"""From the events of an output stream to chunks. Pure; both surfaces and both kinds of command use it."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, Final

from cove.sdk.errors import BadAnswer, from_problem
from cove.sdk.results import Chunk, Exit, Result, StreamName, Tail, decode
from cove.sdk.sse import EventParser

KEEP_BYTES: Final = 10 * 1024 * 1024
"""Per stream, what `Running.result` holds at most: as much as a buffered run keeps."""

_utf8: Final = codecs.getincrementaldecoder("utf-8")


class OutputReader:
    """Feed it the bytes of an event stream; it yields chunks.

    Attributes:
        seen: the cursor behind the last chunk.
        exit: set by the last event.
        id: of the command, from the first event on.
        pid: inside the sandbox, likewise.
    """

    def __init__(self, seen: int = 0, *, keep: bool = False) -> None:
        self.seen = seen
        self.exit: Exit | None = None
        self.id = ""
        self.pid = 0
        self._lost = 0
        self._parser = EventParser()
        self._text = {"stdout": _utf8("replace"), "stderr": _utf8("replace")}
        self._tails = {"stdout": Tail(KEEP_BYTES), "stderr": Tail(KEEP_BYTES)} if keep else None

    def restart(self) -> None:
        """Forget a half-received event, before reading on over another connection."""
        self._parser = EventParser()

    def feed(self, piece: bytes) -> Iterator[Chunk]:
        """Take the next bytes of the stream and yield the chunks in them.

        Raises: the Error that the stream ends in; BadAnswer.
        """
        for event, data in self._parser.feed(piece):
            fields = event_fields(data)
            match event:
                case "stdout" | "stderr":
                    yield self.chunk(event, decode(fields.get("data"), "base64"))
                case "started":
                    self.id, self.pid = str(fields.get("id", "")), int(fields.get("pid") or 0)
                case "gap":
                    self.skip(int(fields.get("lost_bytes") or 0))
                case "exit":
                    yield from self.end(Exit.from_wire(fields))
                case "error":
                    raise from_problem(fields, status=int(fields.get("status") or 0))
                case _:  # a later server may say more
                    pass

    def chunk(self, stream: StreamName, data: bytes) -> Chunk:
        """Count a piece and return it as a chunk."""
        self.seen += len(data)
        lost, self._lost = self._lost, 0
        if self._tails:
            self._tails[stream].add(data)
        return Chunk(stream, data, self._text[stream].decode(data), lost)

    def skip(self, lost: int) -> None:
        """Take note of bytes that are no longer kept."""
        self.seen += lost
        self._lost += lost
        if lost:
            for decoder in self._text.values():
                decoder.reset()

    def end(self, end: Exit) -> Iterator[Chunk]:
        """Take note of the end; yield what is left of a character that never became whole."""
        self.exit = end
        streams: tuple[StreamName, ...] = ("stdout", "stderr")
        for stream in streams:
            text = self._text[stream].decode(b"", final=True)
            if text:
                yield Chunk(stream, b"", text)

    def result(self) -> Result | None:
        """Return end and kept output; None before the end."""
        end, tails = self.exit, self._tails
        if end is None or tails is None:
            return None
        return Result(
            exit=end.exit,
            why=end.why,
            ms=end.ms,
            signal=end.signal,
            cpu_ms=end.cpu_ms,
            memory_peak_bytes=end.memory_peak_bytes,
            out_bytes=tails["stdout"].bytes(),
            err_bytes=tails["stderr"].bytes(),
            out_dropped=tails["stdout"].dropped,
            err_dropped=tails["stderr"].dropped,
        )


def read_output(reader: OutputReader, wire: dict[str, Any]) -> list[Chunk]:
    """Read a page of kept output and move the reader's cursor behind it."""
    encoding = str(wire.get("encoding", "base64"))
    reader.skip(int(wire.get("lost_bytes") or 0))
    chunks: list[Chunk] = []
    for each in wire.get("chunks") or ():
        stream: StreamName = "stderr" if each["stream"] == "stderr" else "stdout"
        chunks.append(reader.chunk(stream, decode(each.get("data"), encoding)))
    reader.seen = int(wire.get("cursor") or reader.seen)
    if wire.get("ended") and wire.get("exit"):
        chunks.extend(reader.end(Exit.from_wire(wire["exit"])))
    return chunks


def event_fields(data: str) -> dict[str, Any]:
    """Return what an event says. Raises: BadAnswer."""
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise BadAnswer("the server sent an event that is not JSON") from error
    return fields if isinstance(fields, dict) else {}  # pyright: ignore[reportUnknownVariableType]
