"""What the tests of pause, hibernation, snapshots and forks share: a caller, and programs that notice every lost byte.

A `Scene` is a sandbox at work: a Python process with checksummed memory that changes, a file that it keeps writing, a
child behind a pipe, a server; a shell with variables, vim with unsaved text, a command whose output grows. The host
plays the same changes and so knows what each of them must say. `LOCKSTEP` is a program that ends with a word in
`/root/apart` as soon as what it remembers is not what lies on the disk.
"""

from __future__ import annotations

import base64
import hashlib
import random
from pathlib import Path
from typing import Any, Final, Self

import httpx2

from tests_support import SOAK, Footprint, RunningServer
from waiting_support import until

MEMORY_MIB: Final = 256 if SOAK else 64
PORT: Final = 8000
_PAGE: Final = 1 << 20
_CHANGES: Final = 8

PROGRAM: Final = """
import hashlib, http.server, json, os, random, subprocess, sys, threading, time
pages, seed = int(sys.argv[1]), int(sys.argv[2])
chance = random.Random(seed)
memory = [bytearray(chance.randbytes(1 << 20)) for _ in range(pages)]
ledger = open("/root/ledger", "w+", buffering=1)
gone = open("/tmp/gone", "wb", buffering=0)
os.unlink("/tmp/gone")
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
state = {"step": 0, "ticks": 0}

def tick():
    while True:
        time.sleep(0.02)
        state["ticks"] += 1

def step():
    state["step"] += 1
    chance = random.Random(seed * 1000003 + state["step"])
    for _ in range(CHANGES):
        at, where = chance.randrange(pages), chance.randrange((1 << 20) - 64)
        memory[at][where:where + 64] = chance.randbytes(64)
    digest = hashlib.sha256(b"".join(hashlib.sha256(page).digest() for page in memory)).hexdigest()
    ledger.write("%d %s\\n" % (state["step"], digest))
    gone.write(b"x")
    child.stdin.write(b"%d\\n" % state["step"])
    child.stdin.flush()
    echoed = int(child.stdout.readline())
    return {**state, "memory": digest, "position": ledger.tell(), "gone": os.fstat(gone.fileno()).st_size,
            "echoed": echoed, "pid": os.getpid(), "threads": threading.active_count(), "cwd": os.getcwd()}

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(step()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

threading.Thread(target=tick, daemon=True).start()
server = http.server.HTTPServer(("127.0.0.1", 8000), Handler)
print("ready", flush=True)
server.serve_forever()
""".replace("CHANGES", str(_CHANGES))

LOCKSTEP: Final = """
import mmap, os, struct, sys
SLOTS = 4096
home, other = sys.argv[1], sys.argv[2]
os.makedirs(home, exist_ok=True)
os.chdir(home)

def opened(name):
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

def apart(what, seen, wanted):
    with open("/root/apart", "a") as file:
        file.write("%s %s: %s is %r, memory says %r\\n" % (home, os.getpid(), what, seen, wanted))
    os._exit(1)

def check(n):
    for what, fd, each in (("log", log, 1), ("synced", synced, 64)):
        size, wanted = os.fstat(fd).st_size, n // each * 8
        if size != wanted:
            apart(what + "'s size", size, wanted)
        if size and struct.unpack("=Q", os.pread(fd, 8, size - 8))[0] != n // each * each:
            apart(what, os.pread(fd, 8, size - 8), n)
    for ahead in range(-3, 4):
        at, wanted = (n + ahead) % SLOTS, n + ahead if ahead <= 0 else n + ahead - SLOTS
        seen = struct.unpack_from("=Q", slots, at * 8)[0]
        if seen != max(wanted, 0):
            apart("mapped slot %d" % at, seen, wanted)
    if os.fstat(theirs).st_size != n * 8:
        apart("the other's log", os.fstat(theirs).st_size, n * 8)

log, synced = opened("log"), opened("synced")
mapped = os.open("mapped", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
os.ftruncate(mapped, SLOTS * 8)
slots = mmap.mmap(mapped, SLOTS * 8)
there, back = os.pipe(), os.pipe()
theirs = opened("theirs")
if os.fork() == 0:
    # Another process: it writes the same count, and what the first has written must be there when it is told.
    mine = 0
    while os.read(there[0], 1):
        mine += 1
        if os.fstat(log).st_size != mine * 8:
            apart("seen by the other, the log's size", os.fstat(log).st_size, mine * 8)
        os.write(theirs, struct.pack("=Q", mine))
        os.write(back[1], b".")
    os._exit(0)
n = 0
while True:
    check(n)
    n += 1
    os.write(log, struct.pack("=Q", n))
    if n % 64 == 0:
        os.write(synced, struct.pack("=Q", n))
        if n % 1024 == 0:
            os.fsync(synced)
    struct.pack_into("=Q", slots, n % SLOTS * 8, n)
    if n % 2048 == 0:
        slots.flush()
    os.write(there[1], b".")
    os.read(back[0], 1)
"""
"""Appends: a disk that is ahead of the memory, or behind it, stays so and is seen at the next step."""


class Caller:
    """One client of the native API, in this issue's words. What is refused fails the test, unless it is wanted.

    Open while the context is: a test that fails leaves no socket to the ones after it.
    """

    def __init__(self, server: RunningServer, *, key: str | None = None) -> None:
        self.server = server
        self.client = server.client(timeout=120.0)
        if key is not None:
            self.client.headers["Authorization"] = f"Bearer {key}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.client.close()

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        answer = self.client.request(method, path, json=body)
        assert answer.status_code < 400, f"{method} {path}: {answer.status_code} {answer.text}"
        return dict(answer.json()) if answer.content else {}

    def refused(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """The problem that comes in place of an answer, with its status."""
        answer = self.client.request(method, path, json=body)
        assert answer.status_code >= 400, f"{method} {path}: {answer.status_code} {answer.text}"
        return dict(answer.json())

    def create(self, **wishes: object) -> str:
        return str(self.ask("POST", "/sandboxes", wishes)["id"])

    def get(self, box: str) -> dict[str, Any]:
        return self.ask("GET", f"/sandboxes/{box}")

    def state(self, box: str) -> str:
        return str(self.get(box)["state"])

    def act(self, box: str, verb: str, **wishes: object) -> dict[str, Any]:
        """`pause`, `resume`, `hibernate`, `rollback`."""
        return self.ask("POST", f"/sandboxes/{box}/{verb}", wishes or None)

    def snapshot(self, box: str, **wishes: object) -> dict[str, Any]:
        return self.ask("POST", f"/sandboxes/{box}/snapshots", wishes)

    def restore(self, snapshot: str, **wishes: object) -> str:
        return str(self.ask("POST", f"/snapshots/{snapshot}/restore", wishes)["id"])

    def fork(self, box: str, count: int = 1, **wishes: object) -> list[str]:
        answer = self.ask("POST", f"/sandboxes/{box}/fork", {"count": count, **wishes})
        return [str(one["id"]) for one in answer["sandboxes"]]

    def end(self, *boxes: str) -> None:
        for box in boxes:
            self.ask("DELETE", f"/sandboxes/{box}")

    def drop(self, *snapshots: str) -> None:
        for snapshot in snapshots:
            self.ask("DELETE", f"/snapshots/{snapshot}")

    def run(self, box: str, command: str | list[str], **more: object) -> dict[str, Any]:
        return self.ask("POST", f"/sandboxes/{box}/exec", {"command": command, **more})

    def said(self, box: str, command: str | list[str], **more: object) -> str:
        result = self.run(box, command, **more)
        assert result["exit_code"] == 0, result
        return str(result["stdout"])

    def put(self, box: str, path: str, data: str | bytes) -> None:
        answer = self.client.put(f"/sandboxes/{box}/files/content", params={"path": path}, content=data)
        assert answer.status_code < 300, answer.text

    def read(self, box: str, path: str) -> bytes | None:
        answer = self.client.get(f"/sandboxes/{box}/files/content", params={"path": path})
        return answer.content if answer.status_code == 200 else None

    def start(self, box: str, program: str, *argv: str, **more: object) -> str:
        """A Python program as a background command; its id."""
        path = f"/root/program-{hashlib.sha256(program.encode()).hexdigest()[:8]}.py"
        self.put(box, path, program)
        body = {"command": ["python3", path, *argv], **more}
        return str(self.ask("POST", f"/sandboxes/{box}/commands", body)["id"])

    def output(self, box: str, command: str, **query: object) -> str:
        answer = self.client.get(f"/sandboxes/{box}/commands/{command}/output", params=query)  # type: ignore[arg-type]
        assert answer.status_code == 200, answer.text
        assert answer.json()["lost_bytes"] == 0
        return "".join(chunk["data"] for chunk in answer.json()["chunks"])

    def fetch(self, box: str, path: str = "/", port: int = PORT) -> dict[str, Any]:
        """JSON from a program's server in the sandbox."""
        answer = self.client.get(f"/sandboxes/{box}/ports/{port}/http{path}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def facts(self, box: str) -> dict[str, Any]:
        """The engine's own record of a box: `init_pid`, `uid_base`, `address`."""
        return dict(httpx2.Response(200, content=self.record(box).read_bytes()).json())

    def record(self, box: str) -> Path:
        process = self.server.process
        assert process is not None
        run_dir = Path(f"/proc/{process.pid}/root{self.server.run_dir}")  # it has mounts of its own
        return run_dir / "sb" / box.removeprefix("sb_") / "box.json"


class Mirror:
    """What the program's memory and ledger must be after so many steps."""

    def __init__(self, pages: int, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 (repeatable on purpose)
        self.seed = seed
        self.step = 0
        self.ledger = b""
        self._pages = [bytearray(chance.randbytes(_PAGE)) for _ in range(pages)]
        self._digests = [hashlib.sha256(page).digest() for page in self._pages]

    def copy(self) -> Mirror:
        """For a fork: from here on it changes apart from this one."""
        made = object.__new__(Mirror)
        made.seed, made.step, made.ledger = self.seed, self.step, self.ledger
        made._pages = [bytearray(page) for page in self._pages]
        made._digests = list(self._digests)
        return made

    def advance(self) -> str:
        """One step; the digest of all memory after it."""
        self.step += 1
        chance = random.Random(self.seed * 1000003 + self.step)  # noqa: S311
        touched = set()
        for _ in range(_CHANGES):
            at, where = chance.randrange(len(self._pages)), chance.randrange(_PAGE - 64)
            self._pages[at][where : where + 64] = chance.randbytes(64)
            touched.add(at)
        for at in touched:
            self._digests[at] = hashlib.sha256(self._pages[at]).digest()
        digest = hashlib.sha256(b"".join(self._digests)).hexdigest()
        self.ledger += f"{self.step} {digest}\n".encode()
        return digest


class Scene:
    """A sandbox at work, and what it must say. `check` advances everything in it by one step and compares."""

    def __init__(self, caller: Caller, box: str, mirror: Mirror, *, has_editor: bool) -> None:
        self.caller = caller
        self.box = box
        self.mirror = mirror
        self.has_editor = has_editor
        self.program = self.counter = self.shell = self.editor = ""
        self.pid = 0
        self.count = 0
        self.ticks = 0
        self.turn = 0
        self.text = ""

    @classmethod
    def begin(cls, caller: Caller, box: str, *, memory_mib: int, has_editor: bool = False, seed: int = 7) -> Scene:
        """Start everything in a new sandbox."""
        scene = cls(caller, box, Mirror(memory_mib, seed), has_editor=has_editor)
        scene.program = caller.start(box, PROGRAM, str(memory_mib), str(seed))
        body = {"command": "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"}
        scene.counter = caller.ask("POST", f"/sandboxes/{box}/commands", body)["id"]
        scene.shell = caller.ask("POST", f"/sandboxes/{box}/shells", {"program": "bash"})["id"]
        scene.in_shell("cd /tmp && turn=0 && list=(a 'b c') && told() { echo \"$turn $PWD ${list[1]}\"; }")
        if has_editor:
            opened = caller.ask(
                "POST", f"/sandboxes/{box}/terminals", {"command": ["vim", "-N", "-u", "NONE", "/root/poem"]}
            )
            scene.editor = str(opened["id"])
            until(lambda: "poem" in scene.screen(), "vim does not come up")
            scene.type("i")
        until(lambda: "ready" in caller.output(box, scene.program), "the program does not start", 60)
        scene.pid = caller.fetch(box)["pid"]
        scene.mirror.advance()
        return scene

    def forked(self, box: str) -> Scene:
        """The same scene in a copy of the sandbox."""
        made = Scene(self.caller, box, self.mirror.copy(), has_editor=self.has_editor)
        made.program, made.counter, made.shell, made.editor = self.program, self.counter, self.shell, self.editor
        made.pid, made.count, made.ticks, made.turn, made.text = (
            self.pid,
            self.count,
            self.ticks,
            self.turn,
            self.text,
        )
        return made

    def in_shell(self, command: str) -> str:
        result = self.caller.ask("POST", f"/sandboxes/{self.box}/shells/{self.shell}/run", {"command": command})
        assert result["exit_code"] == 0, result
        return str(result["stdout"])

    def screen(self) -> str:
        where = f"/sandboxes/{self.box}/terminals/{self.editor}/output"
        answer = self.caller.client.get(where, params={"encoding": "base64"})
        assert answer.status_code == 200, answer.text
        return b"".join(base64.b64decode(chunk["data"]) for chunk in answer.json()["chunks"]).decode(errors="replace")

    def type(self, text: str) -> None:
        answer = self.caller.client.post(f"/sandboxes/{self.box}/terminals/{self.editor}/input", content=text.encode())
        assert answer.status_code < 300, answer.text

    def check(self) -> None:
        """One step of everything, compared with what it must be."""
        self.check_program()
        self.check_counter()
        self.turn += 1
        assert self.in_shell("turn=$((turn+1)); told") == f"{self.turn} /tmp b c\n"
        if self.has_editor:
            self.check_editor()

    def check_program(self) -> None:
        """Memory, the file that is open, the deleted one, the child behind a pipe, threads and their timers."""
        mirror, seen = self.mirror, self.caller.fetch(self.box)
        digest = mirror.advance()
        assert (seen["step"], seen["memory"]) == (mirror.step, digest)
        assert (seen["pid"], seen["echoed"], seen["gone"]) == (self.pid, mirror.step, mirror.step)
        assert seen["position"] == len(mirror.ledger)
        assert self.caller.read(self.box, "/root/ledger") == mirror.ledger
        assert seen["ticks"] > self.ticks, "its thread's timer stands still"
        self.ticks = seen["ticks"]

    def check_counter(self) -> None:
        """The background command: all of its output is there, without a gap, and it grows."""

        def counted() -> list[int]:
            text = self.caller.output(self.box, self.counter)
            return [int(line) for line in text[: text.rfind("\n") + 1].split()]

        numbers = until(lambda: n if len(n := counted()) > self.count else None, "the command's output stands still")
        assert numbers == list(range(1, len(numbers) + 1))
        self.count = len(numbers)

    def check_editor(self) -> None:
        """Unsaved text in a terminal: more of it is typed, and a copy is written, but never the file itself."""
        self.text += f"line {self.turn}\n"
        self.type(f"line {self.turn}\r\x1b:w! /root/copy{self.turn}\ri")
        wanted = (self.text + "\n").encode()
        path = f"/root/copy{self.turn}"
        until(lambda: self.caller.read(self.box, path) == wanted, "vim's text is not what was typed")
        assert self.caller.read(self.box, "/root/poem") is None


def lockstep(caller: Caller, box: str, count: int = 2) -> None:
    """Start so many pairs of processes that write in lock-step."""
    for number in range(count):
        caller.start(box, LOCKSTEP, f"/root/lock{number}", "-")
    for number in range(count):
        until(lambda number=number: steps(caller, box, number) > 2000, "the program in lock-step does not get on")


def steps(caller: Caller, box: str, number: int = 0) -> int:
    """How far one of them is."""
    info = caller.client.get(f"/sandboxes/{box}/files", params={"path": f"/root/lock{number}/log"})
    return int(info.json()["size"]) // 8 if info.status_code == 200 else 0


def assert_in_step(caller: Caller, box: str, count: int = 2) -> None:
    """They go on from the instant at which they were taken, and none has found its disk apart from its memory."""
    for number in range(count):
        before = steps(caller, box, number)
        until(lambda n=number, b=before: _apart(caller, box) or steps(caller, box, n) > b + 200, "it stands still")
        assert _apart(caller, box) is None, _apart(caller, box)


def _apart(caller: Caller, box: str) -> bytes | None:
    return caller.read(box, "/root/apart")


# What a failed operation may leave: nothing.


def engine_children(server: RunningServer, *names: str) -> list[int]:
    """The processes of those names that this server started, however deep."""
    assert server.process is not None
    found, below = [], [server.process.pid]
    while below:
        pid = below.pop()
        try:
            kids = [
                int(kid) for file in Path(f"/proc/{pid}/task").glob("*/children") for kid in file.read_text().split()
            ]
            if (Path(f"/proc/{pid}/comm").read_text().strip()) in names:
                found.append(pid)
        except OSError:
            continue
        below += kids
    return found


def strays(server: RunningServer) -> list[str]:
    """Command lines that name this server's directories and are neither it nor in a sandbox."""
    assert server.process is not None
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == server.process.pid:
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if (str(server.data_dir) in line or str(server.run_dir) in line) and "python" not in line.split("/")[-1][:6]:
            found.append(f"{entry.name} {line}")
    return found


def assert_nothing_left(caller: Caller) -> None:
    """After every sandbox and snapshot was deleted: no layer, checkpoint, process, cgroup, mount, place of a quota."""
    server = caller.server
    Footprint.of(server).assert_only_pool(server)
    used = caller.ask("GET", "/projects/default/quota")["used"]
    counts = {name: used[name] for name in ("sandboxes", "cpus", "memory_mib", "disk_mib", "snapshots")}
    assert not any(counts.values()), counts
    left = [str(path) for path in checkpoints_of(server).glob("*")]
    assert not left, left


def pool_of(server: RunningServer) -> Path:
    """Where layers lie, seen in the mount namespace of the server."""
    assert server.process is not None
    return Path(f"/proc/{server.process.pid}/root") / str(server.data_dir / "layers" / "btrfs").lstrip("/")


def checkpoints_of(server: RunningServer) -> Path:
    """Where memory images lie: beside the layers where those are a pool, else in the data directory."""
    beside = pool_of(server) / "checkpoints"
    return beside if beside.exists() else server.data_dir / "checkpoints"


def delete_all(caller: Caller) -> None:
    """Every sandbox and every snapshot."""
    for box in caller.ask("GET", "/sandboxes?limit=1000")["sandboxes"]:
        caller.client.delete(f"/sandboxes/{box['id']}")
    for snapshot in caller.ask("GET", "/snapshots?limit=1000")["snapshots"]:
        caller.client.delete(f"/snapshots/{snapshot['id']}")
    assert caller.ask("GET", "/sandboxes")["sandboxes"] == []
    until(lambda: caller.ask("GET", "/snapshots")["snapshots"] == [], "a snapshot is not removed")
