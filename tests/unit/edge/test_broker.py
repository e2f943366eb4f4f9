"""The broker over real sockets and real TLS: what goes out, what comes back, and what is refused."""

# ruff: noqa: ANN001 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from msgspec.structs import replace

from cove.core.access import LOCAL
from cove.core.facade import Core
from cove.core.services.catalogue import ServiceSpec
from cove.edge import broker as broker_module
from cove.edge.broker import CONNECTIONS, Broker
from cove.edge.limits import EdgeLimits
from cove.edge.servicelinks import ServiceLinks, tls_context
from cove.edge.stopping import Stopping
from cove.engine.network.port import Endpoint
from cove.model.audit import AuditFilter
from cove.model.closed import ClosedRanges
from cove.model.credentials import CredentialWish, EndpointRule, Secret
from cove.model.network import NO_NETWORK, OPEN_NETWORK, NetworkMode, NetworkPolicy, NetworkRule, Refusal, Verdict
from cove.model.sandbox import Sandbox, SandboxSpec
from cove.server.listen import broker_listener
from waiting_support import comes_true

KEY = "sk-live-very-secret"
HOST = "api.service.example"
PUBLIC = "93.184.216.34"
BOX, OTHER = "127.0.0.2", "127.0.0.3"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.certificate = self._sign(self._name, self._key, x509.BasicConstraints(ca=True, path_length=0))
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)

    def _sign(self, subject, key, extension, days: int = 1) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=2))
            .not_valid_after(now + dt.timedelta(days=days))
            .add_extension(extension, critical=True)
        )
        return builder.sign(self._key, hashes.SHA256())

    def server(self, *names: str, days: int = 1) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        certificate = self._sign(subject, key, alternatives, days)
        path = self._folder / f"{names[0]}-{days}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


class World:
    """The way to one upstream, whatever its address is said to be."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {HOST: [PUBLIC]}
        self.ports: dict[int, int] = {}
        self.asked: list[str] = []
        self.dialled: list[tuple[str, int]] = []

    async def resolve(self, host: str) -> list[str]:
        self.asked.append(host)
        return self.addresses.get(host, [])

    async def connect(self, address: str, port: int) -> socket.socket:
        self.dialled.append((address, port))
        if port not in self.ports:
            raise ConnectionRefusedError(address)
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.ports[port]))
        return sock


class Net:
    """Who has which address, under which policy."""

    missing: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.known: dict[str, Endpoint] = {}
        self.endpoints = self

    def by_address(self, address: str) -> Endpoint | None:
        return self.known.get(address)

    def by_box(self, box: str) -> Endpoint | None:
        return next((one for one in self.known.values() if one.box == box), None)

    def set(self, address: str, box: str, policy: NetworkPolicy = NO_NETWORK) -> None:
        self.known[address] = Endpoint(box=box, address=address, index=1, policy=policy)


class Bench:
    """A broker that listens, a sandbox with a credential, an upstream."""

    def __init__(self, core: Core, net: Net, folder: Path) -> None:
        self.core, self.net, self.world = core, net, World()
        self.authority = Authority(folder)
        self.refusals: list[Refusal] = []
        self.requests: list[bytes] = []
        self.box: Sandbox
        self.broker: Broker
        self.port = 0
        self.limits = EdgeLimits()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        stack = await self._stack.__aenter__()
        await self.core.services.put(LOCAL, "service", ServiceSpec(upstream=f"https://{HOST}", strip_query=("key",)))
        self.box = await self.sandbox(BOX)
        links = ServiceLinks(self.world, tls_context(self.authority.pem), stall_s=5.0)
        self.broker = Broker(
            self.core.credentials,
            self.net,
            links,
            closed=ClosedRanges,
            on_refusal=self.refusals.append,
            limits=self.limits,
            stopping=Stopping(),
        )
        self.broker._limits = replace(self.broker._limits, proxy_s=5.0)
        stack.callback(links.close, None, None)
        sock = socket.socket()
        sock.bind(("0.0.0.0", 0))  # noqa: S104 - the clients' addresses are all of loopback
        self.port = sock.getsockname()[1]
        listener = broker_listener(self.broker, self.limits)
        listener.config.load()
        make = partial(
            listener.config.http_protocol_class,  # type: ignore[arg-type]
            config=listener.config,
            server_state=listener.server_state,
            app_state={},
        )
        server = await asyncio.get_running_loop().create_server(make, sock=sock)
        stack.callback(server.close)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def sandbox(self, address: str, policy: NetworkPolicy = NO_NETWORK, *rules: EndpointRule) -> Sandbox:
        wish = CredentialWish(key=Secret(KEY), endpoints=rules)
        box = await self.core.sandboxes.create(LOCAL, SandboxSpec(credentials={"service": wish}))
        self.net.set(address, box.id, policy)
        return box

    async def upstream(self, handler: Handler | bytes, *, tls: ssl.SSLContext | None = None, port: int = 443) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    if isinstance(handler, bytes):
                        while True:
                            await self.take(reader)
                            writer.write(handler)
                            await writer.drain()
                    else:
                        await handler(reader, writer)
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls or self.authority.server(HOST))
        self._stack.callback(server.close)
        self.world.ports[port] = server.sockets[0].getsockname()[1]

    async def take(self, reader: asyncio.StreamReader) -> bytes:
        """One request without a body, as the upstream gets it."""
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head)
        return head

    async def dial(self, address: str = BOX) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0))
        self._stack.callback(writer.close)
        return reader, writer

    async def ask(
        self, path: str = "/proxy/service/v1/x", *headers: str, method: str = "GET", body: bytes = b"", via: str = BOX
    ) -> tuple[int, bytes, bytes]:
        """Status, head and body of an answer to one request on a connection of its own."""
        reader, writer = await self.dial(via)
        length = [f"Content-Length: {len(body)}"] if body else []
        lines = [f"{method} {path} HTTP/1.1", "Host: 169.254.1.1:3130", *headers, *length, "Connection: close", "", ""]
        writer.write("\r\n".join(lines).encode("latin-1") + body)
        async with asyncio.timeout(60):
            raw = await reader.read()
        head, _, rest = raw.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head.lower():
            rest = unchunked(rest)
        return int(head.split(b" ")[1] if head else 0), head, rest

    def uses(self) -> list[tuple[object, ...]]:
        entries = self.core.audit._rows.window(
            "default", AuditFilter(event="credential.proxied"), first=0, end=100, limit=100
        )
        return [tuple(entry.data[name] for name in ("service", "method", "path", "status")) for entry in entries]


def unchunked(raw: bytes) -> bytes:
    body = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        count = int(size, 16)
        body, raw = body + raw[:count], raw[count + 2 :]
    return body


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
async def bench(opened, tmp_path) -> AsyncIterator[Bench]:
    net = Net()
    async with opened(network=net) as core, Bench(core, net, tmp_path) as one:
        yield one


async def test_the_key_is_added_and_nothing_else_of_the_kind_goes_out(bench: Bench) -> None:
    await bench.upstream(OK)
    path = "/proxy/service/v1/x?alt=sse&key=evil"
    status, _, body = await bench.ask(
        path, "Authorization: Bearer placeholder", "AUTHORIZATION: Bearer evil", "x_api_key: evil", "X-Fine: yes"
    )
    assert (status, body) == (200, b"ok")
    lines = bench.requests[0].decode().split("\r\n")
    assert lines[0] == "GET /v1/x?alt=sse HTTP/1.1"
    assert f"host: {HOST}" in lines
    assert "x-fine: yes" in lines
    assert [line for line in lines if "evil" in line or "placeholder" in line] == []
    assert [line for line in lines if KEY in line] == [f"authorization: Bearer {KEY}"]
    assert bench.world.dialled == [(PUBLIC, 443)]
    await comes_true(bench.uses)
    assert bench.uses() == [("service", "GET", "/v1/x", 200)]


async def test_a_connection_is_used_again_by_its_own_sandbox_only(bench: Bench) -> None:
    await bench.upstream(OK)
    await bench.sandbox(OTHER)
    for via in (BOX, BOX, OTHER, BOX):
        assert (await bench.ask(via=via))[0] == 200
    assert len(bench.world.dialled) == 2
    await bench.core.credentials.set(LOCAL, bench.box.id, "service", key=Secret("rotated"))
    await bench.ask()
    assert b"authorization: Bearer rotated\r\n" in bench.requests[-1]


async def test_what_is_canonical_is_what_is_sent(bench: Bench) -> None:
    await bench.upstream(OK)
    for path, seen in (
        ("/proxy/service", "/"),
        ("/proxy/service/", "/"),
        ("//proxy//service//a", "/a"),
        ("/proxy/other/../service/a/./b/../c", "/a/c"),
        ("/proxy/service/%61%2f", "/a%2F"),
    ):
        assert (await bench.ask(path))[0] == 200, path
        assert bench.requests[-1].split(b" ")[1] == seen.encode(), path


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 404),
        ("/proxy/", 404),
        ("/proxy/openai/v1", 404),
        ("/proxy/service/../openai/v1", 404),
        ("/proxy/service/../../v1", 404),
        ("/../proxy/service", 400),
        ("/proxy/service/%00", 400),
        ("/proxy/service/a%0d%0aX:%20y", 400),
        ("/proxy/service/%zz", 400),
        ("/metrics", 404),
        ("/api/v1/sandboxes", 404),
    ],
)
async def test_other_paths_reach_nothing(bench: Bench, path: str, status: int) -> None:
    await bench.upstream(OK)
    found, head, body = await bench.ask(path)
    assert found == status
    assert b"application/json" in head
    message = json.loads(body)
    assert message["message"] == message["error"]["message"]
    assert bench.requests == []
    assert KEY not in f"{head}{body}"


async def test_who_is_no_sandbox_is_refused(bench: Bench) -> None:
    await bench.upstream(OK)
    assert (await bench.ask(via="127.0.0.9"))[0] == 403
    assert (await bench.ask("/proxy/service", "X-Forwarded-For: 127.0.0.2", via="127.0.0.9"))[0] == 403
    assert bench.requests == []


async def test_rules_by_method_and_path(bench: Bench) -> None:
    await bench.upstream(OK)
    rule = EndpointRule(methods=("GET",), paths=("/v1/models",))
    await bench.core.credentials.set(LOCAL, bench.box.id, "service", endpoints=(rule,))
    for path, status in (
        ("/v1/models", 200),
        ("/v1/models/x?y", 200),
        ("/v1/%6dodels", 200),
        ("/v1/chat", 403),
        ("/v1/models/../chat", 403),
        ("/v1/models/%2e%2e/chat", 403),
        ("/v1/models/..%2fchat", 403),
        ("/v1/models/%252e%252e/chat", 403),
        ("/v1//chat", 403),
        ("/V1/MODELS", 403),
        ("/v1/models%2f..%2fchat", 403),
    ):
        assert (await bench.ask(f"/proxy/service{path}"))[0] == status, path
    for method in ("POST", "DELETE", "HEAD", "PATCH"):
        assert (await bench.ask("/proxy/service/v1/models", method=method))[0] == 403, method
    assert (await bench.ask("/proxy/service/v1/models", "X-HTTP-Method-Override: DELETE"))[0] == 200
    assert b"override" not in bench.requests[-1].lower()
    assert {head.split(b" ")[0] for head in bench.requests} == {b"GET"}
    await comes_true(lambda: ("service", "POST", "/v1/models", 403) in bench.uses())


async def test_the_request_is_never_asked_back(bench: Bench) -> None:
    await bench.upstream(OK)
    assert (await bench.ask(method="TRACE"))[0] == 403
    assert (await bench.ask(method="CONNECT"))[0] == 400
    assert bench.requests == []


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "192.168.0.1", "168.63.129.16", "::1", "fd00::1", "x"]
)
async def test_a_name_that_leads_into_a_closed_range_is_not_dialled(bench: Bench, address: str) -> None:
    await bench.upstream(OK)
    bench.world.addresses[HOST] = [address]
    bench.net.set(BOX, bench.box.id, OPEN_NETWORK)
    status, _, body = await bench.ask()
    assert status == 403
    assert b"closed" in body
    assert address not in body.decode() or address == "x"
    assert bench.world.dialled == []
    assert [(one.layer, one.name, one.address, one.port) for one in bench.refusals] == [("broker", HOST, address, 443)]
    await comes_true(bench.uses)
    assert bench.uses() == [("service", "GET", "/v1/x", 403)]


async def test_of_several_addresses_the_closed_ones_are_passed_over(bench: Bench) -> None:
    await bench.upstream(OK)
    bench.world.addresses[HOST] = ["10.0.0.1", PUBLIC]
    assert (await bench.ask())[0] == 200
    assert bench.world.dialled == [(PUBLIC, 443)]


def rules(*texts: str, default: Verdict = Verdict.DENY, dry_run: bool = False) -> NetworkPolicy:
    made = tuple(NetworkRule(verdict=Verdict(text.split()[0]), target=text.split()[1]) for text in texts)
    return NetworkPolicy(mode=NetworkMode.POLICY, rules=made, default=default, dry_run=dry_run)


@pytest.mark.parametrize(
    ("policy", "status", "told"),
    [
        (NO_NETWORK, 200, None),
        (OPEN_NETWORK, 200, None),
        (rules(f"allow {HOST}"), 200, None),
        (rules(f"allow {PUBLIC}/32"), 200, None),
        (rules("allow *.service.example"), 200, None),
        (rules("allow other.example"), 403, "default: deny"),
        (rules(f"deny {HOST}", default=Verdict.ALLOW), 403, f"rule 1: deny {HOST}"),
        (rules(f"deny {HOST}", default=Verdict.ALLOW, dry_run=True), 200, f"rule 1: deny {HOST}"),
    ],
)
async def test_the_network_policy_applies(bench: Bench, policy: NetworkPolicy, status: int, told: str | None) -> None:
    await bench.upstream(OK)
    bench.net.set(BOX, bench.box.id, policy)
    assert (await bench.ask())[0] == status
    assert [one.rule for one in bench.refusals] == ([] if told is None else [told])
    assert all(one.dry_run is policy.dry_run for one in bench.refusals)


async def test_a_changed_policy_cuts_what_it_refuses_and_no_resting_connection_gets_around_it(bench: Bench) -> None:
    begun = asyncio.Event()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await bench.take(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await writer.drain()
        begun.set()
        assert await reader.read() == b""

    await bench.upstream(stream)
    bench.net.set(BOX, bench.box.id, OPEN_NETWORK)
    asking = asyncio.ensure_future(bench.ask())
    await asyncio.wait_for(begun.wait(), 60)
    bench.broker.recheck(bench.box.id)
    await asyncio.sleep(0.05)
    assert not asking.done(), "it is still allowed"
    bench.net.set(BOX, bench.box.id, rules("allow other.example"))
    bench.broker.recheck(bench.box.id)
    await asyncio.wait_for(asking, 60)
    await bench.upstream(OK)
    bench.net.set(BOX, bench.box.id, OPEN_NETWORK)
    await bench.ask()
    bench.net.set(BOX, bench.box.id, rules("allow other.example"))
    assert (await bench.ask())[0] == 403


@pytest.mark.parametrize("what", ["remove", "rules", "service", "end", "shared"])
async def test_what_is_under_way_ends_with_its_credential(bench: Bench, what: str) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await bench.take(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await writer.drain()
        begun.set()
        with contextlib.suppress(OSError):
            await reader.read()
        ended.set()

    await bench.upstream(stream)
    credentials = bench.core.credentials
    if what == "shared":
        await credentials.set_shared(LOCAL, "service", key=Secret("shared"))
        await credentials.set(LOCAL, bench.box.id, "service", key=None)
    reader, writer = await bench.dial()
    writer.write(b"GET /proxy/service/v1 HTTP/1.1\r\nHost: b\r\n\r\n")
    await asyncio.wait_for(begun.wait(), 60)
    await reader.readuntil(b"one\r\n")
    await credentials.set(LOCAL, bench.box.id, "service", key=None if what == "shared" else Secret("new"))
    await asyncio.sleep(0.05)
    assert not reader.at_eof(), "another key lets it go on"
    match what:
        case "remove":
            await credentials.remove(LOCAL, bench.box.id, "service")
        case "rules":
            await credentials.set(LOCAL, bench.box.id, "service", endpoints=(EndpointRule(methods=("POST",)),))
        case "service":
            await bench.core.services.put(LOCAL, "service", ServiceSpec(upstream="https://elsewhere.example"))
        case "end":
            await bench.core.sandboxes.destroy(LOCAL, bench.box.id)
        case _:
            await credentials.remove_shared(LOCAL, "service")
    async with asyncio.timeout(60):
        assert await reader.read() == b"", "cut, without the last chunk"
        await ended.wait()
    if what == "remove":
        assert (await bench.ask())[0] == 404


async def test_events_pass_as_they_come(bench: Bench) -> None:
    step = asyncio.Event()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await bench.take(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for number in range(3):
            writer.write(b"data: %d\n\n" % number)
            await writer.drain()
            await step.wait()
            step.clear()

    await bench.upstream(stream)
    reader, writer = await bench.dial()
    writer.write(b"GET /proxy/service/v1 HTTP/1.1\r\nHost: b\r\n\r\n")
    async with asyncio.timeout(60):
        for number in range(3):
            await reader.readuntil(b"data: %d\n\n" % number)
            step.set()


async def test_bodies_of_any_size_pass_both_ways(bench: Bench) -> None:
    size = 8 * 1024 * 1024

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await bench.take(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
        assert b"content-length: %d\r\n" % size in head
        left = size
        while left:
            piece = await reader.read(65536)
            left -= len(piece)
            writer.write(piece)
            await writer.drain()

    await bench.upstream(echo)
    body = bytes(range(256)) * (size // 256)
    reader, writer = await bench.dial()
    writer.write(b"POST /proxy/service/v1 HTTP/1.1\r\nHost: b\r\nContent-Length: %d\r\n\r\n" % size)

    async def send() -> None:
        for place in range(0, size, 65536):
            writer.write(body[place : place + 65536])
            await writer.drain()

    async with asyncio.timeout(60):
        sending = asyncio.ensure_future(send())
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(size) == body
        await sending


async def test_a_websocket_passes_and_is_cut_with_its_credential(bench: Bench) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await bench.take(reader)
        assert b"upgrade: websocket" in head
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        while data := await reader.read(1024):
            writer.write(data)

    await bench.upstream(echo)
    reader, writer = await bench.dial()
    writer.write(
        b"GET /proxy/service/v1/realtime HTTP/1.1\r\nHost: b\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer evil\r\n\r\n"
    )
    async with asyncio.timeout(60):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        assert await reader.readexactly(5) == b"hello"
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        await bench.core.credentials.remove(LOCAL, bench.box.id, "service")
        assert await reader.read() == b""
    assert b"evil" not in bench.requests[0]
    assert bench.uses() == [("service", "GET", "/v1/realtime", 101)]


async def test_redirects_are_passed_on_and_never_followed(bench: Bench) -> None:
    for location, seen in (
        ("http://169.254.169.254/latest", "http://169.254.169.254/latest"),
        ("https://evil.example/x", "https://evil.example/x"),
        (f"https://{HOST}/v2", "http://169.254.1.1:3130/proxy/service/v2"),
    ):
        answer = f"HTTP/1.1 307 Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
        await bench.upstream(answer)
        await bench.core.services.put(LOCAL, "service", ServiceSpec(upstream=f"https://{HOST}"))
        status, head, _ = await bench.ask()
        assert status == 307
        assert f"location: {seen}".encode() in head.lower()
    assert {address for address, _ in bench.world.dialled} == {PUBLIC}
    assert set(bench.world.asked) == {HOST}


async def test_tls_is_verified(bench: Bench, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    for tls in (
        bench.authority.server("other.example"),
        bench.authority.server(HOST, days=-1),
        Authority(stranger).server(HOST),
    ):
        await bench.upstream(OK, tls=tls)
        status, _, body = await bench.ask()
        assert status == 502
        assert b"a certificate that this server does not trust" in body
    assert bench.requests == []


async def test_a_service_that_speaks_no_tls_gets_nothing(bench: Bench) -> None:
    got: list[bytes] = []

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.read(4096))
        writer.write(OK)
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    bench.world.ports[443] = server.sockets[0].getsockname()[1]
    status, _, _ = await bench.ask()
    server.close()
    assert status == 502
    assert all(KEY.encode() not in data for data in got)


async def test_the_port_is_the_services_own(bench: Bench) -> None:
    await bench.upstream(OK, port=8443)
    status, _, body = await bench.ask()
    assert (status, b"cannot be reached" in body) == (502, True)
    await bench.core.services.put(LOCAL, "service", ServiceSpec(upstream=f"https://{HOST}:8443"))
    assert (await bench.ask("/proxy/service:443/x"))[0] == 404
    assert (await bench.ask())[0] == 200
    assert f"host: {HOST}:8443".encode() in bench.requests[-1]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"", 502),
        (b"not http at all\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nhello", 502),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000 + b"\r\n\r\n", 502),
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 502),
    ],
)
async def test_a_hostile_answer_is_a_clean_failure(bench: Bench, answer: bytes, status: int) -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await bench.take(reader)
        writer.write(answer)

    await bench.upstream(once)
    assert (await bench.ask())[0] == status
    assert (await bench.ask(via="127.0.0.9"))[0] == 403, "the broker goes on"


async def test_smuggling_is_refused_before_anything_goes_out(bench: Bench) -> None:
    await bench.upstream(OK)
    for head in (
        b"POST /proxy/service HTTP/1.1\r\nHost: b\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /proxy/service HTTP/1.1\r\nHost: b\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
        b"POST /proxy/service HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /proxy/service HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"GET /proxy/service HTTP/1.1\r\nHost: b\r\nX: a\nAuthorization: evil\r\n\r\n",
    ):
        reader, writer = await bench.dial()
        writer.write(head)
        async with asyncio.timeout(60):
            answer = await reader.read(4096)
        assert answer.startswith(b"HTTP/1.1 400"), head
        writer.close()
    assert bench.requests == []


async def test_requests_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "REQUESTS", 2)
    monkeypatch.setattr(broker_module, "REFUSE_S", 0.05)
    release = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await bench.take(reader)
        await release.wait()
        writer.write(OK)

    await bench.upstream(slow)
    asking = [asyncio.ensure_future(bench.ask()) for _ in range(2)]
    async with asyncio.timeout(60):
        while len(bench.requests) < 2:
            await asyncio.sleep(0.01)
        status, head, _ = await bench.ask()
        assert status == 429
        assert b"retry-after" in head.lower()
        release.set()
        assert {(await one)[0] for one in asking} == {200}
    monkeypatch.setattr(broker_module, "RATE", 0.0)
    bench.broker._rooms[bench.box.id]._left = 1.5
    release.set()
    assert [(await bench.ask())[0] for _ in range(2)] == [200, 429]
    await bench.sandbox(OTHER)
    assert (await bench.ask(via=OTHER))[0] == 200, "another sandbox has its own room"


async def test_a_flood_is_answered_slowly_and_others_are_not(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "RATE", 0.0)
    await bench.upstream(OK)
    await bench.sandbox(OTHER)
    assert (await bench.ask())[0] == 200
    bench.broker._rooms[bench.box.id]._left = 0.0
    answers = 0

    async def hammer() -> None:
        nonlocal answers
        reader, writer = await bench.dial()
        while True:
            writer.write(b"GET /proxy/service HTTP/1.1\r\nHost: b\r\n\r\n" * 4)
            for _ in range(4):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                assert head.startswith(b"HTTP/1.1 429")
                answers += 1

    hammers = [asyncio.ensure_future(hammer()) for _ in range(20)]
    begin = asyncio.get_running_loop().time()
    for _ in range(3):
        assert (await bench.ask(via=OTHER))[0] == 200
    await asyncio.sleep(max(0.0, begin + 1.2 - asyncio.get_running_loop().time()))
    seconds = asyncio.get_running_loop().time() - begin
    for one in hammers:
        one.cancel()
    await asyncio.gather(*hammers, return_exceptions=True)
    assert 20 <= answers <= 20 * seconds / broker_module.REFUSE_S + 20


async def test_connections_are_bounded_for_each_sandbox(bench: Bench) -> None:
    await bench.upstream(OK)
    for _ in range(CONNECTIONS):
        await bench.dial()
    async with asyncio.timeout(60):
        while True:
            reader, writer = await bench.dial()
            answer = await reader.read(100) if (await _says_full(reader)) else b""
            writer.close()
            if answer.startswith(b"HTTP/1.1 503"):
                break
    await bench.sandbox(OTHER)
    assert (await bench.ask(via=OTHER))[0] == 200


async def _says_full(reader: asyncio.StreamReader) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            while not reader._buffer:  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)
            return True
    return False


async def test_an_upload_that_is_refused_early_gets_its_answer(bench: Bench) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await bench.take(reader)
        writer.write(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig")

    await bench.upstream(refuse)
    reader, writer = await bench.dial()
    writer.write(b"POST /proxy/service HTTP/1.1\r\nHost: b\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 100000)
    async with asyncio.timeout(60):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413")
        assert await reader.readexactly(3) == b"big"


def test_the_addresses_of_the_tests_are_what_they_seem() -> None:
    assert ClosedRanges().why(PUBLIC) is None
    assert ipaddress.ip_address(BOX).is_loopback
