"""What a sandbox has for code, synchronous: a part of `Sandbox`. The awaited twin is `aio/coding.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from cove.sdk.units import Duration

if TYPE_CHECKING:
    from cove.sdk.client import Client
    from cove.sdk.code_calls import Language
    from cove.sdk.contexts import Context, Contexts
    from cove.sdk.executions import CodeResult, Execution, Raised


class Coding:
    """What `Sandbox` has for code."""

    _ref: str
    _client: Client

    @property
    def contexts(self) -> Contexts:
        """Where code runs and keeps its state: make one, list, get."""
        from cove.sdk.contexts import Contexts

        return Contexts(self._ref, self._client)

    def languages(self) -> list[Language]:
        """Return the languages that code can be in here, also those that the image lacks something for."""
        from cove.sdk import code_calls

        return self._client.call(code_calls.languages(self._ref))

    def run_code(  # noqa: PLR0913 - one keyword for each property of a run
        self,
        code: str,
        *,
        language: str | None = None,
        context: Context | str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: Duration | None = None,
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
        on_result: Callable[[CodeResult], object] | None = None,
        on_error: Callable[[Raised], object] | None = None,
        check: bool = False,
    ) -> Execution:
        """Run code and return what it gives back. Names that it defines are there for the next run.

        Without `context` it runs in the sandbox's own one of its language, Python if none is named. The callbacks get
        things as they come. What the code raises is a value (`execution.error`), unless `check=True`: then CodeFailed
        carries the execution. Runs of a context take their turns.

        Args:
            code: its text.
            language: `python`, `javascript`, `typescript`, `bash`, or one that `languages()` names.
            context: one of `contexts`, or its id.
            env: environment variables during this run only.
            timeout: then the code is interrupted (`status` says so), and the context lives on; None: no limit.
            on_stdout: gets each piece of output.
            on_stderr: likewise.
            on_result: gets each result, updates too.
            on_error: gets what the code raised.
            check: raise CodeFailed unless the code runs to its end.

        Raises: NotFound (no such context), BadRequest (no such language), Unsupported (its image cannot run it),
            Conflict (64 runs wait).
        """
        from cove.sdk import code_calls
        from cove.sdk.contexts import Context, follow
        from cove.sdk.executions import Callbacks

        name = context.id if isinstance(context, Context) else context
        body = code_calls.body_of(code, language=language, context=name, env=env, timeout=timeout)
        callbacks = Callbacks(on_stdout, on_stderr, on_result, on_error)
        return follow(self._client, self._ref, body, callbacks, check=check)
