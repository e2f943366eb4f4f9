"""Runs in the guest: the network of sandboxes on another kernel, beside an internet of two namespaces. JSON lines.

What is asked here is whether this kernel's nftables, veth and namespaces carry what the router needs; what the rules
mean is tested elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import cove

_KEY = "cove-test-key-0123456789"
_PORT = "8791"
_START_LIMIT_S = 60.0
_GOOD, _OTHER, _RESOLVER = "11.0.0.10", "11.0.0.66", "11.0.0.53"
_WIRES = f"""
netns add outside
netns add net
-n outside link add up0 type veth peer name net0 netns net
-n outside link set lo up
-n outside addr add 11.255.0.1/30 dev up0
-n outside link set up0 up
-n outside route add default via 11.255.0.2
-n net link set lo up
-n net addr add 11.255.0.2/30 dev net0
-n net link set net0 up
-n net addr add {_GOOD}/32 dev lo
-n net addr add {_OTHER}/32 dev lo
-n net addr add {_RESOLVER}/32 dev lo
"""
_DNS = f"""
import socket
names = {{b"good": "{_GOOD}", b"other": "{_OTHER}"}}
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("{_RESOLVER}", 53))
while True:
    asked, who = s.recvfrom(512)
    label = asked[13:13 + asked[12]]
    end = asked.index(0, 12) + 5
    address = names.get(label.lower()) if asked[end - 3] == 1 else None
    head = asked[:2] + (b"\\x81\\x80" if label.lower() in names else b"\\x81\\x83") + b"\\0\\x01"
    record = b"" if address is None else b"\\xc0\\x0c\\0\\x01\\0\\x01\\0\\0\\0\\x3c\\0\\x04" + socket.inet_aton(address)
    s.sendto(head + (b"\\0\\x01" if record else b"\\0\\0") + b"\\0\\0\\0\\0" + asked[12:end] + record, who)
"""
_TRY = """
import sys, time, urllib.request
start = time.monotonic()
try:
    word = str(urllib.request.urlopen(sys.argv[1], timeout=20).status)
except OSError as error:
    word = "refused" if "refused" in str(error) or "Name or" in str(error) else repr(error)
print(word, "fast" if time.monotonic() - start < float(sys.argv[2]) else "slow")
"""


@contextmanager
def internet() -> Generator[None]:
    """Two namespaces: `outside`, which the server leaves by, and `net`, which answers."""
    for line in _WIRES.strip().splitlines():
        subprocess.run(["ip", *line.split()], check=True)
    within = ["ip", "netns", "exec", "net", sys.executable]
    dns = subprocess.Popen([*within, "-c", _DNS])
    http = subprocess.Popen([*within, "-m", "http.server", "80"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        for one in (dns, http):
            one.kill()
            one.wait()


@contextmanager
def serving(data_dir: Path, slow: float) -> Generator[cove.Client]:
    """A server that leaves by `outside`."""
    for product in ("runtimes", "images"):
        (data_dir / product).symlink_to(Path("/var/lib/cove") / product)
    env = os.environ | {
        "COVE_DATA_DIR": str(data_dir),
        "COVE_PORT": _PORT,
        "COVE_BOOTSTRAP_KEYS": _KEY,
        "COVE_POOL_BYTES": str(2 * 1024**3),
        "COVE_POOL_SIZE": "1",
        "COVE_SSH_PORT": "0",
        "COVE_NETWORK_OUTSIDE": "/run/netns/outside",
        "COVE_NETWORK_RESOLVERS": _RESOLVER,
    }
    start = "import sys; from cove.server.serve import main; sys.exit(main({}, False))"
    with subprocess.Popen([sys.executable, "-c", start], env=env, stdout=sys.stderr) as server:
        try:
            client = cove.connect(f"http://127.0.0.1:{_PORT}", _KEY)
            _wait(client, server, slow)
            yield client
            client.shutdown(all=True)
            server.wait(60 * slow)
        finally:
            server.kill()


def _wait(client: cove.Client, server: subprocess.Popen[bytes], slow: float) -> None:
    deadline = time.monotonic() + _START_LIMIT_S * slow
    while True:
        try:
            client.server()
        except Exception as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server did not start") from error
            time.sleep(0.2)
        else:
            return


def tried(box: cove.Sandbox, url: str, slow: float) -> str:
    """What a program in the sandbox gets there, and whether it had to wait."""
    limit = str(1.0 * slow)
    return box.run(["python3", "-c", _TRY, url, limit], timeout="120s").out.strip()


def check_an_open_sandbox_reaches_the_internet_and_nothing_closed(client: cove.Client, slow: float) -> str:
    """By name and by address; a refusal comes at once."""
    with client.create(memory="128m", network="open") as box:
        urls = ("http://good.example/", f"http://{_OTHER}/", "http://169.254.169.254/", "http://11.255.0.1:80/")
        seen = [tried(box, url, slow) for url in urls]
    return "" if seen == ["200 fast", "200 fast", "refused fast", "refused fast"] else str(seen)


def check_rules_by_name_hold_and_change_live(client: cove.Client, slow: float) -> str:
    """Only what is allowed is resolved and reached, and no more once it is denied."""
    policy = {"rules": [{"action": "allow", "target": "good.example"}]}
    with client.create(memory="128m", network=policy) as box:
        urls = ("http://good.example/", "http://other.example/", f"http://{_OTHER}/")
        seen = [tried(box, url, slow) for url in urls]
        box.network.set("none")
        seen.append(tried(box, f"http://{_GOOD}/", slow))
    return "" if seen == ["200 fast", *["refused fast"] * 3] else str(seen)


def main() -> int:
    """Run both on one server; exit 1 when one fails."""
    data_dir, slow = Path(sys.argv[1]), float(sys.argv[2])
    checks: tuple[Callable[[cove.Client, float], str], ...] = (
        check_an_open_sandbox_reaches_the_internet_and_nothing_closed,
        check_rules_by_name_hold_and_change_live,
    )
    failed = False
    with internet(), serving(data_dir, slow) as client:
        for check in checks:
            started = time.monotonic()
            try:
                detail = check(client, slow)
            except Exception as error:  # noqa: BLE001 (whatever goes wrong is the verdict)
                detail = f"{type(error).__name__}: {error}"
            ms = round((time.monotonic() - started) * 1000)
            sys.stdout.write(json.dumps({"name": check.__name__, "ok": not detail, "detail": detail, "ms": ms}) + "\n")
            sys.stdout.flush()
            failed = failed or bool(detail)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
