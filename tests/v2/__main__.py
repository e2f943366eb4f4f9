"""`make test-v2`: Cove on a kernel with cgroup v2 alone, in a virtual machine. Needs root and what `make setup` made.

Boots Debian 12 with its cloud kernel (6.1) under QEMU, by KVM where that works and else by emulation, without a
network. Inside run the conformance suite of each driver and the checks in `guest/`; each prints a JSON line per check
to the second serial port, and this program judges them. Exit 1: a check failed or is missing, also because the guest
died or passed the time limit; what its console said is in `.venv/v2/console.log`.

To add a suite: `guest/<name>_checks.py`, its name in SUITES.
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from cove.engine.attacks.run import attacks
from cove.engine.conformance import checks
from cove.server.setup import packages
from cove.server.setup.commands import Runner
from cove.server.setup.progress import StderrProgress
from cove.server.setup.settings import SetupFailed, settings_from
from v2.disks import HERE, TOP, Disks, System
from v2.verdicts import Verdict, complaints, read_line

SUITES = ("runc", "crun", "cgroup", "server", "network", "state")
KVM_SUITES = ("gvisor",)  # emulated, a box needs 10 s and more to start, which is the limit of the engine itself
CACHE = TOP / ".venv" / "v2"
PACKAGES = ("qemu-system-x86",)
_TRIAL_S = 15.0
_CONSOLE_LINES = 8
_LIMIT_S = {"kvm": 600.0, "tcg": 2400.0}
_SLOW = {"kvm": 1.0, "tcg": 5.0}
"""What the time limits of the checks are multiplied by: emulation is 10 to 30 times slower than the machine."""


def accelerator(system: System) -> str:
    """`kvm` where a kernel really runs by it, else `tcg`, QEMU's emulation.

    A /dev/kvm that opens proves nothing: in a virtual machine without nesting the guest may stand still for ever.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    # No disk and no first program: the kernel panics at once, which ends the machine.
    argv = [
        *_machine(system, "kvm", "console=ttyS0 panic=-1 no_timer_check rdinit=/none root=/none"),
        "-serial",
        "null",
    ]
    try:
        tried = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=_TRIAL_S, check=False)
    except subprocess.TimeoutExpired:
        return "tcg"
    return "kvm" if tried.returncode == 0 else "tcg"


def command(system: System, run_disk: Path, console: Path, accel: str) -> list[str]:
    """The machine: two CPUs, 2 GiB, two disks, two serial ports, no network. Nothing written to a disk is kept."""
    drives = [f"file={disk},if=virtio,format=raw,snapshot=on,cache=unsafe" for disk in (system.disk, run_disk)]
    # no_timer_check: on a busy machine an emulated timer is late, and the kernel would panic over it at boot.
    kernel_line = "console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check "
    kernel_line += "root=/dev/vda rootfstype=ext4 rw init=/sbin/run-from-disk"
    return [
        *_machine(system, accel, kernel_line),
        *("-drive", drives[0], "-drive", drives[1], "-device", "virtio-rng-pci"),
        *("-serial", f"file:{console}", "-serial", "stdio"),
    ]


def _machine(system: System, accel: str, kernel_line: str) -> list[str]:
    model, options = ("host", "kvm") if accel == "kvm" else ("max", "tcg,thread=multi,tb-size=512")
    return [
        *("qemu-system-x86_64", "-nodefaults", "-no-reboot", "-display", "none", "-monitor", "none"),
        *("-machine", "pc", "-accel", options, "-cpu", model, "-smp", "2", "-m", "2048"),
        *("-kernel", str(system.kernel), "-initrd", str(system.initrd), "-append", kernel_line),
    ]


def run_guest(argv: Sequence[str], limit_s: float) -> tuple[list[Verdict], str]:
    """Run the machine to its end. Returns what it said, and how it ended where that was not by itself."""
    verdicts: list[Verdict] = []
    started = time.monotonic()
    # The machine dies with this program, also where that is killed.
    argv = ["setpriv", "--pdeathsig", "KILL", *argv]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace") as vm:
        late = threading.Timer(limit_s, vm.kill)
        late.start()
        try:
            assert vm.stdout is not None
            for line in vm.stdout:
                verdict = read_line(line)
                if verdict is not None:
                    verdicts.append(verdict)
                    sys.stdout.write(verdict.line() + "\n")
                    sys.stdout.flush()
            code = vm.wait()
        finally:
            late.cancel()
            vm.kill()
    if time.monotonic() - started >= limit_s:
        return verdicts, f"the machine did not end by itself within {limit_s:.0f} s"
    return verdicts, f"QEMU ended with {code}" if code else ""


def console_end(log: Path) -> list[str]:
    """The last lines that the guest's console showed, without control characters."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = ["".join(c for c in line if c.isprintable())[:200] for line in text.splitlines()]
    return [line for line in lines if line][-_CONSOLE_LINES:]


def expected(suites: Sequence[str]) -> list[tuple[str, str]]:
    """Suite and name of every check that must have a verdict."""
    wanted = [("guest", "end")]
    for suite in suites:
        wanted += [(suite, name) for name in ("exit", *names_of(suite))]
    return wanted


def names_of(suite: str) -> list[str]:
    """The checks of a suite: functions of its program in `guest/`, the attacks, or the conformance suite's."""
    if suite.startswith("attacks-"):
        return sorted(attacks())
    program = HERE / "guest" / f"{suite}_checks.py"
    if not program.exists():
        return sorted(checks())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ast.parse(program.read_text(encoding="utf-8")).body
    return [node.name for node in nodes if isinstance(node, functions) and node.name.startswith("check_")]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make test-v2", description=__doc__)
    parser.add_argument("--accel", choices=("kvm", "tcg"), help="default: kvm where it works")
    parser.add_argument("--suites", nargs="+", help="drivers, or programs in tests/v2/guest")
    given = parser.parse_args()
    if os.geteuid() != 0 or platform.machine() != "x86_64":
        sys.stderr.write("error: make test-v2 needs root and an x86_64 machine\n")
        return 1
    started, progress = time.monotonic(), StderrProgress(sys.stderr)
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / "console.log").unlink(missing_ok=True)  # of another run
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="run-", dir=CACHE) as scratch:
        try:
            settings = settings_from(os.environ)
            if shutil.which("qemu-system-x86_64") is None:
                packages.install(Runner(), PACKAGES)
            disks = Disks(CACHE, Path(scratch), progress)
            system = disks.system(settings.debian_mirror)
            accel: str = given.accel or accelerator(system)
            suites = given.suites or [*SUITES, *(KVM_SUITES if accel == "kvm" else ())]
            run_disk = disks.run_disk(settings.data_dir, suites, _SLOW[accel])
        except SetupFailed as error:
            sys.stderr.write(f"error: {error.public}\nhint: {error.cure}\n")
            return 1
        console = Path(scratch) / "console.log"
        argv = command(system, run_disk, console, accel)
        booted = time.monotonic()
        try:
            verdicts, end = run_guest(argv, _LIMIT_S[accel])
        finally:
            if console.exists():
                console.replace(CACHE / "console.log")
    wrong = ([end] if end else []) + complaints(verdicts, expected(suites))
    took, inside = time.monotonic() - started, time.monotonic() - booted
    sys.stdout.write("".join(f"error: {sentence}\n" for sentence in wrong))
    if wrong:
        sys.stdout.write(f"hint: what the guest's console said is in {CACHE / 'console.log'}; its end:\n")
        sys.stdout.write("".join(f"  {line}\n" for line in console_end(CACHE / "console.log")))
    passed = sum(verdict.ok for verdict in verdicts)
    sys.stdout.write(f"{passed} of {len(verdicts)} verdicts good, {took:.0f} s, of it {inside:.0f} s in the guest ")
    sys.stdout.write(f"({accel})\n")
    return int(bool(wrong))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
