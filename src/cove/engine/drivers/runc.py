"""The default driver: runc. Its boxes can be checkpointed (criu), so every sandbox may be forked or hibernated."""

from __future__ import annotations

from typing import Final

from cove.engine.oci.driver import OciDriver
from cove.engine.versions import at_least

MINIMUM: Final = "1.3.6"
_FIXES: Final = "CVE-2025-31133, -52565, -52881"


class RuncDriver(OciDriver):
    """Boxes by runc."""

    name = "runc"

    def _version_gaps(self, version: str) -> tuple[str, ...]:
        if at_least(version, MINIMUM):
            return ()
        return (f"runc {version} lacks the fixes of {_FIXES}: {MINIMUM} is needed; run `cove setup`",)


driver_factory = RuncDriver
