"""Names of images as registries have them: `registry[:port]/path[:tag][@sha256:...]`. Pure; strict.

Normalised as Docker does it: what has no registry is of the default one, there a name without a path is of `library`,
and what has neither tag nor digest means `latest`. Source: the grammar of the distribution project's `reference`
package (docs/spec/api, "content digests" and "overview"); digests other than sha256 are refused.

Images made here have `localhost` in the place of the registry, as podman names them.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from msgspec import Struct

from cove.model.errors import BadRequest

LOCAL: Final = "localhost"
INTERIM: Final = f"{LOCAL}/cove-build-"
"""How names of images begin that a build makes on its way."""

"""The registry part of images that were built or imported here. Nothing is ever fetched for it."""

DEFAULT_REGISTRY: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
MAX_LENGTH: Final = 512
_MAX_PATH: Final = 255
_MAX_HOST: Final = 253
_MAX_PORT: Final = 65535

_PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH: Final = re.compile(rf"{_PART}(?:/{_PART})*", re.ASCII)
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)


class Reference(Struct, frozen=True, kw_only=True):
    """A parsed name; made by `parse_reference` only. `registry` is `host` or `host:port`, in lower case.

    `tag` None: a digest alone was given.
    """

    registry: str
    path: str
    tag: str | None = DEFAULT_TAG
    digest: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it names an image that was made here."""
        return self.registry == LOCAL

    @property
    def repository(self) -> str:
        """Without tag and digest."""
        return f"{self.registry}/{self.path}"

    def familiar(self, default_registry: str) -> str:
        """The shortest form that means the same where `default_registry` is the one that names leave out."""
        text = str(self)
        if self.registry != default_registry:
            return text
        text = text.removeprefix(f"{self.registry}/")
        return text.removeprefix("library/") if self.registry == DEFAULT_REGISTRY else text

    def __str__(self) -> str:
        """The canonical form; parsing it again gives the same."""
        tag = "" if self.tag is None else f":{self.tag}"
        return self.repository + tag + ("" if self.digest is None else f"@{self.digest}")


def parse_reference(text: str, *, default_registry: str = DEFAULT_REGISTRY) -> Reference:
    """The reference that `text` means. Raises: BadRequest (field `image`)."""
    if not text or len(text) > MAX_LENGTH:
        raise _bad(text, f"must be 1 to {MAX_LENGTH} characters")
    rest, has_digest, digest = text.partition("@")
    if has_digest and not _DIGEST.fullmatch(digest):
        raise _bad(text, "a digest is `sha256:` and 64 hexadecimal digits in lower case")
    registry, path = _split_registry(rest, default_registry)
    path, has_tag, tag = path.partition(":")
    if has_tag and not _TAG.fullmatch(tag):
        raise _bad(text, "a tag has letters, digits, `_`, `.` and `-`, at most 128")
    if registry in {"docker.io", "index.docker.io"}:
        registry = "docker.io"
        path = path if "/" in path else f"library/{path}"
    if len(path) > _MAX_PATH or not _PATH.fullmatch(path):
        raise _bad(text, "a path has lower-case letters and digits, separated by `/`, `.`, `_`, `__` or `-`")
    return Reference(
        registry=_checked_registry(registry, text),
        path=path,
        tag=tag or (None if has_digest else DEFAULT_TAG),
        digest=digest or None,
    )


def parse_local(text: str) -> Reference:
    """The reference of an image made here, by its short or full name. Raises: BadRequest (field `image`)."""
    short = text.removeprefix(f"{LOCAL}/")
    reference = parse_reference(f"{LOCAL}/{short}")
    if reference.digest is not None:
        raise _bad(text, "an image made here has a name and a tag, no digest")
    return reference


def check_registry(text: str) -> str:
    """A registry as a setting names it, in lower case. Raises: BadRequest (field `image`)."""
    return _checked_registry(text, text)


def _split_registry(text: str, default: str) -> tuple[str, str]:
    """The first part is a registry if it looks like a host: a dot, a port, or `localhost` (Docker's rule)."""
    first, has_more, rest = text.partition("/")
    if has_more and ("." in first or ":" in first or first.lower() == LOCAL):
        return first, rest
    return default, text


def _checked_registry(registry: str, text: str) -> str:
    host, has_port, port = registry.rpartition(":") if not registry.endswith("]") else (registry, "", "")
    if not has_port:
        host = registry
    elif not (port.isascii() and port.isdigit() and 0 < int(port) <= _MAX_PORT and str(int(port)) == port):
        raise _bad(text, "the port of the registry must be 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        try:
            host = f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            raise _bad(text, "the registry is no valid address") from None
        if "%" in host:
            raise _bad(text, "the registry is no valid address")
    elif len(host) > _MAX_HOST or not _HOST.fullmatch(host):
        raise _bad(text, "the registry is no valid host name")
    return host.lower() + (f":{port}" if has_port else "")


def _bad(text: str, why: str) -> BadRequest:
    return BadRequest(f"{text[:80]!r} is no name of an image: {why}", field="image")
