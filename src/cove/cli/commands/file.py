"""`cove file`: what is in a sandbox's directories, without a command in it.

Names and lines come from a sandbox: they are cleaned before they are printed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from cove.cli.failures import usage
from cove.cli.session import Session
from cove.cli.terminal import clean, put, size
from cove.cli.tree import complete_box, noun, verb

if TYPE_CHECKING:
    from cove.sdk.files import Files
    from cove.sdk.models import FileInfo

ENTRY: Final = ("path", "name", "kind", "size", "mode", "uid", "gid", "mtime", "target")
MATCH: Final = ("path", "line", "column", "length", "text", "cut")
REPLACED: Final = ("files", "replacements", "searched", "binary", "too_large", "unreadable", "stopped")
USAGE: Final = (*("bytes", "allocated_bytes", "files", "directories", "symlinks", "others", "unreadable", "stopped"),)
_LETTERS: Final = {"file": "-", "directory": "d", "symlink": "l"}


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(f"{name}:/") for name in complete_box(ctx, param, incomplete)]


def _place(session: Session, where: str) -> tuple[Files, str]:
    """Return the files and the path that BOX:/PATH stands for."""
    box, colon, path = where.partition(":")
    if not colon or not path.startswith("/"):
        raise usage(f"{clean(where)} names no place in a sandbox: write BOX:/path", "cove file ls otter:/w")
    return session.on_box(box, session.client.get).files, path


def _where() -> Callable[[Any], Any]:
    return click.argument("where", metavar="BOX:/PATH", shell_complete=_complete)


def _globs(function: Any) -> Any:
    for option in (
        click.option("-g", "--glob", multiple=True, metavar="GLOB", help="Only these; *.py, src/**/*.{js,ts}."),
        click.option("-x", "--exclude", multiple=True, metavar="GLOB", help="Not these, and nothing in them."),
        click.option("-d", "--depth", type=click.IntRange(0, 1024), default=0, help="Levels below; 0: all."),
    ):
        function = option(function)
    return function


def _print_entry(session: Session, info: FileInfo, *, long: bool) -> None:
    if session.json:
        session.emit({name: getattr(info, name) for name in ENTRY} | {"mode": f"{info.mode:04o}"})
        return
    shown = clean(info.path)
    if long:
        when = f"{info.mtime:%Y-%m-%d %H:%M}" if info.mtime else "-"
        to = f" -> {clean(info.target)}" if info.target is not None else ""
        owner = f"{info.uid}:{info.gid}"
        shown = f"{_LETTERS.get(info.kind, '?')}{info.mode:04o} {owner:>11} {size(info.size):>6} {when} {shown}{to}"
    put(shown)


@verb("ls", fields=ENTRY)
@_where()
def ls_command(session: Session, *, where: str) -> None:
    """List a directory, or show a file.

    cove file ls otter:/w
    """
    files, path = _place(session, where)
    info = files.stat(path)
    for each in files.list(path) if info.kind == "directory" else (info,):
        _print_entry(session, each, long=True)


@verb("find", fields=ENTRY)
@_where()
@_globs
@click.option(
    "-k", "--kind", multiple=True, type=click.Choice(("file", "directory", "symlink", "other")), help="Only this kind."
)
@click.option("-n", "--limit", type=click.IntRange(0), default=0, help="Stop after so many; 0: none.")
@click.option("-l", "--long", is_flag=True, help="With mode, owner, size and time.")
def find_command(session: Session, *, where: str, limit: int, long: bool, **walk: Any) -> None:
    """List all that is below a directory.

    cove file find otter:/w -g '*.py' -x node_modules
    """
    files, path = _place(session, where)
    for info in files.find(path, limit=limit, **walk):
        _print_entry(session, info, long=long)


@verb("search", fields=MATCH)
@click.argument("pattern")
@_where()
@_globs
@click.option("-F", "--literal", is_flag=True, help="PATTERN is text, no regular expression.")
@click.option("-i", "--ignore-case", is_flag=True, help="Take upper and lower case for the same.")
@click.option("-n", "--limit", type=click.IntRange(0), default=1000, help="Stop after so many; 0: none.")
def search_command(session: Session, *, pattern: str, where: str, **how: Any) -> None:
    """Print the lines of files that match a regular expression.

    cove file search 'def [a-z]+' otter:/w -g '*.py'
    """
    files, path = _place(session, where)
    for match in files.search(path, pattern, **how):
        session.emit(
            {name: getattr(match, name) for name in MATCH},
            f"{clean(match.path)}:{match.line}:{clean(match.text)}",
        )


@verb("replace", fields=REPLACED)
@click.argument("pattern")
@click.argument("replacement")
@_where()
@_globs
@click.option("-F", "--literal", is_flag=True, help="PATTERN and REPLACEMENT are text; it may span lines.")
@click.option("-i", "--ignore-case", is_flag=True, help="Take upper and lower case for the same.")
@click.option("-n", "--limit", type=click.IntRange(1, 10_000), default=1000, help="Stop after so many files.")
@click.option("--dry-run", is_flag=True, help="Say what would be, and change nothing.")
def replace_command(session: Session, *, pattern: str, replacement: str, where: str, **how: Any) -> None:
    """Replace what matches, in a file or in all below a directory.

    cove file replace 'v([0-9]+)' 'version $1' otter:/w -g '*.md' --dry-run
    """
    files, path = _place(session, where)
    done = files.replace(path, pattern, replacement, **how)
    if session.json:
        session.emit({name: getattr(done, name) for name in REPLACED})
        return
    for each, count in done.files.items():
        put(f"{clean(each)}: {count}")
    would = "Would replace" if how["dry_run"] else "Replaced"
    more = "" if done.stopped is None else f" There is more: stopped by its {clean(done.stopped)}."
    session.talk(f"{would} {done.replacements} in {len(done.files)} of {done.searched} files.{more}")


@verb("usage", fields=USAGE)
@_where()
@click.option("-x", "--exclude", multiple=True, metavar="GLOB", help="Not these, and nothing in them.")
def usage_command(session: Session, *, where: str, exclude: tuple[str, ...]) -> None:
    """Add up what is below a directory.

    cove file usage otter:/w
    """
    files, path = _place(session, where)
    found = files.usage(path, exclude=exclude)
    session.emit(
        {name: getattr(found, name) for name in USAGE},
        f"{size(found.bytes)} in {found.files} files and {found.directories} directories, "
        f"{size(found.allocated_bytes)} on the disk",
    )


@verb("set", fields=ENTRY)
@_where()
@click.option("-m", "--mode", metavar="OCTAL", help="Permission bits, such as 0644.")
@click.option("--directory-mode", metavar="OCTAL", help="Those of directories, with -R.")
@click.option("-o", "--owner", default="", metavar="NAME", help="A user of the sandbox, or a number.")
@click.option("-g", "--group", default="", metavar="NAME", help="A group of the sandbox, or a number.")
@click.option("-R", "--recursive", is_flag=True, help="All below a directory, too.")
def set_command(session: Session, *, where: str, mode: str | None, directory_mode: str | None, **change: Any) -> None:
    """Change mode and owner.

    cove file set otter:/w -R -o app -m 0640 --directory-mode 0750
    """
    files, path = _place(session, where)
    info = files.set(path, mode=_octal(mode), directory_mode=_octal(directory_mode), **change)
    if session.json:
        _print_entry(session, info, long=False)


@verb("link", fields=ENTRY)
@_where()
@click.argument("target")
@click.option("--hard", is_flag=True, help="Another name of the file TARGET.")
@click.option("-f", "--overwrite", is_flag=True, help="Replace what is there.")
def link_command(session: Session, *, where: str, target: str, hard: bool, overwrite: bool) -> None:
    """Make a link to TARGET.

    cove file link otter:/w/current releases/7 -f
    """
    files, path = _place(session, where)
    info = files.link(path, target, hard=hard, overwrite=overwrite)
    if session.json:
        _print_entry(session, info, long=False)


def _octal(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(text, 8)
    except ValueError:
        raise usage(f"{text} is no mode in octal", "cove file set otter:/w/a -m 0644") from None


file_command = noun(
    "file",
    "Look at and change files in a sandbox. To copy them: cove cp.",
    *(ls_command, find_command, search_command, replace_command, usage_command, set_command, link_command),
)
