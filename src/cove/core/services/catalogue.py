"""Which services there are: those of the catalogue, and the operator's own, which come first. Rules of both."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any, Final
from urllib.parse import urlsplit

from msgspec import Struct, convert, field

from cove.core.access import require
from cove.core.audit import Audit
from cove.core.validation import check_env
from cove.model.access import Principal, Scope
from cove.model.audit import AuditValue
from cove.model.credentials import Service
from cove.model.endpoints import canonical_path
from cove.model.errors import BadRequest, NotFound, TooLarge
from cove.model.hostname import canonical_host
from cove.store.credentials import ServiceRows

MOST: Final = 256
"""Services of the operator's own."""

NAMES: Final = 16
TEXT: Final = 512
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,30}[a-z0-9])?")
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_QUERY: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NEVER: Final = frozenset(
    {
        "connection", "content-length", "expect", "host", "keep-alive", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""Headers that frame a request or choose its server."""


class ServiceSpec(Struct, frozen=True, kw_only=True):
    """A service as the operator describes it. `upstream` is its `https` URL."""

    upstream: str
    header: str = "Authorization"
    value: str = "Bearer {key}"
    prefix: str = ""
    strip_headers: tuple[str, ...] = ()
    strip_query: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    description: str = ""


class Services:
    """Every operation on services. `on_change` is told the name of one that is not what it was."""

    def __init__(self, rows: ServiceRows, audit: Audit) -> None:
        self._rows = rows
        self._audit = audit
        self.on_change: Callable[[str], None] = lambda _name: None

    def find(self, name: str) -> Service | None:
        """One, by its name."""
        return self._rows.get(name) or builtin().get(name)

    def get(self, name: str) -> Service:
        """One, by its name. Raises: NotFound, which names those that there are."""
        found = self.find(name)
        if found is None:
            known = ", ".join(sorted({*builtin(), *(one.name for one in self._rows.list())}))
            raise NotFound(f"no service {name[:64]!r}; there are {known}", field="service")
        return found

    def list(self, who: Principal) -> list[Service]:
        """All, by name. Raises: Forbidden."""
        require(who, Scope.READ)
        return sorted({**builtin(), **{one.name: one for one in self._rows.list()}}.values(), key=lambda one: one.name)

    async def put(self, who: Principal, name: str, spec: ServiceSpec) -> Service:
        """Add one, or change one; one of the catalogue is replaced by it. Raises: Forbidden, BadRequest."""
        require(who, Scope.ADMIN)
        service = checked(name, spec)
        if self._rows.get(name) is None and len(self._rows.list()) >= MOST:
            raise TooLarge(f"there are {MOST} services of your own already")
        await self._rows.save(service)
        await self._changed(who, name, {"action": "set", "upstream": service.upstream})
        return service

    async def remove(self, who: Principal, name: str) -> None:
        """Forget one of the operator's; one of the catalogue that it replaced is back. Raises: Forbidden, NotFound."""
        require(who, Scope.ADMIN)
        if not await self._rows.remove(name):
            raise NotFound("no such service of your own", field="service")
        await self._changed(who, name, {"action": "removed"})

    async def _changed(self, who: Principal, name: str, data: dict[str, AuditValue]) -> None:
        self.on_change(name)
        facts = {"service": name, **data}
        ticket = self._audit.note("service.changed", project=who.project, sandbox=None, data=facts, who=who)
        await self._audit.kept(ticket)


@cache
def builtin() -> Mapping[str, Service]:
    """The catalogue, by name."""
    folder = resources.files("cove.core.services")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    found: dict[str, Service] = {}
    for file in files:
        content: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
        name = str(content.pop("name"))
        found[name] = checked(name, convert(content, ServiceSpec), is_builtin=True)
    return found


def checked(name: str, spec: ServiceSpec, *, is_builtin: bool = False) -> Service:
    """The service that is described. Raises: BadRequest with the field at fault."""
    if _NAME.fullmatch(name) is None:
        raise BadRequest("a service's name is 1-32 of a-z, 0-9, inner - and _", field="service")
    host, port, path = _upstream(spec.upstream)
    prefix = _prefix(path or spec.prefix, "upstream" if path else "prefix")
    if _TOKEN.fullmatch(spec.header) is None or spec.header.lower() in _NEVER:
        raise BadRequest("header must be the name of a header that can carry a key", field="header")
    if spec.value.count("{key}") != 1 or not _is_plain(spec.value):
        raise BadRequest("value must be visible ASCII with {key} in it once", field="value")
    for field_name, words, form in (
        ("strip_headers", spec.strip_headers, _TOKEN),
        ("strip_query", spec.strip_query, _QUERY),
    ):
        if len(words) > NAMES or any(form.fullmatch(word) is None for word in words):
            raise BadRequest(f"{field_name} must be at most {NAMES} names", field=field_name)
    if len(spec.env) > NAMES or any(len(value) > TEXT for value in spec.env.values()):
        raise TooLarge(f"env has at most {NAMES} variables of {TEXT} characters", field="env")
    check_env(dict(spec.env))
    if len(spec.description) > TEXT:
        raise TooLarge(f"description has at most {TEXT} characters", field="description")
    return Service(
        name=name,
        host=host,
        port=port,
        prefix=prefix,
        header=spec.header,
        value=spec.value,
        strip_headers=tuple(word.lower() for word in spec.strip_headers),
        strip_query=spec.strip_query,
        env=dict(spec.env),
        description=spec.description,
        is_builtin=is_builtin,
    )


def _upstream(url: str) -> tuple[str, int, str]:
    """Host, port and path of an upstream. Raises: BadRequest."""
    try:
        parts = urlsplit(url)
        port = parts.port
        host = canonical_host(parts.hostname or "")
    except ValueError as error:
        raise BadRequest(
            f"upstream must be https://HOST[:PORT][/PATH], HOST a name: {error}", field="upstream"
        ) from None
    if parts.scheme != "https":
        raise BadRequest("upstream must be https: a key never goes out in clear text", field="upstream")
    if parts.query or parts.fragment or parts.username is not None or parts.password is not None or port == 0:
        raise BadRequest("upstream must be https://HOST[:PORT][/PATH] and nothing else", field="upstream")
    return host, port or 443, parts.path


def _prefix(path: str, field_name: str) -> str:
    bare = path.rstrip("/")
    if not bare:
        return ""
    try:
        is_canonical = canonical_path(bare.encode("ascii")) == bare
    except (ValueError, UnicodeEncodeError):
        is_canonical = False
    if not is_canonical or len(bare) > TEXT or "*" in bare:
        raise BadRequest(f"{field_name} has a path that is not in its plain form", field=field_name)
    return bare


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and text == text.strip() and len(text) <= TEXT
