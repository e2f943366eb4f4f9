"""The progress of a pull, build or import, read from an event stream as it arrives. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cove.sdk.errors import BadAnswer, from_problem
from cove.sdk.sse import EventParser

if TYPE_CHECKING:
    from cove.sdk.models import Image


@dataclass(frozen=True, slots=True)
class ImageProgress:
    """How far it is. `stage` is `resolve`, `download`, `unpack` or `run`; bytes count the stage, total 0: not known.

    `text` is a line that a step of a build wrote.
    """

    stage: str
    done_bytes: int
    total_bytes: int
    text: str


class ImageReader:
    """Feed it the bytes of an event stream; it yields progress. `image` is set by the last event."""

    def __init__(self) -> None:
        self.image: Image | None = None
        self._parser = EventParser()

    def feed(self, piece: bytes) -> Iterator[ImageProgress]:
        """Take the next bytes of the stream and yield the progress in them.

        Raises: the Error that the stream ends in; BadAnswer.
        """
        from cove.sdk import models

        for event, data in self._parser.feed(piece):
            fields = _fields(data)
            match event:
                case "error":
                    raise from_problem(fields, status=int(fields.get("status") or 0))
                case "done":
                    self.image = models.image(fields)
                case "resolve" | "download" | "unpack" | "run":
                    yield ImageProgress(
                        stage=event,
                        done_bytes=int(fields.get("done_bytes") or 0),
                        total_bytes=int(fields.get("total_bytes") or 0),
                        text=str(fields.get("text") or ""),
                    )
                case _:  # a later server may say more
                    pass


def _fields(data: str) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise BadAnswer("the server sent an event that is not JSON") from error
    return fields if isinstance(fields, dict) else {}  # pyright: ignore[reportUnknownVariableType]
