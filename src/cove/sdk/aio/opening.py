"""What `create` and `start` return before they are awaited: awaitable, and usable in `async with` right away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from cove.sdk.aio.jobs import Job  # noqa: F401 - named in a string below
    from cove.sdk.results import Chunk


class Closing(Protocol):
    """Something with an end."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


T = TypeVar("T", bound=Closing)


class Opening(Generic[T]):
    """`await` it for the object, or `async with` it for the object and its end. Once only.

    The coroutine exists from the start, so that one that is forgotten is reported as such.
    """

    def __init__(self, making: Coroutine[Any, Any, T]) -> None:
        self._making = making
        self._made: T | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        """Return the object."""
        return self._making.__await__()

    async def __aenter__(self) -> T:
        """Return the object, entered."""
        made = await self._making
        self._made = made
        return await made.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the object."""
        if self._made is not None:
            await self._made.__aexit__(kind, error, trace)


class Starting(Opening["Job"]):
    """A command that is being started; `async for` yields its output to its end."""

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Start the command and yield its output. Stopping early leaves it running: use `async with` to end it."""
        async for chunk in await self:
            yield chunk
