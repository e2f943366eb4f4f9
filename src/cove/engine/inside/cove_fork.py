"""Makes this process's random numbers its own in every copy of the sandbox it runs in.

`import cove_fork` is all there is to do, in the main thread. A fork of a sandbox, and one that is restored from a
snapshot, has its processes with all their memory, generators of random numbers included: without this they would go on
with the same numbers. In each copy Cove sends SIGRTMAX-1 (63) to the processes that handle it, before anybody else can
call into the copy. The handler seeds `random`, numpy's global generator and OpenSSL (where they are loaded) anew, lets
`uuid` forget its node, and then calls what was given to `on_fork`.

Generators of your own are yours: `on_fork(make_them_again)`. `os.urandom`, `secrets` and `uuid.uuid4` need nothing,
because the kernel's generator is never copied.

This file is the sandbox's, made to run with any Python from 3.7 on; Cove itself does not use it.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GENERATION", "SIGNAL", "generation", "on_fork", "reseed"]

SIGNAL = signal.SIGRTMAX - 1
"""What tells a process that it is in a copy."""

GENERATION = "/run/cove/generation"
"""A file with one line: random, another one in each copy. Not there in a sandbox that is no copy."""

_CATCHERS = "/run/cove/reseed"
_Callback = TypeVar("_Callback", bound="Callable[[], Any]")
_callbacks: list[Callable[[], Any]] = []


def generation() -> str:
    """The copy that this is, as a random word; empty: the original."""
    try:
        with open(GENERATION) as file:
            return file.read(64).strip()
    except OSError:
        return ""


def on_fork(callback: _Callback) -> _Callback:
    """Have `callback` called without arguments in each copy, after the reseeding. Can be used as a decorator.

    It runs as signal handlers do: in the main thread, between two instructions of it. An error of it is printed.
    """
    _callbacks.append(callback)
    return callback


def reseed() -> None:
    """Do now what the signal has done."""
    random.seed()
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed()
    if "ssl" in sys.modules:
        sys.modules["ssl"].RAND_add(os.urandom(64), 0.0)
    uuid = sys.modules.get("uuid")
    if uuid is not None:
        vars(uuid).update(_node=None, _last_timestamp=None)
    for callback in tuple(_callbacks):
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - the others want to be called, too
            sys.excepthook(type(error), error, error.__traceback__)


def _install() -> None:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("import cove_fork in the main thread: only there can a signal be handled")
    before = signal.getsignal(SIGNAL)

    def handle(number: int, frame: Any) -> None:
        reseed()
        if callable(before):
            before(number, frame)

    signal.signal(SIGNAL, handle)
    _register()
    os.register_at_fork(after_in_child=_register)


def _register() -> None:
    """Where the kernel does not tell who handles which signal (gVisor's), say so: by a file that is held open.

    It closes when another program takes this process over, which would not handle the signal.
    """
    try:
        with open("/proc/self/status") as file:
            if "\nSigCgt:" not in file.read():
                os.open("%s/%d" % (_CATCHERS, os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError:
        pass


_install()
