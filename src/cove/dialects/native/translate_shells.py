"""Between the native wire format and the core's values, for shells. Pure functions, no decisions."""

from __future__ import annotations

from cove.dialects.native import wire_shells
from cove.dialects.native.times import timestamp
from cove.dialects.native.translate import exit_view
from cove.model.shells import Shell, ShellCommand, ShellProgram, ShellSpec


def shell_spec_of(body: wire_shells.OpenShell) -> ShellSpec:
    """A shell to be."""
    program = None if body.program is None else ShellProgram(body.program)
    return ShellSpec(program=program, env=body.env, cwd=body.cwd, user=body.user)


def shell_command_of(body: wire_shells.ShellRun) -> ShellCommand:
    """One command of a shell."""
    return ShellCommand(text=body.command, timeout_s=body.timeout_s)


def shell_view(shell: Shell) -> wire_shells.Shell:
    """A shell."""
    return wire_shells.Shell(
        id=shell.id,
        pid=shell.pid,
        program=shell.program,
        cwd=shell.cwd,
        started_at=timestamp(shell.started_at),
        running=shell.running,
        queued=shell.queued,
        job_control=shell.job_control,
        exit=None if shell.exit is None else exit_view(shell.exit),
    )
