"""`cove code` for a person: lines are read until they are whole, run, and shown. History and completion by readline."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from cove.cli.session import state_dir
from cove.cli.terminal import say
from cove.sdk.errors import Error

if TYPE_CHECKING:
    from cove.sdk.contexts import Context

PROMPT: Final = ">>> "
MORE: Final = "... "
HISTORY_LINES: Final = 5000
_LEAVES: Final = frozenset({"exit", "exit()", "quit", "quit()"})
"""What people type to leave; in the kernel it would end more than the prompt."""
_SHELLS: Final = frozenset({"bash", "sh", "shell"})
_WORD_ENDS: Final = " \t\n`~!@#$%^&*()-=+[{]}\\|;:'\",<>/?"


class Repl:
    """Reads pieces of code at a prompt and hands each to `run`."""

    def __init__(self, language: str, run: Callable[[str], object], read: Callable[[str], str] | None = None) -> None:
        self._language = language
        self._run = run
        self._read = read or input
        self._lines: list[str] = []

    @property
    def pending(self) -> str:
        """What was typed of a piece that is not whole yet, for completion; empty, or it ends in a line feed."""
        return "".join(f"{line}\n" for line in self._lines)

    def loop(self) -> None:
        """Read and run until `exit` or the end of the input (Ctrl-D). Ctrl-C at the prompt drops what was typed."""
        while True:
            self._lines.clear()
            try:
                code = self._next()
            except KeyboardInterrupt:
                say("")
                continue
            except EOFError:
                say("")
                return
            if code.strip() in _LEAVES:
                return
            if code.strip():
                self._lines.clear()
                self._run(code)

    def _next(self) -> str:
        while True:
            self._lines.append(self._read(MORE if self._lines else PROMPT))
            code = "\n".join(self._lines)
            if is_whole(self._language, code):
                return code


def is_whole(language: str, code: str) -> bool:
    """Whether code can run as it stands, or more lines belong to it. Code that is wrong is whole: running it says so.

    An empty line ends what could go on.
    """
    if language == "python":
        return _is_whole_python(code)
    if code.endswith("\\"):
        return False
    if "\n" in code and not code.rsplit("\n", 1)[1].strip():
        return True
    return _is_closed_shell(code) if language in _SHELLS else _is_closed(code)


def _is_whole_python(code: str) -> bool:
    import ast
    import warnings
    from codeop import CommandCompiler

    first = code.lstrip()
    if first.startswith("%%"):  # a magic of the whole cell: up to an empty line
        return "\n" in code and not code.rsplit("\n", 1)[1].strip()
    if first.startswith(("%", "!", "?")) or code.rstrip().endswith("?"):
        return True
    compiler = CommandCompiler()
    compiler.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        with warnings.catch_warnings(action="ignore"):
            return compiler(code) is not None
    except (SyntaxError, OverflowError, ValueError):
        return True


_CLOSES: Final = {")": "(", "]": "[", "}": "{"}
_TOKENS: Final = re.compile(
    r"//[^\n]*|/\*.*?(?:\*/|(?P<comment>$))|(?P<quote>[\"'`])|(?P<open>[(\[{])|(?P<close>[)\]}])", re.DOTALL
)


def _is_closed(code: str) -> bool:
    """Whether no bracket, text or comment is open, in languages that look like JavaScript."""
    place, depth = 0, 0
    while found := _TOKENS.search(code, place):
        place = found.end()
        if found["comment"] is not None:
            return False
        if found["quote"]:
            end = re.compile(rf"(?:\\.|[^\\{found['quote']}])*{found['quote']}", re.DOTALL).match(code, place)
            if end is None:
                return found["quote"] != "`"  # only a template goes on over lines
            place = end.end()
        depth += bool(found["open"]) - bool(found["close"])
    return depth <= 0


_SHELL_OPENS: Final = frozenset({"if", "do", "case", "{"})
_SHELL_CLOSES: Final = frozenset({"fi", "done", "esac", "}"})


def _is_closed_shell(code: str) -> bool:
    """Whether no quote and no block is open; words inside of quotes do not count."""
    import shlex

    words = shlex.shlex(code, posix=True, punctuation_chars=";&|()\n")
    words.whitespace = " \t"
    depth, begins = 0, True
    try:
        for word in words:
            if begins:
                depth += (word in _SHELL_OPENS) - (word in _SHELL_CLOSES)
            begins = not set(word) - set(";&|()\n") or word in {"then", "do", "else", "{"}
    except ValueError:  # an open quote
        return False
    return depth <= 0


# ---- readline


def equip(context: Context, repl: Callable[[], Repl]) -> None:
    """Give the prompt a history that lasts, and completion by the kernel. Without readline there is neither."""
    try:
        import readline
    except ImportError:
        return
    readline.set_completer_delims(_WORD_ENDS)
    readline.set_completer(_Completer(context, repl, readline))
    readline.parse_and_bind("tab: complete")
    path = history_path()
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120 - pathlib costs 4 ms
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        os.chmod(path, 0o600)  # noqa: PTH101 - what is typed may hold secrets
        readline.read_history_file(path)
    except OSError:  # a state directory that cannot be written is no failure
        return
    readline.set_history_length(HISTORY_LINES)


def keep_history() -> None:
    """Write what was typed to the history file. One that cannot be written is no failure."""
    try:
        import readline

        readline.write_history_file(history_path())
        os.chmod(history_path(), 0o600)  # noqa: PTH101 - as above
    except (ImportError, OSError):
        pass


def history_path() -> str:
    """Return where what was typed is kept, for the user alone."""
    return f"{state_dir()}/code-history"


class _Completer:
    """Asks the kernel how a name goes on, once for each press of the key."""

    def __init__(self, context: Context, repl: Callable[[], Repl], readline: Any) -> None:
        self._context = context
        self._repl = repl
        self._readline = readline
        self._matches: list[str] = []

    def __call__(self, text: str, state: int) -> str | None:
        """Return the match number `state` for the word `text`, None behind the last."""
        if state == 0:
            self._matches = self._ask(text)
        return self._matches[state] if state < len(self._matches) else None

    def _ask(self, text: str) -> list[str]:
        line, begin = self._readline.get_line_buffer(), self._readline.get_begidx()
        before = self._repl().pending
        try:
            found = self._context.complete(before + line, len(before) + self._readline.get_endidx())
        except Error:
            return []
        start = found.start - len(before)
        if start < 0:
            return []
        # readline replaces from `begin` on; the kernel means from `start` on.
        fitted = [line[begin:start] + match if start >= begin else match[begin - start :] for match in found.matches]
        return [match for match in fitted if match.startswith(text)]
