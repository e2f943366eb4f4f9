"""The one spelling of a host's name, used to match and to dial. Pure.

Rules, DNS questions, TLS server names and HTTP Host headers all pass through `canonical_host`; what two parsers would
read in two ways (a NUL in the middle, `0x7f.1`, full-width digits) is refused or becomes one text here.
"""

from __future__ import annotations

import re
from typing import Final

import idna

HOST_BYTES: Final = 253
"""Longest name without its last dot (RFC 1035 2.3.4: 255 octets on the wire)."""

_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)


def canonical_host(text: str) -> str:
    """`text` as DNS has it: A-labels in lower case, without the last dot.

    Underscores are allowed, as DNS allows them. Addresses are no hosts, in none of their forms: whatever ends in a
    number is one (WHATWG URL, "ends in a number checker"). Raises: ValueError with a sentence for people.
    """
    if len(text) > HOST_BYTES + 1:
        raise ValueError(f"a host name has at most {HOST_BYTES} characters")
    if not text.isascii():
        text = _to_ascii(text)
    name = text.lower().removesuffix(".")
    if not name or len(name) > HOST_BYTES:
        raise ValueError(f"a host name has 1-{HOST_BYTES} characters")
    labels = name.split(".")
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("a host name is labels of 1-63 letters, digits, _ and inner hyphens, with dots between")
    if _NUMBER.fullmatch(labels[-1]):
        raise ValueError("a host name does not end in a number")
    return name


def _to_ascii(text: str) -> str:
    """Raises: ValueError."""
    try:
        return idna.encode(text, uts46=True, std3_rules=False).decode("ascii")
    except (idna.IDNAError, UnicodeError) as error:
        raise ValueError("this host name is no valid international name (IDNA 2008)") from error
