from __future__ import annotations

import time
from pathlib import Path

import pytest

from cove.server.doctor import kernel_probes
from cove.server.doctor import probes as probing
from cove.server.doctor.kernel_probes import effective_capabilities, kernel_version, probe_kernel
from cove.server.doctor.probes import OPEN_PROBES, ROOT_PROBES, examine
from cove.server.doctor.program_probes import probe_agent, probe_code, probe_images, probe_runc, probe_server
from cove.server.doctor.report import Line, Status
from cove.server.doctor.storage_probes import existing_place, meminfo
from cove.server.doctor.trial import attempt
from cove.server.setup.settings import SetupSettings


@pytest.fixture
def settings(tmp_path: Path) -> SetupSettings:
    return SetupSettings(data_dir=tmp_path / "data", run_dir=tmp_path / "run")


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.1.0-18-amd64", (6, 1)), ("6.18.44-fc", (6, 18)), ("6.7-rc1", (6, 7)), ("odd", (0, 0)), ("", (0, 0))],
)
def test_a_kernels_version_is_its_first_two_numbers(release: str, version: tuple[int, int]) -> None:
    assert kernel_version(release)[0] == version[0]
    if release != "6.7-rc1":
        assert kernel_version(release) == version


@pytest.mark.parametrize(
    ("release", "status"), [("5.10.0", Status.MISSING), ("6.1.0", Status.WARN), ("6.12.0", Status.OK)]
)
def test_the_kernel_is_judged_by_what_it_can(
    monkeypatch: pytest.MonkeyPatch, settings: SetupSettings, release: str, status: Status
) -> None:
    monkeypatch.setattr(kernel_probes.platform, "release", lambda: release)
    assert probe_kernel(settings).status is status


def test_capabilities_are_read_from_proc() -> None:
    assert effective_capabilities("Name:\tx\nCapEff:\t00000000a80425fb\nCapBnd:\t0\n") == 0xA80425FB
    assert effective_capabilities("") == 0


def test_meminfo_is_in_bytes() -> None:
    assert meminfo("MemTotal:       1024 kB\nHugePages_Total:    0\nodd\n") == {
        "MemTotal": 1 << 20,
        "HugePages_Total": 0,
    }


def test_a_place_that_does_not_exist_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    assert existing_place(tmp_path / "a" / "b") == tmp_path


def test_a_trial_tells_what_it_found() -> None:
    outcome = attempt(lambda: "fact")
    assert (outcome.worked, outcome.text) == (True, "fact")


def test_a_failing_trial_tells_why() -> None:
    def fail() -> str:
        raise PermissionError(1, "not allowed")

    assert attempt(fail).text == "not allowed"
    assert not attempt(lambda: str(1 // 0)).worked


def test_a_hanging_trial_costs_its_limit() -> None:
    started = time.monotonic()
    outcome = attempt(lambda: str(time.sleep(30)), limit_s=0.2)
    assert not outcome.worked
    assert "no answer" in outcome.text
    assert time.monotonic() - started < 25


def test_an_empty_machine_says_what_to_run(settings: SetupSettings) -> None:
    for probe in (probe_runc, probe_images):
        line = probe(settings)
        assert line.status is Status.MISSING
        assert "make setup" in line.cure
    assert probe_server(settings).status is Status.WARN


def test_every_finding_with_a_loss_has_a_cost_and_a_cure(settings: SetupSettings) -> None:
    for probe in (*OPEN_PROBES, probe_runc, probe_images, probe_code, probe_server, probe_agent):
        line = probe(settings)
        assert (line.status is Status.OK) == (not line.cost)
        assert bool(line.cost) == bool(line.cure)


def test_a_probe_that_fails_itself_does_not_end_the_report(
    monkeypatch: pytest.MonkeyPatch, settings: SetupSettings
) -> None:
    def probe_of_nothing(_settings: SetupSettings) -> Line:
        raise OSError("broken")

    monkeypatch.setattr(probing, "OPEN_PROBES", (probe_of_nothing,))
    monkeypatch.setattr(probing, "ROOT_PROBES", ())
    (line,) = examine(settings).lines
    assert (line.name, line.status) == ("of nothing", Status.MISSING)


def test_no_probe_is_listed_twice() -> None:
    probes = [*OPEN_PROBES, *ROOT_PROBES]
    assert len(set(probes)) == len(probes)
