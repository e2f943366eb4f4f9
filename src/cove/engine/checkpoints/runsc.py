"""gVisor's own checkpoints: calls of runsc and of a sandbox's control socket, and what its refusals mean. No policy.

A sentry can be stopped from within: `pause` counts, so a checkpoint taken meanwhile ends with everything still standing
still, and the files can be copied at the very same instant. One `resume` too many ends the sentry: whoever pauses must
know it (`drivers/gvisor.py` keeps a mark).
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Final

from cove.engine.oci.runtime import Runtime
from cove.model.errors import CapacityExceeded, CoveError, EngineFailure, SandboxGone, Unsupported

_CONTROL_LIMIT_S: Final = 60.0
"""A `resume` waits for a checkpoint that is still being written, although nobody waits for that any more."""

_IMAGE_LIMIT_S: Final = 600.0
_MAX_REPLY_BYTES: Final = 65536

REFUSALS: Final = {
    "cannot be saved in connected state": "a TCP connection over the network is open in it",
    "bound host socket": "a program in it has a unix socket outside of /tmp and /dev/shm",
    "deleted and invalidated dentries": "a program in it uses a file or directory that was deleted (outside of "
    "/tmp and /dev/shm)",
}
"""What gVisor cannot keep, by words of its error."""

MISFITS: Final = {
    "incompatible FeatureSet": "it was taken on a machine whose processor can do more than this one's",
    "deleted": "a file that it had open is not among its files",
}
"""Why gVisor cannot go on with a checkpoint, by words of its error."""


class Runsc(Runtime):
    """runsc, with what it can do beyond an OCI runtime."""

    async def pause(self, box: str) -> None:
        """Stop every task inside. Counts. Raises: EngineFailure, SandboxGone."""
        await self._tell(box, "containerManager.Pause")

    async def resume(self, box: str) -> None:
        """Undo one `pause`, once a checkpoint in the making is complete. Raises: EngineFailure, SandboxGone."""
        await self._tell(box, "containerManager.Resume")

    async def checkpoint(self, box: str, bundle: Path, images: Path) -> None:
        """Write all of a sandbox's kernel and memory into the directory `images`; then it goes on, unless paused.

        Cancelling ends the call; gVisor goes on writing, and lets the sandbox go on after that.

        Raises: Unsupported (named), CapacityExceeded, EngineFailure.
        """
        words = ["checkpoint", "-image-path", str(images), "-leave-running", "-compression", "none", box]
        try:
            await self._call(words, bundle, "gVisor could not keep the memory of the sandbox", limit_s=_IMAGE_LIMIT_S)
        except EngineFailure as error:
            raise _refusal(error) from error

    async def go_on(
        self, box: str, bundle: Path, images: Path, *, flags: tuple[str, ...] = (), within: tuple[str, ...] = ()
    ) -> None:
        """Let the sandbox in `images` go on as one that was made by `create`. Raises: EngineFailure, named if known."""
        words = [*flags, "restore", "--bundle", str(bundle), "--image-path", str(images), "--detach", box]
        failure = "gVisor could not go on with the memory of the sandbox"
        try:
            await self._call(words, bundle, failure, within, limit_s=_IMAGE_LIMIT_S)
        except EngineFailure as error:
            for words_of_it, reason in MISFITS.items():
                if words_of_it in error.internal:
                    raise EngineFailure(f"{failure}: {reason}", internal=error.internal) from error
            raise

    async def execute(self, box: str, bundle: Path, capability: str, *argv: str) -> None:
        """Run a program inside as root, with one capability more than anything there has. Raises: EngineFailure."""
        words = ["exec", "-cap", capability, "-user", "0:0", "-cwd", "/", box, *argv]
        await self._call(words, bundle, "gVisor could not change the sandbox")

    async def _tell(self, box: str, method: str) -> None:
        """One call of the sentry's control socket, which runsc itself would need 30 ms for."""
        path = self.state_dir / f"runsc-{box}.sock"
        try:
            async with asyncio.timeout(_CONTROL_LIMIT_S):
                reader, writer = await asyncio.open_unix_connection(str(path), limit=_MAX_REPLY_BYTES)
                try:
                    writer.write(json.dumps({"method": method, "arg": {}}).encode())
                    reply = await _object(reader)
                finally:
                    writer.close()
        except TimeoutError as error:
            raise EngineFailure("gVisor did not answer in time", internal=method) from error
        except (OSError, ValueError) as error:
            raise SandboxGone("the sandbox has ended", internal=f"{method}: {error!r}") from error
        if reply.get("success") is not True:
            raise EngineFailure("gVisor refused", internal=f"{method}: {str(reply)[:1000]}")


async def _object(reader: asyncio.StreamReader) -> dict[str, object]:
    """One JSON object, which ends where it is complete: nothing else follows. Raises: ValueError."""
    data = b""
    while len(data) < _MAX_REPLY_BYTES:
        more = await reader.read(_MAX_REPLY_BYTES - len(data))
        if not more:
            break
        data += more
        if data.rstrip().endswith(b"}"):
            try:
                reply: object = json.loads(data)
            except json.JSONDecodeError:
                continue
            if isinstance(reply, dict):
                return dict(reply)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    raise ValueError("no answer")


def _refusal(error: EngineFailure) -> CoveError:
    """What a failed checkpoint means."""
    text = error.internal
    if "no space left on device" in text or "disk quota exceeded" in text:
        return CapacityExceeded("the machine's disk is full", internal=text)
    for words, reason in REFUSALS.items():
        if words in text:
            return Unsupported(
                f"gVisor cannot keep the memory of this sandbox now: {reason}", field="memory", internal=text
            )
    return error
