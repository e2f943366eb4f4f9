"""Common software under the strict system-call profile, on every driver: what people run in sandboxes has to work.

The images come from the recipes in `images/` and `tests/recipes/`, made once by the machinery of `cove setup` and kept
beside the others. Sandboxes have no network: indexes and repositories are served from inside.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx2
import pytest

from tests_support import SETUP_DIR, SOAK, RunningServer, make_images, make_server

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]  # the first test of all makes the images

IMAGES = ["python", "node", "test-software", *(["test-chromium"] if SOAK else [])]
WHEELS = ("anyio==4.16.0",)

Run = Callable[..., str]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Makes the images; ready ones are left as they are."""
    make_images(tmp_path_factory.mktemp("images") / "recipes", IMAGES)
    return IMAGES


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that pip takes for an index: one directory per project, the server lists its files."""
    home = tmp_path_factory.mktemp("wheels")
    argv = [sys.executable, "-m", "pip", "--quiet", "download", "--only-binary=:all:", "--dest", str(home), *WHEELS]
    subprocess.run(argv, check=True, timeout=120, capture_output=True)
    for wheel in home.glob("*.whl"):
        project = home / "simple" / wheel.name.split("-")[0].replace("_", "-").lower()
        project.mkdir(parents=True, exist_ok=True)
        wheel.rename(project / wheel.name)
    return home / "simple"


@pytest.fixture(scope="module")
def software_server(images: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    assert images
    running = make_server(tmp_path_factory.mktemp("server"), COVE_DRIVERS="runc,crun,gvisor", COVE_POOL_SIZE="0")
    running.start()
    yield running
    running.down()


@pytest.fixture
def open_sandbox(driver: str, software_server: RunningServer) -> Iterator[Callable[[str], Run]]:
    """Makes a sandbox of an image on the driver in question and returns how to run scripts in it."""
    made: list[str] = []
    with software_server.client(timeout=300) as client:

        def open_it(image: str) -> Run:
            body = {"image": image, "driver": driver, "cpus": 2, "memory_mib": 1536, "disk_mib": 2048}
            answer = client.post("/sandboxes", json=body)
            assert answer.status_code == 201, answer.text
            made.append(answer.json()["id"])
            return partial(succeed, client, made[-1])

        yield open_it
        for sandbox in made:
            client.delete(f"/sandboxes/{sandbox}")


def succeed(client: httpx2.Client, sandbox: str, script: str, **options: str) -> str:
    """The output of a script that has to end with 0."""
    body = {"command": "set -e\n" + script, "timeout_s": 240, **options}
    answer = client.post(f"/sandboxes/{sandbox}/exec", json=body)
    assert answer.status_code == 200, answer.text
    result = answer.json()
    if result["exit_code"] != 0:
        pytest.fail(f"exit {result['exit_code']}: {(result['stdout'] + result['stderr'])[-3000:]}")
    return str(result["stdout"])


PYTHON = """
import asyncio, multiprocessing, os, subprocess, tempfile, threading, signal, mmap, socket, select, fcntl

def square(number):
    return number * number

async def echo():
    async def serve(reader, writer):
        writer.write(await reader.read(5))
        await writer.drain()
        writer.close()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    writer.write(b"hello")
    assert await reader.read() == b"hello"
    child = await asyncio.create_subprocess_exec("true")
    assert await child.wait() == 0

if __name__ == "__main__":
    found = []
    threads = [threading.Thread(target=lambda: found.append(1)) for _ in range(50)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(found) == 50
    for how in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(how).Pool(3) as pool:
            assert pool.map(square, range(5)) == [0, 1, 4, 9, 16], how
    queue = multiprocessing.Queue()
    queue.put(7)
    assert queue.get(timeout=60) == 7
    assert subprocess.run("echo $((6 * 7))", shell=True, capture_output=True, text=True).stdout == "42\\n"
    with tempfile.TemporaryFile() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(4096)
        mmap.mmap(file.fileno(), 4096)[:3] = b"abc"
    asyncio.run(echo())
    print("ok")
"""


def test_python_runs_threads_processes_and_event_loops(open_sandbox: Callable[[str], Run]) -> None:
    run = open_sandbox("python")
    run("cat >/tmp/program.py", stdin=PYTHON)
    assert run("cd /tmp && python program.py").endswith("ok\n")


def test_pip_installs_for_the_system_and_into_a_venv(open_sandbox: Callable[[str], Run], wheels: Path) -> None:
    run = open_sandbox("python")
    archive = subprocess.run(["tar", "-C", str(wheels.parent), "-cz", wheels.name], check=True, capture_output=True)
    run("base64 -d | tar -C /srv -xz", stdin=base64_of(archive.stdout))
    run("cd /srv && (python3 -m http.server --bind 127.0.0.1 8000 >/tmp/index.log 2>&1 &)")
    run("until curl -fsS -o /dev/null http://127.0.0.1:8000/simple/; do sleep 0.05; done")
    index = "--index-url http://127.0.0.1:8000/simple/"
    assert "anyio" in run(f"pip install --quiet {index} anyio && pip list 2>/dev/null")
    assert run("python -c 'import anyio; print(anyio.__file__)'").startswith("/usr/local/lib/")
    run(f"python -m venv /tmp/venv && /tmp/venv/bin/pip install --quiet {index} anyio")
    assert run("/tmp/venv/bin/python -c 'import anyio; print(anyio.__file__)'").startswith("/tmp/venv/")


NODE = """
const { Worker, isMainThread, parentPort } = require("worker_threads");
const { execFileSync, fork } = require("child_process");
const crypto = require("crypto"), fs = require("fs"), http = require("http"), zlib = require("zlib");
if (!isMainThread) {
  parentPort.postMessage(6 * 7);
} else if (process.argv[2] === "child") {
  process.send("child");
} else {
  (async () => {
    const work = () => new Promise((ok) => new Worker(__filename).on("message", ok));
    const answers = await Promise.all([1, 2, 3, 4].map(work));
    if (answers.join() !== "42,42,42,42") throw new Error(answers);
    if ((await new Promise((ok) => fork(__filename, ["child"]).on("message", ok))) !== "child") throw new Error("fork");
    if (execFileSync("echo", ["x"]).toString() !== "x\\n") throw new Error("exec");
    crypto.scryptSync("a", "b", 32);
    zlib.gunzipSync(zlib.gzipSync("text"));
    fs.watch("/tmp").close();
    const server = http.createServer((request, answer) => answer.end("served")).listen(0, "127.0.0.1");
    await new Promise((ok) => server.on("listening", ok));
    const answer = await fetch("http://127.0.0.1:" + server.address().port);
    if ((await answer.text()) !== "served") throw new Error("fetch");
    server.close();
    console.log("ok");
    process.exit(0);
  })();
}
"""

REGISTRY = """
const http = require("http"), fs = require("fs"), crypto = require("crypto");
const tarball = fs.readFileSync("/srv/cove-left-1.0.0.tgz");
const integrity = "sha512-" + crypto.createHash("sha512").update(tarball).digest("base64");
const dist = { tarball: "http://127.0.0.1:8000/left.tgz", integrity };
const version = { name: "cove-left", version: "1.0.0", dist };
const document = { name: "cove-left", "dist-tags": { latest: "1.0.0" }, versions: { "1.0.0": version } };
http.createServer((request, answer) => {
  if (request.url === "/cove-left") answer.end(JSON.stringify(document));
  else if (request.url === "/left.tgz") answer.end(tarball);
  else { answer.statusCode = 404; answer.end("{}"); }
}).listen(8000, "127.0.0.1");
"""


def test_node_runs_workers_children_and_servers(open_sandbox: Callable[[str], Run]) -> None:
    run = open_sandbox("node")
    run("cat >/tmp/program.js", stdin=NODE)
    assert run("node /tmp/program.js") == "ok\n"


def test_npm_installs_from_an_index_and_runs_a_script(open_sandbox: Callable[[str], Run]) -> None:
    run = open_sandbox("node")
    run("mkdir -p /srv/left && cat >/srv/left/package.json", stdin='{"name": "cove-left", "version": "1.0.0"}')
    run("cd /srv && echo 'module.exports = () => 42' >left/index.js && npm pack --silent ./left")
    run("cat >/srv/registry.js", stdin=REGISTRY)
    run("node /srv/registry.js >/tmp/registry.log 2>&1 &")
    run("until curl -fsS -o /dev/null http://127.0.0.1:8000/cove-left; do sleep 0.05; done")
    run("mkdir /root/app && cd /root/app && npm init -y >/dev/null")
    run("cd /root/app && npm install --silent --no-audit --registry http://127.0.0.1:8000 cove-left")
    assert run("cd /root/app && node -p 'require(\"cove-left\")()'") == "42\n"
    run("cd /root/app && npm pkg set scripts.answer='node -p 6*7'")
    assert "42" in run("cd /root/app && npm run --silent answer")


def test_git_commits_clones_and_packs(open_sandbox: Callable[[str], Run]) -> None:
    run = open_sandbox("test-software")
    run("git config --global user.email a@b.example && git config --global user.name A")
    run("git init -q -b main /srv/repo && cd /srv/repo && seq 5000 >f && git add f && git commit -q -m one")
    run("cd /srv/repo && git checkout -q -b side && echo x >>f && git commit -q -a -m two && git checkout -q main")
    run("cd /srv/repo && git merge -q side && git gc -q && git fsck --strict")
    run("git clone -q file:///srv/repo /srv/copy && git clone -q /srv/repo /srv/linked")
    assert run("cd /srv/copy && git rev-list --count HEAD && git worktree add -q ../tree main~1").startswith("2\n")


def test_apt_installs_from_a_repository(open_sandbox: Callable[[str], Run]) -> None:
    run = open_sandbox("test-software")
    run("cd /srv/packages && dpkg-scanpackages . 2>/dev/null >Packages")
    run("rm -rf /etc/apt/sources.list /etc/apt/sources.list.d")
    run("echo 'deb [trusted=yes] file:/srv/packages ./' >/etc/apt/sources.list")
    run("apt-get -q update && apt-get -q install -y tree")
    assert "apt" in run("tree -L 1 /etc/apt")
    # Its script makes a system user, the commonest thing that such scripts do.
    run("apt-get -q install -y /srv/packages/uuid-runtime_*.deb && id uuidd && uuidgen")
    run("apt-get -q purge -y tree && ! command -v tree && dpkg --audit")


def test_gcc_compiles_and_the_program_runs(open_sandbox: Callable[[str], Run]) -> None:
    run = open_sandbox("test-software")
    source = '#include <pthread.h>\n#include <stdio.h>\nvoid *f(void *a) { puts("thread"); return a; }\n'
    source += "int main(void) { pthread_t t; pthread_create(&t, 0, f, 0); return pthread_join(t, 0); }\n"
    run("cat >/tmp/p.c", stdin=source)
    assert run("cd /tmp && gcc -O2 -Wall -pthread -o p p.c && ./p") == "thread\n"


def test_postgres_starts_and_answers(open_sandbox: Callable[[str], Run]) -> None:
    run = open_sandbox("test-software")

    def tool(script: str) -> str:
        return run(f"PATH=$(echo /usr/lib/postgresql/*/bin):$PATH\n{script}", user="postgres", cwd="/tmp")

    def query(statement: str, host: str = "/tmp") -> str:
        return tool(f"psql -h {host} -At postgres -c '{statement}'")

    tool("initdb -D /tmp/db >/tmp/initdb.log")
    tool("pg_ctl -D /tmp/db -w -t 60 -o '-c unix_socket_directories=/tmp' -l /tmp/pg.log start")
    query("create table t as select g from generate_series(1, 100000) g")
    assert query("select sum(g) from t") == "5000050000\n"
    assert query("select 1", "127.0.0.1") == "1\n"
    tool("pg_ctl -D /tmp/db -w -m fast stop")


@pytest.mark.skipif(not SOAK, reason="the image takes over a minute to make: part of `make soak`")
def test_chromium_renders_a_page(open_sandbox: Callable[[str], Run]) -> None:
    run = open_sandbox("test-chromium")
    page = "<title>t</title><body><script>document.body.append('sum ' + (40 + 2))</script>"
    run("cat >/tmp/page.html", stdin=page)
    # Its own sandbox wants user namespaces, which ours does not give: ours takes its place.
    chromium = "chromium --headless --no-sandbox --disable-gpu --user-data-dir=/tmp/profile"
    assert "sum 42" in run(f"{chromium} --dump-dom file:///tmp/page.html 2>/tmp/chromium.log")
    run(f"{chromium} --screenshot=/tmp/page.png file:///tmp/page.html 2>/tmp/chromium.log")
    assert "PNG image data" in run("file /tmp/page.png")


def base64_of(data: bytes) -> str:
    """For a stdin that is JSON text."""
    return subprocess.run(["base64", "-w0"], input=data, capture_output=True, check=True).stdout.decode()


def test_the_images_belong_to_root_and_carry_no_privileges(images: list[str]) -> None:
    for name in images:
        for folder, _, files in os.walk(SETUP_DIR / "images" / name / "current" / "rootfs"):
            for file in files:
                facts = Path(folder, file).lstat()
                assert not facts.st_mode & 0o6000, file
