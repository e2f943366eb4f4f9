"""Contexts, where code runs and keeps its state, synchronous. The awaited twin is `aio/contexts.py`."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from cove.sdk import code_calls
from cove.sdk.errors import Error, Gone, NotFound, SandboxGone
from cove.sdk.executions import Callbacks, CodeReader, CodeResult, Execution, Raised
from cove.sdk.transport import Lost
from cove.sdk.units import Duration

if TYPE_CHECKING:
    from cove.sdk.client import Client
    from cove.sdk.code_calls import Completion, ContextInfo


def follow(client: Client, ref: str, body: dict[str, Any], callbacks: Callbacks, *, check: bool) -> Execution:
    """Run to the end. Whatever a callback raises ends the run. For `coding.py`."""
    if not callbacks:
        execution = client.call(code_calls.run(ref, body))
        return execution.checked() if check else execution
    reader = CodeReader()
    with client.open(code_calls.stream(ref, body), events=True) as response:
        for piece in response.chunks():
            for event in reader.feed(piece):
                callbacks.tell(event)
    if reader.execution is None:
        raise Lost("the stream ended before the code did")
    return reader.execution.checked() if check else reader.execution


class Contexts:
    """The contexts of a sandbox: `box.contexts`."""

    def __init__(self, ref: str, client: Client) -> None:
        self._ref = ref
        self._client = client

    def create(
        self,
        language: str = "python",
        *,
        cwd: str | None = None,
        user: str | None = None,
        idle_timeout: Duration | None = None,
    ) -> Context:
        """Make a context of its own, with nothing in it; leaving a `with` removes it.

        Args:
            language: as in `run_code`.
            cwd: the directory that it begins in; None: the image's.
            user: whom its code runs as; None: the image's, else root.
            idle_timeout: its kernel ends, and its state with it, when nothing ran for so long; None: never.

        Raises: BadRequest (no such language), Unsupported (the image cannot run it), Conflict (too many contexts).
        """
        call = code_calls.create(self._ref, language, cwd=cwd, user=user, idle_timeout=idle_timeout)
        info = self._client.call(call)
        return Context(self._ref, info.id, client=self._client, info=info)

    def list(self) -> builtins.list[Context]:
        """Return the contexts of the sandbox."""
        infos = self._client.call(code_calls.contexts(self._ref))
        return [Context(self._ref, info.id, client=self._client, info=info) for info in infos]

    def get(self, context_id: str) -> Context:
        """Return one by its id. Raises: NotFound."""
        info = self._client.call(code_calls.context(self._ref, context_id))
        return Context(self._ref, info.id, client=self._client, info=info)


class Context:
    """An interpreter in a sandbox that keeps its state from one run to the next.

    Get one from `box.contexts`. It outlives this program, the server's restarts, hibernation and forks.
    """

    def __init__(self, ref: str, context_id: str, *, client: Client, info: ContextInfo | None = None) -> None:
        self._id = context_id
        self._ref = ref
        self._client = client
        self._info = info

    @property
    def id(self) -> str:
        """For `box.contexts.get(id)` and `box.run_code(context=id)`."""
        return self._id

    @property
    def info(self) -> ContextInfo:
        """The context as it was when the server last answered."""
        return self._info or self.refresh()

    @property
    def language(self) -> str:
        """What it runs."""
        return self.info.language

    def refresh(self) -> ContextInfo:
        """Ask the server again.

        Raises: NotFound (removed), Gone (the sandbox has ended).
        """
        self._info = self._client.call(code_calls.context(self._ref, self._id))
        return self._info

    def run(  # noqa: PLR0913 - one keyword for each property of a run
        self,
        code: str,
        *,
        env: Mapping[str, str] | None = None,
        timeout: Duration | None = None,
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
        on_result: Callable[[CodeResult], object] | None = None,
        on_error: Callable[[Raised], object] | None = None,
        check: bool = False,
    ) -> Execution:
        """Run code here; as `box.run_code`, which has the arguments and the errors."""
        body = code_calls.body_of(code, language=None, context=self._id, env=env, timeout=timeout)
        callbacks = Callbacks(on_stdout, on_stderr, on_result, on_error)
        return follow(self._client, self._ref, body, callbacks, check=check)

    def complete(self, code: str, cursor: int | None = None) -> Completion:
        """Return how the name at `cursor` (in characters; None: at the end) can go on."""
        return self._client.call(code_calls.complete(self._ref, self._id, code, cursor))

    def interrupt(self) -> None:
        """Interrupt what runs, as Ctrl-C does; nothing runs: nothing happens. The state stays."""
        self._client.call(code_calls.interrupt(self._ref, self._id))

    def restart(self) -> ContextInfo:
        """End the kernel and start a fresh one: what ran is over, what was defined is gone."""
        self._info = self._client.call(code_calls.restart(self._ref, self._id))
        return self._info

    def remove(self) -> None:
        """End its kernel and forget it; removed already: nothing happens."""
        with suppress(NotFound, Gone, SandboxGone):
            self._client.call(code_calls.remove(self._ref, self._id))

    def __enter__(self) -> Self:
        """Return the context itself."""
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Remove it. An error on its way out of the `with` is not replaced by a failure to."""
        try:
            self.remove()
        except Error as failure:
            if error is None:
                raise
            error.add_note(f"context {self._id} was not removed: {failure}")

    def __repr__(self) -> str:
        """Return id and language."""
        return f"<Context {self._id}{f' {self._info.language}' if self._info else ''}>"
