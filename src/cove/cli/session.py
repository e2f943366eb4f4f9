"""One run of the command line: which server, which sandbox is meant, and how the answer is printed.

References: an id, a name, a unique prefix of either, `-` for the last one used, `.` or nothing for the one that
`.cove.toml` names. The exact name is tried first, so a prefix costs its two further requests only where it is one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cove.cli.failures import NOT_FOUND, Failure, usage
from cove.cli.terminal import as_json, pick, put, say
from cove.sdk.errors import NotFound

if TYPE_CHECKING:
    from cove.sdk.client import Client
    from cove.sdk.models import SandboxInfo

T = TypeVar("T")
LAST: Final = "-"
HERE: Final = "."


class Session:
    """Options that every command has, and the connection, opened at its first use.

    Attributes:
        json: whether JSON was asked for; `fields` are the chosen ones, empty for all.
        quiet: no talk but errors.
    """

    def __init__(self, *, json: bool = False, fields: Sequence[str] = (), quiet: bool = False) -> None:
        self.json = json
        self.fields = tuple(fields)
        self.quiet = quiet
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The connection. Raises: BadRequest, Unauthorized (see `cove.Client`)."""
        if self._client is None:
            from cove.sdk.client import Client

            self._client = Client()
        return self._client

    def reconnect(self) -> None:
        """Forget the connection, after a server was started."""
        self._client = None

    # ---- printing

    def emit(self, value: Mapping[str, Any], text: str | None = None) -> None:
        """Print one object: its JSON line, or `text` where JSON was not asked for (None: nothing)."""
        if self.json:
            put(as_json(pick(value, self.fields)))
        elif text is not None:
            put(text)

    def talk(self, text: str) -> None:
        """Say a line on stderr unless `--quiet` or `--json`."""
        if not (self.quiet or self.json):
            say(text)

    # ---- which sandbox

    def meant(self, ref: str | None) -> str:
        """Return what `ref` stands for, without asking the server. Raises: Failure."""
        if ref == LAST:
            last = self._read_last()
            if not last:
                raise Failure("no sandbox was used yet", code="not-found", exit_code=NOT_FOUND, hint="cove ls")
            return last
        if ref is None or ref == HERE:
            box = self.client.target.box
            if box is None:
                raise usage("no sandbox is named, and no .cove.toml here names one", "cove ls")
            return box.value
        if not ref:
            raise usage("an empty name names no sandbox", "cove ls")
        return ref

    def on_box(self, ref: str | None, act: Callable[[str], T]) -> T:
        """Do `act` with the sandbox that `ref` stands for, and remember it as the last one used.

        `act` gets the reference as given first; only when nothing has that name is it taken as a prefix. So `act` must
        fail with NotFound before it does anything.
        """
        name = self.meant(ref)
        try:
            done = act(name)
        except NotFound as error:
            found = self.find_prefix(name)
            if found is None:
                raise self._unknown(name, error) from error
            name = found.id
            done = act(name)
        self.remember(name)
        return done

    def find_prefix(self, prefix: str) -> SandboxInfo | None:
        """Return the only live sandbox whose name or id begins with `prefix`, None if there is none.

        Raises: Failure when there are several.
        """
        found = [
            box.info
            for box in self.client.list(page_size=1000)
            if box.name.startswith(prefix) or box.id.startswith((prefix, f"sb_{prefix}"))
        ]
        if len(found) > 1:
            names = ", ".join(one.name for one in found[:5]) + (", …" if len(found) > 5 else "")  # noqa: PLR2004
            raise usage(f'"{prefix}" may be any of {names}', "cove ls")
        return found[0] if found else None

    def _unknown(self, name: str, error: NotFound) -> Failure:
        import difflib

        names = [box.name for box in self.client.list(page_size=1000)]
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?  cove ls" if near else "cove ls --all"
        return Failure(f'no sandbox "{name}"', code=error.code, exit_code=NOT_FOUND, hint=hint)

    # ---- the last one used

    def remember(self, ref: str) -> None:
        """Keep `ref` as what `-` means. A state directory that cannot be written is no failure."""
        path = self._last_path()
        if self._read_last() == ref:
            return
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120 - pathlib costs 4 ms
            with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123 - as above
                file.write(ref)
        except OSError:
            pass

    def _read_last(self) -> str:
        try:
            with open(self._last_path(), encoding="utf-8") as file:  # noqa: PTH123 - as above
                return file.read(256).strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def _last_path(self) -> str:
        address = self.client.target.address.value
        name = "".join(letter if letter.isalnum() else "_" for letter in address)
        return f"{state_dir()}/last-{name[-120:]}"


def state_dir() -> str:
    """Return the user's state directory for Cove (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_STATE_HOME")
    return f"{base or os.path.expanduser('~') + '/.local/state'}/cove"  # noqa: PTH111 - pathlib costs 4 ms
