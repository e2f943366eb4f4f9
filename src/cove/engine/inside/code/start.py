"""Starts the two processes of a kernel: the relay, which listens, and its child, which runs code."""

# What code of strangers makes has no known types.
# pyright: basic

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
from typing import NamedTuple

from . import relay, streams

_HIGH_FD = 200


class Options(NamedTuple):
    """What the command line says."""

    context: str
    language: str = "python"
    idle_s: float | None = None
    preload: list[str] = []  # noqa: RUF012 - never changed
    probe: bool = False


def parse(arguments: list[str]) -> Options:
    """By hand: argparse takes longer to import than all the rest. Pairs that it does not know are the host's notes.

    Raises: ValueError.
    """
    given = {"language": "python"}
    words = iter(arguments)
    for word in words:
        if not word.startswith("--"):
            raise ValueError(f"unknown argument {word}")
        if word in ("--ahead", "--probe"):
            given[word[2:]] = "yes"
            continue
        try:
            given[word[2:]] = next(words)
        except StopIteration:
            raise ValueError(f"{word} needs a value") from None
    if "context" not in given and "probe" not in given:
        raise ValueError("--context is needed")
    return Options(
        context=given.get("context", ""),
        language=given["language"],
        idle_s=float(given["idle-s"]) if "idle-s" in given else None,
        preload=[name for name in given.get("preload", "").split(",") if name],
        probe="probe" in given,
    )


def main(arguments: list[str], *, writes_bytecode: bool) -> int:
    """Run what the arguments ask for. Gives an exit code."""
    try:
        options = parse(arguments)
    except ValueError as problem:
        relay.fail(f"kernel.py: {problem}")
        return 64
    if options.probe:
        from . import probe

        return probe.main()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind("\0cove-code-" + options.context)
    except OSError as problem:
        relay.fail(f"The socket of context {options.context} cannot be made: {problem.strerror}.")
        return 64
    listener.listen(64)
    listener.setblocking(False)
    return _serve(options, listener, writes_bytecode=writes_bytecode)


def _serve(options: Options, listener: socket.socket, *, writes_bytecode: bool) -> int:
    page = streams.Page()
    ours, theirs = socket.socketpair()
    pipes = {stream: os.pipe() for stream in (streams.OUTPUT, streams.ERRORS)}
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # an interrupt goes to the group: to what code has started, too
    child = os.fork()
    if child == 0:
        listener.close()
        ours.close()
        for read, _ in pipes.values():
            os.close(read)
        sys.dont_write_bytecode = writes_bytecode
        _execute(options, theirs, page, pipes[streams.OUTPUT][1], pipes[streams.ERRORS][1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    theirs.close()
    ours.setblocking(False)
    reading = {}
    for stream, (read, write) in pipes.items():
        os.close(write)
        os.set_blocking(read, False)
        reading[stream] = read
    return relay.Relay(
        listener=listener, channel=ours, pipes=reading, page=page, child=child, language=options.language
    ).serve(options.idle_s, said=1)


def _execute(options: Options, sock: socket.socket, page: streams.Page, output: int, errors: int) -> None:
    """The child. Never returns."""
    from . import executor

    own_errors = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.close(null)
        sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115 - as long as the process
        # High up, where code that closes what it did not open is less likely to look.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD) for fd in (sock.fileno(), output, errors)]
        sock.close()
        os.close(output)
        os.close(errors)
        kept = socket.socket(fileno=high[0])
        one = executor.Executor(kept, page, streams.Streams(page, high[1], high[2]))
        try:
            one.start(options.language, options.preload)
        except executor.CannotStart as problem:
            os.write(own_errors, (f"{problem}\n").encode(errors="replace"))
            code = executor.CANNOT_START
        else:
            one.serve()
            code = 0
    except (BrokenPipeError, ConnectionResetError):
        code = 1  # the relay is gone
    except BaseException:  # noqa: BLE001 - it is this process's outermost frame
        import traceback

        os.write(own_errors, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(code)
