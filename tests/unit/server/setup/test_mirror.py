from __future__ import annotations

from pathlib import Path

import pytest

from cove.server.setup import mirror as mirrors
from cove.server.setup.mirror import Target, mirror_from_setting, mirror_from_targets, parse_targets, signed_by
from cove.server.setup.settings import SetupFailed

BOOKWORM = {"ID": "debian", "VERSION_CODENAME": "bookworm", "PRETTY_NAME": "Debian 12"}
UBUNTU = {"ID": "ubuntu", "VERSION_CODENAME": "noble", "PRETTY_NAME": "Ubuntu 24.04"}


def target(release: str, uri: str = "http://mirror.example/debian/", codename: str = "", origin: str = "") -> Target:
    return Target(uri=uri, release=release, codename=codename, origin=origin, entry="")


def test_the_mirror_is_the_one_the_machine_uses_for_its_own_suite() -> None:
    found = mirror_from_targets(
        [
            target("bookworm-security", "http://security.example/debian-security/"),
            target("bookworm"),
            target("bookworm-updates"),
        ],
        BOOKWORM,
    )
    assert (found.uri, found.suite, found.has_updates) == ("http://mirror.example/debian", "bookworm", True)
    assert found.security_uri == "http://security.example/debian-security"


def test_a_suite_named_stable_is_known_by_its_codename() -> None:
    found = mirror_from_targets([target("stable", codename="bookworm", origin="Debian")], BOOKWORM)
    assert found.suite == "bookworm"


def test_a_foreign_archive_with_the_same_suite_name_is_not_debian() -> None:
    foreign = target("bookworm", "http://nodes.example/", codename="bookworm", origin="Somebody")
    found = mirror_from_targets([foreign, target("bookworm")], BOOKWORM)
    assert found.uri == "http://mirror.example/debian"


def test_a_testing_machine_builds_the_newest_stable_suite_from_its_mirror() -> None:
    release = {"ID": "debian", "VERSION_CODENAME": "forky"}
    found = mirror_from_targets([target("testing", codename="forky", origin="Debian")], release)
    assert (found.suite, found.has_updates, found.security_uri) == ("trixie", False, None)


def test_ubuntu_without_the_setting_says_which_setting_it_needs() -> None:
    with pytest.raises(SetupFailed, match=r"Ubuntu 24\.04 is not Debian") as failure:
        mirror_from_targets([target("noble")], UBUNTU)
    assert "COVE_DEBIAN_MIRROR" in failure.value.cure


def test_a_machine_without_sources_says_so() -> None:
    with pytest.raises(SetupFailed, match="names no Debian mirror"):
        mirror_from_targets([], BOOKWORM)


def test_the_setting_wins_and_ubuntu_then_builds_bookworm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keyring = tmp_path / "keys.gpg"
    keyring.touch()
    monkeypatch.setattr(mirrors, "ARCHIVE_KEYRING", keyring)
    found = mirror_from_setting("https://mirror.example/debian/", UBUNTU)
    assert (found.uri, found.suite, found.signed_by) == ("https://mirror.example/debian", "bookworm", str(keyring))


@pytest.mark.parametrize("bad", ["mirror.example/debian", "https://", "http://a b/", "http://a/] evil", "$(id)"])
def test_a_setting_that_is_no_url_is_refused(bad: str) -> None:
    with pytest.raises(SetupFailed, match="no URL"):
        mirror_from_setting(bad, BOOKWORM)


def test_a_refused_setting_is_shown_without_its_password() -> None:
    with pytest.raises(SetupFailed) as failure:
        mirror_from_setting("gopher://user:secret@mirror.example/", BOOKWORM)
    assert "secret" not in failure.value.public


def test_fields_that_apt_does_not_know_are_empty() -> None:
    rows = parse_targets("http://m.example/debian/\tbookworm\t$(CODENAME)\t$(ORIGIN)\t/etc/apt/x.list:3\n\nnoise\n")
    assert rows == [
        Target(uri="http://m.example/debian/", release="bookworm", codename="", origin="", entry="/etc/apt/x.list:3")
    ]


def test_the_key_of_a_one_line_source_is_found_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.list"
    path.write_text("# first\ndeb [arch=amd64 signed-by=/k/a.gpg] http://a s main\ndeb http://b s main\n")
    assert signed_by(f"{path}:2") == "/k/a.gpg"
    assert signed_by(f"{path}:3") is None
    assert signed_by(f"{path}:9") is None


def test_the_key_of_a_deb822_source_is_found_by_its_paragraph(tmp_path: Path) -> None:
    path = tmp_path / "a.sources"
    path.write_text(
        "# head\nTypes: deb\nURIs: http://a\nSigned-By: /k/a.gpg\n\nTypes: deb\nURIs: http://b\n\n"
        "Types: deb\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n"
    )
    assert signed_by(f"{path}:1") == "/k/a.gpg"
    assert signed_by(f"{path}:2") is None
    assert signed_by(f"{path}:3") == str(mirrors.ARCHIVE_KEYRING)


def test_a_source_that_is_gone_has_no_key() -> None:
    assert signed_by("/nowhere/a.list:1") is None
    assert signed_by("") is None


def test_a_source_line_carries_its_key() -> None:
    assert mirrors.source_line("http://a", "testing", "/k") == "deb [signed-by=/k] http://a testing main"
    assert mirrors.source_line("http://a", "testing", None) == "deb http://a testing main"


def test_os_release_is_read_with_and_without_quotes() -> None:
    assert mirrors.os_release('# c\nID=debian\nNAME="Debian GNU"\nEMPTY=\n') == {
        "ID": "debian",
        "NAME": "Debian GNU",
        "EMPTY": "",
    }
