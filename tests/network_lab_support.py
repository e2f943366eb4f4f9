"""What the network's attack tests share: sandboxes with policies in a test world, and programs that try things inside.

A program is Python that runs in the sandbox after `INSIDE`; what it hands to `say(key, value)` comes back as a dict.
The words for a TCP attempt: `open`; the errno's name (`ECONNREFUSED`, `EHOSTUNREACH`, …) when it was refused; `slow`
when nothing came back in time. To be refused is to be told at once: `slow` is never good.
"""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests_support import RunningServer
from world_support import World

INSIDE: Final = '''
import errno, json, os, socket, ssl, struct, sys, threading, time
RESULTS = {}
LIMIT = 4.0

def say(key, value):
    RESULTS[key] = value

def word_of(error):
    if isinstance(error, (TimeoutError, socket.timeout)):
        return "slow"
    if isinstance(error, OSError) and error.errno:
        return errno.errorcode.get(error.errno, str(error.errno))
    return type(error).__name__

def tcp(address, port, limit=LIMIT):
    """The word of a connect; with what comes within 0.3 s of it, for a proxy that takes first and refuses then."""
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as s:
            s.settimeout(limit)
            s.connect((address, port))
            return "open"
    except Exception as error:
        return word_of(error)

def talk(address, port, data, limit=LIMIT, most=65536):
    """Send bytes, read to the end or until nothing more comes; what came as text, or the word."""
    got = b""
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as s:
            s.settimeout(limit)
            s.connect((address, port))
            s.sendall(data)
            while len(got) < most:
                piece = s.recv(65536)
                if not piece:
                    break
                got += piece
                s.settimeout(0.3)
            return got.decode("latin-1") if got else "closed"
    except Exception as error:
        return got.decode("latin-1") if got else word_of(error)

def echoed(address, port=9999, limit=LIMIT):
    """Whether a TCP echo answers: `open`, or the word."""
    said = talk(address, port, b"hello", limit, most=5)
    return "open" if said == "hello" else said

def http(address, host=None, port=80, path="/", limit=LIMIT, extra=""):
    """One GET; the JSON that the world answers, or a word or what else came, as text."""
    request = "GET %s HTTP/1.1\\r\\nHost: %s\\r\\n%sConnection: close\\r\\n\\r\\n" % (path, host or address, extra)
    said = talk(address, port, request.encode("latin-1"), limit)
    try:
        return json.loads(said.split("\\r\\n\\r\\n", 1)[1])
    except Exception:
        return said[:200]

def tls(address, sni, host=None, port=443, limit=LIMIT, path="/"):
    """One GET in TLS, the certificate checked against the world's CA and `sni`; as `http`."""
    try:
        context = ssl.create_default_context(cadata=CA)
        if sni is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        with socket.create_connection((address, port), limit) as raw:
            with context.wrap_socket(raw, server_hostname=sni) as s:
                s.sendall(("GET %s HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n" % (path, host or sni or address)).encode())
                got = b""
                while b"\\r\\n\\r\\n" not in got or not got.endswith(b"}"):
                    piece = s.recv(65536)
                    if not piece:
                        break
                    got += piece
        return json.loads(got.split(b"\\r\\n\\r\\n", 1)[1])
    except Exception as error:
        return word_of(error)

def udp(address, port, data=b"hello", limit=1.0, source=None):
    """`open` if the datagram's echo comes back, else the word."""
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.settimeout(limit)
            if source:
                s.bind(source)
            s.connect((address, port))
            s.send(data)
            return "open" if s.recv(65536) == data else "other"
    except Exception as error:
        return word_of(error)

def resolve(name):
    """Addresses by the C library, sorted; an empty list where there are none."""
    try:
        return sorted({info[4][0] for info in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)})
    except (socket.gaierror, UnicodeError, OSError):
        return []

def question(name, kind=1, ident=0x4242):
    labels = name if isinstance(name, bytes) else b"".join(
        bytes([len(label)]) + label for label in (part.encode("latin-1") for part in name.split(".")) if label) + b"\\0"
    return struct.pack("!6H", ident, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!HH", kind, 1)

def ask(name, kind=1, server="169.254.1.1", transport="udp", limit=LIMIT, port=53):
    """One DNS question by hand: [rcode, number of answers], or the word."""
    try:
        data = question(name, kind)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM) as s:
            s.settimeout(limit)
            s.connect((server, port))
            if transport == "udp":
                s.send(data)
                got = s.recv(65536)
            else:
                s.sendall(struct.pack("!H", len(data)) + data)
                file = s.makefile("rb")
                got = file.read(struct.unpack("!H", file.read(2))[0])
        _, flags, _, answers, _, _ = struct.unpack_from("!6H", got)
        return [flags & 15, answers]
    except Exception as error:
        return word_of(error)

def timed(call, *arguments, **named):
    """[what it said, seconds]"""
    began = time.monotonic()
    return [call(*arguments, **named), time.monotonic() - began]
'''

REFUSED: Final = frozenset(
    {"ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "EACCES", "EPERM", "ECONNRESET", "EADDRNOTAVAIL", "closed"}
)
"""The words of something that was told no, at once. EADDRNOTAVAIL: there is no IPv6 at all."""
MISSING: Final = frozenset({*REFUSED, "EAFNOSUPPORT", "EINVAL"})
"""What may come of IPv6 beside that."""
_NO: Final = "HTTP/1.1 403 "
"""How the proxy says no to somebody who speaks HTTP."""
OPEN: Final = {"mode": "open"}
NONE: Final = {"mode": "none"}


def rule(action: str, target: str) -> dict[str, object]:
    """`host`, `host:80,443`, `tcp/host:80`: one rule of the native API."""
    protocol, _, rest = target.partition("/") if target.startswith(("tcp/", "udp/", "icmp/")) else ("", "", target)
    host, colon, ports = rest.rpartition(":") if ":" in rest else (rest, "", "")
    made: dict[str, object] = {"action": action, "target": host}
    if colon:
        made["ports"] = [one if "-" in one else int(one) for one in ports.split(",")]
    if protocol:
        made["protocol"] = protocol
    return made


def policy(*allow: str, deny: tuple[str, ...] = (), default: str = "deny", **more: object) -> dict[str, object]:
    """A policy of the native API: denials first, then what is allowed."""
    rules = [rule("deny", one) for one in deny] + [rule("allow", one) for one in allow]
    return {"mode": "policy", "rules": rules, "default": default, **more}


class Lab:
    """Sandboxes of one server in one world; `close` deletes them."""

    def __init__(self, server: RunningServer, world: World) -> None:
        self.server = server
        self.world = world
        self.client = server.client()
        self._made: list[str] = []

    def box(self, network: dict[str, object], driver: str = "runc", **more: object) -> str:
        """A sandbox with that policy, by id."""
        answer = self.client.post("/sandboxes", json={"driver": driver, "network": network, **more})
        assert answer.status_code == 201, answer.text
        self._made.append(str(answer.json()["id"]))
        return self._made[-1]

    def set(self, box: str, network: dict[str, object]) -> None:
        """Another policy for a living sandbox."""
        answer = self.client.put(f"/sandboxes/{box}/network", json=network)
        assert answer.status_code == 200, answer.text

    def inside(self, box: str, program: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """Run a program there; what it said."""
        body = {"command": ["python3", "-"], "stdin": self.text(program), "timeout_s": timeout_s}
        answer = self.client.post(f"/sandboxes/{box}/exec", json=body, timeout=timeout_s + 30)
        assert answer.status_code == 200, answer.text
        result = answer.json()
        assert result["exit_code"] == 0, (result["exit_code"], result["why"], result["stderr"][-1500:])
        return dict(json.loads(result["stdout"].splitlines()[-1]))

    def text(self, program: str) -> str:
        """The whole program, for a command that goes on."""
        authority = f"CA = {self.world.authority.pem!r}\n"
        return INSIDE + authority + textwrap.dedent(program) + "\nprint(json.dumps(RESULTS), flush=True)\n"

    def start(self, box: str, program: str) -> str:
        """Run a program in the background; its command id."""
        script = f"/tmp/program-{time.monotonic_ns()}.py"
        self.put(box, script, self.text(program))
        answer = self.client.post(f"/sandboxes/{box}/commands", json={"command": ["python3", script]})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def put(self, box: str, path: str, text: str) -> None:
        body = {"command": ["tee", path], "stdin": text}
        assert self.client.post(f"/sandboxes/{box}/exec", json=body).json()["exit_code"] == 0

    def end(self, box: str, command: str, timeout_s: float = 30.0) -> dict[str, Any]:
        """Wait for a background program; what it said."""
        where = f"/sandboxes/{box}/commands/{command}"
        told = self.client.post(f"{where}/wait", json={"timeout_s": timeout_s}, timeout=timeout_s + 30).json()
        page = self.client.get(f"{where}/output").json()
        assert not told["running"], page
        assert told["exit"]["exit_code"] == 0, (told, page)
        text = "".join(piece["data"] for piece in page["chunks"] if piece["stream"] == "stdout")
        return dict(json.loads(text.splitlines()[-1]))

    @staticmethod
    def until(look: Callable[[], Any], timeout_s: float = 15.0) -> Any:
        """Ask until there is an answer that is true."""
        deadline = time.monotonic() + timeout_s
        while not (answer := look()):
            assert time.monotonic() < deadline, "it did not come to pass"
            time.sleep(0.05)
        return answer

    def refusals(self, box: str) -> list[dict[str, Any]]:
        """What the sandbox was refused, as the API tells."""
        answer = self.client.get(f"/sandboxes/{box}/network/refusals")
        assert answer.status_code == 200, answer.text
        return list(answer.json()["refusals"])

    def facts(self, box: str) -> dict[str, Any]:
        """The engine's own record of a box: `init_pid`, `address`."""
        assert self.server.process is not None
        run_dir = Path(f"/proc/{self.server.process.pid}/root{self.server.run_dir}")  # it has mounts of its own
        return dict(json.loads((run_dir / "sb" / box.removeprefix("sb_") / "box.json").read_text()))

    def drop(self) -> None:
        """Delete the sandboxes, and look at the world anew."""
        while self._made:
            self.client.delete(f"/sandboxes/{self._made.pop()}")
        self.world.forget()

    def close(self) -> None:
        self.drop()
        self.client.close()


def assert_refused(words: dict[str, Any], *, allowed: frozenset[str] = REFUSED) -> None:
    """Every value is one of the words of a refusal."""
    bad = {key: value for key, value in words.items() if value not in allowed and not str(value).startswith(_NO)}
    assert not bad, bad
