"""The system-call profile, call by call: every number is called inside and its answer compared with `expected.py`."""

from __future__ import annotations

import json
import platform
from typing import Final

import msgspec

from cove.engine.attacks import expected
from cove.engine.attacks.numbers import AARCH64, X86_64
from cove.engine.attacks.target import Broken, NotHere, Target, python
from cove.model.errors import EngineFailure

Call = tuple[str, int, tuple[int | str, ...]]

_HARMLESS: Final[dict[str, tuple[int | str, ...]]] = {
    "ioctl": (-1, 0x5401, 0),
    "kill": (0, 0),
    "tkill": (0x3FFFFFFF, 0),
    "socket": (1, 1, 0),
    "personality": (0xFFFFFFFF,),
    "prlimit64": (0, 7, 0, "buffer"),
    "setrlimit": (7, 0),
    "clone": (17, 0, 0, 0, 0),
    "setgroups": (-1, 0),
}
"""Where minus one in every register would do something, or the kernel's own answer would be EPERM."""

_EACH: Final = """
import json, select, signal
calls = CALLS
buffer = ctypes.create_string_buffer(64)
found = {}

def run(start, write):
    for place in range(start, len(calls)):
        name, number, arguments = calls[place]
        words = [buffer if isinstance(a, str) else ctypes.c_long(a) for a in arguments]
        os.write(write, b"%d ?\\n" % place)
        ctypes.set_errno(0)
        me = os.getpid()
        result = libc.syscall(ctypes.c_long(number), *words)
        error = ctypes.get_errno()
        if os.getpid() != me:
            os._exit(0)
        os.write(write, b"%d %d\\n" % (place, error if result == -1 else 0))

place = 0
libc.syscall.restype = ctypes.c_long
while place < len(calls):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            run(place, write)
        finally:
            os._exit(0)
    os.close(write)
    text = b""
    while select.select([read], [], [], 1.0)[0]:
        more = os.read(read, 65536)
        if not more:
            break
        text += more
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(read)
    for line in text.decode().splitlines():
        at, answer = line.split()
        place = int(at)
        # Whoever did not come back (exit, pause, rt_sigreturn) had reached the kernel, or was killed by the filter.
        found[place] = ("killed by signal %d" % os.WTERMSIG(status)) if answer == "?" else int(answer)
    if not text:
        break
    place += 1
print(json.dumps([found.get(n, "no answer") for n in range(len(calls))]))
"""

_FOREIGN: Final = """
import mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(b"\\x89\\xf8\\xcd\\x80\\xc3")
entry = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
libc.syscall.restype = ctypes.c_long

def answer(call):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, b"reached" if call() == os.getpid() else b"refused")
        os._exit(0)
    os.close(write)
    word = os.read(read, 16).decode() or "killed"
    os.waitpid(pid, 0)
    return word

for what, call in (("a 32-bit call by int 0x80", lambda: entry(20)),
                   ("an x32 call", lambda: libc.syscall(ctypes.c_long(0x40000000 | 39)))):
    word = answer(call)
    said("BROKEN" if word == "reached" else "held", what, word)
"""
_AT_ONCE: Final = 100
"""Calls in one sandbox: some leave their caller's sandbox slow or stuck (gVisor), which hurts nobody else."""

_NEVER_BACK: Final = frozenset(("exit", "exit_group", "pause", "rt_sigreturn", "rt_sigsuspend", "vfork", "sigaltstack"))
"""Calls that do not come back to who made them, or not to where it was: being stopped at them is an answer."""
_EPERM: Final = 1
_ENOSYS: Final = 38


def numbers() -> dict[str, int]:
    """The calls of this machine. Raises: NotHere on a machine whose numbers are not in the table."""
    known = {"x86_64": X86_64, "aarch64": AARCH64}
    if platform.machine() not in known:
        raise NotHere(f"no table of calls for {platform.machine()}")
    return known[platform.machine()]


async def answers(target: Target, calls: list[Call]) -> list[int | str]:
    """What each call answers inside: an errno, 0 for success, or a text for one that did not come back.

    Raises: EngineFailure when the attack did not run.
    """
    found: list[int | str] = []
    for start in range(0, len(calls), _AT_ONCE):
        part = calls[start : start + _AT_ONCE]
        async with target.box() as box:
            result = await python(box, f"CALLS = {json.dumps(part)}\n{_EACH}", 60.0)
        try:
            found += msgspec.json.decode(result.stdout, type=list[int | str])
        except msgspec.DecodeError as error:
            seen = result.stderr.decode(errors="replace")[-300:]
            raise EngineFailure("the attack did not run", internal=seen) from error
    return found


async def attack_a13_every_system_call(target: Target) -> str:
    """Each of the kernel's calls by number: what the profile lacks is refused, the rest reaches the kernel."""
    by_name = numbers()
    refused = {name for group in expected.REFUSED.values() for name in group}
    spared = expected.UNKNOWN_TO_GVISOR if target.driver.name == "gvisor" else frozenset[str]()
    order = [name for name in by_name if name in refused or name in expected.ALLOWED]
    # Those which end their process come last, so that few processes are needed.
    order.sort(key=lambda name: name in _NEVER_BACK)
    calls = [(name, by_name[name], _HARMLESS.get(name, (-1,) * 6)) for name in order]
    wrong: list[str] = []
    for name, answer in zip(order, await answers(target, calls), strict=True):
        is_refused = answer == _EPERM or (answer == _ENOSYS and by_name[name] > expected.NEWER)
        if is_refused is not (name in refused) and not (is_refused and name in spared):
            wrong.append(f"{name}: {answer}")
    if wrong:
        raise Broken("; ".join(wrong)[:600])
    count = sum(name in refused for name in order)
    return f"{count} calls refused, {len(order) - count} reach the kernel, none otherwise"


async def attack_a14_calls_by_their_arguments(target: Target) -> str:
    """clone, clone3, socket, personality, resource limits and terminal requests with every argument that matters."""
    by_name = numbers()
    own_kernel = target.driver.name == "gvisor"
    cases = [case for case in expected.cases(own_kernel=own_kernel) if case.call in by_name]
    calls = [(case.call, by_name[case.call], case.arguments) for case in cases]
    wrong: list[str] = []
    for case, answer in zip(cases, await answers(target, calls), strict=True):
        if (answer != _EPERM) if case.answer == 0 else (answer == case.answer):
            continue
        wrong.append(f"{case.what}: {answer} instead of {case.answer}")
    if wrong:
        raise Broken("; ".join(wrong)[:600])
    return f"{len(cases)} cases answer as they must"


async def attack_a14_calls_of_another_architecture(target: Target) -> str:
    """32-bit calls by their old entry and x32 calls: a filter that knew one architecture alone would not see them."""
    if platform.machine() != "x86_64":
        raise NotHere("this processor has no second set of calls that its kernel offers")
    async with target.box() as box:
        result = await python(box, _FOREIGN)
    lines = result.stdout.decode(errors="replace").splitlines()
    broken = [line for line in lines if not line.startswith("held ")]
    if broken or len(lines) != 2:  # noqa: PLR2004 - one line for each entry
        raise Broken("; ".join(broken) or result.stderr.decode(errors="replace")[-300:])
    return "; ".join(line.removeprefix("held ") for line in lines)
