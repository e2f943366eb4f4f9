"""The driver for churn: crun. The same boundary as runc's, half the cost of a cold create, no memory snapshots.

With a user namespace crun 1.28 cannot restore a checkpoint (measured 2026-11-20: three ways failed), so what may be
forked with its memory runs on runc.
"""

from __future__ import annotations

from typing import Final

from cove.engine.oci.driver import OciDriver
from cove.engine.versions import at_least

MINIMUM: Final = "1.20"
_FIXES: Final = "CVE-2025-24965 (links in the root file system)"


class CrunDriver(OciDriver):
    """Boxes by crun."""

    name = "crun"

    @property
    def memory_gaps(self) -> tuple[str, ...]:
        """It has none to offer."""
        return ("crun cannot restore memory into a user namespace: sandboxes whose memory is kept run on runc",)

    def _version_gaps(self, version: str) -> tuple[str, ...]:
        if at_least(version, MINIMUM):
            return ()
        return (f"crun {version} lacks the fix of {_FIXES}: {MINIMUM} is needed; run `cove setup`",)


driver_factory = CrunDriver
