"""A server for tests of the port proxy, run inside sandboxes: Python's library alone. Its paths say what it does.

`python3 port_app.py PORT`; 0 is any, and the first line of output says which. Every connection is served until one of
both sides closes it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
from urllib.parse import parse_qs, urlsplit

PIECE = b"0123456789abcdef" * 4096


class Served:
    """One connection."""

    count = 0

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        Served.count += 1
        self.number = Served.count

    async def run(self) -> None:
        try:
            while await self.request():
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.writer.close()

    async def request(self) -> bool:
        head = await self.reader.readuntil(b"\r\n\r\n")
        line, *rows = head[:-4].split(b"\r\n")
        self.method, self.target, _ = line.decode("latin-1").split(" ")
        self.headers = [tuple(one.strip() for one in row.decode("latin-1").split(":", 1)) for row in rows]
        parts = urlsplit("http://x/" + self.target.lstrip("/"))
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        does = getattr(self, "do_" + parts.path.strip("/").partition("/")[0], self.do_echo)
        return await does()

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    async def body(self) -> tuple[int, str]:
        size, digest = 0, hashlib.sha256()
        if self.header("transfer-encoding") == "chunked":
            while length := int(await self.reader.readline(), 16):
                data = await self.reader.readexactly(length)
                size, _ = size + length, digest.update(data)
                await self.reader.readline()
            while (await self.reader.readline()).strip():
                pass
        else:
            left = int(self.header("content-length") or 0)
            while left:
                data = await self.reader.read(min(left, 1 << 20))
                if not data:
                    raise ConnectionError
                left, size, _ = left - len(data), size + len(data), digest.update(data)
        return size, digest.hexdigest()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes, *headers: str, status: str = "200 OK") -> bool:
        lines = "".join(f"{line}\r\n" for line in (*headers, f"Content-Length: {len(body)}"))
        await self.send(
            f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("latin-1") + (b"" if self.method == "HEAD" else body)
        )
        return True

    async def do_echo(self) -> bool:
        size, digest = await self.body()
        facts = {"method": self.method, "target": self.target, "headers": self.headers, "size": size, "sha256": digest}
        return await self.answer(json.dumps(facts | {"connection": self.number}).encode(), "Content-Type: text/plain")

    async def do_tell(self) -> bool:
        """Answer with the headers that the query asks for, `header=Name: value`."""
        await self.body()
        wanted = parse_qs(urlsplit(self.target).query).get("header", [])
        return await self.answer(b"told", *wanted, status=self.query.get("status", "200 OK"))

    async def do_raw(self) -> bool:
        """Send these bytes and close."""
        await self.send(base64.urlsafe_b64decode(self.query["b64"]))
        return False

    async def do_endless(self) -> bool:
        """Headers without end."""
        await self.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            await self.send(b"X: %b\r\n" % PIECE[:1000])

    async def do_big(self) -> bool:
        left = int(self.query["n"])
        await self.send(f"HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n".encode())
        while left:
            piece = PIECE[:left] if left < len(PIECE) else PIECE
            await self.send(piece)
            left -= len(piece)
        return True

    async def do_chunked(self) -> bool:
        await self.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n")
        for number in range(int(self.query["n"])):
            data = b"%d;" % number
            await self.send(b"%x\r\n%b\r\n" % (len(data), data))
        await self.send(b"0\r\nX-T: dropped\r\n\r\n")
        return True

    async def do_close(self) -> bool:
        await self.send(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")
        return False

    async def do_sse(self) -> bool:
        await self.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(int(self.query["n"])):
            data = b"data: %d\n\n" % number
            await self.send(b"%x\r\n%b\r\n" % (len(data), data))
            await asyncio.sleep(0.1)
        await self.send(b"0\r\n\r\n")
        return True

    async def do_slow(self) -> bool:
        await asyncio.sleep(float(self.query["s"]))
        return await self.answer(b"at last")

    async def do_early(self) -> bool:
        """An answer before the body is there, which is never read."""
        await self.answer(b"no", "Connection: close", status="413 Too Large")
        await asyncio.sleep(0.2)
        return False

    async def do_expect(self) -> bool:
        if self.query["answer"] == "100":
            await self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            return await self.do_echo()
        return await self.answer(b"refused", "Connection: close", status="417 Expectation Failed") and False

    async def do_talk(self) -> bool:
        """Read and write at once: each piece of the body comes back while more is on its way."""
        await self.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while length := int(await self.reader.readline(), 16):
            data = await self.reader.readexactly(length)
            await self.reader.readline()
            await self.send(b"%x\r\n%b\r\n" % (len(data), data.upper()))
        await self.send(b"0\r\n\r\n")
        return False

    async def do_ws(self) -> bool:
        """A WebSocket that echoes; `text`, `binary` and `ping`, unfragmented."""
        key = self.header("sec-websocket-key").encode()
        digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
        accept = base64.b64encode(digest).decode()
        lines = ("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade")
        await self.send("\r\n".join((*lines, f"Sec-WebSocket-Accept: {accept}", "", "")).encode())
        while True:
            first, second = await self.reader.readexactly(2)
            size = second & 127
            if size > 125:
                size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8))
            mask = await self.reader.readexactly(4)
            data = await self.reader.readexactly(size)
            data = (int.from_bytes(data) ^ int.from_bytes((mask * (size // 4 + 1))[:size])).to_bytes(size)
            width = 0 if size < 126 else 2 if size < 65536 else 8
            mark = {0: size, 2: 126, 8: 127}[width]
            await self.send(bytes([first, mark]) + (size.to_bytes(width) if width else b"") + data)
            if first & 15 == 8:
                return False

    async def do_switch(self) -> bool:
        """Another protocol than HTTP: bytes come back in capitals, end of input after `bye`."""
        await self.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: shout\r\nConnection: Upgrade\r\n\r\nhello ")
        while data := await self.reader.read(65536):
            await self.send(data.upper())
        await self.send(b"BYE")
        return False

    async def do_connection(self) -> bool:
        return await self.answer(str(self.number).encode())


async def main(port: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Served(reader, writer).run()

    server = await asyncio.start_server(serve, "127.0.0.1", port, limit=1 << 20, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
