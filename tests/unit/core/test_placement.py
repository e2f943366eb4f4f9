"""Which driver a sandbox gets."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from cove.core.placement import Placement
from cove.engine.driver import BoxImage, Driver
from cove.model.access import Project
from cove.model.errors import BadRequest, Forbidden
from cove.model.image import ImageOrigin


class Named:
    def __init__(self, name: str) -> None:
        self.name = name


def placement(*names: str, untrusted: tuple[str, ...] = ()) -> Placement:
    drivers = {name: cast("Driver", Named(name)) for name in names}
    return Placement(drivers=drivers, default_driver=names[0], untrusted_drivers=untrusted)


def image(origin: ImageOrigin = ImageOrigin.BUILTIN) -> BoxImage:
    return BoxImage(name="i", digest="d", rootfs=Path("/x"), origin=origin)


def project(default: str | None = None, *drivers: str) -> Project:
    return Project(id="p", created_at=0, default_driver=default, drivers=drivers)


PULLED = image(ImageOrigin.PULLED)


def test_unasked_it_is_the_projects_then_the_servers() -> None:
    rules = placement("runc", "crun", "gvisor")
    assert rules.choose(None, None, image()).name == "runc"
    assert rules.choose(project("crun"), None, image()).name == "crun"
    assert rules.choose(project(None, "gvisor", "crun"), None, image()).name == "gvisor"


def test_a_request_chooses_among_what_is_allowed() -> None:
    rules = placement("runc", "crun", "gvisor")
    assert rules.choose(project("runc"), "gvisor", image()).name == "gvisor"
    with pytest.raises(Forbidden, match="this project may use crun") as caught:
        rules.choose(project("crun", "crun"), "runc", image())
    assert caught.value.field == "driver"


def test_images_of_others_run_only_where_the_operator_lets_them() -> None:
    rules = placement("runc", "crun", "gvisor", untrusted=("gvisor",))
    assert rules.choose(None, None, PULLED).name == "gvisor"
    assert rules.choose(None, None, image()).name == "runc"
    for origin in (ImageOrigin.PULLED, ImageOrigin.BUILT, ImageOrigin.IMPORTED):
        with pytest.raises(Forbidden, match="not made here may run on gvisor"):
            rules.choose(None, "runc", image(origin))


def test_a_rule_that_this_machine_cannot_keep_refuses_and_never_degrades() -> None:
    rules = placement("runc", untrusted=("gvisor",))
    with pytest.raises(Forbidden, match="gets gvisor here, which this machine cannot use"):
        rules.choose(None, None, PULLED)
    with pytest.raises(Forbidden, match="this machine has none of those"):
        rules.choose(None, "runc", PULLED)
    with pytest.raises(Forbidden):
        placement("runc", "gvisor", untrusted=("gvisor",)).choose(project(None, "runc"), None, PULLED)


def test_a_default_that_cannot_be_used_is_not_replaced_by_a_weaker_one() -> None:
    rules = placement("runc")
    strong = Placement(drivers=rules.drivers, default_driver="gvisor")
    for who in (None, project("gvisor"), project("gvisor", "gvisor", "runc"), project(None, "gvisor", "runc")):
        with pytest.raises(Forbidden, match="gvisor"):
            strong.choose(who, None, image())
        assert strong.choose(who, "runc", image()).name == "runc", "it was asked for by name"


def test_a_driver_nobody_knows_is_a_bad_request() -> None:
    with pytest.raises(BadRequest) as caught:
        placement("runc").choose(None, "kata", image())
    assert caught.value.field == "driver"
