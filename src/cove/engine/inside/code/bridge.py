"""Runs code in a Jupyter kernel of the image: this process is its only client, and speaks its protocol for the host.

The kernel is started by its kernelspec, in this process group: an interrupt reaches it as it reaches any program that
code has started. What it writes outside of its messages is output like any other.
"""

# What code of strangers makes has no known types.
# pyright: basic

from __future__ import annotations

import ctypes
import importlib
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import util
from typing import Any

from .executor import CannotStart, Engine, Failure, Info, Sink
from .probe import specs

_START_S = 60.0
_REPLY_S = 10.0
_POLL_S = 0.25
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PR_SET_PDEATHSIG = 1


def _find(language: str) -> tuple[str, dict[str, Any]]:
    """The kernelspec of that name, or else the first one for that language. Raises: CannotStart."""
    wanted, found = language.lower(), specs()
    for name, spec in found.items():
        if name == wanted:
            return name, spec
    for name, spec in sorted(found.items()):
        if str(spec.get("language", "")).lower() == wanted:
            return name, spec
    raise CannotStart(f"There is no kernel for {language}: this image has no kernelspec for it.")


class BridgeEngine(Engine):
    """One Jupyter kernel. Raises: CannotStart."""

    def __init__(self, sink: Sink, language: str) -> None:
        self._name, self._spec = _find(language)
        if util.find_spec("jupyter_client") is None:
            raise CannotStart(f"{language} is a Jupyter kernel, and jupyter_client is not installed in this image.")
        self._sink = sink
        self._libc = ctypes.CDLL(None)
        self._runs = 0
        self._begin()

    # -- the kernel

    def _begin(self) -> None:
        connect = importlib.import_module("jupyter_client.connect")
        blocking = importlib.import_module("jupyter_client.blocking")
        folder = tempfile.mkdtemp(prefix="cove-jupyter-")
        file, _ = connect.write_connection_file(os.path.join(folder, "kernel.json"), ip="127.0.0.1")
        argv = self._argv(file)
        # ipykernel takes what its children write, sends it as messages, and writes it once more.
        output = subprocess.DEVNULL if any("ipykernel" in word for word in argv) else None
        try:
            self._process = subprocess.Popen(
                argv,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=self._die_with_us,  # noqa: PLW1509 - there is no other thread yet
            )
        except OSError as problem:
            raise CannotStart(f"The Jupyter kernel {self._name} cannot be started: {problem.strerror}.") from problem
        self._client = blocking.BlockingKernelClient(connection_file=file)
        self._client.load_connection_file()
        self._client.start_channels()
        self.info = self._wait_ready()

    def _argv(self, file: str) -> list[str]:
        here = {"connection_file": file, "resource_dir": self._spec["directory"], "prefix": sys.prefix}
        argv = [re.sub(r"\{(\w+)\}", lambda m: here.get(m[1], m[0]), str(word)) for word in self._spec["argv"]]
        if argv and argv[0] in ("python", "python3", f"python3.{sys.version_info[1]}"):
            argv[0] = sys.executable
        return argv

    def _environment(self) -> dict[str, str]:
        own = self._spec.get("env")
        return {**os.environ, **{str(k): str(v) for k, v in (own if isinstance(own, dict) else {}).items()}}

    def _die_with_us(self) -> None:
        self._libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    def _wait_ready(self) -> Info:
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise CannotStart(f"The Jupyter kernel {self._name} ended when it was started.")
            content = self._reply(self._client.kernel_info(), 1.0)
            if content is not None:
                return self._told(content)
        self._process.kill()
        raise CannotStart(f"The Jupyter kernel {self._name} did not answer within {_START_S:.0f} s.")

    def _told(self, content: Mapping[str, Any]) -> Info:
        language = content.get("language_info")
        version = str(language.get("version", "")) if isinstance(language, Mapping) else ""
        words = (version, content.get("implementation"), content.get("implementation_version"))
        missing = ["Variables for one run alone are not set: the Jupyter kernel is a process of its own."]
        return Info(f"jupyter:{self._name}", " ".join(str(word) for word in words if word)[:200], True, missing)

    def _reply(self, request: str, limit_s: float) -> Any:
        """The content of the reply to `request`; None: there was none in time."""
        end = time.monotonic() + limit_s
        while (left := end - time.monotonic()) > 0:
            try:
                message = self._client.get_shell_msg(timeout=min(left, _POLL_S))
            except queue.Empty:
                if self._process.poll() is not None:
                    return None
                continue
            if message["parent_header"].get("msg_id") == request:
                return message["content"]
        return None

    def _end_with_it(self) -> None:
        """If the kernel is gone this process goes, too: the host is told, and starts another one."""
        code = self._process.poll()
        if code is not None:
            sys.stdout.flush()
            os._exit(code if code >= 0 else 128 - code)

    # -- the engine

    def run(self, code: str, count: int) -> Failure | None:  # noqa: ARG002 - the kernel counts by itself
        self._runs += 1
        request = self._client.execute(code, store_history=True, allow_stdin=False)
        self._shown: Failure | None = None
        was_interrupted = False
        while True:
            try:
                if self._take(request):
                    break
            except KeyboardInterrupt:
                was_interrupted = True
                if self._spec.get("interrupt_mode") == "message":
                    message = self._client.session.msg("interrupt_request", content={})
                    self._client.control_channel.send(message)
        self._reply(request, _REPLY_S)
        if was_interrupted and self._shown is None:
            raise KeyboardInterrupt
        return self._shown

    def _take(self, request: str) -> bool:
        """Take one message; True: it was the last one of this run."""
        try:
            message = self._client.get_iopub_msg(timeout=_POLL_S)
        except queue.Empty:
            self._end_with_it()
            return False
        if message["parent_header"].get("msg_id") != request:
            return False
        kind, content = message["msg_type"], message["content"]
        if kind == "status":
            return bool(content.get("execution_state") == "idle")
        self._show(kind, content)
        return False

    def _show(self, kind: str, content: Mapping[str, Any]) -> None:
        if kind == "stream":
            stream = sys.stderr if content.get("name") == "stderr" else sys.stdout
            stream.write(str(content.get("text", "")))
        elif kind in ("execute_result", "display_data", "update_display_data"):
            transient = content.get("transient")
            name = transient.get("display_id") if isinstance(transient, Mapping) else None
            is_main, is_update = kind == "execute_result", kind == "update_display_data"
            self._sink.result(
                content.get("data") or {}, content.get("metadata"), main=is_main, name=name, update=is_update
            )
        elif kind == "clear_output":
            self._sink.clear(wait=bool(content.get("wait")))
        elif kind == "error":
            lines = [_COLOURS.sub("", str(line)) for line in content.get("traceback") or []]
            self._shown = Failure(str(content.get("ename", "Error")), str(content.get("evalue", "")), lines)

    def complete(self, code: str, cursor: int) -> dict[str, Any]:
        content = self._reply(self._client.complete(code, cursor), _REPLY_S) or {}
        return {
            "matches": content.get("matches") or [],
            "start": int(content.get("cursor_start", cursor)),
            "end": int(content.get("cursor_end", cursor)),
        }

    def setup(self, env: Mapping[str, str | None]) -> None:  # noqa: ARG002 - the environment has it by now
        if self._runs == 0:  # nothing is lost, and the kernel has the variables and the directory from its start
            self._client.stop_channels()
            self._process.kill()
            self._process.wait()
            self._begin()
