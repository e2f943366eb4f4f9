"""Where the server is: the order of the sources, and keys that stay where they belong."""

from __future__ import annotations

from pathlib import Path

import pytest

from cove.engine.config import instance_of
from cove.sdk import config
from cove.sdk.errors import BadRequest, Unauthorized


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "cfg" / "cove").mkdir(parents=True)
    (tmp_path / "work" / "deep").mkdir(parents=True)
    return tmp_path


def resolve(home: Path, url: str | None = None, key: str | None = None, **environ: str) -> config.Target:
    environ = {"XDG_CONFIG_HOME": str(home / "cfg"), "HOME": str(home), **environ}
    return config.resolve(url, key, environ=environ, directory=str(home / "work" / "deep"))


def user(home: Path, text: str) -> None:
    (home / "cfg" / "cove" / "config.toml").write_text(text)


def project(home: Path, text: str) -> None:
    (home / "work" / ".cove.toml").write_text(text)


def test_the_sources_in_their_order(home: Path) -> None:
    assert resolve(home).socket.endswith("/api.sock")
    assert resolve(home).is_local
    user(home, 'url = "http://user.example"')
    assert resolve(home).url == "http://user.example"
    project(home, 'url = "http://project.example/"\nbox = "otter"')
    found = resolve(home)
    assert (found.url, found.address.source) == ("http://project.example", ".cove.toml")
    assert found.box is not None
    assert found.box.value == "otter"
    assert resolve(home, COVE_URL="http://env.example").url == "http://env.example"
    assert resolve(home, "http://arg.example/api/v1", COVE_URL="http://env.example").url == "http://arg.example"


def test_a_key_is_not_sent_where_only_a_cloned_project_points(home: Path) -> None:
    project(home, 'url = "http://project.example"')
    with pytest.raises(Unauthorized) as caught:
        resolve(home, COVE_API_KEY="secret")
    assert "secret" not in str(caught.value)
    assert "COVE_URL=http://project.example" in caught.value.hint
    user(home, '[keys]\n"http://project.example" = "named"')
    assert resolve(home).key == "named"
    assert resolve(home, COVE_URL="http://other.example", COVE_API_KEY="k").key == "k"


def test_a_local_socket_needs_no_key(home: Path) -> None:
    assert resolve(home, COVE_API_KEY="k").key is None
    target = resolve(home, COVE_URL="unix:/run/x/api.sock", COVE_API_KEY="k")
    assert (target.socket, target.url) == ("/run/x/api.sock", "")


@pytest.mark.parametrize("url", ["cove.example", "ftp://x", "http://", "http:///x"])
def test_what_is_no_address_is_refused_with_its_origin(home: Path, url: str) -> None:
    with pytest.raises(BadRequest, match="COVE_URL"):
        resolve(home, COVE_URL=url)


@pytest.mark.parametrize("text", ["url = ", "url = 5", "\xff"])
def test_a_damaged_file_is_named(home: Path, text: str) -> None:
    (home / "work" / ".cove.toml").write_text(text, encoding="latin-1")
    with pytest.raises(BadRequest, match=r"\.cove\.toml"):
        resolve(home)


def test_the_socket_is_the_servers_own(tmp_path: Path) -> None:
    for data_dir in ("/var/lib/cove", str(tmp_path)):
        assert config.instance_of(data_dir) == instance_of(Path(data_dir))
