"""Identifiers and names. Pure but for the random source passed in or taken from `secrets`."""

from __future__ import annotations

import re
import secrets
from typing import Final

_CORE: Final = re.compile(r"[0-9a-f]{16}")
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

_ADJECTIVES_TEXT: Final = """
    amber bold brave brisk bright calm civil clean clear clever cosy crisp deft eager early easy fair fast fine firm
    fleet fond frank free fresh gentle glad grand green happy hardy honest jolly keen kind late light lively loyal
    lucid lucky mellow merry mild modest neat nimble noble plain polite prime proud quick quiet rapid ready royal
    sharp shiny silent simple smart smooth snug sober solid spry steady still stout sturdy sunny sure swift tidy
    true upbeat vivid warm wise
"""
_NOUNS_TEXT: Final = """
    alder ant badger bay beaver birch bison brook cedar cliff cove crane creek crow dale deer delta dove dune eagle
    elk elm falcon fern finch fjord fox glade grove gull hare hawk hazel heron hill ibis isle jay kelp kite lake
    lark lynx maple marsh marten mesa mole moose newt oak orca osprey otter owl peak pine plover pond quail raven
    reef ridge robin rook sage seal shoal shore spruce stork swan tern thrush toad trout vale vole walrus willow
    wolf wren yak yew
"""
ADJECTIVES: Final = tuple(_ADJECTIVES_TEXT.split())
NOUNS: Final = tuple(_NOUNS_TEXT.split())


def new_core_id() -> str:
    """A random 64-bit id as 16 lowercase hex digits. One identity behind every dialect's own form."""
    return secrets.token_hex(8)


def is_core_id(text: str) -> bool:
    """Whether `text` has the form of a core id."""
    return _CORE.fullmatch(text) is not None


def new_name() -> str:
    """Two words, such as `brave-otter`: 7 000 of them, so the caller adds digits where one is taken."""
    return f"{secrets.choice(ADJECTIVES)}-{secrets.choice(NOUNS)}"


def is_name(text: str) -> bool:
    """Whether `text` can name a sandbox and be its hostname (RFC 1123 label: 1-63 of a-z, 0-9, inner hyphens)."""
    return _NAME.fullmatch(text) is not None
