"""Kernels in a box: how one is started, found again and connected to. What runs in them is not here.

A kernel is a kept command of the agent, `k-CONTEXT`, so the agent's list is the list of contexts: it outlives the
server, and a checkpoint with memory. Its arguments say all that a fresh one needs; `--context` names its socket, and
has a word of its own for each start, because a program that the last kernel left may still hold the socket of that one.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import signal
from contextlib import suppress
from typing import Final

from msgspec import Struct

from cove.agentlink.kernels import KernelLine, KernelLink
from cove.engine.driver import Box, BoxImage
from cove.model.code import ContextSpec
from cove.model.errors import BadRequest, CoveError, SandboxError, Unsupported
from cove.model.execs import Chunk, Command, Ended, ExecExit, ExecSpec, Gap, Stream

log = logging.getLogger(__name__)

PREFIX: Final = "k-"
"""Of the commands and shells that are contexts; `core/validation.py` keeps other operations from them."""

START_TIMEOUT_S: Final = 60.0
"""A kernel listens after 0.1-0.5 s; in a sandbox with little of a processor it takes its time."""

AHEAD_TIMEOUT_S: Final = 30.0
ANSWER_TIMEOUT_S: Final = 30.0
KEPT_BYTES: Final = 64 * 1024
"""Of what a kernel itself writes: why it could not be started, for one."""

LISTENING: Final = b"listening\n"
CANNOT: Final = 64
"""What a kernel exits with that cannot be one here; it has said why in a sentence."""

PYTHON: Final = "python3"
NODE: Final = "node"
NODE_LANGUAGES: Final = frozenset({"javascript", "typescript"})

_NAME: Final = re.compile(r"([a-z0-9_-]{1,30})\.[0-9a-f]{8}")
_SENTENCE_BYTES: Final = 512
_SIGNALLED: Final = 128
_SIGNALS: Final = {int(one): one.name for one in signal.Signals}


class KernelRecord(Struct, frozen=True, kw_only=True):
    """A kernel as the arguments of its command have it. `name`: of its socket; `ahead`: started before the claim."""

    context: str
    name: str
    spec: ContextSpec
    ahead: bool


def program_of(language: str) -> str:
    """The program that runs code of a language."""
    return NODE if language in NODE_LANGUAGES else PYTHON


def kernel_argv(box: Box, language: str) -> tuple[str, ...]:
    """The kernel of a language, without options."""
    if program_of(language) == NODE:
        return (NODE, f"{box.code_dir}/kernel.mjs")
    return (PYTHON, "-u", f"{box.code_dir}/kernel.py")


def record_of(command: Command) -> KernelRecord | None:
    """What a kept command says of itself; None: it is no kernel. The sandbox's own word."""
    options: dict[str, str] = {}
    words = iter(command.argv)
    ahead = False
    for word in words:
        if word == "--ahead":
            ahead = True
        elif word.startswith("--"):
            options[word] = next(words, "")
    found = _NAME.fullmatch(options.get("--context", ""))
    language = options.get("--language", "")
    if found is None or command.id != PREFIX + found[1] or not language:
        return None
    idle = options.get("--idle-s")
    spec = ContextSpec(
        language=language[:63],
        cwd=options.get("--cwd"),
        user=options.get("--user"),
        idle_timeout_s=float(idle) if idle is not None and re.fullmatch(r"[0-9.]{1,20}", idle) else None,
    )
    return KernelRecord(context=found[1], name=found[0], spec=spec, ahead=ahead)


async def start_kernel(
    box: Box, context: str, spec: ContextSpec, *, env: dict[str, str] | None = None, ahead: bool = False
) -> tuple[KernelRecord, KernelLink, KernelLine]:
    """A kernel that answers, a connection to it and its `ready`. Cancelling may leave it started.

    Raises: Unsupported (this image lacks what it needs), BadRequest (directory or user), Conflict (there is one),
    SandboxError.
    """
    name = f"{context}.{secrets.token_hex(4)}"
    options = ["--context", name, "--language", spec.language, *(("--ahead",) if ahead else ())]
    for option, value in (("--idle-s", spec.idle_timeout_s), ("--user", spec.user), ("--cwd", spec.cwd)):
        if value is not None:
            options += (option, value if isinstance(value, str) else f"{value:.3f}")
    argv = kernel_argv(box, spec.language) + tuple(options)
    command = ExecSpec(argv=argv, env=env or {}, cwd=spec.cwd, user=spec.user)
    try:
        await box.agent.start(PREFIX + context, command, keep_bytes=KEPT_BYTES, stdin_open=False)
    except BadRequest as error:
        raise await _refused(box, spec, error) from error
    record = KernelRecord(context=context, name=name, spec=spec, ahead=ahead)
    try:
        link, ready = await link_kernel(box, record, is_new=True)
    except (SandboxError, Unsupported):
        with suppress(CoveError):
            await box.agent.forget(PREFIX + context)
        raise
    return record, link, ready


async def start_ahead(box: Box, image: BoxImage) -> None:
    """While a box waits in the pool: start the kernels that its image asks for. What fails is logged, and not there.

    Who claims the box tells each of them, before its first run, whose it is.
    """
    for language in image.kernels:
        spec = ContextSpec(language=language, cwd=image.workdir, user=image.user)
        try:
            async with asyncio.timeout(AHEAD_TIMEOUT_S):
                _, link, _ = await start_kernel(box, language, spec, env=image.env, ahead=True)
                link.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, the box is good
            log.warning("no kernel for %s in a %s box of the pool: %r", language, image.name, error)
            with suppress(CoveError):
                await box.agent.forget(PREFIX + language)


async def link_kernel(box: Box, record: KernelRecord, *, is_new: bool = False) -> tuple[KernelLink, KernelLine]:
    """A connection to a kernel, and its `ready`. `is_new`: it may not listen yet. Raises: as `start_kernel`."""
    complaint = ""
    try:
        if is_new:
            async with asyncio.timeout(START_TIMEOUT_S):
                await _wait_listening(box, record)
        for _ in range(2):
            link = box.agent.kernel_link(record.name, record.spec.user)
            try:
                ready = await link.greet(START_TIMEOUT_S if is_new else ANSWER_TIMEOUT_S)
            except BaseException:
                link.close()
                raise
            if ready is not None:
                return link, ready
            complaint = link.complaint
            async with asyncio.timeout(START_TIMEOUT_S):
                await _wait_listening(box, record)
    except TimeoutError as error:
        raise SandboxError("the kernel of this context does not answer: restart the context") from error
    raise SandboxError(f"the kernel of this context cannot be reached: restart the context ({complaint})")


async def _wait_listening(box: Box, record: KernelRecord) -> None:
    """Until it says that it listens. Raises: Unsupported, SandboxError (it ended before)."""
    said, complained = b"", b""
    async with box.agent.output(PREFIX + record.context, follow=True) as events:
        async for event in events:
            match event:
                case Chunk(Stream.STDOUT, data):
                    said = (said + data)[-KEPT_BYTES:]
                    if LISTENING in said:
                        return
                case Chunk(_, data):
                    complained = (complained + data)[-_SENTENCE_BYTES:]
                case Gap() if (await box.agent.command(PREFIX + record.context)).running:
                    return  # it has said much since
                case Ended(exit):
                    raise _stillborn(exit, complained)
                case _:
                    pass


def _stillborn(exit_: ExecExit, complained: bytes) -> CoveError:
    sentence = complained.decode(errors="replace").strip()
    if exit_.code == CANNOT and sentence:
        return Unsupported(sentence, field="language")
    return SandboxError(f"the kernel of this context could not be started: {end_of(exit_)}. {sentence}".strip())


async def _refused(box: Box, spec: ContextSpec, error: BadRequest) -> CoveError:
    """Which of program, directory and user it is that the agent did not find."""
    program = program_of(spec.language)
    plain = await box.agent.exec(ExecSpec(argv=(program, "--version"), cwd="/", user="0"))
    if plain.exit.code in {126, 127}:
        return Unsupported(f"this image has no {program}, which runs {spec.language}", field="language")
    return BadRequest(error.public, field="cwd" if spec.cwd is not None else "user")


def end_of(exit_: ExecExit) -> str:
    """How a kernel ended, as a clause."""
    if exit_.why == "oom":
        return "it was killed because the sandbox ran out of memory"
    number = exit_.signal or exit_.code - _SIGNALLED
    if number in _SIGNALS:
        return f"it was ended by {_SIGNALS[number]}"
    return f"it ended with exit code {exit_.code}"
