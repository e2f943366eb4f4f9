"""A sandbox in which an image is built: runs steps, takes files in, gives its file system out.

All that runs here is a stranger's. The sandbox has no network, its limits and its driver are those of any sandbox, and
what it gives out is a tar made inside, to be unpacked confined (`engine/images/unpack.py`). It needs `sh` and `tar` in
the image; both GNU's and busybox' will do.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Final

from msgspec import Struct

from cove.core.execs import Execs
from cove.core.files import Files
from cove.core.following import Voice
from cove.core.sandboxes import Sandboxes
from cove.model.access import Principal
from cove.model.build import BuildOrder
from cove.model.errors import BadRequest, CapacityExceeded, TooLarge
from cove.model.execs import Chunk, Ended, ExecExit, ExecSpec, Stream, Why
from cove.model.image import ImageEvent, ImageStage
from cove.model.sandbox import IdleAction, SandboxSpec

CONTEXT: Final = "/context"
"""Where the uploaded files are while steps run. Not part of the image."""

SCRATCH: Final = "/.cove-build"
BUILD_LABEL: Final = "cove.build"
"""Metadata of a build's sandboxes: the name of the image."""

_RESERVE: Final = 512 * 1024**2
_ROOT: Final = "0"
_GRACE_S: Final = 300.0
_PIECE_BYTES: Final = 256 * 1024
_LINE_CHARS: Final = 2000
_TAIL_CHARS: Final = 300
_GZIP: Final = b"\x1f\x8b"

_SAVE: Final = f"""
rm -rf {CONTEXT} {SCRATCH} || exit
kill -9 -1 2>/dev/null
cd / || exit
if tar --version 2>/dev/null | grep -q GNU; then
    exec tar -cf - --one-file-system --numeric-owner --anchored --exclude=./.agent --exclude=./run/agent .
fi
set --
for entry in * .[!.]* ..?*; do
    case $entry in proc | sys | dev | .agent) continue ;; esac
    if [ -e "$entry" ] || [ -L "$entry" ]; then set -- "$@" "./$entry"; fi
done
exec tar -cf - "$@"
"""
"""What still runs is ended first, so that nothing changes while it is read."""

_COPY: Final = f"""
set -eu
from=$1 target=$2 owner=$3 mode=$4 unpack=$5
shift 5
stage={SCRATCH}/copy
rm -rf "$stage"
mkdir -p "$stage"
cd "$from"
IFS=
files=0 folder=
for pattern in "$@"; do
    found=
    for source in $pattern; do
        [ -e "$source" ] || continue
        found=1
        if [ -d "$source" ]; then
            cp -a "$source/." "$stage/"
            folder=1
        elif [ -n "$unpack" ] && tar -tf "$source" >/dev/null 2>&1; then
            tar -xf "$source" -C "$stage"
            folder=1
        else
            name=${{source##*/}}
            cp -pL "$source" "$stage/$name"
            files=$((files + 1))
        fi
    done
    if [ -z "$found" ]; then
        echo "no such file: $pattern" >&2
        exit 44
    fi
done
chown -hR "$owner" "$stage"
[ -z "$mode" ] || chmod -R "$mode" "$stage"
if [ -z "$folder" ] && [ "$files" = 1 ] && [ "${{target%/}}" = "$target" ] && [ ! -d "$target" ]; then
    mkdir -p "${{target%/*}}/"
    cp -a "$stage/$name" "$target"
else
    mkdir -p "$target"
    for entry in "$stage"/* "$stage"/.[!.]* "$stage"/..?*; do
        if [ -e "$entry" ] || [ -L "$entry" ]; then cp -a "$entry" "$target/"; fi
    done
fi
rm -rf "$stage"
"""

_GIVE: Final = """
cd / || exit
IFS=
for pattern in "$@"; do
    shift
    found=
    for source in $pattern; do
        if [ -e "$source" ]; then set -- "$@" "$source"; found=1; fi
    done
    if [ -z "$found" ]; then
        echo "no such file: $pattern" >&2
        exit 44
    fi
done
exec tar -cf - "$@"
"""


class Tools(Struct, frozen=True, kw_only=True):
    """The parts of the core that a build works with."""

    sandboxes: Sandboxes
    execs: Execs
    files: Files


class Step(Struct, frozen=True, kw_only=True):
    """A command of a build. `shown` is how an error and a person name it."""

    argv: tuple[str, ...]
    shown: str
    env: dict[str, str]
    cwd: str | None = None
    user: str | None = None


class Copy(Struct, frozen=True, kw_only=True):
    """Files to put in place. `sources` are patterns below `origin`; `unpack`: archives are (ADD)."""

    sources: tuple[str, ...]
    target: str
    shown: str
    origin: str = CONTEXT
    owner: str = "0:0"
    mode: str = ""
    unpack: bool = False


class Workbench:
    """One sandbox of a build. Made by `workbench` only."""

    def __init__(self, tools: Tools, who: Principal, sandbox_id: str, voice: Voice) -> None:
        self._tools = tools
        self._who = who
        self._id = sandbox_id
        self._voice = voice

    async def run(self, step: Step) -> None:
        """Run a step to its end and say its output, line by line. Raises: BadRequest (it failed), SandboxError."""
        spec = ExecSpec(argv=step.argv, env=step.env, cwd=step.cwd, user=step.user or _ROOT)
        lines = _Lines()
        exit_: ExecExit | None = None
        async with self._tools.execs.stream(self._who, self._id, spec) as events:
            async for event in events:
                if isinstance(event, Chunk):
                    for line in lines.feed(event.data):
                        await self._voice.say(ImageEvent(stage=ImageStage.RUN, text=line))
                elif isinstance(event, Ended):
                    exit_ = event.exit
        for line in lines.rest():
            await self._voice.say(ImageEvent(stage=ImageStage.RUN, text=line))
        _must_succeed(exit_, step.shown, lines.last)

    async def copy(self, copy: Copy) -> None:
        """Put files in place. Raises: BadRequest (there are none, or it failed)."""
        unpack = "1" if copy.unpack else ""
        facts = (copy.origin, copy.target, copy.owner, copy.mode, unpack, *copy.sources)
        await self.run(Step(argv=("/bin/sh", "-c", _COPY, "copy", *facts), shown=copy.shown, env={}, cwd="/"))

    async def make_folder(self, path: str, shown: str) -> None:
        """Make a directory, with those above it."""
        await self.run(Step(argv=("/bin/sh", "-c", 'mkdir -p "$1"', "mkdir", path), shown=shown, env={}, cwd="/"))

    async def write(self, path: str, text: str) -> None:
        """Write a text file, with the directories above it. Raises: BadRequest, FileError."""

        async def once() -> AsyncIterator[bytes]:
            yield text.encode()

        await self._tools.files.write(self._who, self._id, path, once(), parents=True)

    async def put(self, archive: Path, target: str) -> None:
        """Unpack a tar file of ours into a new directory of the sandbox. Raises: BadRequest (it does not unpack)."""
        await self.make_folder(target, "preparing the files")
        with archive.open("rb") as file:
            packed = "z" if file.read(2) == _GZIP else ""
        who, execs = self._who, self._tools.execs
        spec = ExecSpec(argv=("tar", f"-xo{packed}f", "-", "-C", target), user=_ROOT, cwd="/")
        command = await execs.start(who, self._id, spec, stdin_open=True)
        try:
            await execs.stdin(who, self._id, command.id, _pieces(archive), close=True)
            ended = await execs.wait(who, self._id, command.id)
            _must_succeed(ended.exit, "unpacking the uploaded files", "")
        finally:
            await execs.remove(who, self._id, command.id)

    async def give(self, sources: tuple[str, ...], archive: Path, shown: str, *, most_bytes: int) -> None:
        """Pack files of the sandbox (patterns below its root) into a new tar file. Raises: BadRequest, TooLarge."""
        await self._take(("/bin/sh", "-c", _GIVE, "give", *sources), archive, shown, most_bytes)

    async def save(self, archive: Path, *, most_bytes: int) -> None:
        """Pack the whole file system into a new tar file, without what is Cove's. Ends all that runs in the sandbox."""
        await self._take(("/bin/sh", "-c", _SAVE), archive, "saving the file system", most_bytes)

    async def _take(self, argv: tuple[str, ...], archive: Path, shown: str, most_bytes: int) -> None:
        """A command's output into a file. The sandbox decides what it is: it is bounded, and a tar only by claim."""
        spec = ExecSpec(argv=argv, user=_ROOT, cwd="/", env={"LC_ALL": "C"})
        lines = _Lines()
        exit_: ExecExit | None = None
        size = 0
        with archive.open("xb") as file:
            async with self._tools.execs.stream(self._who, self._id, spec) as events:
                async for event in events:
                    if isinstance(event, Chunk) and event.stream is Stream.STDOUT:
                        size += len(event.data)
                        if size > most_bytes:
                            raise TooLarge(f"{shown}: more than {most_bytes >> 20} MiB", field="disk_mib")
                        await asyncio.to_thread(_append, file, event.data)
                    elif isinstance(event, Chunk):
                        lines.feed(event.data)
                    elif isinstance(event, Ended):
                        exit_ = event.exit
        _must_succeed(exit_, shown, lines.last)


def _append(file: IO[bytes], data: bytes) -> None:
    """Write, unless that leaves too little of the disk for everybody else. Raises: CapacityExceeded."""
    if shutil.disk_usage(file.name).free < _RESERVE:
        raise CapacityExceeded("the disk is full: the image cannot be saved", retry_after_s=60)
    file.write(data)


@asynccontextmanager
async def workbench(
    tools: Tools, who: Principal, order: BuildOrder, image: str, voice: Voice
) -> AsyncGenerator[Workbench]:
    """A sandbox for a build; leaving ends it. A server that dies leaves it to its own end, `timeout_s` and 5 min later.

    Raises: as creating any sandbox.
    """
    spec = SandboxSpec(
        image=image,
        driver=order.driver,
        limits=order.limits,
        metadata={BUILD_LABEL: order.name},
        timeout_s=order.timeout_s + _GRACE_S,
        idle_timeout_s=None,
        idle_action=IdleAction.NONE,
    )
    sandbox = await tools.sandboxes.create(who, spec)
    try:
        yield Workbench(tools, who, sandbox.id, voice)
    finally:
        await asyncio.shield(tools.sandboxes.destroy(who, sandbox.id))


class _Lines:
    """Output as lines, each cut to what a line may have; of a line that was written over, the last state."""

    def __init__(self) -> None:
        self._rest = b""
        self.last = ""

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-4 * _LINE_CHARS :]
        return [self._shown(line) for line in whole]

    def rest(self) -> list[str]:
        """What came after the last line's end."""
        return [self._shown(self._rest)] if self._rest else []

    def _shown(self, line: bytes) -> str:
        text = line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")[:_LINE_CHARS]
        self.last = text if text.strip() else self.last
        return text


def _must_succeed(exit_: ExecExit | None, shown: str, last: str) -> None:
    """Raises: BadRequest, with the last line of output."""
    if exit_ is not None and exit_.code == 0:
        return
    match exit_.why if exit_ is not None else Why.SANDBOX_GONE:
        case Why.OUT_OF_MEMORY:
            how = "it ran out of memory"
        case Why.SANDBOX_GONE:
            how = "the sandbox ended"
        case _:
            how = f"it ended with exit code {exit_.code if exit_ else '?'}"
    said = "".join(letter if letter.isprintable() else " " for letter in last[:_TAIL_CHARS])
    raise BadRequest(f"{shown}: {how}" + (f": {said}" if said.strip() else ""), field="steps")


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
            yield piece
