"""The guides keep their word: what they show is run, in order, on a real server. The format: `guides_support.py`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from guides_support import Guide, perform, reader_of, settings_of
from tests_support import CHECKOUT, NewServer, RunningServer, make_server
from world_support import World

pytestmark = pytest.mark.real

GUIDES = [
    guide
    for path in sorted((CHECKOUT / "docs/guides").glob("*.md"))
    if (guide := Guide.read(path)).settings is not None
]
PAGE = """# A guide

<!-- tested -->

```toml file=a.toml
x = 1
```
```console
$ name=otter; cat a.toml
x = 1
$ cove new --name $name \\
> --memory 128m
otter
…
$ echo $name; seq 30
otter
1
…
30
$ cove exec nobody -- true
error: no sandbox "nobody" …
…
(exit 120)
$ curl -s http://127.0.0.1:8080/health
{"status":…}
$ echo 127.0.0.1:8080
127.0.0.1:8080
```
```console tty
$ echo 'PS1="root@here:~# "' > rc; bash --noprofile --rcfile rc
root@here:~# tty > /dev/null && stty size
24 80
root@here:~# exit 3
exit
(exit 3)
```
```sh
test "$name" = otter
cove rm $name
```
```python
import cove
print([box.name for box in cove.list()])
```
```output
[]
```
"""


@pytest.fixture(scope="module")
def plain_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A fresh server for the guides that ask for no settings."""
    running = make_server(tmp_path_factory.mktemp("guides"))
    running.start()
    yield running
    running.down()
    shutil.rmtree(running.data_dir, ignore_errors=True)


@pytest.mark.parametrize("guide", GUIDES, ids=[guide.path.stem for guide in GUIDES])
def test_a_guide_does_what_it_shows(
    guide: Guide, tmp_path: Path, new_server: NewServer, request: pytest.FixtureRequest
) -> None:
    settings, ports = settings_of(guide)
    if settings.get("COVE_NETWORK_OUTSIDE") == "world":  # hosts of the guide are in the test's own internet
        world: World = request.getfixturevalue("world")
        settings |= {**world.settings, "COVE_EXTRA_CA": str(world.ca_file)}
    server = new_server(**settings) if settings else request.getfixturevalue("plain_server")
    with reader_of(guide, tmp_path / "home", server, ports) as reader:
        perform(guide, reader)


def guide_of(directory: Path, text: str) -> Guide:
    path = directory / "guide.md"
    path.write_text(text, encoding="utf-8")
    return Guide.read(path)


def test_a_page_with_every_kind_of_block_is_run(tmp_path: Path, plain_server: RunningServer) -> None:
    guide = guide_of(tmp_path, PAGE)
    with reader_of(guide, tmp_path / "home", plain_server, {}) as reader:
        perform(guide, reader)


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ("```console\n$ echo a\nb\n```\n", "line 3: .*shown\nb\nprinted\na"),
        ("```console\n$ false\n```\n", "line 3: exit code 1 instead of 0"),
        ("```console\n$ true\n(exit 2)\n```\n", "line 3: exit code 0 instead of 2"),
        ("```sh\nfalse\ntrue\n```\n", "line 3: exit code 1"),
        ("```python\nimport sys; sys.exit(4)\n```\n", "line 3: exit code 4"),
        ("```sh\necho a\n```\n```output\nb\n```\n", "line 6: shown\nb\nprinted\na"),
        ("```console tty\n$ tty\nnot a tty\n```\n", "line 3: .*printed\n/dev/pts"),
    ],
)
def test_a_page_that_lies_is_caught(tmp_path: Path, plain_server: RunningServer, block: str, told: str) -> None:
    guide = guide_of(tmp_path, f"<!-- tested -->\n{block}")
    with (
        reader_of(guide, tmp_path / "home", plain_server, {}) as reader,
        pytest.raises(AssertionError, match=f"(?s){told}"),
    ):
        perform(guide, reader)


def test_settings_of_the_mark_reach_the_server_and_the_commands(tmp_path: Path) -> None:
    guide = guide_of(tmp_path, "# T\n\n<!-- tested COVE_SSH_PORT=2222 COVE_SSH=on -->\n")
    settings, ports = settings_of(guide)
    assert settings == {"COVE_SSH_PORT": ports["2222"], "COVE_SSH": "on"}
    assert Guide.read(CHECKOUT / "CONTRIBUTING.md").settings is None
