"""`cove image`: what sandboxes are made from."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from cove.cli.failures import usage
from cove.cli.progress import Status, waiting
from cove.cli.session import Session
from cove.cli.terminal import clean, duration, put, say, size, table
from cove.cli.tree import complete_image, noun, verb

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from cove.sdk.image_events import ImageProgress
    from cove.sdk.models import Image

FIELDS: Final = ("name", "digest", "size_bytes", "status", "origin", "manifest_digest", "created_at")
DETAILS: Final = (*FIELDS, "config")
EVENTS: Final = ("event", "done_bytes", "total_bytes", "text", *DETAILS)
_BAR: Final = 24
_STAGES: Final = {"resolve": "asking the registry", "download": "downloading", "unpack": "unpacking", "run": ""}


def _wire(image: Image, fields: tuple[str, ...] = DETAILS) -> dict[str, Any]:
    return {name: getattr(image, name) for name in fields}


@verb("ls", fields=FIELDS)
def ls_command(session: Session) -> None:
    """List the images that sandboxes can be made from."""
    images = session.client.images()
    for one in images:
        session.emit(_wire(one, FIELDS))
    if session.json:
        return
    rows = [
        (one.name, one.origin, one.status, size(one.size_bytes), one.digest[:12] or "-", _age(one.created_at))
        for one in images
    ]
    put(table(("NAME", "ORIGIN", "STATUS", "SIZE", "DIGEST", "AGE"), rows, lambda _column, _cell: None))


def _age(when: datetime | None) -> str:
    return duration((datetime.now(UTC) - when).total_seconds()) if when else "-"


@verb("inspect", fields=DETAILS)
@click.argument("image", shell_complete=complete_image)
def inspect_command(session: Session, *, image: str) -> None:
    """Show an image and how it runs: variables, directory, user, entrypoint, command."""
    found = session.client.image.get(image)
    session.emit(_wire(found))
    if session.json:
        return
    rows = [(name, _shown(name, value)) for name, value in _wire(found, FIELDS).items() if value is not None]
    rows += [(name, _shown(name, value)) for name, value in (found.config or {}).items() if value]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        put(f"{clean(name).ljust(width)}  {clean(value)}")


def _shown(name: str, value: Any) -> str:
    import shlex

    match value:
        case dict():
            pairs: list[tuple[object, object]] = list(value.items())  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
            return shlex.join(f"{key}={each}" for key, each in pairs)
        case list():
            words: list[object] = list(value)  # pyright: ignore[reportUnknownArgumentType]
            return shlex.join(map(str, words))
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S} UTC"
        case int() if name == "size_bytes":
            return f"{value} ({size(value)})"
        case _:
            return str(value)


@verb("pull", fields=EVENTS)
@click.argument("reference")
@click.option("-u", "--username", metavar="NAME", help="Log in to the registry as.")
@click.option("--password-stdin", is_flag=True, help="Read the password from stdin. Without a terminal's echo.")
@click.option("--token-stdin", is_flag=True, help="Read an identity token from stdin instead.")
def pull_command(
    session: Session, *, reference: str, username: str | None, password_stdin: bool, token_stdin: bool
) -> None:
    """Fetch an image from a registry, and print its full name.

    cove image pull alpine:3.20 · cove image pull ghcr.io/me/tool -u me --password-stdin <password

    A login is for this pull only: nothing keeps it. There is no option for the password itself, because everybody on
    the machine can read a command line.
    """
    if password_stdin and token_stdin:
        raise usage("--password-stdin and --token-stdin: one of them")
    if (username is None) == password_stdin:
        raise usage("-u NAME and --password-stdin belong together")
    secret = _secret() if password_stdin or token_stdin else None
    _make(
        session,
        f"Pulling {clean(reference)}",
        lambda watch: session.client.image.pull(
            reference,
            username=username,
            password=secret if password_stdin else None,
            token=secret if token_stdin else None,
            on_progress=watch,
        ),
    )


def _secret() -> str:
    """Read the one line of a secret, unseen where somebody types it. Raises: Failure."""
    if sys.stdin.isatty():
        import getpass

        text = getpass.getpass("Password or token: ", stream=sys.stderr)
    else:
        text = sys.stdin.readline(65536).rstrip("\r\n")
    if not text:
        raise usage("stdin has no password")
    return text


@verb("build", fields=EVENTS)
@click.argument("source", type=click.Path())
@click.option("-t", "--tag", "name", metavar="NAME", required=True, help="What it is called: tools, tools:v2.")
@click.option("-f", "--file", metavar="FILE", help="The Dockerfile or recipe. Default: SOURCE/Dockerfile.")
@click.option("--context", metavar="DIR", help="With a recipe as SOURCE: a directory that the build finds in /context.")
@click.option("--build-arg", "args", multiple=True, metavar="NAME=VALUE", help="For ARG in a Dockerfile.")
@click.option("--target", metavar="STAGE", help="Stop at this stage of a Dockerfile.")
@click.option("--driver", metavar="NAME", help="The isolation driver of the build. Default: the project's.")
@click.option("--cpus", type=float, metavar="N", help="Processor cores of the build. Default: 1.")
@click.option("--memory", metavar="SIZE", help="Memory limit of the build. Default: 1g.")
@click.option("--disk", metavar="SIZE", help="Limit of what the build writes. Default: 10g.")
@click.option("--timeout", metavar="TIME", help="End the build after so long. Default: 30m.")
def build_command(session: Session, *, source: str, **options: Any) -> None:
    """Build an image in a sandbox, and print its full name.

    cove image build -t tools recipe.toml · cove image build -t app -f Dockerfile .

    SOURCE is a recipe (.toml or .json), or a directory with a Dockerfile and what it copies. The output of the build is
    talk, on stderr. .dockerignore in the directory is honoured.
    """
    from cove.cli.options import pairs

    name, file, context = options.pop("name"), options.pop("file"), options.pop("context")
    order: dict[str, Any] = {**options, "args": pairs(options["args"], "--build-arg")}
    if source.endswith((".toml", ".json")):
        if file is not None:
            raise usage("SOURCE is a recipe: --file would be another", "cove image build -t NAME RECIPE.toml")
        order |= {"recipe": _recipe(source)} if context is None else {"context": context, "file": source}
    elif context is not None:
        raise usage("--context goes with a recipe; a directory is its own context")
    elif not os.path.isdir(source):  # noqa: PTH112 - pathlib costs 4 ms
        raise usage(f"{source} is neither a directory nor a recipe (.toml, .json)", "cove image build -t NAME .")
    else:
        order |= {"context": source, "file": file}
    _make(
        session,
        f"Building {clean(name)}",
        lambda watch: session.client.image.build(name, on_progress=watch, **order),
    )


def _recipe(path: str) -> Mapping[str, Any]:
    """Read a recipe. Raises: Failure, OSError."""
    import json
    import tomllib

    with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs 4 ms
        try:
            found: Any = tomllib.load(file) if path.endswith(".toml") else json.load(file)
        except ValueError as error:
            raise usage(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise usage(f"{path}: a recipe is a table")
    return found  # pyright: ignore[reportUnknownVariableType]


@verb("import", fields=EVENTS)
@click.argument("archive", type=click.Path())
@click.option("-t", "--tag", "name", metavar="NAME", required=True, help="What it is called: tools, tools:v2.")
def import_command(session: Session, *, archive: str, name: str) -> None:
    """Make an image of an archive, and print its full name.

    docker save app | cove image import -t app - · cove image import -t app app.tar

    An archive of `docker save`, an OCI archive, or a tar of a file system, each also packed by gzip or zstd. `-` is
    stdin.
    """
    with _opened(archive) as file:
        _make(
            session,
            f"Importing {clean(archive)}",
            lambda watch: session.client.image.import_(name, file, on_progress=watch),
        )


@contextmanager
def _opened(path: str) -> Generator[str | BinaryIO]:
    """Yield what the SDK reads: a path, whose size it can tell the server, or stdin."""
    if path == "-" and sys.stdin.isatty():
        raise usage("stdin is a terminal", "cove image import -t NAME FILE")
    yield sys.stdin.buffer if path == "-" else path


@verb("export", fields=("name", "bytes"))
@click.argument("image", shell_complete=complete_image)
@click.argument("archive", type=click.Path())
def export_command(session: Session, *, image: str, archive: str) -> None:
    """Write an image to an OCI archive.

    cove image export tools tools.tar · cove image export tools - | podman load

    `-` is stdout.
    """
    if archive == "-" and sys.stdout.isatty():
        raise usage("stdout is a terminal", "cove image export NAME FILE")
    begin = time.monotonic()
    with waiting(f"Exporting {clean(image)}", quiet=session.quiet or session.json):
        count = session.client.image.export(image, sys.stdout.buffer if archive == "-" else archive)
    if archive != "-":
        session.emit({"name": image, "bytes": count})
    session.talk(f"Exported {clean(image)}, {size(count)}, in {_took(begin)}.")


@verb("verify", fields=DETAILS)
@click.argument("image", shell_complete=complete_image)
def verify_command(session: Session, *, image: str) -> None:
    """Measure an image's files again, and compare with its digest."""
    begin = time.monotonic()
    with waiting(f"Measuring {clean(image)}", quiet=session.quiet or session.json):
        found = session.client.image.verify(image)
    session.emit(_wire(found), clean(found.digest))
    session.talk(f"{clean(found.name)} is what it was: {size(found.size_bytes)} measured in {_took(begin)}.")


@verb("rm", fields=("name",))
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…", shell_complete=complete_image)
def rm_command(session: Session, *, images: tuple[str, ...]) -> None:
    """Remove images. Refused while sandboxes run on one."""
    for image in images:
        session.client.image.remove(image)
        session.emit({"name": image})
        session.talk(f"Removed {clean(image)}.")


def _make(session: Session, what: str, work: Callable[[Callable[[ImageProgress], None]], Image]) -> None:
    """Do what makes an image: its progress on the way, its name at the end."""
    begin = time.monotonic()
    with waiting(what, quiet=session.quiet or session.json) as status:
        made = work(_watcher(session, status))
    session.emit({"event": "done", **_wire(made)}, clean(made.name))
    verb_, _, _ = what.partition(" ")
    session.talk(
        f"{_DONE[verb_]} {clean(made.name)}, {size(made.size_bytes)}, in {_took(begin)}. "
        f"Use it: cove run --image {clean(_short(made.name))} -- COMMAND"
    )


def _short(name: str) -> str:
    """As one types it: an image made here is found without its registry, and `latest` is what is meant anyway."""
    return name.removeprefix("localhost/").removesuffix(":latest")


_DONE: Final = {"Pulling": "Pulled", "Building": "Built", "Importing": "Imported"}


def _watcher(session: Session, status: Status) -> Callable[[ImageProgress], None]:
    def watch(progress: ImageProgress) -> None:
        if session.json:
            session.emit({"event": progress.stage, **{name: getattr(progress, name) for name in EVENTS[1:4]}})
            return
        status.how_far = _how_far(progress)
        if progress.text and not session.quiet:
            text = clean(progress.text)
            status.above(text) if sys.stderr.isatty() else say(text)

    return watch


def _how_far(progress: ImageProgress) -> str:
    stage = _STAGES.get(progress.stage, progress.stage)
    done, total = progress.done_bytes, progress.total_bytes
    if total <= 0:
        return f"{stage} {size(done)}".strip() if done else stage
    share = min(done / total, 1.0)
    bar = ("#" * round(share * _BAR)).ljust(_BAR, ".")
    return f"{stage} [{bar}] {size(done)} of {size(total)}"


def _took(begin: float) -> str:
    seconds = time.monotonic() - begin
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)  # noqa: PLR2004 - a minute


image_command = noun(
    "image",
    "Images: what sandboxes are made from.",
    ls_command,
    inspect_command,
    pull_command,
    build_command,
    import_command,
    export_command,
    verify_command,
    rm_command,
)
