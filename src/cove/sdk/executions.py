"""What running code in a context gives back, and how the events of a run become it. Pure; both surfaces use it."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cove.sdk.errors import BadAnswer, CodeFailed, from_problem
from cove.sdk.output import KEEP_BYTES, event_fields
from cove.sdk.results import Tail
from cove.sdk.sse import EventParser
from cove.sdk.wire import checked

KEEP_RESULTS: Final = 1000
"""Of one run, what a streamed `Execution` holds at most; the callbacks get all of them."""

_EVENT_BYTES: Final = 96 * 1024 * 1024
"""A single event: the largest result, 64 MiB, as JSON."""
_BINARY: Final = ("image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf")
_JSON: Final = ("application/json", "+json")


@dataclass(frozen=True, slots=True)
class CodeResult:
    """Something that code has to show, in every form that it offers: a value, a figure, what `display()` was given.

    Shown by itself in a notebook of yours.

    Attributes:
        data: the forms, by media type: text, base64 for binary ones, JSON as text.
        metadata: what the code says about them, such as the width of a picture.
        main: whether it is the value of the last expression.
        display_id: its name, where it may be shown anew later.
        update: whether it replaces what was shown under that name.
        dropped: media types that were too large to keep.
    """

    data: Mapping[str, str]
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    main: bool = False
    display_id: str | None = None
    update: bool = False
    dropped: tuple[str, ...] = ()

    @property
    def text(self) -> str | None:
        """As plain text."""
        return self.data.get("text/plain")

    @property
    def html(self) -> str | None:
        """As HTML, such as the table of a DataFrame."""
        return self.data.get("text/html")

    @property
    def markdown(self) -> str | None:
        """As Markdown."""
        return self.data.get("text/markdown")

    @property
    def latex(self) -> str | None:
        """As LaTeX."""
        return self.data.get("text/latex")

    @property
    def svg(self) -> str | None:
        """As an SVG picture."""
        return self.data.get("image/svg+xml")

    @property
    def png(self) -> bytes | None:
        """As a PNG picture."""
        return self._bytes("image/png")

    @property
    def jpeg(self) -> bytes | None:
        """As a JPEG picture."""
        return self._bytes("image/jpeg")

    @property
    def json(self) -> Any:
        """As the value of its JSON; None when it has none."""
        text = self.data.get("application/json")
        if text is None:
            return None
        import json

        return json.loads(text)

    def content(self, media_type: str) -> bytes | None:
        """Return one form as the content of a file; None when it is not offered."""
        return self._bytes(media_type) if media_type in _BINARY else _encoded(self.data.get(media_type))

    def _bytes(self, media_type: str) -> bytes | None:
        text = self.data.get(media_type)
        return None if text is None else b64decode(text)

    def _repr_mimebundle_(
        self, include: Collection[str] | None = None, exclude: Collection[str] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what IPython shows of it, in the user's own notebook."""
        import json

        shown: dict[str, Any] = {}
        for kind, text in self.data.items():
            if (include and kind not in include) or (exclude and kind in exclude):
                continue
            shown[kind] = json.loads(text) if kind.endswith(_JSON) else text
        return shown, dict(self.metadata)


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


@dataclass(frozen=True, slots=True)
class Raised:
    """What the code raised. It happened in the sandbox: here it is a value.

    Attributes:
        name: the class, such as `ZeroDivisionError`.
        value: its message.
        traceback: its lines, without colours.
    """

    name: str
    value: str
    traceback: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the traceback, or name and message where the language has none."""
        return "\n".join(self.traceback) or f"{self.name}: {self.value}"


@dataclass(frozen=True, slots=True)
class Logs:
    """What the code, and the programs that it started, wrote. Each stream keeps its last 10 MiB.

    `*_dropped` counts the bytes that were cut.
    """

    stdout: str = ""
    stderr: str = ""
    stdout_dropped: int = 0
    stderr_dropped: int = 0


@dataclass(frozen=True, slots=True)
class Execution:
    """A finished run. What the code raises is in `error`, never an exception.

    Attributes:
        results: what it has to show, in order; an update stands where the first one stood.
        logs: what it wrote.
        error: what it raised, or None.
        count: the number that its context gave it, `[1]` for the first.
        status: `ok`, `error`, `interrupted`, `timeout`, `kernel-died` (the next run gets a fresh one), `sandbox-gone`.
        duration_ms: how long it ran.
        context: the id of the context.
        fresh: whether the context began with this run: nothing was there before.
        detail: what `status` alone does not say, or None.
        results_dropped: how many results were too many, or too large, to be kept.
    """

    results: tuple[CodeResult, ...] = ()
    logs: Logs = field(default_factory=Logs)
    error: Raised | None = None
    count: int = 0
    status: str = "ok"
    duration_ms: float = 0.0
    context: str = ""
    fresh: bool = False
    detail: str | None = None
    results_dropped: int = 0

    @property
    def ok(self) -> bool:
        """Whether the code ran to its end."""
        return self.status == "ok"

    @property
    def main(self) -> CodeResult | None:
        """The value of the last expression, or None where it has none."""
        return next((result for result in self.results if result.main), None)

    @property
    def text(self) -> str | None:
        """The value of the last expression as text, or None."""
        return None if self.main is None else self.main.text

    def checked(self) -> Execution:
        """Return itself if the code ran to its end. Raises: CodeFailed."""
        if self.ok:
            return self
        why = f"{self.error.name}: {self.error.value}" if self.error else (self.detail or self.status)
        raise CodeFailed(f"the code failed: {why}", execution=self)


@dataclass(frozen=True, slots=True)
class CodeOutput:
    """A piece of what was written. `stream` is `stdout` or `stderr`."""

    stream: str
    text: str


CodeEvent = CodeOutput | CodeResult | Raised


class Callbacks:
    """Gives each event to the callback for it."""

    def __init__(
        self,
        on_stdout: Callable[[str], object] | None,
        on_stderr: Callable[[str], object] | None,
        on_result: Callable[[CodeResult], object] | None,
        on_error: Callable[[Raised], object] | None,
    ) -> None:
        self._all = (on_stdout, on_stderr, on_result, on_error)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return any(each is not None for each in self._all)

    def tell(self, event: CodeEvent) -> object:
        """Call the callback for this event; return what it returned, None if there is none."""
        on_stdout, on_stderr, on_result, on_error = self._all
        match event:
            case CodeOutput(stream, text):
                on_text = on_stdout if stream == "stdout" else on_stderr
                return on_text(text) if on_text else None
            case Raised():
                return on_error(event) if on_error else None
            case CodeResult():
                return on_result(event) if on_result else None


def execution_of(wire: Any) -> Execution:
    """Read the answer of a buffered run."""
    wire = checked(wire)
    return Execution(
        results=tuple(_result(each) for each in wire.get("results") or ()),
        logs=Logs(
            stdout=str(wire.get("stdout") or ""),
            stderr=str(wire.get("stderr") or ""),
            stdout_dropped=int(wire.get("stdout_dropped_bytes") or 0),
            stderr_dropped=int(wire.get("stderr_dropped_bytes") or 0),
        ),
        error=_raised(wire["error"]) if wire.get("error") else None,
        results_dropped=int(wire.get("results_dropped") or 0),
        context=str(wire.get("context") or ""),
        fresh=bool(wire.get("fresh")),
        **_end(wire),
    )


class CodeReader:
    """Feed it the bytes of a run's event stream; it yields events and, after the last, has the `execution`."""

    def __init__(self) -> None:
        self.execution: Execution | None = None
        self._parser = EventParser(_EVENT_BYTES)
        self._tails = {"stdout": Tail(KEEP_BYTES), "stderr": Tail(KEEP_BYTES)}
        self._results: list[CodeResult] = []
        self._dropped = 0
        self._error: Raised | None = None
        self._clears_next = False
        self._context, self._fresh = "", False

    def feed(self, piece: bytes) -> Iterator[CodeEvent]:
        """Take the next bytes of the stream and yield the events in them.

        Raises: the Error that the stream ends in; BadAnswer.
        """
        for event, data in self._parser.feed(piece):
            fields = event_fields(data)
            match event:
                case "stdout" | "stderr":
                    text = str(fields.get("text") or "")
                    self._something_comes()
                    self._tails[event].add(text.encode("utf-8", "replace"))
                    yield CodeOutput(event, text)
                case "result":
                    result = _result(fields)
                    self._something_comes()
                    self._keep(result)
                    yield result
                case "clear" if fields.get("wait"):
                    self._clears_next = True
                case "clear":
                    self._results.clear()
                case "started":
                    self._context, self._fresh = str(fields.get("context") or ""), bool(fields.get("fresh"))
                case "error" if "code" in fields:
                    raise from_problem(fields, status=int(fields.get("status") or 0))
                case "error":
                    self._error = _raised(fields)
                    yield self._error
                case "done":
                    self.execution = self._finished(fields)
                case _:  # a later server may say more
                    pass

    def _something_comes(self) -> None:
        if self._clears_next:
            self._results.clear()
            self._clears_next = False

    def _keep(self, result: CodeResult) -> None:
        """An update takes the place of what it updates; one that updates nothing is shown by nobody."""
        if not result.update:
            if len(self._results) < KEEP_RESULTS:
                self._results.append(result)
            else:
                self._dropped += 1
            return
        for place, shown in enumerate(self._results):
            if shown.display_id == result.display_id:
                self._results[place] = replace(result, main=shown.main)

    def _finished(self, fields: dict[str, Any]) -> Execution:
        out, err = self._tails["stdout"], self._tails["stderr"]
        logs = Logs(
            stdout=out.bytes().decode("utf-8", "replace"),
            stderr=err.bytes().decode("utf-8", "replace"),
            stdout_dropped=out.dropped,
            stderr_dropped=err.dropped,
        )
        return Execution(
            results=tuple(self._results),
            logs=logs,
            error=self._error,
            results_dropped=self._dropped,
            context=self._context,
            fresh=self._fresh,
            **_end(fields),
        )


def _end(wire: Mapping[str, Any]) -> dict[str, Any]:
    detail = wire.get("detail")
    return {
        "status": str(wire.get("status") or "ok"),
        "count": int(wire.get("count") or 0),
        "duration_ms": float(wire.get("duration_ms") or 0.0),
        "detail": detail if isinstance(detail, str) else None,
    }


def _result(wire: Any) -> CodeResult:
    wire = checked(wire)
    data = wire.get("data")
    if not isinstance(data, dict):
        raise BadAnswer("the server sent a result without data")
    return CodeResult(
        data=data,  # pyright: ignore[reportUnknownArgumentType]
        metadata=wire.get("metadata") or {},
        main=bool(wire.get("main")),
        display_id=wire.get("display_id"),
        update=bool(wire.get("update")),
        dropped=tuple(wire.get("dropped") or ()),
    )


def _raised(wire: Any) -> Raised:
    wire = checked(wire)
    return Raised(
        name=str(wire.get("name") or ""),
        value=str(wire.get("value") or ""),
        traceback=tuple(str(line) for line in wire.get("traceback") or ()),
    )
