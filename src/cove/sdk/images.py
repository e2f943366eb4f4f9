"""What can be done with images. What takes long reports its progress to `on_progress`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import IO, TYPE_CHECKING, Any

from cove.sdk import image_calls
from cove.sdk.files import pieces_of, replacing, size_of
from cove.sdk.image_events import ImageProgress, ImageReader
from cove.sdk.transport import Call, Lost
from cove.sdk.units import Duration, Size

if TYPE_CHECKING:
    from cove.sdk.client import Client
    from cove.sdk.models import Image

__all__ = ["ImageProgress", "Images"]

Watch = Callable[[ImageProgress], object]


class Images:
    """`client.image`: images by their name (`python`) or reference (`alpine:3.20`)."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[Image]:
        """Return the images that sandboxes can be made from, without their `config`."""
        return self._client.call(image_calls.images())

    def get(self, name: str) -> Image:
        """Return one image. Raises: NotFound."""
        return self._client.call(image_calls.get(name))

    def pull(
        self,
        reference: str,
        *,
        username: str | None = None,
        password: str | None = None,
        token: str | None = None,
        on_progress: Watch | None = None,
    ) -> Image:
        """Fetch an image from its registry. The login is for this pull only; the server keeps it nowhere.

        Raises: NotFound, RegistryError (it refused, failed, or could not be reached), BadRequest (the image is damaged
        or hostile, or the registry is not allowed), TooLarge.
        """
        call = image_calls.pull(reference, username=username, password=password, token=token)
        return self._watch(call, on_progress)

    def build(  # noqa: PLR0913 - the wire's own options
        self,
        name: str,
        *,
        recipe: Mapping[str, Any] | None = None,
        context: str | os.PathLike[str] | Iterable[bytes] | None = None,
        file: str | os.PathLike[str] | None = None,
        target: str | None = None,
        args: Mapping[str, str] | None = None,
        driver: str | None = None,
        cpus: float | None = None,
        memory: Size | None = None,
        disk: Size | None = None,
        timeout: Duration | None = None,
        on_progress: Watch | None = None,
    ) -> Image:
        """Make the image `localhost/NAME` in a sandbox of its own. Give either a recipe or a context.

        Args:
            name: what it is called: `tools`, `tools:v2`.
            recipe: `{"from": "python", "commands": ["…"], …}`; see docs/guides/images.md.
            context: a directory with the files that the build needs, or a tar of one as bytes.
            file: the recipe (`.toml`, `.json`) or Dockerfile; for a directory a local path, for a tar a name in it.
                None: the context's Dockerfile.
            target: the stage of a Dockerfile to stop at.
            args: values for ARG in a Dockerfile.
            driver: the isolation driver of the sandbox.
            cpus: processor cores of the sandbox; None: 1.
            memory: of the sandbox; None: 1 GiB.
            disk: what the build may write; None: 10 GiB.
            timeout: how long it may take; None: 30 minutes.
            on_progress: gets the output, a line at a time, and how far it is.

        Raises: BadRequest (a step failed, or it cannot be read), NotFound (the image to start from), CapacityExceeded.
        """
        data: Any = context
        if isinstance(context, str | os.PathLike):
            from cove.sdk.context import context_of

            data, file = context_of(context, file)
        call = image_calls.build(
            name,
            recipe=recipe,
            context=data,
            file=None if file is None else os.fspath(file),
            target=target,
            args=args,
            driver=driver,
            cpus=cpus,
            memory=memory,
            disk=disk,
            timeout=timeout,
        )
        return self._watch(call, on_progress)

    def import_(
        self, name: str, source: str | os.PathLike[str] | IO[bytes], *, on_progress: Watch | None = None
    ) -> Image:
        """Make the image `localhost/NAME` of an archive: `docker save`, OCI, or a tar of a file system.

        Raises: BadRequest (it is damaged or hostile), TooLarge; OSError for the local file.
        """
        if not isinstance(source, str | os.PathLike):
            return self._watch(image_calls.import_(name, pieces_of(source), size=None), on_progress)
        with open(source, "rb") as file:  # noqa: PTH123 - takes both kinds of path
            size = size_of(os.fstat(file.fileno()))
            return self._watch(image_calls.import_(name, pieces_of(file), size=size), on_progress)

    def export(self, name: str, target: str | os.PathLike[str] | IO[bytes]) -> int:
        """Write an image as an OCI archive to a local file, by path or open for writing; returns the bytes written.

        A break leaves the file at a local path as it was. Raises: NotFound; OSError for the local file.
        """
        if not isinstance(target, str | os.PathLike):
            return self._copy(name, target)
        with replacing(os.fspath(target)) as file:
            return self._copy(name, file)

    def _copy(self, name: str, file: IO[bytes]) -> int:
        with self._client.open(image_calls.export(name)) as response:
            return sum(file.write(piece) for piece in response.chunks())

    def verify(self, name: str) -> Image:
        """Measure an image's files again. Raises: NotFound, EngineFailure (they are not what they were)."""
        return self._client.call(image_calls.verify(name))

    def remove(self, name: str) -> None:
        """Forget an image. Raises: NotFound, Conflict (sandboxes run on it, or it is a built-in one)."""
        self._client.call(image_calls.remove(name))

    def _watch(self, call: Call[None], on_progress: Watch | None) -> Image:
        reader = ImageReader()
        with self._client.open(call, events=True) as response:
            for piece in response.chunks():
                for progress in reader.feed(piece):
                    if on_progress is not None:
                        on_progress(progress)
        if reader.image is None:
            raise Lost("the connection broke before the image was done")
        return reader.image
