"""Servers of a test world: HTTP/1.1 (echo, streams, redirects, WebSockets), TLS with its SNI kept, TCP and UDP echo."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import json
import ssl
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

_BLOCK = b"\xa5" * 65536
_HEAD_LIMIT = 65536


@dataclass
class Seen:
    """One connection that arrived in the world, and what it said; `at`/`port` is where it arrived."""

    at: str
    port: int
    peer: str
    kind: str
    sni: str | None = None
    requests: list[str] = field(default_factory=list)
    """First lines."""
    heads: list[str] = field(default_factory=list)
    """Whole heads, as they came."""
    data: bytes = b""
    """The first bytes of connections and datagrams that are no HTTP."""


class Authority:
    """A certificate authority of the test, and leaf certificates by name, made when asked for."""

    def __init__(self, name: str = "Test World CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._lock = threading.Lock()
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        made = (
            self._builder(self._subject, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = made.public_bytes(serialization.Encoding.PEM).decode()

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=30))
        )

    def leaf(self, name: str) -> tuple[str, str]:
        """Certificate and key of a host name or address, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        other: x509.GeneralName = x509.DNSName(name)
        with contextlib.suppress(ValueError):
            other = x509.IPAddress(ipaddress.ip_address(name))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = (
            self._builder(subject, key.public_key())
            .add_extension(x509.SubjectAlternativeName([other]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return made.public_bytes(serialization.Encoding.PEM).decode(), secret.decode()

    def context(self, name: str) -> ssl.SSLContext:
        """A server's context with the certificate of `name`."""
        with self._lock:
            if name not in self._contexts:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                certificate, key = self.leaf(name)
                with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
                    file.write(certificate + key)
                    file.flush()
                    context.load_cert_chain(file.name)
                self._contexts[name] = context
            return self._contexts[name]


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    query: dict[str, str]
    fields: list[tuple[str, str]]
    body: int


class HttpServer:
    """What answers on every address of the world. All that arrives is kept in `seen`."""

    def __init__(self, authority: Authority, seen: list[Seen]) -> None:
        self._authority = authority
        self._seen = seen

    def _arrived(self, writer: asyncio.StreamWriter, kind: str) -> Seen:
        at, peer = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
        seen = Seen(at=at[0], port=at[1], peer=peer[0], kind=kind)
        self._seen.append(seen)
        return seen

    async def plain(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """HTTP in clear text."""
        await self._serve(reader, writer, self._arrived(writer, "http"))

    async def secure(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """HTTP in TLS, with a certificate of the name that was asked for."""
        seen = self._arrived(writer, "https")

        def choose(tls: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext) -> None:
            seen.sni = name
            tls.context = self._authority.context(name or seen.at)

        chooser = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        chooser.sni_callback = choose
        try:
            await writer.start_tls(chooser, ssl_handshake_timeout=10)
        except (OSError, ssl.SSLError):
            writer.close()
            return
        await self._serve(reader, writer, seen)

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """TCP: every byte comes back."""
        seen = self._arrived(writer, "tcp")
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                seen.data = (seen.data + data)[:4096]
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Seen) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                if not await self._exchange(head, reader, writer, seen):
                    break
                await writer.drain()
        writer.close()

    async def _exchange(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Seen
    ) -> bool:
        """One request; whether another may come."""
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        fields = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines[1:-2])]
        of = {name.lower(): value for name, value in fields}
        seen.requests.append(lines[0])
        seen.heads.append(head.decode("latin-1"))
        if of.get("upgrade", "").lower() == "websocket":
            await self._websocket(head, reader, writer)
            return False
        body = await self._body(of, reader)
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        return await self._answer(writer, seen, _Request(method, url.path, query, fields, body))

    @staticmethod
    async def _body(of: dict[str, str], reader: asyncio.StreamReader) -> int:
        """Read a body away; its length."""
        total = 0
        if of.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await reader.readline()).split(b";")[0], 16):
                await reader.readexactly(size + 2)
                total += size
            await reader.readline()
            return total
        left = int(of.get("content-length", "0"))
        while left:
            piece = await reader.read(min(left, 65536))
            if not piece:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(piece)
            total += len(piece)
        return total

    @staticmethod
    async def _answer(writer: asyncio.StreamWriter, seen: Seen, request: _Request) -> bool:
        query = request.query
        match request.path:
            case "/bytes":
                left = int(query.get("n", "1"))
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n".encode())
                while left > 0:
                    writer.write(_BLOCK[: min(left, len(_BLOCK))])
                    left -= len(_BLOCK)
                    await writer.drain()
                return True
            case "/events":
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                for number in range(int(query.get("n", "3"))):
                    event = f"data: {number}\n\n".encode()
                    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                    await writer.drain()
                    await asyncio.sleep(float(query.get("gap", "0.01")))
                writer.write(b"0\r\n\r\n")
                return True
            case "/redirect":
                where = unquote(query.get("to", "/"))
                writer.write(f"HTTP/1.1 302 Found\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n".encode())
                return True
            case "/slow":
                await asyncio.sleep(float(query.get("s", "1")))
            case _:
                pass
        told = {
            "at": seen.at,
            "port": seen.port,
            "sni": seen.sni,
            "method": request.method,
            "path": request.path,
            "body": request.body,
            "secret": "of-this-host",
            "headers": request.fields,  # duplicates and their case are the point, so a list and no object
        }
        raw = json.dumps(told).encode()
        status = int(query.get("status", "200"))
        head = f"HTTP/1.1 {status} Answer\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        writer.write(head.encode() + (b"" if request.method == "HEAD" else raw))
        return True

    @staticmethod
    async def _websocket(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Echo of messages."""
        protocol = ServerProtocol()
        protocol.receive_data(head)
        for event in protocol.events_received():
            assert isinstance(event, Request)
            protocol.send_response(protocol.accept(event))
        while True:
            for piece in protocol.data_to_send():
                writer.write(piece)
            await writer.drain()
            data = await reader.read(65536)
            if not data:
                return
            protocol.receive_data(data)
            for frame in protocol.events_received():
                match frame:
                    case Frame(opcode=Opcode.TEXT):
                        protocol.send_text(frame.data)
                    case Frame(opcode=Opcode.BINARY):
                        protocol.send_binary(frame.data)
                    case _:
                        pass


class DatagramEcho(asyncio.DatagramProtocol):
    """UDP: what comes goes back."""

    def __init__(self, at: str, port: int, seen: list[Seen]) -> None:
        self._at = at
        self._port = port
        self._seen = seen
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # asyncio's own is none by class

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._seen.append(Seen(at=self._at, port=self._port, peer=addr[0], kind="udp", data=data[:4096]))
        if self._transport is not None:
            self._transport.sendto(data, addr)


def write_authority(authority: Authority, folder: Path) -> Path:
    """The CA's certificate as a file."""
    path = folder / "world-ca.pem"
    path.write_text(authority.pem)
    return path
