"""Where this machine gets Debian from, read from its own apt configuration. Decides nothing about versions.

Cove never names a mirror: it uses the one the machine already trusts, over the transport, proxy and login the machine
already uses, or the one in COVE_DEBIAN_MIRROR. On Ubuntu the machine's mirror carries no Debian, so there the setting
is required (its signatures are checked with the keyring of the package debian-archive-keyring).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from cove.server.setup.commands import Command, Runner
from cove.server.setup.settings import SetupFailed

OS_RELEASE: Final = Path("/etc/os-release")
ARCHIVE_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
KNOWN_SUITES: Final = ("bookworm", "trixie")
MIRROR_HELP: Final = "set COVE_DEBIAN_MIRROR to the URL of a Debian mirror, the directory that holds dists/ and pool/"

_FIELDS: Final = ("REPO_URI", "RELEASE", "CODENAME", "ORIGIN", "SOURCESENTRY")
_FORMAT: Final = "\t".join(f"$({name})" for name in _FIELDS)


class Target(Struct, frozen=True, kw_only=True):
    """One suite of the machine's apt configuration. `codename` and `origin` are empty until its lists were fetched."""

    uri: str
    release: str
    codename: str
    origin: str
    entry: str


class Mirror(Struct, frozen=True, kw_only=True):
    """A Debian archive: `uri` without trailing slash, `suite` the stable one to use, `signed_by` None: apt's own keys.

    `security_uri` is where the machine gets its security updates from; None: it has none, or the mirror is a setting.
    """

    uri: str
    suite: str
    signed_by: str | None
    has_updates: bool = False
    security_uri: str | None = None
    security_signed_by: str | None = None


def os_release(text: str) -> dict[str, str]:
    """The fields of an os-release file (os-release(5))."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}


def find_mirror(runner: Runner, setting: str) -> Mirror:
    """The Debian archive to use. Raises: SetupFailed when the machine has none and the setting is empty."""
    release = os_release(OS_RELEASE.read_text(encoding="utf-8"))
    if setting:
        return mirror_from_setting(setting, release)
    command = Command(
        argv=["apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages"],
        what="apt-get indextargets",
        cure="repair the machine's apt configuration: apt-get update shows what is wrong with it",
        timeout_s=60,
    )
    return mirror_from_targets(parse_targets(runner.run(command)), release)


def mirror_from_setting(setting: str, release: Mapping[str, str]) -> Mirror:
    """The archive that the operator named. Raises: SetupFailed when it is no URL apt could use."""
    if not re.fullmatch(r"((tor\+)?https?://[^\s\[\]/]|(mirror\+)?file:/)[^\s\[\]]*", setting):
        raise SetupFailed(
            f"COVE_DEBIAN_MIRROR is {redacted(setting)!r}, which is no URL that apt can use", cure=MIRROR_HELP
        )
    if not ARCHIVE_KEYRING.exists():
        raise SetupFailed(f"{ARCHIVE_KEYRING} is missing", cure="apt-get install debian-archive-keyring")
    codename = release.get("VERSION_CODENAME", "")
    suite = codename if release.get("ID") == "debian" and codename in KNOWN_SUITES else KNOWN_SUITES[0]
    return Mirror(uri=setting.rstrip("/"), suite=suite, signed_by=str(ARCHIVE_KEYRING))


def mirror_from_targets(targets: Iterable[Target], release: Mapping[str, str]) -> Mirror:
    """The archive among the machine's `targets`. Raises: SetupFailed."""
    if release.get("ID") != "debian":
        name = release.get("PRETTY_NAME", "this system")
        raise SetupFailed(
            f"{name} is not Debian, so its package mirror does not carry the runtimes and the image that Cove needs",
            cure=MIRROR_HELP,
        )
    targets = list(targets)
    codename = release.get("VERSION_CODENAME", "")
    suites = [codename] if codename in KNOWN_SUITES else list(reversed(KNOWN_SUITES))
    for suite in suites:
        main = _first(targets, suite)
        if main is not None:
            security = _first(targets, f"{suite}-security")
            return Mirror(
                uri=main.uri.rstrip("/"),
                suite=suite,
                signed_by=signed_by(main.entry),
                has_updates=_first(targets, f"{suite}-updates") is not None,
                security_uri=security.uri.rstrip("/") if security else None,
                security_signed_by=signed_by(security.entry) if security else None,
            )
    any_debian = next((target for target in targets if target.origin == "Debian"), None)
    if any_debian is None:
        raise SetupFailed("this machine's apt configuration names no Debian mirror", cure=MIRROR_HELP)
    return Mirror(uri=any_debian.uri.rstrip("/"), suite=suites[0], signed_by=signed_by(any_debian.entry))


def _first(targets: Iterable[Target], suite: str) -> Target | None:
    """The first target of `suite`, whether the machine names it by codename or as stable."""
    return next((t for t in targets if suite in (t.release, t.codename) and t.origin in ("", "Debian")), None)


def parse_targets(text: str) -> list[Target]:
    """Read `apt-get indextargets` in our format. Fields that apt does not know come back as `$(NAME)`."""
    rows = ([_known(cell) for cell in line.split("\t")] for line in text.splitlines())
    return [
        Target(uri=row[0], release=row[1], codename=row[2], origin=row[3], entry=row[4])
        for row in rows
        if len(row) == len(_FIELDS) and row[0]
    ]


def _known(cell: str) -> str:
    return "" if cell.startswith("$(") else cell.strip()


def signed_by(entry: str) -> str | None:
    """The key that the source at `entry` ("FILE:N") is bound to, or None when apt's general keys hold for it.

    apt tells file and number of a source but not its options (2.6 prints `$(SIGNED_BY)` as it stands), so the file is
    read: the N-th line of a `.list`, the N-th paragraph of a `.sources` (sources.list(5); both count from 1). A key
    that is written into the file has no name to give on: Debian's own keyring takes its place.
    """
    name, _, number = entry.rpartition(":")
    path = Path(name)
    if not number.isdigit() or not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".sources":
        paragraphs = [part for part in re.split(r"\n(?:[ \t]*\n)+", text) if re.search(r"(?m)^[A-Za-z-]+:", part)]
        found = _signed_by_deb822(paragraphs, int(number))
    else:
        lines = text.splitlines()
        line = lines[int(number) - 1] if 0 < int(number) <= len(lines) else ""
        match = re.search(r"\bsigned-by=([^\s\]]+)", line, re.IGNORECASE)
        found = match.group(1) if match else None
    return found if found and found.startswith("/") else None


def _signed_by_deb822(paragraphs: list[str], number: int) -> str | None:
    if not 0 < number <= len(paragraphs):
        return None
    match = re.search(r"(?mi)^Signed-By:[ \t]*(\S*)[ \t]*$", paragraphs[number - 1])
    return (match.group(1) or str(ARCHIVE_KEYRING)) if match else None


def source_line(uri: str, suite: str, signed_by: str | None, components: str = "main") -> str:
    """One line of sources.list(5)."""
    options = f"[signed-by={signed_by}] " if signed_by else ""
    return f"deb {options}{uri} {suite} {components}"


def redacted(uri: str) -> str:
    """`uri` without a user name and password."""
    return re.sub(r"://[^/@\s]*@", "://", uri)
