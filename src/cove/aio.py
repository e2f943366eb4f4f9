"""`cove.aio`: the same names as `cove`, awaited.

::

    async with cove.aio.create() as box:
        r = await box.run("echo hello")
        async for chunk in box.start("ls -R /"):
            print(chunk.text, end="")

Errors and results are those of `cove` itself.
"""

from cove.sdk.aio.accounts import Account
from cove.sdk.aio.api import close, connect, create, get, images, list  # noqa: A004 - the same name as `cove.list`
from cove.sdk.aio.audit import Audit
from cove.sdk.aio.client import Client
from cove.sdk.aio.connections import Connection
from cove.sdk.aio.contexts import Context, Contexts
from cove.sdk.aio.files import Files
from cove.sdk.aio.forwarding import Forward
from cove.sdk.aio.images import Images
from cove.sdk.aio.jobs import Job, Running
from cove.sdk.aio.networks import Network, NetworkProfiles
from cove.sdk.aio.sandbox import Sandbox
from cove.sdk.aio.shells import Shell
from cove.sdk.aio.snapshots import Snapshots, snapshots
from cove.sdk.aio.templates import Templates
from cove.sdk.aio.terminals import Terminal
from cove.sdk.aio.watches import Watch
from cove.sdk.aio.webhooks import Webhooks

__all__ = [
    "Account",
    "Audit",
    "Client",
    "Connection",
    "Context",
    "Contexts",
    "Files",
    "Forward",
    "Images",
    "Job",
    "Network",
    "NetworkProfiles",
    "Running",
    "Sandbox",
    "Shell",
    "Snapshots",
    "Templates",
    "Terminal",
    "Watch",
    "Webhooks",
    "close",
    "connect",
    "create",
    "get",
    "images",
    "list",
    "snapshots",
]
