"""What Cove itself needs installed: runtimes, criu, agent, images; and whether a server runs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from cove.engine.agentbin import agent_build, agent_path
from cove.engine.config import instance_of
from cove.engine.images.transfer import SKOPEO
from cove.model.errors import CoveError
from cove.server.doctor.report import Line, missing, ok, warn
from cove.server.doctor.trial import attempt
from cove.server.setup.clean import server_pid
from cove.server.setup.images import read_image
from cove.server.setup.runtimes import REQUIRED, Required, altered_programs, parse_version, read_manifest
from cove.server.setup.settings import SetupSettings

_SETUP = "make setup (or: cove setup)"
_CODE_IMAGE = "code"
_LOSSES = {
    "runc": "no sandboxes: it is the default driver",
    "crun": "no fast driver for sandboxes without memory snapshots",
    "criu": "no memory snapshots, forks or hibernation",
    "runsc": "no gVisor tier",
}


def probe_runc(settings: SetupSettings) -> Line:
    """The default runtime."""
    return _probe_runtime(settings, "runc")


def probe_crun(settings: SetupSettings) -> Line:
    """The fast runtime."""
    return _probe_runtime(settings, "crun")


def probe_runsc(settings: SetupSettings) -> Line:
    """GVisor."""
    return _probe_runtime(settings, "runsc")


def _probe_runtime(settings: SetupSettings, name: str) -> Line:
    need = next(need for need in REQUIRED if need.name == name)
    manifest = read_manifest(settings.runtimes_dir)
    entry = next((entry for entry in manifest.programs if entry.name == name), None) if manifest else None
    absent = missing if name == "runc" else warn
    if entry is None:
        return absent(name, _elsewhere(need), cost=_LOSSES[name], cure=_SETUP)
    if parse_version(entry.version) < need.least:
        return absent(name, f"{entry.version}; {need.because}", cost=_LOSSES[name], cure=_SETUP)
    if name in altered_programs(settings.runtimes_dir, only=name):
        return absent(
            name,
            f"{entry.path} is not the file that was verified",
            cost="a program that runs as root was changed",
            cure="find out by whom, then " + _SETUP,
        )
    return ok(name, f"{entry.version}, {'from this system' if entry.origin == 'system' else 'from ' + entry.origin}")


def _elsewhere(need: Required) -> str:
    """Where a runtime was not set up: what the machine itself has."""
    least = ".".join(map(str, need.least))
    found = shutil.which(need.name)
    return f"only {found}, not verified to be {least} or newer" if found else "not installed"


def probe_criu(settings: SetupSettings) -> Line:
    """Checkpoints: the program, and what it says about this kernel."""
    runtime = _probe_runtime(settings, "criu")
    if runtime.cost:
        return runtime
    program = settings.runtimes_dir / "current" / "bin" / "criu"
    checked = attempt(lambda: _criu_check(program), limit_s=30)
    if not checked.worked:
        return warn(
            "criu",
            f"{runtime.fact}; criu check: {checked.text}",
            cost=_LOSSES["criu"],
            cure="a distribution's kernel; criu names what it misses",
        )
    tracks = attempt(lambda: _criu_check(program, "--feature", "mem_dirty_track"), limit_s=30)
    note = "" if tracks.worked else "; no MEM_SOFT_DIRTY, so each snapshot is a full one"
    return ok("criu", f"{runtime.fact}; criu check is content{note}")


def _criu_check(program: Path, *options: str) -> str:
    done = subprocess.run(
        [program, "check", *options], capture_output=True, check=False, text=True, timeout=25, cwd="/"
    )
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(1, lines[-1] if lines else f"exit {done.returncode}")
    return ""


def probe_agent(_settings: SetupSettings) -> Line:
    """The program that is process 1 of every sandbox."""
    try:
        path, build = agent_path(), agent_build()
    except CoveError as error:
        return missing("agent", error.public, cost="no sandbox can start", cure=_SETUP)
    return ok("agent", f"{path.name}, build {build}")


def probe_images(settings: SetupSettings) -> Line:
    """The default image, and what else there is."""
    homes = sorted(path for path in settings.images_dir.glob("*") if path.is_dir())
    found = [facts for home in homes if (facts := read_image(settings.images_dir, home.name)) is not None]
    if not any(facts.name == "base" for facts in found):
        return missing("images", "no image base", cost="it is what every sandbox starts from", cure=_SETUP)
    return ok("images", ", ".join(f"{f.name} ({f.suite}, {f.size_bytes >> 20} MiB, {f.digest[:12]})" for f in found))


def probe_code(settings: SetupSettings) -> Line:
    """An image whose kernels give more than text; code runs in any image that has the language."""
    facts = read_image(settings.images_dir, _CODE_IMAGE)
    if facts is None:
        cost = "code in contexts has what the other images have: plain Python and bash, text only"
        return warn("code", f"no image {_CODE_IMAGE}", cost=cost, cure=_SETUP)
    ahead = ", ".join(facts.kernels) or "no language"
    return ok("code", f"image {_CODE_IMAGE}; where COVE_POOL_IMAGES names it, kernels are started ahead for {ahead}")


def probe_skopeo(_settings: SetupSettings) -> Line:
    """What fetches images from registries."""
    cost = "no images can be pulled; built-in ones, builds and imports work"
    try:
        said = subprocess.run(
            [SKOPEO, "--version"], capture_output=True, check=True, text=True, timeout=20, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError) as error:
        return warn("skopeo", f"does not run: {error}", cost=cost, cure=_SETUP)
    return ok("skopeo", said.stdout.strip().removeprefix("skopeo version "))


def probe_server(settings: SetupSettings) -> Line:
    """The server of this data directory, if one listens."""
    path = settings.run_dir / instance_of(settings.data_dir) / "api.sock"
    pid = server_pid(path)
    if pid is None:
        return warn("server", f"nobody listens on {path}", cost="nothing to talk to", cure="make run (or: cove serve)")
    return ok("server", f"process {pid} listens on {path}")
