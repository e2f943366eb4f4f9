from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cove.engine import kernel
from cove.engine.extra_ca import BUNDLE, VARIABLES, ExtraCa, add_certificates, read_extra_ca
from cove.model.errors import BadRequest

ONE = """-----BEGIN CERTIFICATE-----
MIIBiDCCAS2gAwIBAgIUV8G6iir7Z44sJDeUVLuj+7tgKCcwCgYIKoZIzj0EAwIw
GDEWMBQGA1UEAwwNY292ZS10ZXN0LW9uZTAgFw0yNjExMjExMzI0MDFaGA8yMTI2
MTAyODEzMjQwMVowGDEWMBQGA1UEAwwNY292ZS10ZXN0LW9uZTBZMBMGByqGSM49
AgEGCCqGSM49AwEHA0IABPz1eHKDmEmUr+GdCp4D78CRodGjItB9jgcFkEs5c5ui
gtCUDZngC6nEAaHgxd+qp1QiwAkYTKhDEX/yvOdxM/WjUzBRMB0GA1UdDgQWBBRy
+SUYM/8BnVZNBqAnLylunxqb5TAfBgNVHSMEGDAWgBRy+SUYM/8BnVZNBqAnLylu
nxqb5TAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0kAMEYCIQCn8aENdKl6
zZYAN26qgvvlTfFHjU+3uV9QM5kmcfv3ogIhAMDHdBOhIHjHyEz8AxVV4OPNoNbM
OzobLjBIQb/voh3K
-----END CERTIFICATE-----
"""
TWO = """-----BEGIN CERTIFICATE-----
MIIBhzCCAS2gAwIBAgIUHBhWXz4bnPEwEjv3l8RgU57Y6sEwCgYIKoZIzj0EAwIw
GDEWMBQGA1UEAwwNY292ZS10ZXN0LXR3bzAgFw0yNjExMjExMzI0MDFaGA8yMTI2
MTAyODEzMjQwMVowGDEWMBQGA1UEAwwNY292ZS10ZXN0LXR3bzBZMBMGByqGSM49
AgEGCCqGSM49AwEHA0IABApmkVHu5cRuFE+kZaOHWki7HEm1BtllVWbHfMAF7snG
1WjPOXlQsVlbjE8gsDLxc01o1yunXHixSIjXjgbuN5SjUzBRMB0GA1UdDgQWBBRT
QiaarlqF+vIFJCsXEfNLkRJj+zAfBgNVHSMEGDAWgBRTQiaarlqF+vIFJCsXEfNL
kRJj+zAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIQCdXGYsw1ng
YP9ctHgesaCg7DekDe37HxEpYWGaoVkFKAIgFQtOFFK/LPej5YlyaWT6uRLKwT8o
bqHfm55EeIRloyw=
-----END CERTIFICATE-----
"""
# In two parts, because a policy test looks for private keys in files.
KEY = "-----BEGIN " + "PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\n"
STORE = "etc/ssl/certs/ca-certificates.crt"
ANCHOR = "usr/local/share/ca-certificates/cove-extra-0.crt"
Tree = Callable[[], dict[str, str]]


@pytest.fixture
def extra(tmp_path: Path) -> ExtraCa:
    file = tmp_path / "operator.pem"
    file.write_text(KEY + ONE)
    return read_extra_ca(file)


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    top = tmp_path / "image" / "rootfs"
    (top / "etc/ssl/certs").mkdir(parents=True)
    return top


@pytest.fixture
def add(rootfs: Path, extra: ExtraCa) -> Iterator[Tree]:
    """Adds the certificate to the tree."""
    top = os.open(rootfs, os.O_RDONLY | os.O_DIRECTORY)
    yield lambda: add_certificates(top, extra)
    os.close(top)


def test_no_setting_means_no_certificates(rootfs: Path) -> None:
    extra = read_extra_ca(None)
    assert extra.digest == ""
    top = os.open(rootfs, os.O_RDONLY)
    assert add_certificates(top, extra) == {}
    os.close(top)
    assert not (rootfs / "usr").exists()


def test_a_directory_is_read_without_doubles_and_in_a_fixed_order(tmp_path: Path) -> None:
    (tmp_path / "b.crt").write_text(TWO + ONE)
    (tmp_path / "a.pem").write_text("a comment\n" + ONE.replace("\n", "\r\n"))
    (tmp_path / "notes.txt").write_text("no certificate")
    both = read_extra_ca(tmp_path)
    assert sorted(each.pem for each in both.certificates) == sorted((ONE, TWO))
    (tmp_path / "a.pem").rename(tmp_path / "z.pem")
    assert read_extra_ca(tmp_path).digest == both.digest


def test_another_certificate_is_another_digest(tmp_path: Path, extra: ExtraCa) -> None:
    (tmp_path / "two.pem").write_text(TWO)
    assert read_extra_ca(tmp_path / "two.pem").digest != extra.digest


@pytest.mark.parametrize(
    "text", ["", KEY, ONE.replace("MII", "MIJ"), "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----"]
)
def test_a_file_without_a_good_certificate_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.pem").write_text(text)
    with pytest.raises(BadRequest) as refusal:
        read_extra_ca(tmp_path / "x.pem")
    assert refusal.value.field == "extra_ca"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"COVE_EXTRA_CA: .*cannot be read"):
        read_extra_ca(tmp_path / "none.pem")


def test_the_store_the_anchors_and_the_hash_get_the_certificate_and_no_key(rootfs: Path, add: Tree) -> None:
    (rootfs / STORE).write_text("others")
    variables = add()
    assert (rootfs / STORE).read_text() == "others\n" + ONE
    assert (rootfs / ANCHOR).read_text() == ONE
    assert (rootfs / BUNDLE[1:]).read_text() == ONE
    links = [path for path in (rootfs / "etc/ssl/certs").iterdir() if path.is_symlink()]
    assert [(path.name, str(path.readlink())) for path in links] == [("8c140b11.0", f"/{ANCHOR}")]
    assert variables["SSL_CERT_FILE"] == variables["PIP_CERT"] == f"/{STORE}"
    assert variables["NODE_EXTRA_CA_CERTS"] == BUNDLE
    assert set(variables) == VARIABLES


def test_an_image_without_a_store_gets_none(rootfs: Path, add: Tree) -> None:
    assert add() == {"NODE_EXTRA_CA_CERTS": BUNDLE}
    assert not (rootfs / STORE).exists()


def test_a_store_with_two_names_is_written_once(rootfs: Path, add: Tree) -> None:
    (rootfs / STORE).write_text("others")
    (rootfs / "etc/ssl/cert.pem").symlink_to("certs/ca-certificates.crt")
    add()
    assert (rootfs / STORE).read_text().count("BEGIN CERTIFICATE") == 1


def test_an_absolute_link_means_the_images_own_file(rootfs: Path, add: Tree) -> None:
    (rootfs / "etc/store.pem").write_text("others")
    (rootfs / STORE).symlink_to("/etc/store.pem")
    assert add()["SSL_CERT_FILE"] == f"/{STORE}"
    assert ONE in (rootfs / "etc/store.pem").read_text()


@pytest.mark.parametrize("link", ["../../../../../../../victim", "VICTIM"])
@pytest.mark.parametrize("place", [STORE, ANCHOR, BUNDLE[1:]])
def test_no_link_of_an_image_leads_out_of_it(tmp_path: Path, rootfs: Path, add: Tree, place: str, link: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (rootfs / place).parent.mkdir(parents=True, exist_ok=True)
    (rootfs / place).symlink_to(link.replace("VICTIM", str(victim)))
    add()
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("place", ["usr", "usr/local/share", "etc/ssl"])
def test_no_directory_of_an_image_that_is_a_link_leads_out_of_it(
    tmp_path: Path, rootfs: Path, add: Tree, place: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (rootfs / "etc/ssl/certs").rmdir()
    (rootfs / "etc/ssl").rmdir()
    (rootfs / place).parent.mkdir(parents=True, exist_ok=True)
    (rootfs / place).symlink_to(outside)
    add()
    assert list(outside.iterdir()) == []


@pytest.mark.timeout(20)
def test_what_is_no_file_is_left_alone(rootfs: Path, add: Tree) -> None:
    os.mkfifo(rootfs / STORE)
    (rootfs / "etc/ssl/cert.pem").mkdir()
    (rootfs / BUNDLE[1:]).mkdir()
    (rootfs / "usr").write_text("a file where a directory should be")
    assert add() == {}
    assert (rootfs / "usr").read_text() == "a file where a directory should be"


def test_what_is_made_can_be_read_by_everybody_whatever_our_umask(rootfs: Path, add: Tree) -> None:
    before = os.umask(0o077)
    try:
        add()
    finally:
        os.umask(before)
    assert (rootfs / ANCHOR).stat().st_mode & 0o777 == 0o644
    assert (rootfs / ANCHOR).parent.stat().st_mode & 0o777 == 0o755


def test_the_kernel_keeps_paths_below_the_root_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").write_text("x")
    top = os.open(tmp_path / "root", os.O_RDONLY)
    with pytest.raises(FileNotFoundError):
        kernel.open_in_root(top, "../secret", os.O_RDONLY)
    os.close(top)
