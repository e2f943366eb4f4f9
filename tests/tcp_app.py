"""A TCP server that tests run in a sandbox: `python3 -c SOURCE PORT`. A connection's first line says what it does."""

from __future__ import annotations

import hashlib
import queue
import socket
import socketserver
import struct
import sys
import time
from pathlib import Path

SOURCE = Path(__file__).read_text(encoding="utf-8") if "__file__" in globals() else ""
RESTS: queue.Queue[bytes] = queue.Queue()


class Handler(socketserver.StreamRequestHandler):
    """One connection."""

    rbufsize = 0

    def handle(self) -> None:
        words = self.rfile.readline().split()
        act = getattr(self, f"do_{words[0].decode()}", None) if words else None
        if act is not None:
            act(*words[1:])

    def do_echo(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)

    def do_sum(self) -> None:
        """Read all, then answer with its digest: only a half-close makes this work."""
        seen = hashlib.sha256()
        while data := self.request.recv(65536):
            seen.update(data)
        self.request.sendall(seen.hexdigest().encode())

    def do_give(self, size: bytes) -> None:
        block = b"x" * 65536
        for _ in range(int(size) // len(block)):
            self.request.sendall(block)

    def do_say(self, word: bytes) -> None:
        """Answer and half-close, then take the rest, which `rest` gives."""
        self.request.sendall(word)
        self.request.shutdown(socket.SHUT_WR)
        RESTS.put(self.rfile.read())

    def do_rest(self) -> None:
        self.request.sendall(RESTS.get(timeout=10))

    def do_reset(self) -> None:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def do_hold(self) -> None:
        """Neither read nor write nor end."""
        time.sleep(600)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 200


if __name__ == "__main__":
    with Server(("127.0.0.1", int(sys.argv[1])), Handler) as server:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        server.serve_forever()
