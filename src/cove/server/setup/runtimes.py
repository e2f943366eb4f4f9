"""The programs that make sandboxes: runc, crun, criu, runsc; new enough, in one directory, each with a known digest.

What the machine's own suites have is used where it is new enough. The rest comes from Debian testing (runsc: from the
backports of the machine's suite) as binaries with their own C library beside them, in `<data>/runtimes/<set>/`; the
machine's own programs and libraries stay as they are. `current` is a symlink to the set in use, `current/bin` holds one
name per program and `current/manifest.json` says what it is (`Manifest`).

To require a newer version: change `REQUIRED`. To add a program: a row in `REQUIRED`, a line in `docs/reference`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from cove.server.setup import mirror as mirrors
from cove.server.setup import packages
from cove.server.setup.aptroot import AptRoot, open_apt_root
from cove.server.setup.commands import Command, Runner
from cove.server.setup.progress import Progress
from cove.server.setup.settings import SetupFailed, SetupSettings

# Part of a set's name: change it when the way a set is made changes, and every machine makes its set anew.
SCHEME: Final = "1"
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BUILDING: Final = ".building-"
_KEPT_SETS: Final = 2


class Required(Struct, frozen=True, kw_only=True):
    """A program that must be there. `pattern` finds the version in what `--version` prints."""

    name: str
    least: tuple[int, ...]
    pattern: str
    because: str
    is_static: bool = False


REQUIRED: Final = (
    Required(
        name="runc",
        least=(1, 3, 6),
        pattern=r"runc version (\S+)",
        because="older ones lack fixes of container escapes (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881 and later)",
    ),
    Required(
        name="crun",
        least=(1, 21),
        pattern=r"crun version (\S+)",
        because="older ones lack fixes and start sandboxes at half the speed",
    ),
    Required(
        name="criu",
        least=(4, 2),
        pattern=r"Version: (\S+)",
        because="older ones fail on newer kernels as soon as a process has a socket",
    ),
    Required(
        name="runsc",
        least=(20240729,),
        pattern=r"runsc version (?:release-|0\.0~)?(\d+\S*)",
        because="older ones lack the systrap platform's fixes",
        is_static=True,
    ),
)


class Entry(Struct, frozen=True, kw_only=True):
    """One program as it was verified. `origin` is "system" or the archive it came from; `path` is the real file."""

    name: str
    version: str
    origin: str
    path: str
    sha256: str
    size_bytes: int
    mtime_ns: int


class Manifest(Struct, frozen=True, kw_only=True):
    """What `current/manifest.json` holds."""

    scheme: str
    machine: str
    made_at: float
    programs: tuple[Entry, ...]


class Arch(Struct, frozen=True, kw_only=True):
    """Debian's names for the machine's architecture."""

    triplet: str
    loader: str


ARCHES: Final = {
    "x86_64": Arch(triplet="x86_64-linux-gnu", loader="ld-linux-x86-64.so.2"),
    "aarch64": Arch(triplet="aarch64-linux-gnu", loader="ld-linux-aarch64.so.1"),
}


def ensure_runtimes(settings: SetupSettings, runner: Runner, progress: Progress) -> None:
    """Make `current` a complete set. Nothing is done when it already is. Raises: SetupFailed."""
    if not settings.refresh and is_current(settings.runtimes_dir):
        return
    with progress.step("Preparing the runtimes") as step:
        settings.runtimes_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        sweep(settings.runtimes_dir)
        from_system = {need.name: path for need in REQUIRED if (path := _system_program(runner, need)) is not None}
        foreign = tuple(need for need in REQUIRED if need.name not in from_system)
        if foreign:
            step.doing = f"Fetching {', '.join(need.name for need in foreign)} from Debian"
            target, origins = _fetch_set(settings, runner, foreign)
        else:
            target, origins = _new_set(settings.runtimes_dir, list(from_system.values())), {}
        manifest = _publish(target, from_system, origins)
        _switch(settings.runtimes_dir, target)
        step.done("Prepared " + ", ".join(f"{entry.name} {entry.version}" for entry in manifest.programs))


def read_manifest(runtimes_dir: Path) -> Manifest | None:
    """The manifest of the set in use, or None when there is none that can be read."""
    try:
        return msgspec.json.decode((runtimes_dir / "current" / "manifest.json").read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None


def is_current(runtimes_dir: Path) -> bool:
    """Whether the set in use has all that is required and its files are those verified (size and time; ~0.2 ms)."""
    manifest = read_manifest(runtimes_dir)
    if manifest is None or manifest.scheme != SCHEME or manifest.machine != platform.machine():
        return False
    entries = {entry.name: entry for entry in manifest.programs}
    return all(need.name in entries and _is_fit(entries[need.name], need) for need in REQUIRED)


def altered_programs(runtimes_dir: Path, *, only: str | None = None) -> list[str]:
    """Names of programs (or of the one called `only`) whose bytes are not those verified. ~100 ms for all, 44 MB."""
    manifest = read_manifest(runtimes_dir)
    if manifest is None:
        return [need.name for need in REQUIRED if only in (None, need.name)]
    entries = [entry for entry in manifest.programs if only in (None, entry.name)]
    return [entry.name for entry in entries if _digest_or_none(Path(entry.path)) != entry.sha256]


def parse_version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "1.3.6+ds1" is (1, 3, 6), Debian's epoch is dropped."""
    match = re.match(r"(?:\d+:)?(?:0\.0~)?(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in match.group(1).split(".")) if match else ()


def sweep(runtimes_dir: Path) -> None:
    """Remove what an interrupted run left. The caller holds the setup lock."""
    for path in runtimes_dir.glob(f"{_BUILDING}*"):
        shutil.rmtree(path, ignore_errors=True)


def _is_fit(entry: Entry, need: Required) -> bool:
    try:
        facts = Path(entry.path).stat()
    except OSError:
        return False
    is_same = (facts.st_size, facts.st_mtime_ns) == (entry.size_bytes, entry.mtime_ns)
    return is_same and parse_version(entry.version) >= need.least


def _system_program(runner: Runner, need: Required) -> Path | None:
    """The machine's own program where it is new enough, installed from its suites if they have it; else None."""
    found = _fitting(need)
    if found is not None:
        return found
    candidate = _candidate(runner, need.name)
    if parse_version(candidate) < need.least:
        return None
    packages.install(runner, (need.name,))
    return _fitting(need)


def _fitting(need: Required) -> Path | None:
    found = shutil.which(need.name, path=SYSTEM_PATH)
    if found is None:
        return None
    with contextlib.suppress(SetupFailed):
        if parse_version(program_version(Path(found), need)) >= need.least:
            return Path(found).resolve()
    return None


def _candidate(runner: Runner, package: str) -> str:
    command = Command(argv=["apt-cache", "policy", package], what="apt-cache policy", cure="repair apt", timeout_s=60)
    match = re.search(r"Candidate: (\S+)", runner.run(command))
    return match.group(1) if match and match.group(1) != "(none)" else ""


def program_version(path: Path, need: Required) -> str:
    """What the program at `path` says its version is. Raises: SetupFailed when it does not run or says nothing."""
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, stdin=subprocess.DEVNULL, timeout=20, check=False, text=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupFailed(f"{path} does not run: {error}", cure="run setup again with --refresh") from error
    match = re.search(need.pattern, done.stdout + done.stderr)
    if match is None:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise SetupFailed(
            f"{path} --version (exit {done.returncode}) says {said[0] if said else 'nothing'!r} instead of a version",
            cure="run setup again with --refresh",
        )
    return match.group(1)


def _fetch_set(settings: SetupSettings, runner: Runner, foreign: tuple[Required, ...]) -> tuple[Path, dict[str, str]]:
    """Download and prepare `foreign`. Returns the new set's directory and the archive each program came from."""
    mirror = mirrors.find_mirror(runner, settings.debian_mirror)
    with open_apt_root(runner) as root:
        archives = _download(root, mirror, foreign)
        origins = {need.name: _archive_of(archives, need.name) for need in foreign}
        final = _new_set(settings.runtimes_dir, archives)
        building = settings.runtimes_dir / f"{_BUILDING}{os.getpid()}"
        building.mkdir(mode=0o755)
        root.unpack(archives, building)
    arch = _arch()
    for need in foreign:
        program = _unpacked_program(building, need.name)
        if not need.is_static:
            _bind_to_own_libraries(runner, building, program, arch, final)
    _prune(building, {_unpacked_program(building, need.name) for need in foreign}, arch)
    shutil.rmtree(final, ignore_errors=True)
    building.rename(final)
    return final, origins


def _download(root: AptRoot, mirror: mirrors.Mirror, foreign: tuple[Required, ...]) -> list[Path]:
    """Fetch from testing, and runsc from backports while the mirror has them; else all from testing."""
    testing = mirrors.source_line(mirror.uri, "testing", mirror.signed_by)
    backports_name = f"{mirror.suite}-backports"
    wants_backports = any(need.name == "runsc" for need in foreign)
    names = [need.name for need in foreign]
    if wants_backports:
        backports = mirrors.source_line(mirror.uri, backports_name, mirror.signed_by)
        try:
            root.update([testing, backports])
            return root.fetch("patchelf", *(f"{n}/{backports_name}" if n == "runsc" else n for n in names))
        except SetupFailed:  # a suite past its life loses its backports; testing has runsc as well
            root.update([testing])
    else:
        root.update([testing])
    return root.fetch("patchelf", *names)


def _new_set(runtimes_dir: Path, parts: list[Path]) -> Path:
    """The directory for a set made of `parts`. Its path is written into the programs, so a set is never moved."""
    names = "\n".join([SCHEME, str(runtimes_dir), *sorted(part.name for part in parts)])
    return runtimes_dir / hashlib.sha256(names.encode()).hexdigest()[:12]


def _archive_of(archives: list[Path], package: str) -> str:
    return next((path.name for path in archives if path.name.startswith(f"{package}_")), "")


def _unpacked_program(top: Path, name: str) -> Path:
    for folder in ("usr/sbin", "usr/bin"):
        if (top / folder / name).is_file():
            return top / folder / name
    raise SetupFailed(
        f"the Debian package {name} holds no program {name}", cure="report this: the package has changed its layout"
    )


def _arch() -> Arch:
    arch = ARCHES.get(platform.machine())
    if arch is None:
        raise SetupFailed(
            f"the architecture {platform.machine()} is not supported", cure="use a machine with x86_64 or aarch64"
        )
    return arch


def _bind_to_own_libraries(runner: Runner, top: Path, program: Path, arch: Arch, final: Path) -> None:
    """Make `program` start with the loader and libraries of its own set instead of the machine's.

    By patching and not by starting it through its loader, because crun re-executes /proc/self/exe. DT_RPATH (and not
    RUNPATH) because only that also holds for the libraries' own dependencies (ld.so(8)). patchelf runs from the set.
    """
    libraries = top / "usr/lib" / arch.triplet
    final_libraries = final / "usr/lib" / arch.triplet
    runner.run(
        Command(
            argv=[
                libraries / arch.loader,
                "--library-path",
                libraries,
                top / "usr/bin/patchelf",
                "--set-interpreter",
                final_libraries / arch.loader,
                "--force-rpath",
                "--set-rpath",
                final_libraries,
                program,
            ],
            what=f"patchelf of {program.name}",
            cure="report this with the versions in the message above",
            timeout_s=60,
        )
    )


def _prune(top: Path, programs: set[Path], arch: Arch) -> None:
    """Keep the programs and the shared libraries; drop documentation, character sets, headers, other programs."""
    libraries = top / "usr/lib" / arch.triplet
    for folder, _, files in os.walk(top):
        for name in files:
            path = Path(folder, name)
            is_library = path.parent == libraries and ".so" in name
            if path not in programs and not is_library:
                path.unlink()
    for folder, _, _ in os.walk(top, topdown=False):
        path = Path(folder)
        if path.is_symlink():
            path.unlink()
        elif path != top and not any(path.iterdir()):
            path.rmdir()


def _publish(target: Path, from_system: dict[str, Path], origins: dict[str, str]) -> Manifest:
    """Link and verify every program of the set at `target`, by running it, and write the manifest."""
    (target / "bin").mkdir(mode=0o755, parents=True, exist_ok=True)
    entries: list[Entry] = []
    for need in REQUIRED:
        real = from_system.get(need.name) or _unpacked_program(target, need.name)
        link = target / "bin" / need.name
        link.unlink(missing_ok=True)
        link.symlink_to(real if need.name in from_system else Path("..") / real.relative_to(target))
        version = program_version(link, need)
        if parse_version(version) < need.least:
            least = ".".join(map(str, need.least))
            raise SetupFailed(
                f"{need.name} {version} is older than {least}: {need.because}",
                cure="choose a mirror whose testing suite is newer by COVE_DEBIAN_MIRROR",
            )
        facts = real.stat()
        entries.append(
            Entry(
                name=need.name,
                version=version,
                origin="system" if need.name in from_system else origins[need.name],
                path=str(real),
                sha256=_digest_or_none(real) or "",
                size_bytes=facts.st_size,
                mtime_ns=facts.st_mtime_ns,
            )
        )
    manifest = Manifest(scheme=SCHEME, machine=platform.machine(), made_at=time.time(), programs=tuple(entries))
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    partial = target / ".manifest.json"
    partial.write_bytes(text + b"\n")
    partial.rename(target / "manifest.json")
    return manifest


def _digest_or_none(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _switch(runtimes_dir: Path, target: Path) -> None:
    """Make `current` name `target` in one step, then drop all but the newest other sets."""
    link = runtimes_dir / ".current"
    link.unlink(missing_ok=True)
    link.symlink_to(target.name)
    link.rename(runtimes_dir / "current")
    others = [p for p in runtimes_dir.iterdir() if p.is_dir() and not p.is_symlink() and p != target]
    for old in sorted(others, key=lambda p: p.stat().st_mtime, reverse=True)[_KEPT_SETS - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
