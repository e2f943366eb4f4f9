"""The program behind the proxies of `bench/proxy.py`: threads and plain sockets, so that it is never what is measured.

`python3 sink.py PORT`. GET /big?n=BYTES sends so many; POST takes a body of any length; all else is a small answer.
"""

from __future__ import annotations

import socket
import sys
import threading

PIECE = bytes(1024 * 1024)
SMALL = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def serve(sock: socket.socket) -> None:
    """One connection, one request after the other."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = memoryview(bytearray(1024 * 1024))
    held = b""
    while True:
        while b"\r\n\r\n" not in held:
            data = sock.recv(65536)
            if not data:
                return
            held += data
        head, _, held = held.partition(b"\r\n\r\n")
        path = head.split(b" ", 2)[1]
        if path.startswith(b"/big?n="):
            left = int(path.partition(b"=")[2])
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % left)
            while left:
                left -= sock.send(PIECE[:left])
            continue
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                left = int(line.partition(b":")[2]) - len(held)
                held = b""
                while left:
                    count = sock.recv_into(buffer, min(left, len(buffer)))
                    if not count:
                        return
                    left -= count
        sock.sendall(SMALL)


def main(port: int) -> None:
    """Listen for ever."""
    server = socket.create_server(("127.0.0.1", port), backlog=128)
    while True:
        sock, _ = server.accept()
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]))
