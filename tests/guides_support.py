"""Runs a guide of docs/guides as its reader would: every shown command in order, every shown output compared.

A guide opts in with `<!-- tested -->` on a line of its own. Then its fenced blocks mean, by their info string:

```console      a session: `$ ` begins a command (`> ` goes on with it), what follows is its output, both streams
```console tty  the same on a terminal of 80 by 24, in a shell of its own (exported variables only): lines with a
               prompt (`root@otter:~# ls`, `>>> 6 * 7`, `... `) are typed there
```sh           a script in a subshell (it sees the session's variables); must end with exit code 0
```python       a program; must end with exit code 0
```output       what the sh or python block before it printed
```toml file=x  any language: the text becomes the file x in the reader's directory
(none)          shown only, as is every block with another info string

All blocks share one bash, so a variable, a directory or a background job of one block is there in the next. A command
without shown output may print anything. In shown output `…` stands for anything within a line and a line of only `…`
for any lines; `(exit 3)` as the last line says the exit code, which otherwise must be 0. Work that takes time is
written so that it can be waited for: a guide has no sleep.

The reader is root on a fresh server (local socket, no key), in an empty directory, with `cove` on the PATH; what a
guide takes from npm is installed (tests/npm).
Addresses are shown as a default server has them: `127.0.0.1:8080` is replaced by where the server really listens.
Settings follow the mark: `<!-- tested COVE_SSH_PORT=2222 -->` starts the server so; every `COVE_…_PORT` becomes a free
port, and its number in commands is replaced; `COVE_NETWORK_OUTSIDE=world` gives sandboxes the test's own internet
(`world_support.py`), whose certificates the server trusts. All sandboxes are removed behind the guide.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from npm_support import node, package
from tests_support import RunningServer, free_port

COMMAND_LIMIT_S: Final = 60.0
QUIET_S: Final = 0.3
"""A terminal that shows a prompt and says nothing for so long waits for a line."""

_MARK: Final = re.compile(r"^<!-- tested((?: \w+=\S+)*) -->$", re.MULTILINE)
_FENCE: Final = re.compile(r"^```(\w*)[ ]?(.*)$")
_EXIT: Final = re.compile(r"^\(exit (\d+)\)$")
_PROMPT: Final = re.compile(r"^(?:[\w.-]+@[\w.-]+:[^#$]*[#$]|>>>|\.\.\.) ?")
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_=>])")


@dataclass
class Block:
    """One fenced block."""

    line: int
    language: str
    info: str
    text: str


@dataclass
class Step:
    """One command of a session and what the guide shows below it."""

    line: int
    command: str
    shown: list[str] = field(default_factory=list[str])
    exit: int = 0


@dataclass
class Guide:
    """A guide: its blocks, and the settings that its mark asks for (None: it is not tested)."""

    path: Path
    blocks: list[Block]
    settings: dict[str, str] | None

    @classmethod
    def read(cls, path: Path) -> Guide:
        text = path.read_text(encoding="utf-8")
        mark = _MARK.search(text)
        settings = None if mark is None else dict(word.split("=", 1) for word in mark[1].split())
        return cls(path, list(blocks(text)), settings)

    def fail(self, line: int, why: str) -> AssertionError:
        return AssertionError(f"{self.path.name}, line {line}: {why}")


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    current: Block | None = None
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        fence = _FENCE.match(line)
        if current is None and fence:
            current, lines = Block(number + 1, fence[1], fence[2].strip(), ""), []
        elif current is not None and line == "```":
            current.text = "".join(f"{each}\n" for each in lines)
            yield current
            current = None
        else:
            lines.append(line)


def steps(block: Block) -> Iterator[Step]:
    """Yield the commands of a session."""
    step: Step | None = None
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        if line.startswith("$ "):
            if step is not None:
                yield step
            step = Step(number, line[2:])
        elif step is None:
            raise AssertionError(f"line {number}: a session begins with `$ `")
        elif line.startswith("> ") and not step.shown:
            step.command += "\n" + line[2:]
        elif ended := _EXIT.match(line):
            step.exit = int(ended[1])
        else:
            step.shown.append(line)
    if step is not None:
        yield step


def matches(shown: list[str], printed: str) -> bool:
    """Whether what was printed is what the guide shows."""
    pattern = ""
    for line in shown:
        if line.strip() == "…":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(re.escape(part) for part in line.rstrip().split("…")) + r"\n"
    lines = "".join(f"{line.rstrip()}\n" for line in printed.rstrip().splitlines())
    return re.fullmatch(pattern, lines) is not None


class Reader:
    """The bash that a guide's commands are given to."""

    def __init__(self, home: Path, server: RunningServer, ports: dict[str, str]) -> None:
        self._home = home
        self._names = {rf"(?<![\d.:]){shown}(?!\d)": real for shown, real in ports.items()}
        self._names[r"(?<=127\.0\.0\.1:)8080(?!\d)|(?<=localhost:)8080(?!\d)"] = str(server.port)
        self._shown = {rf"(?<!\d){real}(?!\d)": shown for shown, real in ports.items()}
        self._shown[rf"(?<!\d){server.port}(?!\d)"] = "8080"
        self.directory = home / "work"
        self.directory.mkdir(parents=True)
        self._count = 0
        programs = home / "bin"
        programs.mkdir()
        for name, words in {"cove": [sys.executable, "-m", "cove.cli.main"], "python3": [sys.executable]}.items():
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            program.chmod(0o755)
        (programs / "node").symlink_to(node())
        (home / "node_modules").symlink_to(package("isorun").parent)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("COVE_", "XDG_"))}
        env = {"HOME": str(home), "COVE_DATA_DIR": str(server.data_dir), "TERM": "xterm-256color"}
        env["PATH"] = f"{programs}:{Path(sys.executable).parent}:{kept['PATH']}"
        said, says = os.pipe()
        self._said = said
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=kept | env,
            cwd=self.directory,
            pass_fds=[says],
            start_new_session=True,
        )
        os.close(says)
        self._says = says
        assert self._bash.stdin is not None
        self._bash.stdin.write(b"set -m\n")  # jobs as a person's shell has them: Ctrl-C is not ignored

    def close(self) -> None:
        """End the bash and all that it started."""
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.getsid(int(process.name)) == self._bash.pid:
                    os.kill(int(process.name), signal.SIGKILL)
        self._bash.wait()
        assert self._bash.stdin is not None
        with suppress(BrokenPipeError):
            self._bash.stdin.close()
        os.close(self._said)

    def run(self, command: str) -> tuple[int, str]:
        """Run a command without a terminal; returns exit code and output."""
        output = self._home / f"output-{self._count + 1}"
        self._give(command, f"</dev/null >{output} 2>&1")
        code = self._wait(time.monotonic() + COMMAND_LIMIT_S)
        assert code is not None, f"no end after {COMMAND_LIMIT_S:.0f} s: {command}\n{output.read_text()[-2000:]}"
        return code, self._as_shown(output.read_text(encoding="utf-8", errors="replace"))

    def run_on_terminal(self, command: str, typed: list[str]) -> tuple[int, str]:
        """Run a command on a terminal and type a line at each prompt; returns exit code and all that it showed."""
        ours, theirs = pty.openpty()
        try:
            termios.tcsetwinsize(ours, (24, 80))
            name = os.ttyname(theirs)
            self._give(command, f"<{name} >{name} 2>&1", "setsid --ctty --wait bash")
            code, screen = self._converse(ours, list(typed))
        finally:
            os.close(ours)
            os.close(theirs)
        return code, self._as_shown(_ESCAPES.sub("", screen).replace("\r\n", "\n").replace("\r", ""))

    def _converse(self, terminal: int, typed: list[str]) -> tuple[int, str]:
        screen = b""
        deadline = time.monotonic() + COMMAND_LIMIT_S
        while time.monotonic() < deadline:
            ready = select.select([terminal, self._said], [], [], QUIET_S)[0]
            if terminal in ready:
                screen += os.read(terminal, 65536)
                continue
            if self._said in ready:
                return self._code(), screen.decode(errors="replace")
            last = _ESCAPES.sub("", screen.decode(errors="replace")).rpartition("\n")[2].replace("\r", "")
            if typed and (found := _PROMPT.match(last)) and found.end() == len(last):
                os.write(terminal, self._as_real(typed.pop(0)).encode() + b"\r")
        raise AssertionError(f"no end after {COMMAND_LIMIT_S:.0f} s; the terminal shows\n{screen.decode()[-2000:]}")

    def _give(self, command: str, where: str, by: str = ".") -> None:
        self._count += 1
        script = self._home / f"command-{self._count}"
        script.write_text(self._as_real(command) + "\n", encoding="utf-8")
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{by} {script} {where}; echo $? >&{self._says}\n".encode())
        self._bash.stdin.flush()

    def _wait(self, deadline: float) -> int | None:
        while time.monotonic() < deadline:
            if select.select([self._said], [], [], 0.2)[0]:
                return self._code()
            assert self._bash.poll() is None, "a command ended the shell of the guide"
        return None

    def _code(self) -> int:
        said = os.read(self._said, 16)
        assert said, "a command ended the shell of the guide"
        return int(said)

    def _as_real(self, text: str) -> str:
        for shown, real in self._names.items():
            text = re.sub(shown, real, text)
        return text

    def _as_shown(self, text: str) -> str:
        for real, shown in self._shown.items():
            text = re.sub(real, shown, text)
        return text


def perform(guide: Guide, reader: Reader) -> None:
    """Run all that a guide shows. Raises: AssertionError with the page, the line and what came instead."""
    printed = ""
    for block in guide.blocks:
        if block.info.startswith("file="):
            (reader.directory / block.info.removeprefix("file=")).write_text(block.text, encoding="utf-8")
        elif block.language == "console":
            for step in steps(block):
                _check(guide, step, reader, on_terminal=block.info == "tty")
        elif block.language == "output":
            if not matches(block.text.splitlines(), printed):
                raise guide.fail(block.line, f"shown\n{block.text}printed\n{printed}")
        elif block.language in {"sh", "python"} and not block.info:
            command = block.text
            if block.language == "python":
                program = reader.directory.parent / f"program-{block.line}.py"
                program.write_text(block.text, encoding="utf-8")
                command = f"python3 {program}"
            else:
                command = f"(set -e\n{block.text})"
            code, printed = reader.run(command)
            if code:
                raise guide.fail(block.line, f"exit code {code}\n{printed}")


def _check(guide: Guide, step: Step, reader: Reader, *, on_terminal: bool) -> None:
    if on_terminal:
        typed = [line[found.end() :] for line in step.shown if (found := _PROMPT.match(line))]
        code, printed = reader.run_on_terminal(step.command, typed)
    else:
        code, printed = reader.run(step.command)
    if code != step.exit:
        raise guide.fail(step.line, f"exit code {code} instead of {step.exit}\n$ {step.command}\n{printed}")
    if step.shown and not matches(step.shown, printed):
        shown = "\n".join(step.shown)
        raise guide.fail(step.line, f"$ {step.command}\nshown\n{shown}\nprinted\n{printed}")


@contextmanager
def reader_of(guide: Guide, home: Path, server: RunningServer, ports: dict[str, str]) -> Generator[Reader]:
    """A reader for one guide; what it started ends with it, and its sandboxes are removed."""
    reader = Reader(home, server, ports)
    try:
        yield reader
    finally:
        reader.close()
        with server.client() as client:
            for box in client.get("/sandboxes").json()["sandboxes"]:
                client.delete(f"/sandboxes/{box['id']}")


def settings_of(guide: Guide) -> tuple[dict[str, str], dict[str, str]]:
    """The settings for a guide's server, and which port stands for each that is shown."""
    ports = {value: str(free_port()) for name, value in (guide.settings or {}).items() if name.endswith("_PORT")}
    return {name: ports.get(value, value) for name, value in (guide.settings or {}).items()}, ports
