"""Images that are built in sandboxes: from recipes and Dockerfiles, over the API; and builds that are attacks."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import socket
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx2
import pytest

from tests_support import SETUP_DIR, NewServer, RunningServer, make_server

pytestmark = pytest.mark.real

EVENTS = {"Accept": "text/event-stream"}
PULLED = "pulled"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of this module's own: what it builds would be in the way elsewhere."""
    running = make_server(tmp_path_factory.mktemp("building"), COVE_POOL_SIZE="1", COVE_DRIVERS="runc")
    running.start()
    with running.client(timeout=120) as client:
        imported = client.post("/images/import", params={"name": "small"}, content=small_image())
        assert imported.status_code == 200, imported.text
    yield running
    running.down()
    shutil.rmtree(running.data_dir, ignore_errors=True)


def small_image() -> bytes:
    """The few programs of `base` that a build needs: most tests make no use of its other 180 MB."""
    programs = "sh dash tar grep cp rm ls cat chmod chown mkdir mkfifo ln readlink stat id sleep true test env wc mknod"
    wanted = [f"usr/bin/{name}" for name in programs.split()]
    libraries = ("libc.so.6", "libselinux.so.1", "libacl.so.1*", "libattr.so.1*", "libpcre2-8.so*", "ld-linux*.so*")
    top = SETUP_DIR / "images/base/current/rootfs"
    wanted += [str(path.relative_to(top)) for name in libraries for path in top.glob(f"usr/lib/*-linux-gnu/{name}")]
    wanted += ["bin", "lib", "lib64", "usr/lib64", "tmp", "etc/passwd", "etc/group"]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in wanted:
            if (top / name).is_symlink() or (top / name).exists():
                tar.add(top / name, name, recursive=name == "usr/lib64")
    return out.getvalue()


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx2.Client]:
    with server.client(timeout=120) as client:
        yield client
    assert list((server.data_dir / PULLED / "work").iterdir()) == [], "a workspace is left"


def context(**files: str | bytes) -> bytes:
    """A tar of these files; `__` in a name stands for a slash, a single `_` for a dot."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name.replace("__", "/").replace("_", "."))
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def build(client: httpx2.Client, name: str, body: Mapping[str, object] | bytes, **query: str) -> httpx2.Response:
    params = {"name": name, **query}
    if isinstance(body, bytes):
        return client.post("/images/build", params=params, content=body)
    return client.post("/images/build", params=params, json=body)


def inside(client: httpx2.Client, image: str, command: str) -> str:
    """What a command prints in a fresh sandbox of the image."""
    made = client.post("/sandboxes", json={"image": image})
    assert made.status_code == 201, made.text
    ref = made.json()["id"]
    try:
        result = client.post(f"/sandboxes/{ref}/exec", json={"command": command}).json()
        assert result["exit_code"] == 0, result
        return str(result["stdout"])
    finally:
        client.delete(f"/sandboxes/{ref}")


def names(client: httpx2.Client) -> set[str]:
    return {one["name"] for one in client.get("/images").json()["images"] if one["origin"] != "builtin"}


def living(client: httpx2.Client) -> list[str]:
    return [one["name"] for one in client.get("/sandboxes").json()["sandboxes"]]


def wheel() -> bytes:
    """A package for pip, made by hand: PEP 427."""
    out = io.BytesIO()
    files = {
        "covetest.py": "VALUE = 42\n",
        "covetest-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: covetest\nVersion: 1.0\n",
        "covetest-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        sums = {name: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()) for name, text in files.items()}
        rows = [f"{name},sha256={sums[name].decode().rstrip('=')},{len(files[name])}" for name in files]
        archive.writestr("covetest-1.0.dist-info/RECORD", "\n".join([*rows, "covetest-1.0.dist-info/RECORD,,", ""]))
    return out.getvalue()


def package(folder: Path) -> bytes:
    """A package for apt, made by dpkg-deb."""
    control = folder / "deb" / "DEBIAN" / "control"
    control.parent.mkdir(parents=True)
    control.write_text("Package: covetest\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y>\nDescription: x\n")
    (folder / "deb" / "opt").mkdir()
    (folder / "deb" / "opt" / "covetest").write_text("here\n")
    made = folder / "covetest.deb"
    subprocess.run(["dpkg-deb", "--build", "-Znone", folder / "deb", made], check=True, capture_output=True, timeout=60)
    return made.read_bytes()


def test_a_recipe_becomes_an_image(client: httpx2.Client) -> None:
    recipe = {
        "from": "small",
        "files": {"/etc/greeting/text": "hello"},
        "env": {"GREETING": "a b"},
        "commands": ["echo $GREETING > /made", "pwd >> /made; id -u >> /made"],
        "workdir": "/srv/new",
        "user": "1000:1000",
        "labels": {"who": "me"},
    }
    made = build(client, "from-recipe:v1", recipe)
    assert made.status_code == 200, made.text
    facts = made.json()
    assert (facts["name"], facts["origin"], facts["status"]) == ("localhost/from-recipe:v1", "built", "ready")
    assert facts["config"]["labels"] == {"who": "me"}
    said = inside(
        client,
        "from-recipe:v1",
        "cat /made /etc/greeting/text; echo; pwd; id -u; echo $GREETING; ls -d /context || true",
    )
    assert said.split("\n") == ["a b", "/context", "0", "hello", "/srv/new", "1000", "a b", ""]
    assert client.delete("/images", params={"name": "from-recipe:v1"}).status_code == 204
    assert living(client) == []


def test_local_packages_are_installed_from_the_context(client: httpx2.Client, tmp_path: Path) -> None:
    recipe = {"from": "python", "packages": ["./covetest.deb"], "pip": ["./covetest-1.0-py3-none-any.whl"]}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in (
            ("covetest-1.0-py3-none-any.whl", wheel()),
            ("covetest.deb", package(tmp_path)),
            ("recipe.json", json.dumps(recipe).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    made = build(client, "packages", out.getvalue(), file="recipe.json")
    assert made.status_code == 200, made.text
    assert (
        inside(client, "packages", "cat /opt/covetest; python3 -c 'import covetest; print(covetest.VALUE)'")
        == "here\n42\n"
    )


DOCKERFILE = """\
ARG BASE=small
FROM $BASE AS tools
ARG VERSION=1
ENV V=$VERSION
RUN mkdir -p /out/deep && echo "v$V" > /out/deep/version && ln -s deep/version /out/link

FROM tools AS more
RUN echo more >> /out/deep/version

FROM small
WORKDIR /srv/app
COPY --chown=1000:1000 --chmod=750 src/ ./
COPY *.txt /texts/
ADD bundle.tar /bundle
COPY --from=more /out /out
COPY --from=tools /out/deep/version /first
RUN <<END
set -e
test ! -e /context/.cove-build
echo "$(pwd) $(id -u)" > /ran
END
RUN ["/bin/sh", "-c", "echo list >> /ran"]
EXPOSE 80
VOLUME /data
LABEL a="b c" d=e
USER 1000:1000
RUN id -u > /tmp/who
ENTRYPOINT ["/bin/echo"]
CMD ["hello"]
"""


def test_a_dockerfile_becomes_an_image(client: httpx2.Client) -> None:
    body = context(
        Dockerfile=DOCKERFILE, src__run_sh="#!/bin/sh\n", one_txt="1", two_txt="2", bundle_tar=context(inner="x")
    )
    answer = client.post("/images/build", params={"name": "docker", "arg.VERSION": "7"}, content=body, headers=EVENTS)
    assert "event: done" in answer.text, answer.text
    assert "EXPOSE means nothing in a sandbox" in answer.text
    assert "localhost/cove-build" not in str(names(client)), "an interim image is left"
    config = client.get("/images/inspect", params={"name": "docker"}).json()["config"]
    assert (config["entrypoint"], config["command"], config["user"]) == (["/bin/echo"], ["hello"], "1000:1000")
    assert (config["workdir"], config["labels"]) == ("/srv/app", {"a": "b c", "d": "e"})
    script = "stat -c '%u:%g %a %n' run.sh; ls /texts /bundle; cat /out/link /first /ran /tmp/who; ls -d /data || true"
    said = inside(client, "docker", script).split("\n")
    assert said[0] == "1000:1000 750 run.sh"
    assert said[1:6] == ["/bundle:", "inner", "", "/texts:", "one.txt"]
    assert said[6:] == ["two.txt", "v7", "more", "v7", "/srv/app 0", "list", "1000", ""]
    assert living(client) == []


def test_a_target_ends_there_and_what_it_does_not_need_is_not_built(client: httpx2.Client) -> None:
    text = "FROM small AS one\nRUN echo 1 > /n\nFROM small AS two\nRUN exit 9\nFROM two\nRUN exit 8\n"
    assert build(client, "target", context(Dockerfile=text), target="one").status_code == 200
    failed = build(client, "target", context(Dockerfile=text), target="two")
    assert (failed.status_code, failed.json()["field"]) == (400, "steps")
    assert build(client, "target", context(Dockerfile=text), target="nope").json()["field"] == "target"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FROM small\nRUN echo no; exit 3", "line 2 of the Dockerfile (RUN echo no; exit 3): it ended with exit code"),
        ("FROM small\nCOPY nothing /x", "no such file: ./nothing"),
        ("FROM small\nCOPY ../../etc/shadow /x", "no such file: ./etc/shadow"),
        ("FROM small\nADD http://127.0.0.1/x /x", "a build has no network"),
        ("FROM small\nCOPY --from=small /nope /x", "no such file: ./nope"),
        ("FROM small\nCOPY --chown=;id /etc /x", "is not understood"),
        ("FROM nowhere.invalid:1/x\n", ""),
        ("FROM localhost/none\n", "no image"),
    ],
)  # fmt: skip
def test_a_build_that_fails_says_where_and_leaves_nothing(client: httpx2.Client, text: str, said: str) -> None:
    before = names(client)
    answer = build(client, "fails", context(Dockerfile=text))
    assert answer.status_code >= 400, answer.text
    assert said in answer.json()["detail"]
    assert (names(client), living(client)) == (before, [])


def test_a_recipe_that_is_none_is_refused_by_field(client: httpx2.Client) -> None:
    assert build(client, "x", {"from": "small", "pip": ["--index-url=x"]}).json()["field"] == "pip"
    assert build(client, "x", {"nonsense": 1}).status_code == 400
    bad = build(client, "x", context(recipe_toml="from = 1"), file="recipe.toml").json()
    assert (bad["field"], "recipe.toml is no recipe" in bad["detail"]) == ("file", True)
    assert build(client, "base", {"from": "small"}).status_code == 409
    assert build(client, "docker.io/x", {"from": "small"}).status_code in {200, 400}
    assert build(client, "x", {"from": "small", "commands": ["sleep 60"]}, timeout_s="2").json()["field"] == "timeout_s"
    assert living(client) == []


def test_a_build_asks_for_scopes_and_needs_no_more(server: RunningServer, client: httpx2.Client) -> None:
    def with_key(*scopes: str) -> httpx2.Response:
        key = client.post("/keys", json={"name": "k", "scopes": scopes}).json()["key"]
        with httpx2.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": key}, timeout=60) as other:
            return build(other, "scoped", {"from": "small", "commands": ["true"]})

    assert with_key("read").status_code == 403
    assert with_key("create").status_code == 403
    assert with_key("create", "exec").status_code == 200
    assert living(client) == []


def test_a_client_that_leaves_ends_the_build(client: httpx2.Client) -> None:
    body: Mapping[str, object] = {"from": "small", "commands": ["echo begun; sleep 600"]}
    with client.stream("POST", "/images/build", params={"name": "left"}, json=body, headers=EVENTS) as stream:
        assert any("begun" in line for line in stream.iter_lines())
        assert len(living(client)) == 1
    deadline = time.monotonic() + 60
    while living(client) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert living(client) == []
    assert "localhost/left:latest" not in names(client)


def test_half_an_upload_leaves_nothing(server: RunningServer, client: httpx2.Client) -> None:
    head = f"POST /api/v1/images/import?name=half HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as half:
        half.sendall(f"{head}Content-Length: 100000000\r\n\r\n".encode() + bytes(2_000_000))
        deadline = time.monotonic() + 60
        while not list((server.data_dir / PULLED / "work").iterdir()) and time.monotonic() < deadline:
            time.sleep(0.02)
    while list((server.data_dir / PULLED / "work").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "localhost/half:latest" not in names(client)


# What a build does may be an attack.


def test_what_a_build_makes_dangerous_is_harmless_afterwards(client: httpx2.Client) -> None:
    commands = [
        "cp /bin/sh /suid && chmod 6755 /suid",
        "mkfifo /pipe; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/sock\")' || true",
        "ln -s /etc/shadow /out; ln -s / /root-link; mkdir -p /x/.agent /x/run/agent",
        "! mknod /disk b 8 0",
    ]
    assert build(client, "danger", {"from": "base", "commands": commands}).status_code == 200
    said = inside(client, "danger", "stat -c %a /suid; ls -d /pipe /sock 2>/dev/null || true; readlink /out /root-link")
    assert said.split() == ["755", "/etc/shadow", "/"]


def test_a_tar_program_of_the_build_decides_nothing_on_the_host(client: httpx2.Client) -> None:
    """What packs the file system is the build's own: its archive meets the same unpacking as a stranger's."""
    marks = [Path("/tmp/cove-escaped"), Path("/etc/cove-escaped")]
    liar = (
        "import sys, tarfile, io\n"
        "t = tarfile.open(fileobj=sys.stdout.buffer, mode='w|')\n"
        "def add(n, k=tarfile.REGTYPE, l='', d=b'evil'):\n"
        "    i = tarfile.TarInfo(n); i.type = k; i.linkname = l; i.size = len(d) if k == tarfile.REGTYPE else 0\n"
        "    t.addfile(i, io.BytesIO(d))\n"
        "add('../../../../../../tmp/cove-escaped'); add('/etc/cove-escaped')\n"
        "add('way', tarfile.SYMTYPE, '/tmp'); add('way/cove-escaped')\n"
        "add('dev', tarfile.SYMTYPE, '/'); add('bin/sh')\n"
        "t.close()\n"
    )
    program = "/usr/local/bin/tar"
    files = {"/usr/local/bin/liar.py": liar, program: "#!/bin/sh\nexec python3 /usr/local/bin/liar.py\n"}
    answer = build(client, "liar", {"from": "python", "files": files, "commands": [f"chmod 755 {program}"]})
    assert answer.status_code == 200, answer.text
    assert [mark for mark in marks if mark.exists()] == []


def test_a_file_system_without_end_meets_the_limit(new_server: NewServer) -> None:
    running = new_server(COVE_IMAGE_MAX_MIB="300", COVE_POOL_SIZE="0")
    program = "/usr/local/bin/tar"
    files = {program: "#!/bin/sh\n[ $1 = --version ] || exec cat /dev/zero\n"}
    with running.client(timeout=120) as client:
        answer = build(client, "endless", {"from": "base", "files": files, "commands": [f"chmod 755 {program}"]})
        assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
        assert (names(client), living(client)) == (set(), [])


def test_a_server_that_dies_in_a_build_leaves_a_sandbox_with_an_end_and_no_files(new_server: NewServer) -> None:
    running = new_server(COVE_POOL_SIZE="0")
    # The sum is in the output alone: the step itself is told before its sandbox is there.
    body: Mapping[str, object] = {"from": "base", "commands": ["echo begun-$((1 + 1)); sleep 600"]}
    with running.client(timeout=60) as client:
        with client.stream("POST", "/images/build", params={"name": "dies"}, json=body, headers=EVENTS) as stream:
            assert any("begun-2" in line for line in stream.iter_lines())
            running.kill()
        running.start()
        left = client.get("/sandboxes").json()["sandboxes"]
        assert [(one["metadata"], one["expires_at"] is not None) for one in left] == [({"cove.build": "dies"}, True)]
        assert names(client) == set()
    assert list((running.data_dir / PULLED / "work").iterdir()) == []


@pytest.mark.parametrize("driver", ["crun", "gvisor"])
def test_a_build_runs_on_every_driver(new_server: NewServer, driver: str) -> None:
    running = new_server(COVE_DRIVERS=f"runc,{driver}", COVE_POOL_SIZE="0")
    with running.client(timeout=120) as client:
        assert client.post("/images/import", params={"name": "small"}, content=small_image()).status_code == 200
        made = build(client, "other", {"from": "small", "commands": ["echo x > /made"]}, driver=driver)
        assert made.status_code == 200, made.text
        assert inside(client, "other", "cat /made") == "x\n"
