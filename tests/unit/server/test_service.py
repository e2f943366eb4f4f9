from __future__ import annotations

from pathlib import Path

import pytest

from cove.model.errors import BadRequest, Forbidden, Unsupported
from cove.server import service
from cove.server.service import ServiceSettings, install, status, uninstall, unit_text


@pytest.fixture
def settings(tmp_path: Path) -> ServiceSettings:
    return ServiceSettings(
        program=Path("/opt/cove/.venv/bin/cove"), environment={"COVE_PORT": "8081"}, unit_dir=tmp_path
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """A machine with systemd, where we are root; what systemctl was asked for."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(service, "is_systemd", lambda: True)
    monkeypatch.setattr(service.os, "geteuid", lambda: 0)
    monkeypatch.setattr(service, "_systemctl", lambda *args: asked.append(args))
    return asked


def lines(text: str) -> list[str]:
    return text.splitlines()


def test_the_unit_keeps_sandboxes_alive_and_gives_cove_its_cgroups(settings: ServiceSettings) -> None:
    text = lines(unit_text(settings))
    for line in ("Delegate=yes", "KillMode=process", "Restart=on-failure", "WantedBy=multi-user.target"):
        assert line in text
    assert 'ExecStart="/opt/cove/.venv/bin/cove" serve' in text
    assert 'Environment="COVE_PORT=8081"' in text
    assert any(line.startswith("After=network.target") for line in text)


def test_values_cannot_break_out_of_their_line(settings: ServiceSettings) -> None:
    odd = ServiceSettings(program=Path("/a b/100%/$x/cove"), environment={"COVE_X": 'a"b\\c%d$e'})
    text = lines(unit_text(odd))
    assert 'ExecStart="/a b/100%%/$$x/cove" serve' in text
    assert 'Environment="COVE_X=a\\"b\\\\c%%d$e"' in text
    with pytest.raises(BadRequest):
        unit_text(ServiceSettings(program=settings.program, environment={"COVE_X": "a\nExecStart=/bin/evil"}))


def test_installing_writes_enables_and_starts(settings: ServiceSettings, calls: list[tuple[str, ...]]) -> None:
    install(settings)
    assert settings.path.read_text() == unit_text(settings)
    assert settings.path.stat().st_mode & 0o777 == 0o644
    assert calls == [("daemon-reload",), ("enable", "cove.service"), ("restart", "cove.service")]


def test_installing_again_restarts_nothing(settings: ServiceSettings, calls: list[tuple[str, ...]]) -> None:
    install(settings)
    calls.clear()
    install(settings)
    assert calls[-1] == ("start", "cove.service")
    assert [path.name for path in settings.unit_dir.iterdir()] == ["cove.service"]


def test_a_unit_that_is_not_ours_is_left_alone(settings: ServiceSettings, calls: list[tuple[str, ...]]) -> None:
    settings.path.write_text("[Service]\nExecStart=/bin/true\n")
    for change in (install, uninstall):
        with pytest.raises(BadRequest):
            change(settings)
    assert calls == []


def test_uninstalling_stops_and_removes(settings: ServiceSettings, calls: list[tuple[str, ...]]) -> None:
    install(settings)
    calls.clear()
    uninstall(settings)
    assert not settings.path.exists()
    assert calls == [("disable", "--now", "cove.service"), ("daemon-reload",)]
    assert "no cove.service" in uninstall(settings)


def test_without_systemd_the_way_out_is_named(settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "is_systemd", lambda: False)
    with pytest.raises(Unsupported, match="--print"):
        install(settings)
    assert status(settings) == "no systemd"


def test_only_root_installs(settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "is_systemd", lambda: True)
    monkeypatch.setattr(service.os, "geteuid", lambda: 1000)
    with pytest.raises(Forbidden, match="sudo"):
        install(settings)
    assert status(settings) == "not installed"
