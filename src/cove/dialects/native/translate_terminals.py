"""Between the native wire format of terminals and the core's values. Pure."""

from __future__ import annotations

from cove.dialects.native import wire, wire_terminals
from cove.dialects.native.times import timestamp
from cove.dialects.native.translate import exec_of, exit_view
from cove.model.execs import ExecSpec
from cove.model.terminals import Terminal, TerminalSize


def terminal_spec(body: wire_terminals.Open) -> ExecSpec:
    """What runs on it."""
    if body.command is None:
        return ExecSpec(env=body.env, cwd=body.cwd, user=body.user, timeout_s=body.timeout_s)
    return exec_of(
        wire.Exec(command=body.command, env=body.env, cwd=body.cwd, user=body.user, timeout_s=body.timeout_s)
    )


def size_of(body: wire_terminals.Open | wire_terminals.Resize | wire_terminals.ResizeFrame) -> TerminalSize:
    """Its window."""
    return TerminalSize(cols=body.cols, rows=body.rows)


def terminal_view(terminal: Terminal) -> wire_terminals.Terminal:
    """A terminal."""
    return wire_terminals.Terminal(
        id=terminal.id,
        pid=terminal.pid,
        command=terminal.argv,
        cols=terminal.size.cols,
        rows=terminal.size.rows,
        started_at=timestamp(terminal.started_at),
        running=terminal.running,
        exit=None if terminal.exit is None else exit_view(terminal.exit),
        cursor=terminal.cursor,
        oldest_cursor=terminal.oldest_cursor,
    )
