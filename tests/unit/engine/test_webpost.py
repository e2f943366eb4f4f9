"""The server's own POSTs, over real sockets and TLS: what is checked is what is dialled, and nothing is followed."""

# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from cove.engine.webpost import HEAD_BYTES, OwnWorld, PostRefused, WebPost
from cove.model.closed import ClosedRanges


class World:
    """Names as the test says, all connections to one local port."""

    def __init__(self, port: int, *answers: list[str]) -> None:
        self._port = port
        self._answers = list(answers)
        self.asked: list[str] = []
        self.dialled: list[str] = []

    async def resolve(self, host: str) -> list[str]:
        self.asked.append(host)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    async def connect(self, address: str, port: int) -> socket.socket:
        del port
        self.dialled.append(address)
        if address == "1.0.0.9":
            raise ConnectionRefusedError(111, "Connection refused")
        return await OwnWorld().connect("127.0.0.1", self._port)


class Site:
    """An HTTP server that answers what it is told to."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        self.requests.append(head + await reader.readexactly(length))
        writer.write(self.answer)
        writer.close()


@pytest.fixture
async def site():
    one = Site()
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    yield one
    server.close()


def poster(site, *answers: list[str]) -> tuple[WebPost, World]:
    world = World(site.port, *answers)
    return WebPost(world, ClosedRanges), world


async def test_a_post_arrives_whole_and_its_status_comes_back(site) -> None:
    post, world = poster(site, ["1.0.0.1"])
    assert await post.post("http://hooks.example:8080/in?x=1", {"webhook-id": "7"}, b'{"a":1}') == 200
    (request,) = site.requests
    assert request.startswith(b"POST /in?x=1 HTTP/1.1\r\nHost: hooks.example:8080\r\nwebhook-id: 7\r\n")
    assert request.endswith(b'\r\n\r\n{"a":1}')
    assert world.dialled == ["1.0.0.1"]


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["10.0.0.1", "192.168.1.1"], ["169.254.169.254"], ["100.64.0.1"], ["0.0.0.0"], ["224.0.0.1"], []],  # noqa: S104
)
async def test_a_name_that_leads_into_closed_ranges_is_not_dialled(site, addresses) -> None:
    post, world = poster(site, addresses)
    with pytest.raises(PostRefused):
        await post.post("http://inside.example/", {}, b"")
    assert not world.dialled
    assert not site.requests


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "[::1]", "[::ffff:10.0.0.1]"])
async def test_an_address_in_a_closed_range_is_not_dialled(site, host) -> None:
    post, world = poster(site, ["1.0.0.1"])
    with pytest.raises(PostRefused):
        await post.post(f"http://{host}:{site.port}/", {}, b"")
    assert not world.asked
    assert not world.dialled


async def test_a_second_answer_of_the_name_server_is_never_asked_for(site) -> None:
    """Rebinding (case 51): what was checked is what is dialled."""
    post, world = poster(site, ["1.0.0.1"], ["127.0.0.1"])
    assert await post.post("http://hooks.example/", {}, b"") == 200
    assert world.asked == ["hooks.example"]
    assert world.dialled == ["1.0.0.1"]


async def test_of_several_addresses_the_closed_are_passed_over_and_the_dead_skipped(site) -> None:
    post, world = poster(site, ["10.0.0.1", "1.0.0.9", "1.0.0.2"])
    assert await post.post("http://hooks.example/", {}, b"") == 200
    assert world.dialled == ["1.0.0.9", "1.0.0.2"]


async def test_a_redirect_is_an_answer_and_is_not_followed(site) -> None:
    site.answer = b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"
    post, world = poster(site, ["1.0.0.1"])
    assert await post.post("http://hooks.example/", {}, b"") == 302
    assert len(site.requests) == 1
    assert world.asked == ["hooks.example"]


@pytest.mark.parametrize(
    "answer", [b"", b"\r\n", b"SSH-2.0-x\r\n", b"HTTP/1.1 2000 OK\r\n", b"HTTP/1.1\r\n", b"x" * (HEAD_BYTES * 2)]
)
async def test_what_is_no_http_is_a_failure(site, answer) -> None:
    site.answer = answer
    post, _ = poster(site, ["1.0.0.1"])
    with pytest.raises(OSError):  # noqa: PT011 - any of its kinds
        await post.post("http://hooks.example/", {}, b"")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hooks.example"]
    names = ["-addext", "subjectAltName=DNS:hooks.example", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command, *names], check=True, capture_output=True)
    return cert, key


async def test_the_certificate_must_be_that_of_the_name_by_somebody_we_trust(certificate) -> None:
    cert, key = certificate
    site = Site()
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(cert, key)
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=ours)
    port = server.sockets[0].getsockname()[1]
    trusting = ssl.create_default_context(cafile=str(cert))
    good = WebPost(World(port, ["1.0.0.1"]), ClosedRanges, trusting)
    assert await good.post("https://hooks.example/", {}, b"x") == 200
    for post, url in (
        (good, "https://other.example/"),
        (WebPost(World(port, ["1.0.0.1"]), ClosedRanges), "https://hooks.example/"),
    ):
        with pytest.raises(ssl.SSLCertVerificationError):
            await post.post(url, {}, b"x")
    assert len(site.requests) == 1
    server.close()
