"""Which driver a sandbox gets, and whether its image may run there. Pure.

Two hands decide: the operator (`untrusted_drivers`: where images that were not made by `cove setup` may run) and the
project (which drivers it may use, and which it gets when a request names none). A request can only choose among what
both allow; it never gets a weaker tier in silence.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from cove.engine.driver import BoxImage, Driver
from cove.model.access import Project
from cove.model.errors import BadRequest, Forbidden
from cove.model.image import ImageOrigin


class Placement(Struct, frozen=True, kw_only=True):
    """The drivers of this machine and the operator's rules. `untrusted_drivers` empty: any."""

    drivers: Mapping[str, Driver]
    default_driver: str
    untrusted_drivers: tuple[str, ...] = ()

    def choose(self, project: Project | None, wanted: str | None, image: BoxImage) -> Driver:
        """The driver of a new sandbox.

        Args:
            project: whose sandbox it is; None: one without rules of its own.
            wanted: what the request names.
            image: what it runs.

        Raises: BadRequest (no such driver here), Forbidden (a rule excludes it); both with field `driver`.
        """
        allowed = self._allowed(project, image)
        if wanted is not None:
            self._require_known(wanted)
            if wanted not in allowed:
                raise Forbidden(self._why_not(project, image, wanted, allowed), field="driver")
            return self.drivers[wanted]
        return self.drivers[self._unasked(project, image)]

    def _unasked(self, project: Project | None, image: BoxImage) -> str:
        """The default where the rules admit it, else the first that they name. One that cannot be used here refuses."""
        default = project.default_driver if project and project.default_driver else self.default_driver
        rules = self._rules(project, image)
        named = [name for name in rules[0] if all(name in rule for rule in rules)] if rules else [default]
        if not named:
            raise Forbidden(self._why_not(project, image, None, []), field="driver")
        chosen = default if default in named else named[0]
        if chosen not in self.drivers:
            why = f"a sandbox that names no driver gets {chosen} here, which this machine cannot use now"
            raise Forbidden(f"{why}; name another to have less, or ask the operator", field="driver")
        return chosen

    def _rules(self, project: Project | None, image: BoxImage) -> list[tuple[str, ...]]:
        return [rule for rule in (project.drivers if project else (), self._for_image(image)) if rule]

    def _allowed(self, project: Project | None, image: BoxImage) -> list[str]:
        """Usable drivers that every rule admits."""
        return [name for name in self.drivers if all(name in rule for rule in self._rules(project, image))]

    def _for_image(self, image: BoxImage) -> tuple[str, ...]:
        return () if image.origin is ImageOrigin.BUILTIN else self.untrusted_drivers

    def _require_known(self, name: str) -> None:
        if name not in self.drivers:
            names = ", ".join(sorted(self.drivers)) or "none"
            raise BadRequest(f"no such driver on this machine; there is: {names}", field="driver")

    def _why_not(self, project: Project | None, image: BoxImage, wanted: str | None, allowed: list[str]) -> str:
        rules: list[str] = []
        if project and project.drivers:
            rules.append(f"this project may use {', '.join(project.drivers)}")
        if rule := self._for_image(image):
            rules.append(f"images that were not made here may run on {', '.join(rule)}")
        here = f"of those this machine has {', '.join(allowed)}" if allowed else "this machine has none of those"
        subject = f"the driver {wanted} is not allowed" if wanted else "no driver is allowed"
        return f"{subject}: {'; '.join(rules)}; {here}"
