# ruff: noqa: ANN001, ANN201, S104 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cove.server.config import BadSetting, Settings, load, page
from cove.server.settings_table import TABLE

ROOT = Path(__file__).parents[3]


def test_every_row_has_a_field_and_every_field_a_row():
    assert sorted(row.name for row in TABLE) == sorted(field.name for field in msgspec.structs.fields(Settings))


def test_the_settings_page_is_current():
    assert (ROOT / "docs/reference/settings.md").read_text() == page()


def test_defaults_are_those_of_the_readme(tmp_path):
    found = load({"COVE_DATA_DIR": str(tmp_path)}).settings
    assert (found.host, found.port, found.pool_size) == ("127.0.0.1", 8080, 64)
    assert found.drivers == ("runc", "crun", "gvisor")
    assert found.url == "http://127.0.0.1:8080"


def test_flag_wins_over_environment_over_file_over_default(tmp_path):
    (tmp_path / "cove.toml").write_text('port = 1\nhost = "127.0.0.2"\nmax_creates = 7\ndrivers = ["fake", "runc"]\n')
    environ = {"COVE_DATA_DIR": str(tmp_path), "COVE_PORT": "2", "COVE_HOST": "127.0.0.3"}
    loaded = load(environ, {"port": "3"})
    found = loaded.settings
    assert (found.port, found.host, found.max_creates, found.drivers) == (3, "127.0.0.3", 7, ("fake", "runc"))
    assert [loaded.origins[name] for name in ("port", "host", "max_creates", "overcommit")] == [
        "flag",
        "COVE_HOST",
        str(tmp_path / "cove.toml"),
        "default",
    ]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", "8.8.8.8"])
def test_another_host_needs_tls_or_a_proxy(tmp_path, host):
    environ = {"COVE_DATA_DIR": str(tmp_path), "COVE_HOST": host}
    with pytest.raises(BadSetting, match="clear text"):
        load(environ)
    assert load(environ | {"COVE_BEHIND_PROXY": "1"}).settings.host == host
    assert load(environ | {"COVE_TLS_CERT": "/c", "COVE_TLS_KEY": "/k"}).settings.url.startswith("https://")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COVE_PORT", "http"),
        ("COVE_PORT", "65536"),
        ("COVE_FORWARD_HOST", "localhost"),
        ("COVE_FORWARD_PORTS", "80-90"),
        ("COVE_FORWARD_PORTS", "20001-20000"),
        ("COVE_FORWARD_PORTS", "20000-65536"),
        ("COVE_FORWARD_PORTS", "20000-"),
        ("COVE_DATA_DIR", "relative"),
        ("COVE_DATA_DIR", "/"),
        ("COVE_OVERCOMMIT", "nan"),
        ("COVE_MAX_SANDBOXES", "0"),
        ("COVE_QUOTA", "zfs"),
        ("COVE_NETWORK_RANGE", "11.0.0.0/16"),
        ("COVE_NETWORK_RANGE", "127.0.0.0/16"),
        ("COVE_NETWORK_RANGE", "169.254.0.0/16"),
        ("COVE_NETWORK_RANGE", "10.213.0.0/30"),
        ("COVE_NETWORK_RANGE", "10.213.0.1/16"),
        ("COVE_NETWORK_RANGE", "fd00::/64"),
        ("COVE_NETWORK_OUTSIDE", "vpn"),
        ("COVE_NETWORK_RESOLVERS", "dns.example"),
        ("COVE_NETWORK_RESOLVERS", "10.0.0.1:0"),
        ("COVE_NETWORK_OPENED_RANGES", "10.0.0.0/8:http"),
        ("COVE_BEHIND_PROXY", "maybe"),
        ("COVE_TLS_CERT", "/only/one"),
        ("COVE_DEFAULT_DRIVER", "kata"),
        ("COVE_DRIVERS", ","),
        ("COVE_CONFIG", "/no/such/file.toml"),
    ],
)
def test_a_bad_value_is_a_sentence_with_the_name(tmp_path, name, value):
    with pytest.raises(BadSetting) as caught:
        load({"COVE_DATA_DIR": str(tmp_path)} | {name: value})
    assert name in caught.value.public


def test_keys_are_in_no_message_and_no_repr(tmp_path):
    environ = {"COVE_DATA_DIR": str(tmp_path), "COVE_BOOTSTRAP_KEYS": "secret-a, secret-b"}
    loaded = load(environ)
    assert loaded.settings.bootstrap_keys == ("secret-a", "secret-b")
    assert "secret" not in repr(loaded)


def test_strangers_are_named_with_the_nearest_setting(tmp_path):
    found = load({"COVE_DATA_DIR": str(tmp_path), "COVE_PROT": "1", "COVE_TEST_X": "1", "COVE_URL": "x"}).warnings
    assert len(found) == 1
    assert "COVE_PROT" in found[0]
    assert "COVE_PORT" in found[0]


@pytest.mark.parametrize("text", ["prot = 1", "port = [", "[port]\na = 1"])
def test_a_bad_file_is_a_sentence_with_its_path(tmp_path, text):
    (tmp_path / "cove.toml").write_text(text)
    with pytest.raises(BadSetting):
        load({"COVE_DATA_DIR": str(tmp_path)})


@pytest.mark.parametrize(("text", "ports"), [("20000-20999", (20000, 20999)), ("2222", (2222, 2222)), ("", None)])
def test_the_ports_that_may_be_given_out_are_a_range_or_none(tmp_path, text, ports):
    assert load({"COVE_DATA_DIR": str(tmp_path), "COVE_FORWARD_PORTS": text}).settings.forward_ports == ports
