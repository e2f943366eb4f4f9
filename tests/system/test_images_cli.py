"""`cove image` in processes of its own, against a real server and a real registry: what a shell sees."""

# ruff: noqa: ANN001, ANN201 - fixtures are typed where they are defined
from __future__ import annotations

import json
import os
import pty
import random
import select
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry_support import PASSWORD, USER, Layer, Registry, link, member, running_registry, tar_of
from tests_support import RunningServer, make_server

pytestmark = pytest.mark.real

COVE = [sys.executable, "-m", "cove.cli.main"]
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("r"), login=True) as running:
        running.push("tiny", layer(), Cmd=["/bin/sh"], Env=["GREETING=hello there"], Labels={"x": "\x1b[31mred"})
        yield running


@pytest.fixture(scope="module")
def images_server(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[RunningServer]:
    running = make_server(
        tmp_path_factory.mktemp("s"),
        COVE_POOL_SIZE="1",
        COVE_REGISTRIES=f"{registry.host},closed.invalid",
        COVE_INSECURE_REGISTRIES=registry.host,
    )
    running.start()
    yield running
    running.down()
    shutil.rmtree(running.data_dir, ignore_errors=True)


@pytest.fixture
def env(images_server: RunningServer) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COVE_", "XDG_"))}
    return kept | {"COVE_DATA_DIR": str(images_server.data_dir), "HOME": str(images_server.data_dir)}


@pytest.fixture
def cove(env: dict[str, str], tmp_path: Path) -> Run:
    def run(*argv: str, stdin: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [*COVE, *argv], input=stdin, capture_output=True, check=False, timeout=120, env=env, cwd=tmp_path
        )
        assert done.returncode == code, done.stderr.decode()
        return done

    return run


def layer() -> Layer:
    noise = random.Random(1).randbytes(8 << 20)  # noqa: S311 - content that does not pack
    shell = Path(os.path.realpath("/bin/true")).read_bytes()
    return Layer(tar_of(member("bin/"), member("bin/sh", shell, mode=0o755), member("etc/"), member("noise", noise)))


@pytest.fixture
def pulled(cove: Run, registry: Registry) -> Iterator[str]:
    name = f"{registry.host}/tiny"
    cove("image", "pull", name, "-u", USER, "--password-stdin", stdin=PASSWORD.encode() + b"\n")
    yield name
    cove("image", "rm", name)


@pytest.fixture(scope="module")
def small(images_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image of 2 MB that a build can start from."""
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        pytest.fail("this test needs busybox: apt-get install busybox-static")
    tools = "sh tar gzip cat ls rm mkdir cp mv chmod chown ln stat id sleep env test true dirname basename find sort"
    archive = tmp_path_factory.mktemp("small") / "small.tar"
    archive.write_bytes(
        tar_of(
            *(member(f"{name}/") for name in ("bin", "etc", "tmp", "root")),
            member("etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
            member("etc/group", "root:x:0:\n"),
            member("bin/busybox", busybox.read_bytes(), mode=0o755),
            *(link(f"bin/{name}", "busybox") for name in tools.split()),
        )
    )
    with images_server.client(timeout=120) as client:
        answer = client.post("/images/import?name=small", content=archive.read_bytes())
        assert answer.status_code == 200, answer.text
    return "small"


def test_a_pull_needs_the_right_password_and_tells_it_to_nobody(cove, registry, images_server):
    name = f"{registry.host}/tiny"
    refused = cove("image", "pull", name, "-u", USER, "--password-stdin", stdin=b"wrong-word-77\n", code=121)
    assert b"(registry-error)" in refused.stderr
    cove("image", "pull", name, code=121)
    done = cove("image", "pull", name, "-u", USER, "--password-stdin", stdin=PASSWORD.encode())
    assert done.stdout.decode() == f"{name}:latest\n"
    assert done.stderr.startswith(f"Pulled {name}:latest, 8.".encode())
    told = images_server.log.read_text() + registry.log
    for stored in images_server.data_dir.glob("pulled/**/*"):
        if stored.is_file() and stored.stat().st_size < 1 << 20:
            told += stored.read_bytes().decode("latin-1")
    assert PASSWORD not in told + done.stderr.decode()
    assert "wrong-word-77" not in told + refused.stderr.decode()
    cove("image", "rm", name)


def test_a_pulled_image_is_listed_shown_checked_and_removed(cove, pulled):
    rows = [json.loads(line) for line in cove("image", "ls", "--json").stdout.splitlines()]
    (row,) = [one for one in rows if one["origin"] == "pulled"]
    assert (row["name"], row["status"]) == (f"{pulled}:latest", "ready")
    shown = cove("image", "inspect", pulled).stdout.decode()
    assert "'GREETING=hello there'" in shown
    assert "\x1b" not in shown
    assert cove("image", "verify", pulled).stdout.decode().strip() == row["digest"]


def test_on_a_terminal_a_line_moves_and_the_output_of_a_build_stands_above_it(cove, env, tmp_path, small):
    (tmp_path / "Dockerfile").write_text(f"FROM {small}\nRUN sleep 1; echo a line of the build; sleep 0.5\n")
    main, other = pty.openpty()
    try:
        argv = [*COVE, "image", "build", "-t", "watched", "."]
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=other, env=env, cwd=tmp_path
        )
        os.close(other)
        out, _ = process.communicate(timeout=60)
        shown = b""
        while select.select([main], [], [], 0.2)[0]:
            try:
                shown += os.read(main, 65536)
            except OSError:  # the other end is closed: that was all
                break
    finally:
        os.close(main)
    assert out == b"localhost/watched:latest\n"
    assert b" Building watched" in shown
    assert b"\r\x1b[Ka line of the build\r\n" in shown
    assert b"\r\x1b[KBuilt localhost/watched:latest" in shown
    cove("image", "rm", "watched")


def test_what_cannot_be_pulled_is_told_with_a_hint(cove, registry):
    missing = cove("image", "pull", "UPPER/case", code=2)
    assert b"error: 'UPPER/case' is no name of an image" in missing.stderr
    excluded = cove("image", "pull", "elsewhere.example/x", code=122)
    assert b"hint: the settings registries" in excluded.stderr
    unknown = cove("image", "inspect", "nothing", "--json", code=120)
    assert json.loads(unknown.stderr) == json.loads(unknown.stderr) | {
        "code": "not-found",
        "hint": "see what is here: cove image ls",
    }
    cove("image", "rm", "base", code=121)


def wheel(folder: Path) -> Path:
    """A package of one line, as pip takes it: no network, nothing else needed."""
    made = folder / "answer-1.0-py3-none-any.whl"
    text = "def ask():\n    return 42\n"
    facts = {
        "answer.py": text,
        "answer-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: answer\nVersion: 1.0\n",
        "answer-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in facts) + "answer-1.0.dist-info/RECORD,,\n"
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in {**facts, "answer-1.0.dist-info/RECORD": record}.items():
            archive.writestr(name, content)
    return made


def test_a_recipe_installs_a_wheel_of_ours_and_the_image_runs(cove, tmp_path):
    files = tmp_path / "wheels"
    files.mkdir()
    recipe = tmp_path / "tools.toml"
    recipe.write_text(
        f'from = "python"\npip = ["./{wheel(files).name}"]\ncommands = ["echo building >&2; echo it >/srv/made"]\n'
        'env = {ANSWERS = "many"}\nworkdir = "/srv"\nuser = "nobody"\n'
    )
    built = cove("image", "build", "-t", "tools", str(recipe), "--context", str(files))
    assert built.stdout == b"localhost/tools:latest\n"
    assert b"\nbuilding\n" in built.stderr
    ran = cove(
        "run",
        "--image",
        "tools",
        "--",
        "sh",
        "-c",
        'python3 -c "import answer; print(answer.ask())"; id -un; pwd; cat made; echo $ANSWERS; test ! -e /context',
    )
    assert ran.stdout.decode().split() == ["42", "nobody", "/srv", "it", "many"]
    cove("image", "rm", "tools")


def test_a_dockerfile_is_built_exported_and_imported_to_the_same_digest(cove, tmp_path, small):
    (tmp_path / "hello.txt").write_text("hello\n")
    (tmp_path / "secret.key").write_text("no\n")
    (tmp_path / ".dockerignore").write_text("*.key\n")
    (tmp_path / "Dockerfile").write_text(
        f"ARG BASE={small}\nFROM $BASE AS maker\nARG V\nRUN echo made $V >/made\n"
        f'FROM {small}\nCOPY --from=maker /made /srv/\nCOPY . /srv/\nWORKDIR /srv\nCMD ["cat", "hello.txt"]\n'
    )
    built = cove("image", "build", "-t", "app:v1", "--build-arg", "V=7", ".", "--json")
    events = [json.loads(line) for line in built.stdout.splitlines()]
    made = events[-1]
    assert (made["event"], made["name"], made["config"]["command"]) == (
        "done",
        "localhost/app:v1",
        ["cat", "hello.txt"],
    )
    assert any(one["event"] == "run" and "RUN echo made" in one["text"] for one in events)
    ran = cove("run", "--image", "app:v1", "--", "sh", "-c", "cat made hello.txt; ls -a")
    assert ran.stdout.decode().split() == [
        "made",
        "7",
        "hello",
        ".",
        "..",
        ".dockerignore",
        "Dockerfile",
        "hello.txt",
        "made",
    ]
    archive = tmp_path / "app.tar"
    cove("image", "export", "app:v1", str(archive))
    copied = tmp_path / "copied.tar"
    subprocess.run(
        ["skopeo", "copy", "-q", f"oci-archive:{archive}", f"docker-archive:{copied}:app:v1"], check=True, timeout=120
    )
    for path in (archive, copied):
        again = cove("image", "import", "-t", "again", str(path), "--json", "digest")
        assert json.loads(again.stdout.splitlines()[-1]) == {"digest": made["digest"]}
    assert cove("image", "export", "app:v1", "-").stdout == archive.read_bytes()
    with tarfile.open(archive) as tar:
        assert "oci-layout" in tar.getnames()
    for name in ("app:v1", "again"):
        cove("image", "rm", name)


def test_a_step_that_fails_is_named_and_leaves_nothing(cove, tmp_path, small):
    (tmp_path / "Dockerfile").write_text(f"FROM {small}\nRUN echo so far\nRUN echo why >&2; exit 3\n")
    failed = cove("image", "build", "-t", "bad", ".", code=2)
    assert failed.stdout == b""
    assert b"so far\n" in failed.stderr
    assert b"exit code 3" in failed.stderr
    (tmp_path / "Dockerfile").write_text(f"FROM {small}\nRUN true\nRUN --mount=type=bind,target=/x ls\n")
    refused = cove("image", "build", "-t", "bad", ".", code=2)
    assert b"line 3" in refused.stderr
    cove("image", "inspect", "bad", code=120)
    assert cove("ls", "--json").stdout == b""


def test_an_interrupted_build_leaves_neither_sandbox_nor_image(cove, env, tmp_path, images_server, small):
    (tmp_path / "Dockerfile").write_text(f"FROM {small}\nRUN echo begun; sleep 300\n")
    process = subprocess.Popen(
        [*COVE, "image", "build", "-t", "slow", "."],
        env=env,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    while b"begun\n" not in (line := process.stderr.readline()) or b"RUN" in line:
        assert line
    process.send_signal(2)
    _, rest = process.communicate(timeout=60)
    assert (process.returncode, rest) == (130, b"error: interrupted (interrupted)\n")
    deadline = time.monotonic() + 60
    while cove("ls", "--json").stdout or list((images_server.data_dir / "pulled" / "work").iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    cove("image", "inspect", "slow", code=120)
