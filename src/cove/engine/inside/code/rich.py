"""Runs Python with IPython's machinery, in this process: no ipykernel, no sockets, no history file."""

# What code of strangers makes has no known types.
# pyright: basic, reportOptionalMemberAccess=false

from __future__ import annotations

import builtins
import os
import sys
import tempfile
import types
import warnings
from collections.abc import Mapping
from importlib import util
from typing import Any

import IPython
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.error import StdinNotImplementedError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.profiledir import ProfileDir
from traitlets.config import Config

from .executor import Engine, Failure, Info, Sink, failure_of, run_program

_FRAMES = 20
_CHAIN = 32
_FIGURES = "module://matplotlib_inline.backend_inline"


def no_input(*_: Any, **__: Any) -> str:
    """In place of `input` and `getpass`. Raises: StdinNotImplementedError."""
    raise StdinNotImplementedError("code in a context has no standard input: nobody could answer")


class _Nowhere(Sink):
    """Takes what is shown while the kernel warms up."""

    def __init__(self) -> None:
        self.run = ""

    def result(self, *_: Any, **__: Any) -> None:
        """Nobody has asked for it."""


class _Hook(DisplayHook):
    """Shows the value of the last expression."""

    def write_output_prompt(self) -> None:
        pass

    def write_format_data(self, format_dict: Any, md_dict: Any = None) -> None:
        self.shell.sink.result(format_dict, md_dict, main=True)


class _Publisher(DisplayPublisher):
    """Shows what code displays."""

    def publish(
        self,
        data: Any,
        metadata: Any = None,
        source: Any = None,  # noqa: ARG002 - IPython's signature
        *,
        transient: Any = None,
        update: bool = False,
        **_: Any,
    ) -> None:
        name = transient.get("display_id") if isinstance(transient, Mapping) else None
        self.shell.sink.result(data, metadata, name=name, update=update)

    def clear_output(self, wait: bool = False) -> None:  # noqa: FBT001, FBT002 - IPython's signature
        self.shell.sink.clear(wait=wait)


def shorten(problem: BaseException) -> None:
    """Take frames out of the middle of a traceback that is too long to read: each would cost a millisecond to show."""
    seen: set[int] = set()
    chain: list[BaseException | None] = [problem]
    while chain and len(seen) < _CHAIN:
        one = chain.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        chain += [one.__cause__, one.__context__]
        frames = []
        frame = one.__traceback__
        while frame is not None:
            frames.append(frame)
            frame = frame.tb_next
        if len(frames) <= 2 * _FRAMES:
            continue
        last = frames[-_FRAMES]
        for frame in reversed(frames[:_FRAMES]):
            last = types.TracebackType(last, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
        one.__traceback__ = last


class ZMQInteractiveShell(InteractiveShell):
    """IPython's shell. By its name pandas, rich and others know who can show more than text."""

    sink: Sink
    failures: list[Failure]
    """What was to be shown as a traceback in this run; only the last one may be the error of the run."""

    def init_virtualenv(self) -> None:
        pass  # the kernel's own Python is the one that was asked for

    def _showtraceback(self, _etype: Any, evalue: Any, stb: Any) -> None:
        lines = [line for part in stb for line in str(part).split("\n")]
        while lines and not lines[-1].strip():
            lines.pop()
        if isinstance(evalue, SystemExit):
            self.failures.append(failure_of(evalue))
        elif isinstance(evalue, BaseException):
            self.failures.append(failure_of(evalue, lines))

    def showtraceback(self, exc_tuple: Any = None, *arguments: Any, **named: Any) -> None:
        kind, problem, _ = exc_tuple or sys.exc_info()
        if isinstance(problem, BaseException):
            shorten(problem)
            exc_tuple = (kind, problem, problem.__traceback__)
        super().showtraceback(exc_tuple, *arguments, **named)

    def show_usage_error(self, exc: Any) -> None:
        self.failures.append(failure_of(exc))

    def ask_exit(self) -> None:
        raise SystemExit

    def system(self, cmd: str) -> None:
        """Run a command of `!` and `%system`: its output is the run's, and an interrupt ends both."""
        command = self.var_expand(cmd, depth=1)
        shell = os.environ.get("SHELL")
        own = shell if shell and os.path.exists(shell) else None
        code = run_program(command, shell=True, executable=own)
        self.user_ns["_exit_code"] = code

    system_raw = system
    system_piped = system


def _config() -> Config:
    config = Config()
    config.HistoryManager.enabled = False  # else: a database, a thread, and a write for each run
    config.InteractiveShell.colors = "NoColor"
    config.InteractiveShell.color_info = False
    config.InteractiveShell.banner1 = ""
    config.Completer.use_jedi = False  # looks at the source of all that is imported, for seconds
    config.IPCompleter.use_jedi = False
    return config


def _choose_figures() -> None:
    """Have figures shown, unless a window was asked for: "agg" is what is said where nothing can be."""
    if os.environ.get("MPLBACKEND", "agg").lower() == "agg" and util.find_spec("matplotlib_inline") is not None:
        os.environ["MPLBACKEND"] = _FIGURES


class RichEngine(Engine):
    """Code runs in the module `main`."""

    def __init__(self, sink: Sink, main: types.ModuleType) -> None:
        home = tempfile.mkdtemp(prefix="cove-ipython-")  # IPython wants a place of its own, and the home is the user's
        _choose_figures()
        shell = ZMQInteractiveShell.instance(
            config=_config(),
            user_module=main,
            ipython_dir=home,
            profile_dir=ProfileDir(location=os.path.join(home, "profile_default")),
            displayhook_class=_Hook,
            display_pub_class=_Publisher,
        )
        shell.sink = sink
        shell.failures = []
        warnings.filterwarnings("ignore", "To exit: use 'exit', 'quit', or Ctrl-D.")
        shell.set_hook("show_in_pager", self._page)
        builtins.input = no_input
        import getpass

        getpass.getpass = no_input
        self._shell = shell
        self._warm()
        version = ".".join(map(str, sys.version_info[:3]))
        self.info = Info("ipython", f"{version}, IPython {IPython.__version__}", True, self._missing())

    @staticmethod
    def _missing() -> list[str]:
        return ["Widgets (ipywidgets) are shown, and do not act: nothing speaks back to them."]

    @staticmethod
    def _page(_: Any, data: Any, *__: Any, **___: Any) -> None:
        print(data.get("text/plain", "") if isinstance(data, Mapping) else data)  # noqa: T201 - this is the pager

    def _warm(self) -> None:
        """Import now what a first run, a first error and a first completion would."""
        shell = self._shell
        sink, shell.sink = shell.sink, _Nowhere()
        for code in ("1", "display(1)", "import asyncio\nawait asyncio.sleep(0)", "1/0", "(", "%%bash\n:", "_ = !:"):
            shell.run_cell(code, store_history=False)
        self.complete("pri", 3)
        shell.sink = sink
        shell.user_ns.pop("asyncio", None)
        shell.reset(new_session=True)
        shell.failures = []

    def run(self, code: str, count: int) -> Failure | None:
        shell = self._shell
        shell.failures = []
        shell.execution_count = count
        outcome = shell.run_cell(code, store_history=True)
        problem = outcome.error_before_exec or outcome.error_in_exec
        failure: Failure | None = None
        if problem is not None:
            failure = shell.failures.pop() if shell.failures else failure_of(problem)
        for shown in shell.failures:  # such as that of a form of an object that could not be made
            print("\n".join(shown.traceback), file=sys.stderr)  # noqa: T201
        return failure

    def complete(self, code: str, cursor: int) -> dict[str, Any]:
        from IPython.core.completer import provisionalcompleter

        with provisionalcompleter():
            found = list(self._shell.Completer.completions(code, cursor))
        if not found:
            return {"matches": [], "start": cursor, "end": cursor}
        start, end = min(one.start for one in found), max(one.end for one in found)
        matches = [code[start : one.start] + one.text + code[one.end : end] for one in found[:500]]
        return {"matches": matches, "start": start, "end": end}

    def setup(self, env: Mapping[str, str | None]) -> None:
        if "MPLBACKEND" in env:
            _choose_figures()
