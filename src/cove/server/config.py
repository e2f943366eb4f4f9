"""Settings: flag, then environment, then TOML file, then default, into one frozen struct. Read once, at the start.

`python -m cove.server.config` writes docs/reference/settings.md anew from the table; a test compares the two.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

from msgspec import Struct

from cove.model.closed import Opening
from cove.model.errors import BadRequest
from cove.model.reference import check_registry
from cove.model.usage import NANO, nano
from cove.server.execution_settings import EXECUTION_PARSERS, ExecutionFields
from cove.server.graveyard import GRAVEYARD
from cove.server.network_settings import network_range, openings, resolvers
from cove.server.parsing import flag as _flag
from cove.server.parsing import number as _number
from cove.server.parsing import region as _region
from cove.server.parsing import separated as _words
from cove.server.parsing import some_of as _some_of
from cove.server.settings_table import ELSEWHERE, TABLE, Setting

SYSTEM_FILE: Final = Path("/etc/cove/cove.toml")
PAGE: Final = "docs/reference/settings.md"

_DOMAIN: Final = re.compile(r"[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63}){0,16}(:[0-9]{1,5})?")


class BadSetting(BadRequest):
    """A setting cannot be used; `public` names it, where it came from and what it may be."""

    kind = "bad-setting"


class Settings(ExecutionFields, frozen=True, kw_only=True):
    """Every setting, parsed. One field per row of `settings_table.TABLE`, which says what each means."""

    data_dir: Path
    run_dir: Path
    host: str
    port: int
    ssh_host: str
    ssh_port: int
    tls_cert: Path | None
    tls_key: Path | None
    behind_proxy: bool
    public_domain: str
    proxy_timeout_s: float
    region: str
    bootstrap_keys: tuple[str, ...]
    drivers: tuple[str, ...]
    default_driver: str
    untrusted_drivers: tuple[str, ...]
    images: tuple[str, ...]
    extra_ca: Path | None
    default_registry: str
    registries: tuple[str, ...]
    insecure_registries: tuple[str, ...]
    image_aliases: tuple[str, ...]
    image_max_mib: int
    image_max_files: int
    image_max_ratio: int
    max_pulls: int
    pull_timeout_s: float
    pull_stall_s: float
    pool_size: int
    pool_images: tuple[str, ...]
    pool_drivers: tuple[str, ...]
    overcommit: float
    keep_free_mib: int
    keep_free_disk_mib: int
    max_sandboxes: int
    max_creates: int
    timeout_counts: str
    history_days: float
    price_vcpu_hour: int
    price_gib_hour: int
    price_traffic_gib: int
    bill_paused: str
    usage_interval_s: float
    usage_days: float
    requests_per_minute: int
    request_burst: int
    failed_logins_per_minute: int
    template_ready: int
    webhook_plain: bool
    audit_retention: float
    quota: str
    degrade: tuple[str, ...]
    pool_bytes: int
    import_memory: bool
    network: bool
    network_range: ipaddress.IPv4Network
    network_outside: Path | None
    network_resolvers: tuple[str, ...]
    network_opened_ranges: tuple[Opening, ...]
    forward_host: str
    forward_ports: tuple[int, int] | None
    json_body_mib: int
    max_connections: int
    debian_mirror: str
    log_format: str
    log_level: str
    log_requests: bool
    otlp_endpoint: str
    trace_ratio: float

    @property
    def url(self) -> str:
        """Where this machine reaches the server."""
        scheme = "https" if self.tls_cert else "http"
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::", ""} else self.host  # noqa: S104 - compared, not bound
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def __repr__(self) -> str:
        """Without the keys: a repr may land in a log."""
        return f"Settings(data_dir={str(self.data_dir)!r}, host={self.host!r}, port={self.port})"


class Loaded(Struct, frozen=True):
    """The settings, where each came from, and what should be said about them."""

    settings: Settings
    origins: Mapping[str, str]
    warnings: tuple[str, ...]


def load(environ: Mapping[str, str], overrides: Mapping[str, str] | None = None) -> Loaded:
    """Read all settings. `overrides` are flags, by the setting's name. Raises: BadSetting."""
    flags = {name.lower().removeprefix("cove_").replace("-", "_"): text for name, text in (overrides or {}).items()}
    for name in flags:
        if name not in {row.name for row in TABLE}:
            raise BadSetting(f"there is no setting {name}{_nearest(name, [row.name for row in TABLE])}", field=name)
    file, path = _file(environ, flags)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for row in TABLE:
        text, origin = _find(row, flags, environ, file, path)
        values[row.name] = _parse(row, text, origin)
        origins[row.name] = origin
    settings = Settings(**values)
    _check_together(settings)
    return Loaded(settings, origins, tuple(_strays(environ)))


def _find(
    row: Setting, flags: Mapping[str, str], environ: Mapping[str, str], file: Mapping[str, str], path: Path | None
) -> tuple[str, str]:
    if row.name in flags:
        return flags[row.name], "flag"
    if row.variable in environ:
        return environ[row.variable], row.variable
    if row.name in file:
        return file[row.name], str(path)
    return row.default, "default"


def _file(environ: Mapping[str, str], flags: Mapping[str, str]) -> tuple[dict[str, str], Path | None]:
    named = environ.get("COVE_CONFIG")
    data_dir = Path(flags.get("data_dir") or environ.get("COVE_DATA_DIR") or TABLE[0].default)
    for path in [Path(named)] if named else [data_dir / "cove.toml", SYSTEM_FILE]:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            if named:
                raise BadSetting(f"COVE_CONFIG names {path}, which does not exist") from error
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise BadSetting(f"the settings file {path} cannot be read: {error}") from error
        return _toml(text, path), path
    return {}, None


def _toml(text: str, path: Path) -> dict[str, str]:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadSetting(f"{path} is no valid TOML: {error}") from error
    names = [row.name for row in TABLE]
    found: dict[str, str] = {}
    for name, value in content.items():
        if name not in names:
            raise BadSetting(f"{path}: there is no setting {name}{_nearest(name, names)}", field=name)
        if isinstance(value, bool):
            found[name] = str(int(value))
        elif isinstance(value, list):
            found[name] = ",".join(map(str, cast("list[object]", value)))
        else:
            found[name] = str(value)
    return found


def _parse(row: Setting, text: str, origin: str) -> object:
    try:
        return _PARSERS[row.name](text.strip())
    except ValueError as error:
        shown = "" if row.name == "bootstrap_keys" else f" ({text!r})"
        raise BadSetting(f"{row.variable}{shown}, from {origin}: {error}", field=row.name) from error


def _absolute(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or path == Path("/"):
        raise ValueError("must be an absolute path below /")
    return path


def _optional_path(text: str) -> Path | None:
    return _absolute(text) if text else None


def _sized(text: str) -> tuple[str, ...]:
    words = _words(text)
    for word in words:
        name, is_sized, size = word.partition("=")
        if not name or (is_sized and not (size.isdigit() and int(size) <= 100_000)):  # noqa: PLR2004 - as pool_size
            raise ValueError("each entry is `name` or `name=size`, size 0 to 100000")
    return words


def _domain(text: str) -> str:
    if not _DOMAIN.fullmatch(text.lower()):
        raise ValueError("must be a host name such as `sandboxes.example.com`, `:port` may follow")
    return text.lower()


def _http_url(text: str) -> str:
    parts = urlsplit(text)
    if text and (parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.username):
        raise ValueError("must be http:// or https://, a host and perhaps a path")
    return text


def _registry(text: str) -> str:
    try:
        return check_registry(text)
    except BadRequest as error:
        raise ValueError(error.public) from error


def _registries(text: str) -> tuple[str, ...]:
    for word in _words(text):
        if word != "*":
            _registry(word.removeprefix("*."))
    return tuple(word.lower() for word in _words(text))


def _aliases(text: str) -> tuple[str, ...]:
    if text.lower() == "off":
        return ()
    words = _words(text)
    for word in words:
        pattern, _, image = word.rpartition("=")
        if not pattern or not image:
            raise ValueError("each entry is `PATTERN=IMAGE`, or all of it is `off`")
    return words


_OPEN_PORTS: Final = range(1024, 65536)


def _address(text: str) -> str:
    return str(ipaddress.ip_address(text))


def _port_range(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    first, dash, last = text.partition("-")
    words = (first, last if dash else first)
    if not all(word.isascii() and word.isdigit() and int(word[:6]) in _OPEN_PORTS for word in words):
        raise ValueError("must be FIRST-LAST, both 1024 to 65535, or empty")
    if int(words[0]) > int(words[1]):
        raise ValueError("the first port is above the last")
    return int(words[0]), int(words[1])


def _money(text: str) -> int:
    """A price in nano-units."""
    try:
        price = nano(Decimal(text))
    except ArithmeticError:
        raise ValueError("must be an amount of money, such as 0.025") from None
    if price > MOST_PRICE:
        raise ValueError("must be at most 1000000")
    return price


MOST_PRICE: Final = 1_000_000 * NANO


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text.lower()

    return parse


_COUNT: Final = _number(int, 1, 1_000_000)
_PARSERS: Final[Mapping[str, Callable[[str], object]]] = {
    "data_dir": _absolute,
    "run_dir": _absolute,
    "host": str,
    "port": _number(int, 0, 65535),
    "ssh_host": str,
    "ssh_port": _number(int, 0, 65535),
    "tls_cert": _optional_path,
    "tls_key": _optional_path,
    "behind_proxy": _flag,
    "public_domain": _domain,
    "proxy_timeout_s": _number(float, 1, 86400),
    "region": _region,
    "bootstrap_keys": _words,
    "drivers": _words,
    "default_driver": str,
    "untrusted_drivers": _words,
    "images": _words,
    "extra_ca": _optional_path,
    "default_registry": _registry,
    "registries": _registries,
    "insecure_registries": _registries,
    "image_aliases": _aliases,
    "image_max_mib": _number(int, 1, 1_000_000_000),
    "image_max_files": _number(int, 1, 100_000_000),
    "image_max_ratio": _number(int, 2, 100_000),
    "max_pulls": _number(int, 1, 64),
    "pull_timeout_s": _number(float, 1, 86400),
    "pull_stall_s": _number(float, 1, 3600),
    "pool_size": _number(int, 0, 100_000),
    "pool_images": _words,
    "pool_drivers": _sized,
    "overcommit": _number(float, 0.1, 1000),
    "keep_free_mib": _number(int, 0, 16 * 1024 * 1024),
    "keep_free_disk_mib": _number(int, 0, 1024 * 1024 * 1024),
    "max_sandboxes": _COUNT,
    "max_creates": _COUNT,
    "history_days": _number(float, 0, 3650),
    "price_vcpu_hour": _money,
    "price_gib_hour": _money,
    "price_traffic_gib": _money,
    "bill_paused": _one_of("memory", "nothing", "all"),
    "timeout_counts": _one_of("always", "running"),
    "usage_interval_s": _number(float, 0.1, 3600),
    "usage_days": _number(float, 31, 36500),
    "requests_per_minute": _number(int, 0, 1_000_000),
    "request_burst": _number(int, 0, 1_000_000),
    "failed_logins_per_minute": _number(int, 0, 1_000_000),
    "audit_retention": _number(float, 1, 36500),
    "template_ready": _number(int, 0, 1000),
    "webhook_plain": _flag,
    "quota": _one_of("auto", "btrfs", "ext4", "tmpfs"),
    "degrade": _some_of("shared", "host"),
    "pool_bytes": _number(int, 0, 2**60),
    "import_memory": _flag,
    "network": _flag,
    "network_range": network_range,
    "network_outside": _optional_path,
    "network_resolvers": lambda text: resolvers(_words(text)),
    "network_opened_ranges": lambda text: openings(_words(text)),
    "forward_host": _address,
    "forward_ports": _port_range,
    "json_body_mib": _number(int, 1, 1024),
    "max_connections": _COUNT,
    "debian_mirror": str,
    "log_format": _one_of("line", "json"),
    "log_level": _one_of("debug", "info", "warning", "error"),
    "log_requests": _flag,
    "otlp_endpoint": _http_url,
    "trace_ratio": _number(float, 0, 1),
    **EXECUTION_PARSERS,
}


def is_this_machine(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_together(settings: Settings) -> None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise BadSetting("COVE_TLS_CERT and COVE_TLS_KEY belong together: set both or neither", field="tls_cert")
    if not settings.drivers:
        raise BadSetting("COVE_DRIVERS names no driver", field="drivers")
    if settings.default_driver and settings.default_driver not in settings.drivers:
        raise BadSetting("COVE_DEFAULT_DRIVER must be one of COVE_DRIVERS", field="default_driver")
    named = {
        "untrusted_drivers": settings.untrusted_drivers,
        "pool_drivers": tuple(entry.partition("=")[0] for entry in settings.pool_drivers),
    }
    for field, names in named.items():
        for name in names:
            if name not in settings.drivers:
                raise BadSetting(f"COVE_{field.upper()} names {name}, which is none of COVE_DRIVERS", field=field)
    is_safe = is_this_machine(settings.host) or settings.tls_cert is not None or settings.behind_proxy
    if not is_safe:
        raise BadSetting(
            f"COVE_HOST is {settings.host}: keys would cross the network in clear text. Set COVE_TLS_CERT and "
            "COVE_TLS_KEY, or COVE_BEHIND_PROXY=1 where a proxy does TLS, or listen on 127.0.0.1",
            field="host",
        )


def _strays(environ: Mapping[str, str]) -> list[str]:
    known = [row.variable for row in TABLE] + list(ELSEWHERE)
    found: list[str] = []
    for name in sorted(environ):
        if not name.startswith("COVE_") or name.startswith("COVE_TEST_") or name in known:
            continue
        if name in GRAVEYARD:
            raise BadSetting(f"{name} does not exist any more: {GRAVEYARD[name]}", field=name)
        found.append(f"{name} is set and means nothing here{_nearest(name, known)}")
    return found


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def page() -> str:
    """docs/reference/settings.md."""
    lines = [
        "# Settings of the server",
        "",
        "<!-- Made from src/cove/server/settings_table.py by `python -m cove.server.config`; do not edit. -->",
        "",
        "Each can be given, in this order of precedence, as a flag of `cove serve` (`--data-dir`), in the",
        "environment (`COVE_DATA_DIR`), in a TOML file (`data_dir = ...`: the file that `COVE_CONFIG` names, else",
        "`cove.toml` in the data directory, else `/etc/cove/cove.toml`), or not at all. Lists are separated by commas,",
        "in TOML they may be arrays. A value that cannot be used stops the start with a sentence; an unknown",
        "`COVE_*` is warned of.",
        "",
    ]
    for row in TABLE:
        default = f"`{row.default}`" if row.default else "empty"
        lines += [f"## {row.variable}", "", row.help, "", f"Unit: {row.unit}. Default: {default}.", ""]
    lines += ["## Not settings of the server", ""]
    lines += [f"- `{name}`: {meaning}." for name, meaning in ELSEWHERE.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else PAGE).write_text(page(), encoding="utf-8")
