"""Between the native wire format and the core's values, for code in contexts. Pure functions, no decisions."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from cove.dialects.native import wire_code
from cove.dialects.native.times import timestamp
from cove.edge.sse import event
from cove.model.code import (
    CodeSpec,
    Completion,
    Context,
    ContextSpec,
    Execution,
    LanguageInfo,
    RunCleared,
    RunEnded,
    RunError,
    RunEvent,
    RunOutput,
    RunResult,
    RunStarted,
)

_ENCODE = msgspec.json.Encoder().encode


def code_of(body: wire_code.RunCode) -> CodeSpec:
    """A run to be."""
    return CodeSpec(
        code=body.code, language=body.language, context=body.context, env=body.env, timeout_s=body.timeout_s
    )


def context_spec_of(body: wire_code.NewContext) -> ContextSpec:
    """A context to be."""
    return ContextSpec(language=body.language, cwd=body.cwd, user=body.user, idle_timeout_s=body.idle_timeout_s)


def context_view(context: Context) -> wire_code.CodeContext:
    """A context."""
    return wire_code.CodeContext(
        id=context.id,
        language=context.language,
        kernel=context.kernel,
        version=context.version,
        cwd=context.cwd,
        alive=context.alive,
        busy=context.busy,
        rich=context.rich,
        missing=context.missing,
        runs=context.runs,
        started_at=timestamp(context.started_at),
    )


def language_view(language: LanguageInfo) -> wire_code.CodeLanguage:
    """A language."""
    return wire_code.CodeLanguage(
        name=language.name,
        kernel=language.kernel,
        usable=language.usable,
        rich=language.rich,
        missing=language.missing,
    )


def execution_view(execution: Execution) -> wire_code.Execution:
    """A run that has ended."""
    return wire_code.Execution(
        context=execution.context,
        status=execution.status.value,
        count=execution.count,
        duration_ms=round(execution.duration_ms, 3),
        fresh=execution.fresh,
        detail=execution.detail,
        stdout=execution.stdout,
        stderr=execution.stderr,
        stdout_dropped_bytes=execution.stdout_dropped_bytes,
        stderr_dropped_bytes=execution.stderr_dropped_bytes,
        results=tuple(map(_result_view, execution.results)),
        results_dropped=execution.results_dropped,
        error=None if execution.error is None else _error_view(execution.error),
    )


def completion_view(completion: Completion) -> wire_code.Completed:
    """What may stand there."""
    return wire_code.Completed(matches=completion.matches, start=completion.start, end=completion.end)


def run_event(one: RunEvent) -> bytes:
    """An event of a run as a server-sent one."""
    name, value = _named(one)
    return event(name, _ENCODE(value))


def _named(one: RunEvent) -> tuple[bytes, Struct]:
    match one:
        case RunStarted(context, count, fresh):
            return b"started", wire_code.CodeStarted(context=context, count=count, fresh=fresh)
        case RunOutput(stream, text):
            return stream.value.encode(), wire_code.CodeText(text)
        case RunResult():
            return b"result", _shown_view(one)
        case RunCleared(wait):
            return b"clear", wire_code.CodeClear(wait)
        case RunError():
            return b"error", _error_view(one)
        case RunEnded(status, duration_ms, count, detail):
            done = wire_code.CodeDone(
                status=status.value, count=count, duration_ms=round(duration_ms, 3), detail=detail
            )
            return b"done", done


def _result_view(result: RunResult) -> wire_code.CodeResult:
    return wire_code.CodeResult(
        data=dict(result.data),
        metadata=dict(result.metadata),
        main=result.main,
        display_id=result.display_id,
        dropped=result.dropped,
    )


def _shown_view(result: RunResult) -> wire_code.ShownResult:
    return wire_code.ShownResult(
        data=dict(result.data),
        metadata=dict(result.metadata),
        main=result.main,
        display_id=result.display_id,
        dropped=result.dropped,
        update=result.update,
    )


def _error_view(error: RunError) -> wire_code.CodeError:
    return wire_code.CodeError(name=error.name, value=error.value, traceback=error.traceback)
