"""Runs in the guest: `cove doctor` and a real server on a machine with cgroup v2 alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cove

_KEY = "cove-test-key-0123456789"
_PORT = "8790"
_START_LIMIT_S = 60.0


def check_doctor_finds_v2_and_nothing_missing(data_dir: Path, slow: float) -> str:
    """The report finds the machine usable and names its hierarchy."""
    del data_dir
    argv = [sys.executable, "-m", "cove.server.doctor"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60 * slow, check=False)
    sys.stderr.write(done.stdout)
    return "" if done.returncode == 0 and "v2" in done.stdout else f"exit {done.returncode}: {done.stdout}"


def check_a_server_makes_a_sandbox_and_ends_clean(data_dir: Path, slow: float) -> str:
    """Create, exec, the view says v2; after `shutdown all` no cgroup is left."""
    for product in ("runtimes", "images"):
        (data_dir / product).symlink_to(Path("/var/lib/cove") / product)
    env = os.environ | {
        "COVE_DATA_DIR": str(data_dir),
        "COVE_PORT": _PORT,
        "COVE_BOOTSTRAP_KEYS": _KEY,
        "COVE_POOL_BYTES": str(2 * 1024**3),
        "COVE_POOL_SIZE": "1",
    }
    start = "import sys; from cove.server.serve import main; sys.exit(main({}, False))"
    with subprocess.Popen([sys.executable, "-c", start], env=env, stdout=sys.stderr) as server:
        try:
            found = _use(_wait_client(server, slow))
            server.wait(60 * slow)
        finally:
            server.kill()
    left = [str(path) for path in Path("/sys/fs/cgroup").glob("cove/**/*") if path.is_dir()]
    return found or (f"left: {left}" if left else "")


def _wait_client(server: subprocess.Popen[bytes], slow: float) -> cove.Client:
    deadline = time.monotonic() + _START_LIMIT_S * slow
    client = cove.connect(f"http://127.0.0.1:{_PORT}", _KEY)
    while True:
        try:
            client.server()
        except Exception as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server did not start") from error
            time.sleep(0.2)
        else:
            return client


def _use(client: cove.Client) -> str:
    with client.create(memory="128m") as box:
        result = box.run("echo $((6 * 7))", timeout="60s")
        isolation = box.isolation
    client.shutdown(all=True)
    return "" if isolation and (result.out.strip(), isolation.cgroup) == ("42", "v2") else f"{result} {isolation}"


def main() -> int:
    """Run both; exit 1 when one fails."""
    data_dir, slow = Path(sys.argv[1]), float(sys.argv[2])
    checks: tuple[Callable[[Path, float], str], ...] = (
        check_doctor_finds_v2_and_nothing_missing,
        check_a_server_makes_a_sandbox_and_ends_clean,
    )
    failed = False
    for check in checks:
        started = time.monotonic()
        try:
            detail = check(data_dir, slow)
        except Exception as error:  # noqa: BLE001 (whatever goes wrong is the verdict)
            detail = f"{type(error).__name__}: {error}"
        ms = round((time.monotonic() - started) * 1000)
        sys.stdout.write(json.dumps({"name": check.__name__, "ok": not detail, "detail": detail, "ms": ms}) + "\n")
        sys.stdout.flush()
        failed = failed or bool(detail)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
