"""`cove cp`: files and directories, in and out.

What comes out of a sandbox is hostile: its names are checked, its links are not followed, and a directory's content is
written below the target only (`sdk/tars.py`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import CompletionItem

from cove.cli.failures import FAILED, NOT_FOUND, REFUSED, Failure, PipeClosed, usage
from cove.cli.progress import waiting
from cove.cli.session import Session
from cove.cli.terminal import clean, size
from cove.cli.tree import complete_box, verb
from cove.sdk.errors import FileMissing

if TYPE_CHECKING:
    from cove.sdk.files import Files
    from cove.sdk.models import FileInfo
    from cove.sdk.tree_models import TreeCopy

PIECE_BYTES: Final = 256 * 1024
_INSIDE: Final = re.compile(r"([^/:]+):(.*)", re.DOTALL)


@dataclass
class Count:
    """What was copied, and what was left out: links that lead out of a directory, and special files."""

    files: int = 0
    bytes: int = 0
    skipped: int = 0

    def add(self, tree: TreeCopy) -> None:
        """Count a directory that was copied."""
        self.files += tree.files
        self.bytes += tree.bytes
        self.skipped += tree.skipped


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    if "/" in incomplete or ":" in incomplete:
        return [CompletionItem(incomplete, type="file")]
    return [CompletionItem(f"{name}:/") for name in complete_box(ctx, param, incomplete)]


@verb("cp", fields=("files", "bytes", "skipped"))
@click.argument("source", shell_complete=_complete)
@click.argument("target", shell_complete=_complete)
@click.option("-r", "--recursive", is_flag=True, help="Nothing: directories are always copied with all in them.")
def cp_command(session: Session, *, source: str, target: str, recursive: bool) -> None:
    """Copy files and directories, in and out.

    cove cp a.py otter:/w/ · cove cp otter:/w/out . · cove cp otter:/etc/os-release -

    BOX:/PATH is in a sandbox, `-` is stdin or stdout. A directory is copied with all that is in it, as one stream;
    links that lead out of it and special files are left out. A target that is a directory, or ends in /, gets the
    source's name in it. Files keep their mode and time.
    """
    del recursive  # what other tools want said
    come, go = _INSIDE.fullmatch(source), _INSIDE.fullmatch(target)
    count = Count()
    with waiting(f"Copying {clean(source)}", quiet=session.quiet or session.json):
        match come, go:
            case None, re.Match():
                _in(files_of(session, go[1]), source, go[2], count)
            case re.Match(), None:
                _out(files_of(session, come[1]), come[2], target, count)
            case re.Match(), re.Match():
                _across(files_of(session, come[1]), come[2], (files_of(session, go[1]), go[2]), count)
            case _:
                raise usage("neither side is in a sandbox: write BOX:/path", "cove cp a.txt otter:/w/")
    session.emit({"files": count.files, "bytes": count.bytes, "skipped": count.skipped})
    if target != "-":
        left = f" Left out: {count.skipped} outward links or special files." if count.skipped else ""
        session.talk(f"Copied {count.files} file{'' if count.files == 1 else 's'}, {size(count.bytes)}.{left}")


def files_of(session: Session, box: str) -> Files:
    """Return the files of the sandbox that `box` stands for."""
    return session.on_box(box, session.client.get).files


# ---- in


def _in(files: Files, source: str, path: str, count: Count) -> None:
    if source == "-":
        pieces = _counted(_stdin(), count)
        if path.endswith("/"):
            raise usage("stdin has no name: write the file's whole path", f"cove cp - BOX:{path}NAME")
        files.write(path, pieces)
        count.files += 1
        return
    local = Path(source)
    facts = local.stat()
    where = _inside_target(files, path, local.resolve().name)
    if local.is_dir():
        count.add(files.upload_dir(local, where))
    elif local.is_file():
        files.put(local, where)
        count.files += 1
        count.bytes += facts.st_size
    else:
        raise usage(f"{source} is neither a file nor a directory", "cove cp - BOX:/path <PIPE")


def _stdin() -> Iterator[bytes]:
    fd = sys.stdin.fileno()
    while piece := os.read(fd, PIECE_BYTES):
        yield piece


def _inside_target(files: Files, path: str, name: str) -> str:
    if path.endswith("/"):
        return path + name
    try:
        info = files.stat(path)
    except FileMissing:
        return path
    return f"{path}/{name}" if info.kind == "directory" else path


# ---- out


def _out(files: Files, path: str, target: str, count: Count) -> None:
    if target == "-":
        _to_stdout(files, path, count)
        return
    info = _followed(files, path)
    local = Path(target)
    if target.endswith("/") or local.is_dir():
        name = path.rstrip("/").rpartition("/")[2]
        local.mkdir(parents=True, exist_ok=True)
        local = local / _checked(name) if name else local
    if info.kind == "directory":
        if local.is_symlink():
            raise Failure(f"{local} is a link: its target is left alone", code="local-file", exit_code=REFUSED)
        count.add(files.download_dir(info.path, local))
    else:
        _file_out(files, info, local, count)


def _to_stdout(files: Files, path: str, count: Count) -> None:
    with files.stream(path) as pieces:
        try:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
                count.bytes += len(piece)
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise PipeClosed from error
    count.files += 1


def _followed(files: Files, path: str) -> FileInfo:
    """Stat the path that the caller named; a link there is followed, within the sandbox, as `cp` does."""
    info = files.stat(path)
    for _ in range(40):  # path_resolution(7): the kernel's own limit
        if info.kind != "symlink" or not info.target:
            return info
        below = info.path.rpartition("/")[0]
        info = files.stat(os.path.normpath(info.target if info.target.startswith("/") else f"{below}/{info.target}"))
    raise Failure(f"{clean(path)}: too many links", code="file-error", exit_code=REFUSED)


def _file_out(files: Files, info: FileInfo, local: Path, count: Count) -> None:
    if info.kind != "file":
        raise Failure(f"{clean(info.path)} is no file", code="file-error", exit_code=REFUSED)
    if local.is_dir():
        raise Failure(f"{local} is a directory", code="local-file", exit_code=REFUSED, hint=f"rm -r {local}")
    if not local.parent.is_dir():
        raise Failure(
            f"{local.parent} is not there", code="local-file", exit_code=NOT_FOUND, hint=f"mkdir -p {local.parent}"
        )
    count.bytes += files.get(info.path, local)
    local.chmod(info.mode & 0o777)
    count.files += 1


def _checked(name: str) -> str:
    if not name or "/" in name or "\0" in name or name in {".", ".."}:
        raise Failure(f"the sandbox named a file {clean(name)!r}", code="bad-answer", exit_code=FAILED)
    return name


# ---- from one sandbox to another


def _across(files: Files, path: str, to: tuple[Files, str], count: Count) -> None:
    info = _followed(files, path)
    target, where = to
    if info.kind == "directory":
        inside = _inside_target(target, where, _checked(info.path.rstrip("/").rpartition("/")[2]))
        with files.archive(info.path) as pieces:
            # Links may lead anywhere: the one sandbox means by them what the other did, and none is followed here.
            count.files += target.unpack(inside, _counted(pieces, count), any_links=True)
        return
    if info.kind != "file":
        raise Failure(f"{clean(info.path)} is no file", code="file-error", exit_code=REFUSED)
    with files.stream(info.path) as pieces:
        inside = _inside_target(target, where, _checked(path.rpartition("/")[2]))
        target.write(inside, _counted(pieces, count), mode=info.mode & 0o777)
    count.files += 1


def _counted(pieces: Iterator[bytes], count: Count) -> Iterator[bytes]:
    for piece in pieces:
        count.bytes += len(piece)
        yield piece
