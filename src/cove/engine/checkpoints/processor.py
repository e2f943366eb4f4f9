"""What a processor can do that programs depend on: memory moves only to one that can do no less. Reads one file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

_FAMILIES: Final = ("avx", "sse", "amx", "xsave", "bmi", "sha", "clflush", "clwb", "rd", "v", "fsg", "fsr", "erm")
_ALONE: Final = frozenset(
    (
        *("ssse3", "pni", "fma", "f16c", "aes", "pclmulqdq", "popcnt", "movbe", "adx", "abm", "lzcnt", "cx16", "gfni"),
        *("pku", "ospke", "3dnow", "mmx", "fxsr", "cmov", "lahf_lm"),
        *("asimd", "asimdhp", "asimddp", "fp", "atomics", "crc32", "sve", "sve2", "pmull", "dcpop", "lrcpc", "uscat"),
    )
)
_OF_THE_HOST: Final = frozenset({"vmx", "vnmi", "vme", "v_vmsave_vmload", "vgif", "v_spec_ctrl", "vmmcall", "vpid"})
"""Nothing that a program meets."""


@cache
def features() -> str:
    """The instruction sets of this machine's processor, as the kernel names them, in one line."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, words = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return " ".join(sorted(word for word in set(words.split()) if _matters(word)))
    return ""


def _matters(word: str) -> bool:
    return word in _ALONE or (word.startswith(_FAMILIES) and word not in _OF_THE_HOST)


def lacking(wanted: str) -> tuple[str, ...]:
    """What of `wanted`, which is such a line, this machine's processor cannot do; of a long list the beginning."""
    return tuple(sorted(set(wanted.split()) - set(features().split())))[:8]
