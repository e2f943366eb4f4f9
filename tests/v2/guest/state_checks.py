"""Runs in the guest: pause, snapshot, fork and hibernation on another kernel with cgroup v2 alone. JSON lines.

What is asked here is whether this kernel and its kinds of disk carry them; what they promise is tested elsewhere.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_KEY = "cove-test-key-0123456789"
_PORT = 8792
_START_LIMIT_S = 60.0
_LIMIT_S = 60.0
_PROGRAM = """
import os, signal, time
held = os.urandom(8 << 20)
with open("/root/wanted", "w") as file:
    file.write(held[:16].hex())

def tell(*_):
    with open("/root/told", "w") as file:
        file.write(held[:16].hex())

signal.signal(signal.SIGUSR1, tell)
with open("/root/pid", "w") as file:
    file.write(str(os.getpid()))
while True:
    time.sleep(0.05)
"""


class Server:
    """A server of the guest, asked over HTTP."""

    def __init__(self, data_dir: Path, slow: float) -> None:
        for product in ("runtimes", "images"):
            (data_dir / product).symlink_to(Path("/var/lib/cove") / product)
        self.slow = slow
        self.data_dir = data_dir
        self._env = os.environ | {
            "COVE_DATA_DIR": str(data_dir),
            "COVE_PORT": str(_PORT),
            "COVE_BOOTSTRAP_KEYS": _KEY,
            "COVE_POOL_BYTES": str(2 * 1024**3),
            "COVE_POOL_SIZE": "0",
            "COVE_DRIVERS": "runc",
        }
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        main = "import sys; from cove.server.serve import main; sys.exit(main({}, False))"
        self.process = subprocess.Popen([sys.executable, "-c", main], env=self._env, stdout=sys.stderr)
        deadline = time.monotonic() + _START_LIMIT_S * self.slow
        while True:
            try:
                self.ask("GET", "/server")
            except OSError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the server did not start") from error
                time.sleep(0.2)
            else:
                return

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.wait()

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """One request; its answer. Raises: RuntimeError (it was refused), OSError."""
        link = http.client.HTTPConnection("127.0.0.1", _PORT, timeout=_LIMIT_S * self.slow)
        head = {"Authorization": f"Bearer {_KEY}", "Content-Type": "application/json"}
        link.request(method, "/api/v1" + path, None if body is None else json.dumps(body), head)
        answer = link.getresponse()
        text = answer.read()
        link.close()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {text.decode(errors='replace')[:1000]}")
        return dict(json.loads(text)) if text else {}

    def said(self, box: str, command: str) -> str:
        """What a command says."""
        result = self.ask("POST", f"/sandboxes/{box}/exec", {"command": command, "timeout_s": 30 * self.slow})
        return str(result["stdout"]) + str(result["stderr"])

    def holding(self) -> str:
        """A sandbox with a program that knows what it holds in memory."""
        box = str(self.ask("POST", "/sandboxes", {"memory_mib": 128, "disk_mib": 64, "idle_timeout_s": None})["id"])
        self.ask("POST", f"/sandboxes/{box}/commands", {"command": ["python3", "-c", _PROGRAM]})
        self.said(box, "until [ -s /root/pid ]; do sleep 0.1; done")
        return box

    def check(self, box: str) -> str:
        """Whether the program goes on and has kept its memory, and the disk what it wrote. Empty: it is so."""
        script = (
            "rm -f /root/told; kill -USR1 $(cat /root/pid); "
            "for i in $(seq 100); do [ -s /root/told ] && break; sleep 0.1; done; "
            "cmp /root/told /root/wanted && echo same"
        )
        seen = self.said(box, script)
        return "" if seen == "same\n" else f"{box}: {seen!r}"


def check_pause_and_resume(server: Server) -> str:
    """Paused, nothing runs; resumed, it goes on."""
    box = server.holding()
    server.ask("POST", f"/sandboxes/{box}/pause")
    before = server.ask("GET", f"/sandboxes/{box}")["usage"]["cpu_ms"]
    time.sleep(1)
    is_still = server.ask("GET", f"/sandboxes/{box}")["usage"]["cpu_ms"] == before
    server.ask("POST", f"/sandboxes/{box}/resume")
    found = server.check(box)
    server.ask("DELETE", f"/sandboxes/{box}")
    return found or ("" if is_still else "something ran while it was paused")


def check_snapshot_with_memory_and_restore(server: Server) -> str:
    """Two sandboxes of one snapshot, after the end of the source; each with its own disk limit."""
    box = server.holding()
    snapshot = server.ask("POST", f"/sandboxes/{box}/snapshots", {"memory": True})["id"]
    found = server.check(box)
    server.ask("DELETE", f"/sandboxes/{box}")
    copies = [str(server.ask("POST", f"/snapshots/{snapshot}/restore", {})["id"]) for _ in range(2)]
    found = found or "".join(server.check(copy) for copy in copies)
    full = server.said(copies[0], "head -c 100M /dev/zero 2>/dev/null > /root/big; stat -c %s /root/big")
    if not found and int(full.split()[-1]) >= 100 << 20:
        found = f"its disk has no limit: {full}"
    for copy in copies:
        server.ask("DELETE", f"/sandboxes/{copy}")
    server.ask("DELETE", f"/snapshots/{snapshot}")
    return found


def check_fork(server: Server) -> str:
    """Three children and the source go on."""
    box = server.holding()
    made = server.ask("POST", f"/sandboxes/{box}/fork", {"count": 3, "memory": True})["sandboxes"]
    boxes = [box, *(str(one["id"]) for one in made)]
    found = "".join(server.check(one) for one in boxes)
    for one in boxes:
        server.ask("DELETE", f"/sandboxes/{one}")
    return found


def check_hibernation_over_a_killed_server(server: Server) -> str:
    """Nothing runs meanwhile; it goes on afterwards."""
    box = server.holding()
    view = server.ask("POST", f"/sandboxes/{box}/hibernate", {"memory": True})
    groups = list(Path("/sys/fs/cgroup").glob(f"cove/*/{box.removeprefix('sb_')}"))
    server.kill()
    server.start()
    state = server.ask("GET", f"/sandboxes/{box}")["state"]
    server.ask("POST", f"/sandboxes/{box}/resume")
    found = server.check(box)
    server.ask("DELETE", f"/sandboxes/{box}")
    if groups or (view["state"], state) != ("hibernated", "hibernated"):
        return f"{groups} {view} {state}"
    return found


def check_files_only_fork(server: Server) -> str:
    """Files alone come where that is asked for."""
    box = server.holding()
    made = server.ask("POST", f"/sandboxes/{box}/fork", {"count": 1, "memory": False})["sandboxes"][0]
    seen = server.said(made["id"], "cmp /root/wanted /root/wanted && pgrep -c python3")
    for one in (box, made["id"]):
        server.ask("DELETE", f"/sandboxes/{one}")
    return "" if seen == "0\n" and made["came_from"]["memory"] is False else f"{seen} {made}"


def main() -> int:
    """Run all on one server; exit 1 when one fails."""
    server = Server(Path(sys.argv[1]), float(sys.argv[2]))
    checks: tuple[Callable[[Server], str], ...] = (
        check_pause_and_resume,
        check_snapshot_with_memory_and_restore,
        check_fork,
        check_hibernation_over_a_killed_server,
        check_files_only_fork,
    )
    failed = False
    for check in checks:
        started = time.monotonic()
        try:
            detail = check(server)
        except Exception as error:  # noqa: BLE001 (whatever goes wrong is the verdict)
            detail = f"{type(error).__name__}: {error}"
        ms = round((time.monotonic() - started) * 1000)
        sys.stdout.write(json.dumps({"name": check.__name__, "ok": not detail, "detail": detail, "ms": ms}) + "\n")
        sys.stdout.flush()
        failed = failed or bool(detail)
    server.ask("POST", "/server/shutdown", {"all": True})
    server.process.wait(60 * server.slow)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
