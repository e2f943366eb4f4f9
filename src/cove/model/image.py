"""Images as a caller sees them. Frozen values, no I/O."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct, field


class ImageOrigin(StrEnum):
    """Where an image comes from: made by `cove setup`, pulled from a registry, built here, or imported from a file.

    Only built-in images are trusted by policy; the others belong to the project that brought them.
    """

    BUILTIN = "builtin"
    PULLED = "pulled"
    BUILT = "built"
    IMPORTED = "imported"


class ImageConfig(Struct, frozen=True, kw_only=True):
    """What an image says about running it (OCI image-spec, config.md, "config"). `user` None: root."""

    env: dict[str, str] = field(default_factory=dict[str, str])
    workdir: str = "/"
    user: str | None = None
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict[str, str])


class ImageInfo(Struct, frozen=True, kw_only=True):
    """One image. `status` is `ready`, `pulling`, `building` or `failed`.

    `digest` names the content of its tree, empty until it is ready; `manifest_digest` is the registry's name for what
    was pulled (`sha256:...`), empty for what never was in one. `project` None: everybody's. `failure`: why it is
    `failed`, one sentence.
    """

    name: str
    digest: str
    size_bytes: int
    status: str = "ready"
    origin: ImageOrigin = ImageOrigin.BUILTIN
    manifest_digest: str = ""
    project: str | None = None
    created_at: float = 0.0
    config: ImageConfig = field(default_factory=ImageConfig)
    failure: str = ""


class Credentials(Struct, frozen=True, kw_only=True):
    """How to log in to a registry, for one pull: a name and password, or an identity token (OAuth 2 refresh token).

    Never stored, logged or shown: its `repr` hides it.
    """

    username: str = ""
    password: str = ""
    token: str = ""

    def __repr__(self) -> str:
        """Without any of it: a repr may land in a log."""
        return "Credentials(hidden)"


class ImageStage(StrEnum):
    """What a pull, build, import or export is doing. The last event of each is `done` or `failed`."""

    RESOLVE = "resolve"
    DOWNLOAD = "download"
    UNPACK = "unpack"
    RUN = "run"
    DONE = "done"
    FAILED = "failed"


class ImageEvent(Struct, frozen=True, kw_only=True):
    """Progress. Bytes count the present stage, total 0: not known. `text`: a line of a build, or why it failed.

    `error` is the kind of the failure (`model/errors.py`), with `failed` only; `image` comes with `done`.
    """

    stage: ImageStage
    done_bytes: int = 0
    total_bytes: int = 0
    text: str = ""
    error: str = ""
    image: ImageInfo | None = None
