"""Runs Python with nothing but Python: the last expression's value, top-level await, `display`, `_repr_*_` methods."""

# What code of strangers makes has no known types.
# pyright: basic

from __future__ import annotations

import ast
import builtins
import inspect
import linecache
import re
import sys
import traceback
import types
from collections.abc import Mapping
from typing import Any

from .executor import Engine, Failure, Info, Sink, failure_of

_FORMS = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_latex_": "text/latex",
    "_repr_json_": "application/json",
    "_repr_javascript_": "application/javascript",
    "_repr_pdf_": "application/pdf",
}
_MATCHES = 500
_PAIR = 2  # a form, and what is said of it
_AWAIT = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_WORD = re.compile(r"[\w.]*$")


class StdinNotImplementedError(NotImplementedError):
    """Code asked for input, and there is nobody to give it."""


def no_input(*_: Any) -> str:
    """In place of `input` and `getpass`. Raises: StdinNotImplementedError."""
    raise StdinNotImplementedError("code in a context has no standard input: nobody could answer")


def forms_of(value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A value in all forms that it offers, and what it says of them."""
    data: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    if not isinstance(value, type):
        for method, mime in _FORMS.items():
            _add_form(value, method, mime, data, meta)
        _add_bundle(value, data, meta)
    if "text/plain" not in data:
        data["text/plain"] = repr(value)
    return data, meta


def _call(value: Any, method: str, *arguments: Any, **named: Any) -> Any:
    try:
        found = getattr(value, method, None)
        # Objects that have every name (mocks, proxies) have this one, too.
        if not callable(found) or callable(getattr(value, "_this_is_no_name_of_a_form_", None)):
            return None
        return found(*arguments, **named)
    except NotImplementedError:
        return None
    except Exception:  # noqa: BLE001 - an object's own form must not hide its others
        traceback.print_exc()
        return None


def _add_form(value: Any, method: str, mime: str, data: dict[str, Any], meta: dict[str, Any]) -> None:
    shown = _call(value, method)
    if isinstance(shown, tuple) and len(shown) == _PAIR:
        shown, meta[mime] = shown
    if shown is not None:
        data[mime] = shown


def _add_bundle(value: Any, data: dict[str, Any], meta: dict[str, Any]) -> None:
    shown = _call(value, "_repr_mimebundle_", include=None, exclude=None)
    if isinstance(shown, tuple) and len(shown) == _PAIR:
        shown, more = shown
        if isinstance(more, Mapping):
            meta.update(more)
    if isinstance(shown, Mapping):
        data.update(shown)


class PlainEngine(Engine):
    """Code runs in the module `main`."""

    def __init__(self, sink: Sink, main: types.ModuleType, reason: str) -> None:
        self._sink = sink
        self._names = main.__dict__
        self._loop: Any = None
        self._shown: set[str] = set()
        version = ".".join(map(str, sys.version_info[:3]))
        self.info = Info(
            "python",
            version,
            False,
            [
                f"{reason}: no magics such as %pip, no !commands, and plots only as pictures at the end of a run.",
            ],
        )
        builtins.display = self._display  # type: ignore[attr-defined]
        builtins.input = no_input
        sys.displayhook = self._show_main
        self._names["__builtins__"] = builtins
        self._figures = _Figures(sink)
        import asyncio  # noqa: F401 - now, so that the first run does not pay for it

    def run(self, code: str, count: int) -> Failure | None:
        name = f"<run {count}>"
        lines = code.splitlines(keepends=True)
        linecache.cache[name] = (len(code), None, lines, name)
        _forget_before(count)
        try:
            parts = self._compile(code, name)
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as problem:
            return failure_of(problem, _lines(traceback.format_exception_only(type(problem), problem)))
        try:
            for part, is_value in parts:
                value = self._evaluate(part)
                if is_value:
                    sys.displayhook(value)
        except BaseException as problem:  # noqa: BLE001 - what code raises is what it is run for
            return failure_of(problem, _traceback(problem))
        finally:
            self._figures.show()
        return None

    @staticmethod
    def _compile(code: str, name: str) -> list[tuple[types.CodeType, bool]]:
        tree = compile(code, name, "exec", ast.PyCF_ONLY_AST | _AWAIT, dont_inherit=True)
        parts: list[tuple[types.CodeType, bool]] = []
        last: ast.Expression | None = None
        is_quiet = code.rstrip().endswith(";")
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not is_quiet:
            last = ast.Expression(tree.body.pop().value)
        if tree.body:
            parts.append((compile(tree, name, "exec", _AWAIT, dont_inherit=True), False))
        if last is not None:
            parts.append((compile(last, name, "eval", _AWAIT, dont_inherit=True), True))
        return parts

    def _evaluate(self, part: types.CodeType) -> Any:
        if not part.co_flags & inspect.CO_COROUTINE:
            return eval(part, self._names)  # noqa: S307 - running code is what this is for
        import asyncio

        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(types.FunctionType(part, self._names)())
        try:
            return self._loop.run_until_complete(task)
        except BaseException:
            if not task.done():  # an interrupt hits the loop, and not the code that waits in it
                task.cancel()
                self._loop.run_until_complete(asyncio.wait([task], timeout=5))
            raise

    def _show_main(self, value: Any) -> None:
        if value is None:
            return
        builtins._ = None  # type: ignore[attr-defined]
        data, meta = forms_of(value)
        builtins._ = value  # type: ignore[attr-defined]
        self._sink.result(data, meta, main=True)

    def _display(self, *values: Any, display_id: Any = None, metadata: Any = None, raw: bool = False) -> None:
        """Show values; `display_id` names what is shown, and shows it in its place when it is there already."""
        for value in values:
            data, meta = (value, {}) if raw and isinstance(value, Mapping) else forms_of(value)
            name = None if display_id is None else str(display_id)
            self._sink.result(data, dict(meta, **(metadata or {})), name=name, update=name in self._shown)
            if name is not None:
                self._shown.add(name)

    def complete(self, code: str, cursor: int) -> dict[str, Any]:
        import rlcompleter

        found = _WORD.search(code[:cursor])
        word = found.group() if found else ""
        completer = rlcompleter.Completer(self._names)
        matches: list[str] = []
        while word and len(matches) < _MATCHES:
            match = completer.complete(word, len(matches))
            if match is None:
                break
            matches.append(match.rstrip("( "))
        return {"matches": sorted(set(matches)), "start": cursor - len(word), "end": cursor}


class _Figures:
    """Shows the figures of matplotlib, if code makes some, at the end of the run."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        import os

        os.environ.setdefault("MPLBACKEND", "agg")

    def show(self, *_: Any, **__: Any) -> None:
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None or not hasattr(pyplot, "get_fignums"):
            return
        import io

        pyplot.show = self.show  # type: ignore[attr-defined]  # with its own backend it only warns
        try:
            for number in pyplot.get_fignums():
                figure = pyplot.figure(number)
                if figure.axes or figure.texts or figure.lines:
                    picture = io.BytesIO()
                    figure.savefig(picture, format="png", bbox_inches="tight")
                    self._sink.result({"image/png": picture.getvalue(), "text/plain": repr(figure)})
            pyplot.close("all")
        except Exception:  # noqa: BLE001 - a figure that cannot be drawn is told of, as its own error
            traceback.print_exc()


def _lines(parts: list[str]) -> list[str]:
    return "".join(parts).rstrip("\n").split("\n")


def _traceback(problem: BaseException) -> list[str]:
    """Its traceback from the code on."""
    frames = problem.__traceback__
    while frames is not None and not frames.tb_frame.f_code.co_filename.startswith("<run "):
        frames = frames.tb_next
    try:
        if frames is not None:
            problem.__traceback__ = frames
        return _lines(traceback.format_exception(type(problem), problem, problem.__traceback__))
    except BaseException:  # noqa: BLE001 - of an exception whose text fails
        return failure_of(problem).traceback


def _forget_before(count: int) -> None:
    """The text of old runs goes when it is unlikely to be in a traceback."""
    linecache.cache.pop(f"<run {count - 1000}>", None)
