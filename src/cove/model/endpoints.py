"""Which requests a credential may make: one canonical form of paths, and rules over it. Pure.

What is judged is what is sent: a path becomes canonical once, and the broker forwards that text and no other. What two
servers could read in two ways (an encoded slash, an encoding within an encoding) is refused where paths are the rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from cove.model.credentials import EndpointRule

PATH_BYTES: Final = 8192
PATTERN_LIMIT: Final = 512
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PLAIN: Final = _UNRESERVED | frozenset(b"!$&'()*+,;=:@/")
_HEX: Final = re.compile(rb"[0-9A-Fa-f]{2}")
_METHOD: Final = re.compile(r"[A-Z][A-Z-]{0,31}")
_DOUBTFUL: Final = re.compile(r"%(?:2F|5C|3B|25(?:2E|2F|5C|25))|(?:^|/)\.{1,2};", re.IGNORECASE)
"""A slash or `;` that is encoded, what a second decoding would make one or a dot, a dot segment with a parameter."""


def canonical_path(raw: bytes) -> str:
    """The one form of a request's path (RFC 3986, 6.2.2), dot segments and doubled slashes taken out.

    Raises: ValueError for a path that does not begin with a slash, leads above its root, or is no path.
    """
    if len(raw) > PATH_BYTES:
        raise ValueError(f"the path has more than {PATH_BYTES} bytes")
    if not raw.startswith(b"/"):
        raise ValueError("the path does not begin with a slash")
    kept: list[str] = []
    segments = _decoded(raw).split("/")[1:]
    for segment in segments:
        if segment == "..":
            if not kept:
                raise ValueError("the path leads above its root")
            kept.pop()
        elif segment not in {"", "."}:
            kept.append(segment)
    has_end = segments[-1] in {"", ".", ".."} and bool(kept)
    return "/" + "/".join(kept) + ("/" if has_end else "")


def _decoded(raw: bytes) -> str:
    """Percent-encoding in its normal form: only where it must be, in capitals."""
    found = bytearray()
    place = 0
    while place < len(raw):
        byte = raw[place]
        if byte == ord("%"):
            pair = raw[place + 1 : place + 3]
            if _HEX.fullmatch(pair) is None:
                raise ValueError("the path has a % that encodes nothing")
            byte = int(pair, 16)
            place += 2
            if byte < ord(" ") or byte == 127:  # noqa: PLR2004 - DEL
                raise ValueError("the path has a control character")
            found += bytes([byte]) if byte in _UNRESERVED else b"%%%02X" % byte
        elif byte in _PLAIN:
            found.append(byte)
        elif byte <= ord(" ") or byte >= 127 or byte in b'\\#?"<>':  # noqa: PLR2004 - not ASCII
            raise ValueError("the path has a character that must be encoded")
        else:
            found += b"%%%02X" % byte
        place += 1
    return found.decode("ascii")


def with_prefix(path: str, prefix: str) -> str:
    """The path below a service's own prefix, which it may have already."""
    if not prefix or path == prefix or path.startswith(prefix + "/"):
        return path
    return prefix + path


def refusal(rules: Iterable[Sequence[EndpointRule]], method: str, path: str, prefix: str = "") -> str | None:
    """Why a request with a canonical path may not be made, None: it may. Each list of `rules` that is not empty counts.

    Within a list one rule that matches is enough.
    """
    for alternatives in rules:
        if not alternatives:
            continue
        if any(rule.paths for rule in alternatives) and _DOUBTFUL.search(path):
            return "the path is encoded in a way that can be read as another path"
        if not any(_matches(rule, method, path, prefix) for rule in alternatives):
            return f"no rule of this credential allows {method} on this path"
    return None


def _matches(rule: EndpointRule, method: str, path: str, prefix: str) -> bool:
    if rule.methods and method not in rule.methods:
        return False
    return not rule.paths or any(path_matches(with_prefix(pattern, prefix), path) for pattern in rule.paths)


def path_matches(pattern: str, path: str) -> bool:
    """Whether a canonical path is at or below `pattern`.

    Without a star: that path and all below it (`/v1/chat` is not `/v1/chatter`). With one, the whole path: `*` is any
    text within a segment, `**` any text. One step for each character of the path, whatever the pattern.
    """
    if "*" not in pattern:
        return path == pattern or path.startswith(pattern if pattern.endswith("/") else pattern + "/")
    glob = _compiled(pattern)
    states = 1
    for letter in path:
        states = (
            ((states & glob.takes.get(letter, 0)) << 1)
            | (states & glob.any)
            | (0 if letter == "/" else states & glob.within)
        )
    return bool(states & glob.end)


class _Glob(NamedTuple):
    """A pattern as an automaton whose states are bits: bit n is set when the first n plain letters are behind.

    `takes`: in which states a letter leads on; `any`, `within`: which states stay at every letter, at all but a slash.
    """

    takes: dict[str, int]
    any: int
    within: int
    end: int


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> _Glob:
    takes: dict[str, int] = {}
    everywhere = within = 0
    state = 1
    for part in re.findall(r"\*+|[^*]", pattern):
        if part == "*":
            within |= state
        elif part.startswith("*"):
            everywhere |= state
        else:
            takes[part] = takes.get(part, 0) | state
            state <<= 1
    return _Glob(takes, everywhere, within, state)


def check_rule(rule: EndpointRule) -> None:
    """Raises: ValueError, with a sentence for the caller, for a rule that cannot be meant."""
    for method in rule.methods:
        if _METHOD.fullmatch(method) is None:
            raise ValueError(f"{method[:32]!r} is no method: capitals, such as GET")
    for pattern in rule.paths:
        _check_pattern(pattern)


def _check_pattern(pattern: str) -> None:
    if len(pattern) > PATTERN_LIMIT:
        raise ValueError(f"a path has at most {PATTERN_LIMIT} characters")
    try:
        canonical = canonical_path(pattern.encode("ascii"))
    except (ValueError, UnicodeEncodeError) as error:
        raise ValueError(f"{pattern[:80]!r} is no path: {error}") from error
    if canonical != pattern or _DOUBTFUL.search(pattern):
        raise ValueError(f"{pattern[:80]!r} never matches: write {canonical!r}")
