"""Credentials that never enter a sandbox: what is asked for, what is remembered, what a service is. No I/O.

A *service* is an HTTPS API that takes a key in a header. A *credential* lets one sandbox use one service through the
broker, which adds the header. The rules of paths: `model/endpoints.py`; the words: docs/guides/credentials.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from msgspec import Struct, field

PLACEHOLDER: Final = "cove-proxy-managed"
"""What stands in a sandbox's environment where a program looks for a key. It opens nothing."""

BROKER_ADDRESS: Final = "169.254.1.1"
BROKER_PORT: Final = 3130

PROJECT: Final = ""
"""In place of a sandbox's id: the credential is the project's own."""


class Secret:
    """A text that neither `repr` nor `str` nor an encoder shows. `reveal` is called where it is sealed or sent."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        """Without the text."""
        return "Secret()"


class EndpointRule(Struct, frozen=True, kw_only=True):
    """Requests that may be made: any of `methods` (empty: all) on any of `paths` (empty: all)."""

    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


class CredentialWish(Struct, frozen=True, kw_only=True):
    """A credential as asked for. `key` None: the one that the project keeps. `endpoints` empty: every request."""

    key: Secret | None = None
    endpoints: tuple[EndpointRule, ...] = ()


class Credential(Struct, frozen=True, kw_only=True):
    """A credential as the store knows it; `sandbox` is `PROJECT` for one that the project keeps.

    `sealed`: the key, encrypted; None: the project's is used, as it is at the time. `changed_at`: of the key.
    """

    project: str
    sandbox: str
    service: str
    sealed: str | None
    endpoints: tuple[EndpointRule, ...]
    created_at: float
    changed_at: float


class Service(Struct, frozen=True, kw_only=True):
    """An HTTPS API, and how it takes its key.

    `prefix` is put before a path that does not begin with it. The header `header` becomes `value` with `{key}` in it.
    `strip_headers` and `strip_query` name what a request could carry a key in besides the usual headers. `env`: what a
    sandbox's environment gets, with `{placeholder}` and `{url}` (the broker's address for this service).
    """

    name: str
    host: str
    port: int = 443
    prefix: str = ""
    header: str = "Authorization"
    value: str = "Bearer {key}"
    strip_headers: tuple[str, ...] = ()
    strip_query: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    description: str = ""
    is_builtin: bool = False

    @property
    def upstream(self) -> str:
        """Its address as a URL."""
        port = "" if self.port == 443 else f":{self.port}"  # noqa: PLR2004 - of https
        return f"https://{self.host}{port}{self.prefix}"

    @property
    def url(self) -> str:
        """Its address inside a sandbox."""
        return f"http://{BROKER_ADDRESS}:{BROKER_PORT}/proxy/{self.name}"

    def environment(self, placeholder: str) -> dict[str, str]:
        """The variables that point a sandbox's programs to the broker."""
        marks = (("{placeholder}", placeholder), ("{url}", self.url))
        found = dict(self.env)
        for mark, text in marks:
            found = {name: value.replace(mark, text) for name, value in found.items()}
        return found


class Grant(NamedTuple):
    """What the broker needs to forward one request. `header` has the key in it."""

    service: Service
    sandbox: str
    project: str
    rules: tuple[tuple[EndpointRule, ...], ...]
    header: tuple[bytes, Secret]
    key: Secret
