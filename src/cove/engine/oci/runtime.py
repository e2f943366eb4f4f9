"""Calls of an OCI runtime's command line, with limits. No policy, no state of ours.

One call makes a box: `run --detach` (create and start in two calls cost one more process, 5-7 ms). That is safe because
what starts is our agent, and no untrusted code runs before the claim. Only where something must be ready before the box
starts are there two: `create`, `start`. The runtime's own `delete` is not used: it polls
100 ms; a dead box is its state directory and its cgroups, both ours (docs/decisions/0008).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Final

from cove.model.errors import EngineFailure
from cove.model.ids import is_core_id

_RUN_LIMIT_S: Final = 30.0
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
_LOG_TAIL: Final = 4000
_LOG_MESSAGE: Final = 1000
_LOG_READ: Final = 1024 * 1024


class Runtime:
    """One installed runtime, with a state directory of this instance's own."""

    def __init__(self, program: Path, state_dir: Path, flags: tuple[str, ...] = ()) -> None:
        self.program = program
        self.state_dir = state_dir
        self._flags = flags

    async def version(self) -> str:
        """Its version as it tells it, such as `1.3.6`. Raises: EngineFailure when it cannot be run."""
        try:
            process = await asyncio.create_subprocess_exec(
                str(self.program),
                "--version",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            async with asyncio.timeout(_RUN_LIMIT_S):
                out, _ = await process.communicate()
        except (OSError, TimeoutError) as error:
            raise EngineFailure(f"cannot run {self.program.name}: run `cove setup`", internal=str(error)) from error
        words = out.decode(errors="replace").split()
        return words[words.index("version") + 1] if "version" in words[:-1] else "unknown"

    async def run(self, box: str, bundle: Path, pid_file: Path, flags: tuple[str, ...] = ()) -> None:
        """Make and start the box of `bundle`. Cancelling kills the call; the caller frees what it made so far.

        Raises: EngineFailure with the runtime's own words in `internal`.
        """
        argv = [*flags, "run", "--detach", "--bundle", str(bundle), "--pid-file", str(pid_file), box]
        await self._call(argv, bundle, "the runtime could not start the sandbox")

    async def create(self, box: str, bundle: Path, pid_file: Path, flags: tuple[str, ...] = ()) -> None:
        """Make the box of `bundle`, whose program waits for `start`; otherwise as `run`."""
        argv = [*flags, "create", "--bundle", str(bundle), "--pid-file", str(pid_file), box]
        await self._call(argv, bundle, "the runtime could not make the sandbox")

    async def start(self, box: str, bundle: Path, flags: tuple[str, ...] = (), within: tuple[str, ...] = ()) -> None:
        """Start the program of a box that was made by `create`; otherwise as `run`. `within`: what runs the runtime."""
        await self._call([*flags, "start", box], bundle, "the runtime could not start the sandbox", within)

    async def restore(  # noqa: PLR0913, PLR0917 (as `run`, and where criu finds what it needs)
        self, box: str, bundle: Path, pid_file: Path, images: Path, work: Path, limit_s: float, path: str
    ) -> None:
        """Let the processes of criu's `images` go on in the box of `bundle`; criu writes its log into `work`.

        `path`: where criu finds programs; itself it is found beside the runtime.

        Its network namespace is a new one. Otherwise as `run`.
        """
        argv = ["restore", "--detach", "--bundle", str(bundle), "--pid-file", str(pid_file)]
        argv += ["--image-path", str(images), "--work-path", str(work)]
        argv += ["--empty-ns", "network", "--tcp-established", "--file-locks", box]
        await self._call(argv, bundle, "the runtime could not restore the sandbox", limit_s=limit_s, path=path)

    async def _call(  # noqa: PLR0913, PLR0917 (each with a default that is what most calls want)
        self,
        words: list[str],
        bundle: Path,
        failure: str,
        within: tuple[str, ...] = (),
        limit_s: float = _RUN_LIMIT_S,
        path: str = _PATH,
    ) -> None:
        log = bundle / "log"
        said = log.stat().st_size if log.exists() else 0
        argv = ["--log", str(log), "--log-format", "json", "--root", str(self.state_dir), *self._flags, *words]
        # All three standard streams become the init's own: never a pipe of ours, or the box would hold it open.
        process = await asyncio.create_subprocess_exec(
            *within,
            str(self.program),
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=str(bundle),
            env={"PATH": f"{self.program.parent}:{path}"},
        )
        try:
            async with asyncio.timeout(limit_s):
                code = await process.wait()
        except TimeoutError as error:
            raise EngineFailure(f"{failure} in time", internal=_said(log, said)) from error
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())
        if code != 0:
            raise EngineFailure(failure, internal=f"exit {code}: {_said(log, said)}")


def forget(state_dir: Path, box: str) -> None:
    """Remove a runtime's state of a dead box: all that has its id in the name (runsc: three files). Idempotent."""
    for path in state_dir.glob(f"*{box}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def known(state_dir: Path) -> set[str]:
    """The boxes that a runtime has state of."""
    if not state_dir.is_dir():
        return set()
    return {word for path in state_dir.iterdir() for word in re.split("[^0-9a-f]+", path.name) if is_core_id(word)}


def _said(log: Path, offset: int) -> str:
    """What the runtime wrote from there on, of each message its beginning: stacks of goroutines can follow.

    The log is written by the runtime on the host, not by the sandbox.
    """
    try:
        with log.open(errors="replace") as file:
            file.seek(offset)
            text = file.read(_LOG_READ)
    except OSError:
        return "no log"
    messages: list[str] = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            messages.append(str(json.loads(line)["msg"])[:_LOG_MESSAGE])
    return ("; ".join(messages) or text)[-_LOG_TAIL:]
