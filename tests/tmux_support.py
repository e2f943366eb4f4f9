"""A real terminal emulator for tests: tmux, driven as a person drives it, looked at as a person looks at it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

PROMPT: Final = "HERE> "
TERM: Final = "screen-256color"
LIMIT_S: Final = 60.0


class Tmux:
    """One window with a shell of this machine in it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        settings = directory / "tmux.conf"
        settings.write_text(f"set -g default-terminal {TERM}\nset -g escape-time 0\n")
        self._argv = ["tmux", "-S", str(directory / "tmux.sock"), "-f", str(settings)]
        self.raw = directory / "raw"

    def begin(self, env: Mapping[str, str], cols: int, rows: int) -> None:
        settings = {name: value for name, value in env.items() if name not in {"TMUX", "TMUX_PANE", "TERM"}}
        rc = self._directory / "rc"
        rc.write_text(f"PS1='{PROMPT}'; PROMPT_COMMAND=\n")
        shell = shlex.join(["bash", "--noprofile", "--rcfile", str(rc), "-i"])
        subprocess.run(
            [*self._argv, "new-session", "-d", "-x", str(cols), "-y", str(rows), shell],
            env=settings, cwd=self._directory, check=True, timeout=30,
        )  # fmt: skip
        self._tmux("pipe-pane", "-O", f"cat > {shlex.quote(str(self.raw))}")
        self.wait_for(PROMPT.strip())

    def end(self) -> None:
        subprocess.run([*self._argv, "kill-server"], check=False, capture_output=True, timeout=30)

    def _tmux(self, *words: str) -> str:
        done = subprocess.run([*self._argv, *words], capture_output=True, text=True, check=True, timeout=30)
        return done.stdout

    def keys(self, *keys: str) -> None:
        """Press keys, by tmux' names (`Enter`, `C-c`, `Escape`) or as text."""
        self._tmux("send-keys", *keys)

    def line(self, text: str) -> None:
        """Type a line and Enter."""
        self._tmux("send-keys", "-l", text)
        self._tmux("send-keys", "Enter")

    def paste(self, text: str) -> None:
        """Paste, as from a clipboard."""
        buffer = self._directory / "buffer"
        buffer.write_text(text)
        self._tmux("load-buffer", str(buffer))
        self._tmux("paste-buffer", "-r", "-p")

    def resize(self, cols: int, rows: int) -> None:
        self._tmux("resize-window", "-x", str(cols), "-y", str(rows))

    def screen(self) -> str:
        """What a person sees now."""
        return self._tmux("capture-pane", "-p")

    def wait_for(self, text: str, limit_s: float = LIMIT_S) -> str:
        """Wait until a line of the screen matches; returns the screen."""
        pattern = re.compile(text, re.MULTILINE)
        return self.wait(lambda screen: pattern.search(screen) is not None, text, limit_s)

    def wait(self, fact: Callable[[str], bool], what: str, limit_s: float = LIMIT_S) -> str:
        deadline = time.monotonic() + limit_s
        while not fact(screen := self.screen()):
            assert time.monotonic() < deadline, f"never seen: {what}; the screen shows\n{screen}"
            time.sleep(0.02)
        return screen

    def mode(self, name: str) -> str:
        """A fact about the window, such as `alternate_on`, `bracket_paste_flag` or `mouse_any_flag`."""
        return self._tmux("display-message", "-p", f"#{{{name}}}").strip()


@contextmanager
def tmux(directory: Path, env: Mapping[str, str], cols: int = 80, rows: int = 24) -> Iterator[Tmux]:
    """A window of this size."""
    if shutil.which("tmux") is None:
        pytest.fail("these tests sit at a terminal emulator: apt-get install tmux (`make setup-dev` does)")
    directory.mkdir(parents=True, exist_ok=True)
    window = Tmux(directory)
    window.begin(env, cols, rows)
    try:
        yield window
    finally:
        window.end()
