"""The languages that contexts of a sandbox can have: their names, and what its image offers."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from cove.engine.driver import Box
from cove.engine.kernels import NODE_LANGUAGES, kernel_argv, program_of
from cove.model.code import LanguageInfo
from cove.model.execs import ExecSpec

PROBE_TIMEOUT_S: Final = 20.0
PROBE_BYTES: Final = 256 * 1024
NAMES: Final = ("python", "javascript", "typescript", "bash")
"""Languages of Cove's own kernels; others are those of Jupyter's in the image."""

_ALIASES: Final = MappingProxyType(
    {
        "py": "python",
        "python3": "python",
        "ipython": "python",
        "js": "javascript",
        "node": "javascript",
        "nodejs": "javascript",
        "ts": "typescript",
        "sh": "bash",
        "shell": "bash",
    }
)

Word = Annotated[str, Meta(max_length=63)]


class _Language(Struct, frozen=True):
    """As a kernel's probe tells it."""

    name: Annotated[str, Meta(min_length=1, max_length=63)]
    kernel: Word = ""
    usable: bool = False
    rich: bool = False
    missing: Annotated[tuple[Annotated[str, Meta(max_length=500)], ...], Meta(max_length=16)] = ()


class _Probe(Struct, frozen=True):
    languages: Annotated[tuple[_Language, ...], Meta(max_length=256)] = ()


_DECODER: Final = msgspec.json.Decoder(_Probe)


def language_of(name: str) -> str:
    """A language by the one name that it has here."""
    return _ALIASES.get(name.lower(), name.lower() if name.lower() in NAMES else name)


async def probed(box: Box) -> list[LanguageInfo]:
    """What this sandbox's programs say of themselves now. Raises: SandboxError."""
    found: dict[str, LanguageInfo] = {}
    for language in ("python", "javascript"):
        for one in await _probe(box, language):
            found.setdefault(one.name, one)
    if "bash" not in found:
        found["bash"] = await _bash(box)
    first = [found.pop(name) for name in NAMES if name in found]
    return first + [found[name] for name in sorted(found)]


async def _probe(box: Box, language: str) -> list[LanguageInfo]:
    argv = (*kernel_argv(box, language), "--probe")
    spec = ExecSpec(argv=argv, timeout_s=PROBE_TIMEOUT_S, output_limit_bytes=PROBE_BYTES)
    result = await box.agent.exec(spec)
    program = program_of(language)
    names = sorted(NODE_LANGUAGES) if language in NODE_LANGUAGES else [language]
    if result.exit.code in {126, 127}:
        return [_unusable(name, program, f"this image has no {program}") for name in names]
    try:
        told = _DECODER.decode(result.stdout)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return [_unusable(name, program, f"{program} could not say what it offers") for name in names]
    return [
        LanguageInfo(name=one.name, kernel=one.kernel, usable=one.usable, rich=one.rich, missing=one.missing)
        for one in told.languages
    ]


async def _bash(box: Box) -> LanguageInfo:
    result = await box.agent.exec(ExecSpec(argv=("bash", "-c", ":"), timeout_s=PROBE_TIMEOUT_S))
    if result.exit.code in {126, 127}:
        return _unusable("bash", "bash", "this image has no bash")
    return LanguageInfo(name="bash", kernel="bash", usable=True, rich=False, missing=("bash has text only",))


def _unusable(name: str, program: str, why: str) -> LanguageInfo:
    return LanguageInfo(name=name, kernel=program, usable=False, rich=False, missing=(why,))
