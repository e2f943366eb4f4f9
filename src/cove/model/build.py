"""What a caller asks for who builds an image. Frozen values, no I/O."""

from __future__ import annotations

from msgspec import Struct, field

from cove.model.sandbox import Limits


class Recipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"base": "from"}):
    """How an image is made out of another, step by step in this order. As TOML and JSON, `base` is spelled `from`.

    `files` are absolute paths and texts; `packages` are for apt-get, `pip` and `npm` for these; `commands` are run by
    `/bin/sh -c` as root in /context, where the uploaded files are. The rest says how the image runs; None: as its base.
    """

    base: str = "base"
    files: dict[str, str] = field(default_factory=dict[str, str])
    env: dict[str, str] = field(default_factory=dict[str, str])
    packages: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    workdir: str | None = None
    user: str | None = None
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None
    labels: dict[str, str] = field(default_factory=dict[str, str])


class BuildOrder(Struct, frozen=True, kw_only=True):
    """One build. `name` is what the image will be called; `recipe` None: `file` of the context says what to do.

    `target` and `args` are a Dockerfile's. It runs in a sandbox on `driver` (None: as any sandbox's) within `limits`,
    and is ended after `timeout_s` seconds.
    """

    name: str
    recipe: Recipe | None = None
    file: str = "Dockerfile"
    target: str | None = None
    args: dict[str, str] = field(default_factory=dict[str, str])
    driver: str | None = None
    limits: Limits = field(default_factory=Limits)
    timeout_s: float = 1800.0
