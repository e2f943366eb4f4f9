"""How the doctor tells what isolation sandboxes really get."""

from __future__ import annotations

from cove.engine.effective import Effective
from cove.model.sandbox import Isolation
from cove.server.doctor.isolation_probes import judge
from cove.server.doctor.report import Status


def found(driver: str, *missing: str, users: bool = True) -> Effective:
    isolation = Isolation(
        driver=driver,
        driver_version="1",
        user_namespace=users,
        seccomp="strict",
        quota="btrfs",
        cgroup="v2",
        missing=missing,
    )
    return Effective(driver=driver, isolation=isolation)


def test_drivers_with_the_same_layers_are_told_together() -> None:
    line = judge(([found("runc"), found("crun")], ""))
    assert (line.status, line.fact) == (Status.OK, "runc, crun: own ids, strict, btrfs, cgroup v2")


def test_what_is_missing_is_told_with_its_driver_and_reason() -> None:
    absent = Effective(driver="gvisor", isolation=None, missing=("no runsc",))
    line = judge(([found("runc", "no user namespaces: EPERM", users=False), absent], ""))
    assert line.status is Status.WARN
    assert "the machine's ids" in line.fact
    assert "runc: no user namespaces: EPERM" in line.cost
    assert "gvisor: no runsc" in line.cost


def test_a_machine_that_makes_none_is_missing_it() -> None:
    assert judge(([], "no CAP_SYS_ADMIN")).status is Status.MISSING
    assert "no CAP_SYS_ADMIN" in judge(([], "no CAP_SYS_ADMIN")).fact
