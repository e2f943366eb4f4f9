"""Cove: sandboxes for agents and untrusted code. This is the Python client; `import cove` loads nothing but this file.

::

    import cove

    with cove.create(memory="512m") as box:
        r = box.run("echo hello")
        print(r.ok, r.exit, r.why, r.out)

`cove.aio` has the same names, awaited. Where the server is: COVE_URL, `.cove.toml`, the user's file, or the local
socket. Names are loaded at first use (PEP 562), so that `from cove import Sandbox` takes milliseconds. To add a public
name: a row in `_HOME`, the import under TYPE_CHECKING, an entry in `__all__`; a test compares the three.
"""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cove import aio
    from cove.sdk.accounts import Account, Bill, Quota, QuotaInfo, UsageLine
    from cove.sdk.api import close, connect, create, get, images, list  # noqa: A004 - `cove.list` is the public name
    from cove.sdk.audit import Audit, AuditLine
    from cove.sdk.client import Client
    from cove.sdk.connections import Connection
    from cove.sdk.contexts import Context, Contexts
    from cove.sdk.errors import (
        AgentTimeout,
        AgentViolation,
        BadAnswer,
        BadRequest,
        BudgetExceeded,
        CapacityExceeded,
        CodeFailed,
        CommandFailed,
        Conflict,
        EngineFailure,
        Error,
        FileError,
        FileMissing,
        FilePresent,
        FileRefused,
        Forbidden,
        Gone,
        IdempotencyConflict,
        NotFound,
        QuotaExceeded,
        QuotaTooSmall,
        RateLimited,
        RegistryError,
        RegistryUnreachable,
        SandboxError,
        SandboxGone,
        TooLarge,
        Unauthorized,
        Unreachable,
        Unsupported,
    )
    from cove.sdk.executions import CodeResult, Execution, Logs, Raised
    from cove.sdk.files import Files
    from cove.sdk.forwarding import Forward
    from cove.sdk.images import ImageProgress, Images
    from cove.sdk.jobs import Job, Running
    from cove.sdk.models import CameFrom, Kept, Snapshot
    from cove.sdk.networks import Explanation, Network, NetworkInfo, NetworkProfile, NetworkProfiles, Refusal
    from cove.sdk.ports import Port
    from cove.sdk.results import Chunk, Exit, Result
    from cove.sdk.sandbox import Sandbox
    from cove.sdk.shells import Shell
    from cove.sdk.snapshots import Snapshots, snapshots
    from cove.sdk.templates import Template, Templates
    from cove.sdk.terminals import Terminal
    from cove.sdk.units import UNSET
    from cove.sdk.watches import Change, Watch
    from cove.sdk.webhooks import Webhook, Webhooks

__version__: Final = "0.1.0"

__all__ = [
    "UNSET",
    "Account",
    "AgentTimeout",
    "AgentViolation",
    "Audit",
    "AuditLine",
    "BadAnswer",
    "BadRequest",
    "Bill",
    "BudgetExceeded",
    "CameFrom",
    "CapacityExceeded",
    "Change",
    "Chunk",
    "Client",
    "CodeFailed",
    "CodeResult",
    "CommandFailed",
    "Conflict",
    "Connection",
    "Context",
    "Contexts",
    "EngineFailure",
    "Error",
    "Execution",
    "Exit",
    "Explanation",
    "FileError",
    "FileMissing",
    "FilePresent",
    "FileRefused",
    "Files",
    "Forbidden",
    "Forward",
    "Gone",
    "IdempotencyConflict",
    "ImageProgress",
    "Images",
    "Job",
    "Kept",
    "Logs",
    "Network",
    "NetworkInfo",
    "NetworkProfile",
    "NetworkProfiles",
    "NotFound",
    "Port",
    "Quota",
    "QuotaExceeded",
    "QuotaInfo",
    "QuotaTooSmall",
    "Raised",
    "RateLimited",
    "Refusal",
    "RegistryError",
    "RegistryUnreachable",
    "Result",
    "Running",
    "Sandbox",
    "SandboxError",
    "SandboxGone",
    "Shell",
    "Snapshot",
    "Snapshots",
    "Template",
    "Templates",
    "Terminal",
    "TooLarge",
    "Unauthorized",
    "Unreachable",
    "Unsupported",
    "UsageLine",
    "Watch",
    "Webhook",
    "Webhooks",
    "__version__",
    "aio",
    "close",
    "connect",
    "create",
    "get",
    "images",
    "list",
    "snapshots",
]

_HOME: Final = {
    **dict.fromkeys(("Account", "Bill", "Quota", "QuotaInfo", "UsageLine"), "accounts"),
    **dict.fromkeys(("close", "connect", "create", "get", "images", "list"), "api"),
    "Client": "client",
    "Connection": "connections",
    **dict.fromkeys(("Context", "Contexts"), "contexts"),
    **dict.fromkeys(("CodeResult", "Execution", "Logs", "Raised"), "executions"),
    "Files": "files",
    "Forward": "forwarding",
    **dict.fromkeys(("Audit", "AuditLine"), "audit"),
    **dict.fromkeys(("Template", "Templates"), "templates"),
    **dict.fromkeys(("Webhook", "Webhooks"), "webhooks"),
    **dict.fromkeys(("ImageProgress", "Images"), "images"),
    **dict.fromkeys(("Job", "Running"), "jobs"),
    **dict.fromkeys(
        ("Explanation", "Network", "NetworkInfo", "NetworkProfile", "NetworkProfiles", "Refusal"), "networks"
    ),
    "Port": "ports",
    **dict.fromkeys(("Chunk", "Exit", "Result"), "results"),
    "Sandbox": "sandbox",
    "Terminal": "terminals",
    "UNSET": "units",
    **dict.fromkeys(("Change", "Watch"), "watches"),
    "Shell": "shells",
    **dict.fromkeys(("CameFrom", "Kept", "Snapshot"), "models"),
    **dict.fromkeys(("Snapshots", "snapshots"), "snapshots"),
}
"""Public name -> module below `cove.sdk`; every other name of `__all__` is an error."""


def __getattr__(name: str) -> object:
    """Load a public name at its first use."""
    if name not in __all__:
        raise AttributeError(f"module 'cove' has no attribute {name!r}")
    from importlib import import_module

    if name == "aio":
        return import_module("cove.aio")
    value: object = getattr(import_module(f"cove.sdk.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> builtins.list[str]:
    """Return the public names."""
    return __all__
