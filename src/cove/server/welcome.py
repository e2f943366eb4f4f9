"""What the server says to the person who started it: where it is, its key, what to try, what Ctrl-C does."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from cove.server.adminkey import AdminKey
from cove.server.config import Settings

SCRIPT: Final = 'echo "hello from $(hostname)"; . /etc/os-release; echo "$PRETTY_NAME, Linux $(uname -r)"'
TIMEOUT_S: Final = 60.0


def say(text: str = "") -> None:
    """A line for a person, on stderr: stdout belongs to programs."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - for a person


def announce(settings: Settings, key: AdminKey, run_dir: Path) -> None:
    """The address and the key; a key is shown in the start that made it only."""
    say(f"Cove listens on {settings.url}  (API page: {settings.url}/docs, local CLI: {run_dir / 'api.sock'})")
    if key.is_new:
        say(f"Key, shown only now: {key.text}")
        say(f"  kept for you in {key.path}")
    else:
        say(f"Key: in {key.path}")


async def show_first_command(settings: Settings, key: AdminKey) -> None:
    """Run a real command in a real sandbox through our own API over TCP, and show it. A failure is told, not raised."""
    say()
    try:
        said, summary = await asyncio.to_thread(_first_command, settings, key.text)
        say(f"$ sh -c '{SCRIPT}'")
        say(said.rstrip())
        say(summary)
    except (OSError, KeyError, ValueError) as error:
        say(f"error: the first command did not run: {_reason(error)}")
        say("hint: cove doctor")
    say()
    say("Try:")
    say(
        f'  curl -s -H "Authorization: Bearer $(cat {key.path})" {settings.url}/api/v1/sandboxes '
        '-d \'{"metadata":{"made":"by hand"}}\''
    )
    say("  .venv/bin/python -c 'from cove import Sandbox; print(Sandbox.create().run(\"python3 -V\").out)'")
    say()
    say("Ctrl-C stops the server; sandboxes go on. `cove down` does the same, `cove down --all` ends them too.")


def _first_command(settings: Settings, key: str) -> tuple[str, str]:
    before = perf_counter()
    box = _call(settings, key, "POST", "/sandboxes", {"metadata": {"made": "by welcome"}})
    ready_ms = (perf_counter() - before) * 1000
    try:
        before = perf_counter()
        result = _call(settings, key, "POST", f"/sandboxes/{box['id']}/exec", {"command": SCRIPT})
        ran_ms = (perf_counter() - before) * 1000
    finally:
        _call(settings, key, "DELETE", f"/sandboxes/{box['id']}", None)
    summary = (
        f"Sandbox {box['name']} ({box['driver']}, {box['source']}) ready in {ready_ms:.0f} ms, "
        f"command in {ran_ms:.0f} ms, removed again."
    )
    return result["stdout"] + result["stderr"], summary


def _call(settings: Settings, key: str, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - our own address
        f"{settings.url}/api/v1{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}"},
    )
    # To ourselves, on this machine, and the certificate is for the public name.
    trust = None
    if settings.tls_cert:
        trust = ssl.create_default_context()
        trust.check_hostname = False
        trust.verify_mode = ssl.CERT_NONE
    with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=trust) as answer:  # noqa: S310
        found: dict[str, Any] = json.load(answer)
        return found


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        try:
            return str(json.load(error)["detail"])
        except (ValueError, KeyError):
            return f"status {error.code}"
    return str(error)


def farewell(left: int, *, destroyed: bool) -> None:
    """What became of the sandboxes."""
    if destroyed:
        say("Stopped. All sandboxes were ended.")
    elif left:
        noun = "sandbox goes" if left == 1 else "sandboxes go"
        say(f"Stopped. {left} {noun} on; the next start takes them over. End them: start again, then cove down --all")
    else:
        say("Stopped. No sandbox was running.")
